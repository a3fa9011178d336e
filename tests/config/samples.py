"""Configs and checks that the tests of utils/config share."""
import re

import pytest
from hypothesis import strategies as st

from utils.config.schema import resolve_config
from utils.errors import ConfigError, DataError

# The block that the READMEs of yassouali/pytorch-segmentation and RankDice show.
README = """{
"name": "PSPNet",                 // training session name
"n_gpu": 1,                       // number of GPUs
"use_synch_bn": true,             // synchronized batch norm
"arch": {"type": "PSPNet",        // name of the architecture
         "args": {"backbone": "resnet50", "freeze_bn": false, "freeze_backbone": false}},
"train_loader": {"type": "VOC",   // name of the dataset
    "args": {"data_dir": "data/", "batch_size": 32, "augment": true, "crop_size": 380,
             "shuffle": true, "base_size": 400, "scale": true, "flip": true, "rotate": true,
             "blur": true, "split": "train_aug", "num_workers": 8}},
"val_loader": {"type": "VOC",     // the same for validation
    "args": {"data_dir": "data/", "batch_size": 32, "crop_size": 480, "val": true,
             "split": "val", "num_workers": 4}},
"optimizer": {"type": "SGD", "differential_lr": true,
              "args": {"lr": 0.01, "weight_decay": 1e-4, "momentum": 0.9}},
"loss": "CrossEntropyLoss2d",     // loss
"ignore_index": 255,
"lr_scheduler": {"type": "Poly", "args": {}},
"trainer": {"epochs": 80, "save_dir": "saved/", "save_period": 10, "monitor": "max Mean_IoU",
            "early_stop": 10, "tensorboard": true, "log_dir": "saved/runs", "log_per_iter": 20,
            "val": true, "val_per_epochs": 5}
}"""


# NUL and surrogates are refused.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT
    | st.sampled_from(["CE", "PSPNet", "MixedLoss", "max", "auto", "type", "args", "~", "${X"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "args", "losses", "out", "aux", "lr", "weight"])
                      | TEXT, inner, max_size=3), max_leaves=8)


class VOC:
    """A dataset of 21 classes without files."""

    num_classes = 21
    splits = ("train", "train_aug", "val", "test", "none")

    def __init__(self, data_dir: str, split: str, ignore_index: int = 255, seed: int = 0,
                 augmentation=None):
        if split == "none":
            raise DataError("no such split")


def small(**changes):
    """A small valid config."""
    return {"arch": {"type": "PSPNet"},
            "train_loader": {"type": "VOC", "args": {"data_dir": "d", "split": "train"}},
            "optimizer": {"type": "SGD", "args": {"lr": 0.1}}, "loss": "CrossEntropyLoss2d",
            "trainer": {"epochs": 2, "val": False}, **changes}


def mistakes(config, **options):
    """The lines of the error that resolve_config raises, without the header."""
    with pytest.raises(ConfigError) as caught:
        resolve_config(config, **options)
    header, *lines = str(caught.value).splitlines()
    assert re.match(rf"{len(lines)} mistakes? in ", header)
    return [line.strip() for line in lines]


def only_mistake(config):
    lines = mistakes(config)
    assert len(lines) == 1, lines
    return lines[0]


def places_in(value, path=()):
    """The paths of all keys and indices in a value, its own path first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, item in items:
        yield from places_in(item, (*path, key))
