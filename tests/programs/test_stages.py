"""train.py with a chain of stages: each starts from the one before, none is repeated."""
import json

import pytest

from tests.programs.test_train_py import run
from tests.support.places import ROOT
from tests.support.run_program import SMALL
from utils.checkpoint.read import read_checkpoint
from utils.config.load import load_config, load_stages
from utils.errors import ConfigError

QUICK = [*[one for one in SMALL if not one.startswith("trainer.epochs")],
         "train_loader.args.num_workers=0", "trainer.val_per_epochs=1"]


@pytest.fixture
def chain(tmp_path):
    """The path of a chain of two stages, and its overrides."""
    path = tmp_path / "chain.json"
    path.write_text(json.dumps({
        "extends": str(ROOT / "config.json"), "name": "chain", "stages": [
            {"trainer": {"epochs": 1}},
            {"optimizer": {"args": {"lr": 0.001}}, "trainer": {"epochs": 2}}]}))
    return ["-c", path, *QUICK, f"trainer.save_dir={tmp_path / 'saved'}"]


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
