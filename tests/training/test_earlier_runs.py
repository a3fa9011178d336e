"""start_file: what trainer.finetune_from means, and which runs are finished."""
import json
import shlex
from types import SimpleNamespace

import pytest
import torch

from tests.programs.test_train_py import COMMON, run
from tests.programs.test_trainer import make
from utils.checkpoint.read import read_checkpoint
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import CheckpointError
from utils.images.bands import Bands
from utils.images.normalize import Normalize
from utils.machine import distributed
from utils.training import run_setup
from utils.training.earlier_runs import is_finished, start_file, warn_of_other_input


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished run called first, and one of the name second that keeps only last.pth."""
    folder = tmp_path_factory.mktemp("saved")
    common = [*COMMON, "trainer.epochs=1", f"trainer.save_dir={folder}"]
    assert run(*common, "name=first", "trainer.val_per_epochs=1") == 0
    assert run(*common, "name=second", "trainer.val=false", "trainer.monitor=off") == 0
    return folder


def test_the_name_of_a_run_means_its_newest_best(saved, capsys):
    best, = saved.glob("first/*/model_best.pth")
    assert start_file("run:first", str(saved)) == str(best)
    assert f"run:first is {best}" in capsys.readouterr().err
    last, = saved.glob("second/*/last.pth")
    assert start_file("run:second/last.pth", str(saved)) == str(last)
    assert start_file("some/file.pth", str(saved)) == "some/file.pth"


@pytest.mark.parametrize("text, words", [
    ("run:fist", ["no run called 'fist' has a model_best.pth", "did you mean run:first?"]),
    ("run:second", ["run:second/last.pth", "it monitors nothing"]),
    ("run:first/other.pth", ["no run called 'first' has a other.pth"]),
])
def test_a_run_that_is_not_there_is_named_with_what_is(saved, text, words):
    with pytest.raises(CheckpointError) as caught:
        start_file(text, str(saved))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.slow
def test_a_run_starts_from_another_and_its_config_names_the_file(saved, capsys):
    assert run(*COMMON, f"trainer.save_dir={saved}", "name=third", "trainer.epochs=1",
               "trainer.finetune_from=run:first") == 0
    best, = saved.glob("first/*/model_best.pth")
    folder, = saved.glob("third/*/")
    config = json.loads((folder / "config.json").read_text())
    assert config["trainer"]["finetune_from"] == str(best)
    total = len(read_checkpoint(best)["model"])
    assert f"loaded {total} of {total} tensors" in capsys.readouterr().err
    assert run(*COMMON, f"trainer.save_dir={saved}", "name=third", "trainer.epochs=1",
               "trainer.finetune_from=run:first", "-r", "auto") == 0
    assert "differs from the checkpoint" not in capsys.readouterr().err


def test_a_run_is_finished_when_no_step_is_left(saved):
    last, = saved.glob("first/*/last.pth")
    assert is_finished(read_checkpoint(last))
    content = {**read_checkpoint(last)}
    content["config"]["trainer"]["epochs"] = 2
    assert not is_finished(content)
    content["config"]["trainer"] |= {"epochs": None, "iterations": content["step"] + 1}
    assert not is_finished(content)
    content["config"]["trainer"] |= {"iterations": content["step"]}
    assert is_finished(content)
    # Counted over fewer ranks now, the epochs before were longer.
    content["config"]["trainer"] |= {"iterations": content["step"] + 1}
    content["epoch"] = 99
    assert not is_finished(content)
    content["config"]["trainer"] |= {"iterations": 99999, "early_stop": 2}
    content["monitor"]["waited"] = 2
    assert is_finished(content)


def test_only_rank_0_reads_the_files_of_an_earlier_run(monkeypatch):
    def read(*_):
        raise AssertionError("another rank verified the checkpoint")
    monkeypatch.setattr("utils.training.earlier_runs.start_file", read)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "broadcast_object", lambda _: "saved/best.pth")
    config = {"trainer": {"finetune_from": "run:first", "save_dir": "saved"}}
    run_setup.Run.settle_start(SimpleNamespace(config=config, checkpoint=None))     # type: ignore
    assert config["trainer"]["finetune_from"] == "saved/best.pth"
    monkeypatch.setattr(distributed, "broadcast_object", lambda _: CheckpointError("gone"))
    with pytest.raises(CheckpointError, match="gone"):
        run_setup.Run.settle_start(SimpleNamespace(config=config, checkpoint=None))  # type: ignore


def test_a_start_file_with_other_input_is_told_with_the_numbers(capfd):
    saved = {"mean": [0.485, 0.456, 0.406], "std": [0.25] * 3, "order": "BGR", "scale": 255.0}
    warn_of_other_input("pretrained", saved, Normalize([0.5, 0.456, 0.406], [0.25] * 3))
    line, override = capfd.readouterr().err.splitlines()
    assert "mean was [0.485, 0.456, 0.406], is [0.5, 0.456, 0.406]; order was BGR, is RGB" in line
    assert "pretrained: its network" in line
    argument, = shlex.split(override)
    config = resolve_config(load_config("config.json", [argument]))
    assert config["normalize"] == saved
    warn_of_other_input("pretrained", {**saved, "order": "RGB"},
                        Normalize([0.485, 0.456, 0.406], [0.25] * 3))
    warn_of_other_input("pretrained", None, Normalize([0.5] * 3, [0.25] * 3))
    assert not capfd.readouterr().err


def of_bands(count, mean=5.0):
    bands = Bands(tuple(range(1, count + 1)), types=("uint16",))
    return Normalize([mean] * count, [2.0] * count, scale=1.0, bands=bands)


@pytest.mark.parametrize("saved, now, text", [
    (of_bands(4), Normalize([0.5] * 3, [0.25] * 3),
     "trained on 4 bands of uint16, and the images are RGB: the first convolution begins with new"),
    (of_bands(4), of_bands(6), "the images are 6 bands of uint16: the first convolution begins"),
    (of_bands(3), of_bands(6), "the images are 6 bands of uint16: the first convolution is adapt"),
    (of_bands(3), Normalize([0.5] * 3, [0.25] * 3), "is used as it is"),
    (of_bands(2), of_bands(2, 6.0), 'give the data\n  "mean": [5.0, 5.0], "std": [2.0, 2.0]')])
def test_a_start_file_of_other_bands_is_told(saved, now, text, capfd):
    warn_of_other_input("trainer.finetune_from", saved.state(), now)
    said = capfd.readouterr().err
    assert text in said and "normalize=" not in said


def test_fine_tuning_from_a_run_with_another_normalization_warns_once(tmp_path, capfd):
    make(tmp_path, "trainer.epochs=1").train()
    capfd.readouterr()
    path = tmp_path / "last.pth"
    state = torch.load(path, weights_only=True)
    state["normalization"]["mean"] = [0.1, 0.2, 0.3]
    torch.save(state, path)
    make(tmp_path, f"trainer.finetune_from={path}")
    assert capfd.readouterr().err.count("was [0.1, 0.2, 0.3], is [0.5, 0.5, 0.5]") == 1
