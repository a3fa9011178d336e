"""open_run: the config and the checkpoint that train.py starts with."""
import argparse
import errno
import json

import pytest
import torch

from utils.checkpoint import read
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import CheckpointError, ConfigError
from utils.training.run_folder import check_save_dir, create_run_folder, dataset_facts
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


@pytest.mark.parametrize("name", ["exp:1", "group/exp", ".hidden", "trailing.", "x" * 120,
                                  "\u65e5" * 90, "..", ""])
def test_auto_finds_the_runs_of_a_name_that_is_no_file_name(place, name):
    folder = create_run_folder(str(place), name)
    saved = read_checkpoint(last(place))
    write_checkpoint(folder / "last.pth", {**saved, "config": {**saved["config"], "name": name}})
    run = opened(place, f"name={json.dumps(name)}", config=str(place / "tiny.json"), resume="auto")
    assert run.checkpoint_path == folder / "last.pth"


def test_auto_does_not_take_the_run_of_another_name_that_is_cleaned_to_the_same(place, capsys):
    folder = create_run_folder(str(place), "exp:1")
    saved = read_checkpoint(last(place))
    write_checkpoint(folder / "last.pth", {**saved, "config": {**saved["config"],
                                                               "name": "exp:1"}})
    run = opened(place, "name=exp_1", config=str(place / "tiny.json"), resume="auto")
    assert run.checkpoint is None
    assert "no checkpoint of 'exp_1' to resume from" in capsys.readouterr().err


def test_auto_takes_the_runs_of_a_folder_that_was_renamed(place):
    (place / "tiny").rename(place / "other")
    run = opened(place, "name=other", config=str(place / "tiny.json"), resume="auto")
    assert run.checkpoint_path == place / "other" / "11-21_09-00-00" / "last.pth"


def test_a_folder_means_its_last_checkpoint(place, capsys):
    run = opened(place, resume=str(last(place).parent))
    assert run.checkpoint_path == last(place)
    assert f"resuming from {last(place)}" in capsys.readouterr().err


def test_a_damaged_checkpoint_names_the_newest_sound_one_and_an_unreadable_one_does_not(
        place, monkeypatch):
    other = last(place).with_name("checkpoint-epoch1.pth")
    other.write_bytes(last(place).read_bytes())
    last(place).write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointError, match="damaged") as error:
        opened(place, resume=str(last(place)))
    assert f"resume from {other}" in error.value.fix
    monkeypatch.setattr(read, "WAITS", ())
    monkeypatch.setattr(read, "verify_archive", fail)
    with pytest.raises(CheckpointError, match="could not be read: Input/output error") as error:
        opened(place, resume=str(last(place)))
    assert str(other) not in error.value.fix


def fail(path):
    raise OSError(errno.EIO, "Input/output error")


def test_the_network_of_a_resumed_run_may_not_be_far_larger_than_its_weights(place):
    run = opened(place, resume=str(last(place)))
    run.network(3)
    with pytest.raises(CheckpointError, match="describes a network of at least"):
        run.network(10 ** 7)


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


@pytest.fixture
def of_an_older_version(place):
    """The checkpoint of a run that was resumed with another rate and recorded it, but kept 0.1."""
    checkpoint = read_checkpoint(last(place))
    checkpoint["config"]["optimizer"]["args"] |= {"lr": 0.7, "weight_decay": 0.3}
    checkpoint["optimizer"] = {"state": {}, "param_groups": [
        {"params": [0], "name": "all", "lr": 0.02, "initial_lr": 0.1, "weight_decay": 0.0,
         "momentum": 0.8}]}
    checkpoint["scheduler"] = {"last_epoch": 3, "base_lrs": [0.1]}
    write_checkpoint(last(place), checkpoint)
    return place


def test_a_rate_that_an_older_version_recorded_and_did_not_use_is_corrected(of_an_older_version):
    for options in ({"resume": str(last(of_an_older_version))},
                    {"resume": "auto", "config": str(of_an_older_version / "tiny.json")}):
        run = opened(of_an_older_version, **options)
        args = run.config["optimizer"]["args"]
        assert args["lr"] == 0.1 and args["weight_decay"] == 0.0 and args["momentum"] == 0


def test_what_this_version_recorded_is_not_changed(of_an_older_version):
    write_checkpoint(last(of_an_older_version),
                     {**read_checkpoint(last(of_an_older_version)), "averaged": 0})
    run = opened(of_an_older_version, resume=str(last(of_an_older_version)))
    assert run.config["optimizer"]["args"]["lr"] == 0.7


def test_an_argument_that_an_older_torch_did_not_have_is_no_difference(place):
    checkpoint = read_checkpoint(last(place))
    del checkpoint["config"]["optimizer"]["args"]["dampening"]
    write_checkpoint(last(place), checkpoint)
    assert opened(place, config=str(place / "tiny.json"), resume=str(last(place))).checkpoint


def test_another_type_is_one_line(place, capsys):
    opened(place, 'lr_scheduler={"type": "StepLR", "args": {"step_size": 2}}',
           resume=str(last(place)))
    said = [line for line in capsys.readouterr().err.splitlines() if "lr_scheduler" in line]
    assert said == ["differs from the checkpoint: lr_scheduler.type was 'Poly', is 'StepLR'"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "tiny").write_text("a file")
    for save_dir, reason in ((tmp_path / "link", "is a link to nowhere"), (tmp_path, "is a file")):
        with pytest.raises(ConfigError, match=reason):
            check_save_dir(str(save_dir), "tiny")
    check_save_dir(str(tmp_path), "\N{GRINNING FACE}" * 100)
    check_save_dir(str(tmp_path), "a/b\0c")
