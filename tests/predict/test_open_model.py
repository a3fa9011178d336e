"""The classes of a checkpoint and those of the data that it is scored on."""
from pathlib import Path

import pytest
import torch

from utils.errors import ConfigError
from utils.images.normalize import Normalize
from utils.predict.open_model import OpenModel


def opened(*names):
    return OpenModel(Path("a.pth"), torch.nn.Identity(), Normalize([0.5] * 3, [0.5] * 3), {},
                     list(names), [[k] * 3 for k in range(len(names))], "softmax", 1)


def test_classes_in_another_order_are_refused_and_other_spellings_are_a_warning(capsys):
    network = opened("road", "sky", "car")
    network.require_classes(["road", "sky", "car"])
    assert capsys.readouterr().err == ""
    network.require_classes(["road", "heaven", "car"])
    assert "class 1 is 'heaven' and 'sky' (in the dataset and in the checkpoint)" in \
        " ".join(capsys.readouterr().err.split())
    for names in (["sky", "road", "car"], ["lane", "road", "car"]):
        with pytest.raises(ConfigError, match="the order of the classes differs: '"):
            network.require_classes(names)
    with pytest.raises(ConfigError, match="has 3 classes, the dataset 2"):
        network.require_classes(["road", "sky"])
