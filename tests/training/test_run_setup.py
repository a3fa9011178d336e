"""open_run: the config and the checkpoint that train.py starts with."""
import argparse
import json

import pytest
import torch

from utils.checkpoint.write import write_checkpoint
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError
from utils.training.run_folder import dataset_facts
from utils.training.run_setup import Run, open_run

CONFIG = {"name": "tiny", "arch": {"type": "ENet"}, "loss": "CE",
          "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
          "train_loader": {"type": "Shapes", "args": {"split": "train", "batch_size": 2}},
          "trainer": {"epochs": 2, "val": False}}


class Data(list):
    """A dataset without samples."""


@pytest.fixture
def place(tmp_path):
    """A config file, and the folder of a run of it with its last.pth."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    config = resolve_config(load_config(str(path), [f"trainer.save_dir={tmp_path}"]))
    folder = tmp_path / "tiny" / "11-21_09-00-00"
    folder.mkdir(parents=True)
    write_checkpoint(folder / "last.pth", {
        "format": 1, "model": {"w": torch.zeros(1)}, "ema": None, "config": config,
        "class_names": [], "palette": [], "normalization": {}, "epoch": 2, "step": 3, "samples": 0,
        "optimizer": {"state": {}}, "scheduler": {}, "scaler": {},
        "monitor": {"best": None, "epoch": None, "waited": 0},
        "dataset": dataset_facts(Data([1, 2]))})
    return tmp_path


def opened(place, *overrides, config=None, resume=None, allow=False):
    return open_run(argparse.Namespace(
        config=config, resume=resume, resume_allow_changes=allow,
        overrides=[f"trainer.save_dir={place}", *overrides]))


def last(place):
    return place / "tiny" / "11-21_09-00-00" / "last.pth"


def test_a_new_run_has_the_resolved_config_and_no_checkpoint(place):
    run = opened(place, config=str(place / "tiny.json"))
    assert run.checkpoint is None and run.config["trainer"]["accumulate"] == 1


def test_the_config_comes_from_the_checkpoint_if_none_is_given(place):
    run = opened(place, "trainer.epochs=5", resume=str(last(place)))
    assert run.checkpoint_path == last(place)
    assert run.config["name"] == "tiny" and run.config["trainer"]["epochs"] == 5


def test_auto_resumes_from_the_newest_checkpoint_of_the_run_name(place, capsys):
    run = opened(place, config=str(place / "tiny.json"), resume="auto")
    assert run.checkpoint_path == last(place)
    assert f"resuming from {last(place)}" in capsys.readouterr().err


def test_a_change_of_the_order_of_samples_must_be_allowed(place):
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        opened(place, "seed=1", resume=str(last(place)))
    assert opened(place, "seed=1", resume=str(last(place)), allow=True).config["seed"] == 1


def test_settings_that_the_checkpoints_version_did_not_have_are_no_difference(place, capsys):
    before = torch.load(last(place), weights_only=True)
    for section, key in ((before["config"]["train_loader"]["args"], "vflip"),
                         (before["config"]["loss"]["args"], "label_smoothing"),
                         (before["config"]["trainer"], "ema")):
        del section[key]
    write_checkpoint(last(place), before)
    assert opened(place, resume=str(last(place))).config["train_loader"]["args"]["vflip"] is False
    assert "differs" not in capsys.readouterr().err
    opened(place, "train_loader.args.vflip=true", resume=str(last(place)))
    assert "train_loader.args.vflip was False, is True" in capsys.readouterr().err


def test_other_data_than_the_checkpoints_is_refused(place):
    run = opened(place, resume=str(last(place)))
    run.require_same_data(Data([1, 2]))
    with pytest.raises(ConfigError, match="2 samples when the checkpoint was saved, 3 now"):
        run.require_same_data(Data([1, 2, 3]))


def test_pretrained_weights_are_not_loaded_when_a_checkpoint_replaces_them():
    config = {"arch": {"type": "PSPNet", "args": {"pretrained": True, "backbone": "resnet18"}}}
    assert Run(config).arch["args"]["pretrained"]
    checkpoint = {"format": 1}
    assert Run(config, checkpoint).arch["args"] == {"backbone": "resnet18"}
