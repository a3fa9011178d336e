"""Checks between keys, and of value ranges."""

import pytest

from tests.config.samples import VOC, mistakes, only_mistake, small
from utils.config.cross_checks import settings_without_effect
from utils.config.load import load_stages
from utils.config.recipes import recipe_files
from utils.config.registry import components
from utils.config.schema import resolve_config


def test_an_unknown_backbone_is_found_before_the_model_is_built():
    line = only_mistake(small(arch={"type": "PSPNet", "args": {"backbone": "resnet51"}}))
    assert line.startswith("arch.args.backbone: unknown backbone 'resnet51'. Did you mean 'resnet")
    assert resolve_config(small(arch={"type": "PSPNet", "args": {"backbone": "timm/any"}}))


@pytest.mark.parametrize("changes, line", [
    ({"loss": {"out": "CE", "au": "CE"}}, "loss.au: unknown output 'au'. Did you mean 'aux'?"),
    ({"loss": ["CE", "CE", "CE"]}, "loss: 3 losses; PSPNet has 2 outputs: out, aux"),
    ({"loss": ["CE", "CE"], "loss_weights": [1.0]}, "loss_weights: expected 2 weights"),
    ({"loss": "CE", "loss_weights": [1.0, 0.4]}, "loss_weights: has an effect only when"),
    ({"ignore_index": 20}, "ignore_index: 20 is a class of the dataset (0 to 20)"),
    ({"ignore_index": 2 ** 31}, "ignore_index: 2147483648 does not fit 32 bits"),
    ({"test_loader": {"type": "VOC", "args": {"data_dir": "d", "split": "tst"}}},
     "test_loader.args.split: unknown split 'tst'. Did you mean 'test'?"),
    ({"trainer": {"epochs": 2, "val": True}}, "trainer.val: is true, but there is no val_loader"),
    ({"trainer": {"val": False}}, "trainer: expected exactly one of epochs and iterations"),
    ({"trainer": {"epochs": 0, "val": False}}, "trainer.epochs: expected at least 1"),
    ({"trainer": {"epochs": 2, "val": False, "monitor": "max Mean_IOU"}},
     "trainer.monitor: unknown metric 'Mean_IOU'. Did you mean 'Mean_IoU'?"),
    ({"trainer": {"epochs": 2, "val": False, "monitor": "Mean_IoU"}}, "trainer.monitor: expected"),
    ({"predict": {"val": "mxa"}}, 'predict.val: expected one of "max", "T", '),
    ({"predict": {"overlap": 1}}, "predict.overlap: "),
    ({"predict": {"temperature": 0}}, "predict.temperature: "),
    ({"predict": {"val": "T", "threshold": 2}}, "predict.threshold: "),
    ({"predict": {"CoI": "some"}}, 'predict.CoI: expected "all" or a list of classes'),
    ({"predict": {"CoI": [0, 21]}}, "predict.CoI: expected classes from 0 to 20, found 21 (int)"),
    ({"predict": {"scales": [0.5]}}, "predict.scales: "),
])
def test_settings_that_contradict_each_other_or_their_range_are_found(changes, line):
    assert only_mistake(small(**changes)).startswith(line)


@pytest.mark.parametrize("changes, lines", [
    ({}, []),
    ({"trainer": {"early_stop": 3, "monitor": "min loss"}},
     ["trainer.monitor has no effect: val is false",
      'trainer.early_stop has no effect: val is false or monitor is "off"']),
    ({"trainer": {"log_dir": "x", "tensorboard": False, "max_skipped": 3}},
     ['trainer.max_skipped has no effect: nonfinite is "stop"',
      "trainer.log_dir has no effect: tensorboard is false"]),
    ({"args": {"num_workers": 0, "timeout": 3, "flip": True, "scale": [0.5, 1]}},
     ["train_loader.args.timeout has no effect: num_workers is 0",
      "train_loader.args.scale, train_loader.args.flip have no effect: augment is false"]),
    ({"args": {"val": True, "crop_size": 64, "base_size": 100}},
     ["train_loader.args.base_size has no effect: val cuts the crop out of the image resized to "
      "crop_size"]),
    ({"args": {"augment": True, "flip": True, "blur": True, "base_size": 100}}, []),
])
def test_settings_without_effect_are_listed_with_the_reason(changes, lines):
    config = small()
    config["trainer"] |= changes.get("trainer", {})
    config["train_loader"]["args"] |= changes.get("args", {})
    assert settings_without_effect(resolve_config(config)) == lines


@pytest.mark.parametrize("path", list(recipe_files()), ids=lambda p: p.stem)
def test_no_published_config_has_a_setting_without_effect(path):
    assert [settings_without_effect(resolve_config(stage)) for stage in load_stages(path)
            if settings_without_effect(resolve_config(stage))] == []


def test_datasets_of_different_classes_cannot_be_combined(monkeypatch):
    class Other(VOC):
        num_classes = 19
    monkeypatch.setitem(components("datasets"), "Other", Other)
    line = only_mistake(small(test_loader={"type": "Other",
                                           "args": {"data_dir": "d", "split": "test"}}))
    assert line.startswith("test_loader.type: Other has 19 classes, the training set VOC has 21")


def test_a_setting_out_of_range_is_reported_together_with_a_misspelled_one():
    lines = mistakes(small(trainer={"epcohs": 2, "save_every": -1, "val": False, "ema": "x"}))
    assert [line.partition(": ")[0] for line in lines] == ["trainer.epcohs", "trainer.ema",
                                                           "trainer.save_every"]


def test_void_is_trained_by_every_loader_or_none_and_is_not_averaged():
    loader = {"type": "VOC", "args": {"data_dir": "d", "split": "train", "train_void": True}}
    other = {"type": "VOC", "args": {"data_dir": "d", "split": "val"}}
    assert mistakes(small(train_loader=loader, val_loader=other)) == [
        "val_loader.args.train_void: expected true, as in the other loaders",
        "predict.CoI: train_void adds the class void, over which no score averages: list the "
        "others, [0, 1, …, 20]"]
    resolve_config(small(train_loader=loader, predict={"CoI": list(range(21))},
                         loss={"type": "CE", "args": {"weight": [1.0] * 22}}))
