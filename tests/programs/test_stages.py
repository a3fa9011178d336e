"""train.py with a chain of stages: each starts from the one before, none is repeated."""
import json
import shutil
import signal
import time

import pytest

from tests.programs.test_train_py import run
from tests.reliability.test_kill_resume import TINY
from tests.support.places import ROOT
from tests.support.ranks import free_port
from tests.support.run_program import SMALL, digest
from utils.checkpoint import find
from utils.checkpoint.read import read_checkpoint
from utils.config.load import load_config, load_stages
from utils.errors import ConfigError

QUICK = [*[one for one in SMALL if not one.startswith("trainer.epochs")], *TINY,
         "train_loader.args.num_workers=0", "trainer.val_per_epochs=1"]     # two steps an epoch


def arguments_of_chain(folder):
    """The path of a new chain of two stages, of two steps and of four, and its overrides."""
    path = folder / "chain.json"
    path.write_text(json.dumps({
        "extends": str(ROOT / "config.json"), "name": "chain", "stages": [
            {"trainer": {"epochs": 1}},
            {"optimizer": {"args": {"lr": 0.001}}, "trainer": {"epochs": 2}}]}))
    return ["-c", path, *QUICK]


@pytest.fixture
def chain(tmp_path):
    return [*arguments_of_chain(tmp_path), f"trainer.save_dir={tmp_path / 'saved'}"]


def test_the_stages_of_a_file_are_configs_with_names_and_starts(chain):
    first, second = load_stages(chain[1], ["seed=3", "stages[1].trainer.epochs=5"])
    assert (first["name"], second["name"]) == ("chain_stage1", "chain")
    assert first["seed"] == second["seed"] == 3
    assert "finetune_from" not in first["trainer"] and first["trainer"]["epochs"] == 1
    assert second["trainer"]["finetune_from"] == "run:chain_stage1"
    assert second["trainer"]["epochs"] == 5 and second["optimizer"]["args"]["lr"] == 0.001


def test_a_stage_that_extends_a_file_is_a_config_of_its_own(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "a", "seed": 1, "trainer": {"epochs": 9}}')
    (tmp_path / "c.json").write_text('{"name": "c", "ignore_index": 7, "stages": '
                                     '[{"extends": "a.json", "seed": 2}, {"seed": 5}]}')
    first, second = load_stages(tmp_path / "c.json", ["name=other"])
    assert first == {"name": "a", "seed": 2, "trainer": {"epochs": 9}}
    assert second == {"name": "other", "ignore_index": 7, "seed": 5,
                      "trainer": {"finetune_from": "run:a"}}


def test_a_program_for_one_config_refuses_stages(chain):
    with pytest.raises(ConfigError, match="the config has stages"):
        load_config(chain[1])


@pytest.mark.slow
def test_a_chain_trains_its_stages_in_turn_and_repeats_none(chain, tmp_path, capsys):
    """Seconds: two short trainings."""
    assert run(*chain, "-r", "auto") == 0
    one, = (tmp_path / "saved").glob("chain_stage1/*/")
    two, = (tmp_path / "saved").glob("chain/*/")
    config = json.loads((two / "config.json").read_text())
    assert config["trainer"]["finetune_from"] == str(one / "model_best.pth")
    assert read_checkpoint(one / "last.pth")["epoch"] == 2
    assert read_checkpoint(two / "last.pth")["epoch"] == 3
    capsys.readouterr()
    assert run(*chain, "-r", "auto") == 0
    told = capsys.readouterr().err
    assert f"stage 1 of 2, 'chain_stage1' is finished: {one}" in told
    assert f"stage 2 of 2, 'chain' is finished: {two}" in told and "epoch 1" not in told
    (two / "last.pth").unlink()
    (two / "model_best.pth").unlink()
    assert run(*chain, "-r", "auto") == 0       # the second stage alone, anew
    assert len(list((tmp_path / "saved").glob("chain_stage1/*/"))) == 1
    assert len(list((tmp_path / "saved").glob("chain/*/last.pth"))) == 1
    assert run(*chain, "-r", "auto", "seed=1", "--dry-run") == 0
    assert "stage 1 of 2, 'chain_stage1': starting;" in capsys.readouterr().err


@pytest.mark.slow
def test_finished_stages_are_found_without_their_weights(chain, tmp_path, capsys, monkeypatch):
    """Seconds: three short trainings."""
    assert run(*chain, "-r", "auto") == 0
    with monkeypatch.context() as without:
        without.setattr(find, "read_training", None)
        assert run(*chain, "-r", "auto") == 0
    last, = (tmp_path / "saved").glob("chain_stage1/*/last.pth")
    last.with_name("model_best.pth").unlink()
    content = bytearray(last.read_bytes())
    at = len(content) // 2
    content[at:at + 64] = bytes(64)             # weights, which no header shows
    last.write_bytes(content)
    capsys.readouterr()
    assert run(*chain, "-r", "auto") == 0       # the file that stage 2 would start from is damaged
    told = capsys.readouterr().err
    assert "stage 1 of 2, 'chain_stage1': starting" in told and "skipping" in told


def test_a_stage_that_starts_from_what_is_missing_is_told_before_the_first_one(chain, tmp_path,
                                                                               capsys):
    for start, said in (("run:nowhere", "no run called 'nowhere'"),
                        ("nowhere.pth", "nowhere.pth does not exist")):
        assert run(*chain, f"stages[1].trainer.finetune_from={start}") == 4
        assert said in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_stage_whose_folder_is_gone_is_trained_again_and_so_is_what_follows(chain, tmp_path,
                                                                              capsys):
    """Seconds: four short trainings."""
    assert run(*chain, "-r", "auto") == 0
    gone, = (tmp_path / "saved").glob("chain_stage1/*")
    shutil.rmtree(gone.parent)
    while time.strftime("%S") == gone.name[-2:]:        # the name of a run is its second
        time.sleep(0.05)
    capsys.readouterr()
    assert run(*chain, "-r", "auto") == 0
    told = capsys.readouterr().err
    assert "stage 1 of 2, 'chain_stage1': starting;" in told
    assert "stage 2 of 2, 'chain': starting from" in told
    assert len(list((tmp_path / "saved").glob("chain/*/last.pth"))) == 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The arguments of a chain that saves at every step."""
    return [*arguments_of_chain(tmp_path_factory.mktemp("tiny")), "trainer.save_every=1"]


AT_STEP = """
import os, trainer
step = trainer.Trainer._step
def killed(self, batches):
    if self.config["name"] == "{}" and self.progress.step == {}:
        os.killpg(0, 9)
    return step(self, batches)
trainer.Trainer._step = killed
"""


@pytest.fixture(scope="module")
def undisturbed(warm, tiny, tmp_path_factory):
    """The weights of both stages of the chain."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert warm.wait(warm.start(folder / "log", *tiny, f"trainer.save_dir={folder}")) == 0
    return weights(folder)


def weights(folder):
    """The digest of the last checkpoint of each stage, which was trained once."""
    found = []
    for name in ("chain_stage1", "chain"):
        path, = folder.glob(f"{name}/*/last.pth")
        found.append(digest(path))
    return found


@pytest.mark.slow       # a process that imports torch, once; three short trainings
@pytest.mark.parametrize("stage, step", [("chain_stage1", 1), ("chain", 3)])
@pytest.mark.parametrize("resumed", ["auto", "PATH"])
def test_a_chain_that_is_killed_goes_on_and_equals_an_undisturbed_one(
        warm, tiny, undisturbed, tmp_path, stage, step, resumed):
    arguments = [*tiny, f"trainer.save_dir={tmp_path}"]
    process = warm.start(tmp_path / "log", *arguments, fault=AT_STEP.format(stage, step))
    assert warm.wait(process) == -signal.SIGKILL
    last, = tmp_path.glob(f"{stage}/*/last.pth")
    assert read_checkpoint(last)["step"] == step
    process = warm.start(tmp_path / "again", *arguments, "-r",
                         last if resumed == "PATH" else "auto")
    assert warm.wait(process) == 0, (tmp_path / "again").read_text()
    assert weights(tmp_path) == undisturbed
    assert f"'{stage}': resuming from {last}" in (tmp_path / "again").read_text()


@pytest.mark.slow       # the same process; two ranks
def test_two_ranks_train_the_stages_and_find_them_finished(warm, tiny, tmp_path):
    arguments = [*tiny, f"trainer.save_dir={tmp_path}", "--device", "cpu", "-r", "auto"]
    for _ in range(2):
        port, ranks = str(free_port()), []
        for rank in range(2):
            ranks.append(warm.start(
                tmp_path / f"log{rank}", *arguments, RANK=str(rank), LOCAL_RANK=str(rank),
                WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        assert [warm.wait(rank) for rank in ranks] == [0, 0], (tmp_path / "log0").read_text()
    said = (tmp_path / "log0").read_text()
    assert "stage 2 of 2, 'chain': starting from" in said
    assert "stage 2 of 2, 'chain' is finished" in said
    assert len(weights(tmp_path)) == 2
    two, = tmp_path.glob("chain/*/config.json")
    assert "chain_stage1" in json.loads(two.read_text())["trainer"]["finetune_from"]


def test_a_chain_can_be_tried_and_printed_before_it_trains(chain, tmp_path, capsys):
    assert run(*chain, "--dry-run") == 0
    assert capsys.readouterr().err.count("config and data are correct") == 2
    assert run(*chain, "--print-config") == 0
    first, second = json.loads(capsys.readouterr().out)["stages"]
    assert second["trainer"]["finetune_from"] == "run:chain_stage1" and first["trainer"]["val"]
    assert not (tmp_path / "saved").exists()


def test_all_mistakes_of_all_stages_are_told_before_the_first_run(chain, tmp_path, capsys):
    assert run(*chain, "stages[0].trainer.epoch=1", "stages[1].seeds=1") == 2
    told = capsys.readouterr().err
    assert "stage 1 of" in told and "trainer.epoch: unknown key" in told
    assert "stage 2 of" in told and "seeds: unknown key" in told
    assert run(*chain, "stages[0].name=chain") == 2
    assert "two stages are called 'chain'" in capsys.readouterr().err
    assert run(*chain, "stages[2].seed=1") == 2
    assert "is not a key of one of 2 stages" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()
