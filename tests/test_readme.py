"""The code examples of the README run without changes."""
import re
import sys
import types

import numpy as np
import pytest
import torch

from tests.support.places import ROOT
from utils.images.image_io import write_image, write_label

BLOCKS = [block for block in re.findall(r"```python\n(.*?)```",
                                        (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
          if re.search(r"^class ", block, re.MULTILINE)]


@pytest.fixture
def example(monkeypatch):
    """Returns the class of a README block, executed in a new module."""
    def made(name):
        block, = (block for block in BLOCKS if f"class {name}(" in block)
        module = types.ModuleType(f"example_{name.lower()}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(block, module.__dict__)
        assert module.__doc__, "the docstring of a file names the source of its idea"
        return getattr(module, name)
    return made


def test_every_example_is_run_below():
    names = [re.search(r"^class (\w+)", block, re.MULTILINE)[1] for block in BLOCKS]
    assert names == ["TinyNet", "Mine", "BrierLoss"]


def test_the_network_trains_and_predicts(example):
    network = example("TinyNet")(num_classes=5)
    image = torch.randn(2, 3, 9, 7)
    assert network.eval()(image).shape == (2, 5, 9, 7)
    assert network.train()(image).keys() == network.output_weights.keys()


def test_the_dataset_reads_its_files(example, tmp_path):
    for folder in ("images/train", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    label = np.array([[0, 1, 255]], np.uint8)
    write_image(tmp_path / "images" / "train" / "a.jpg", np.zeros((1, 3, 3), np.uint8))
    write_label(tmp_path / "labels" / "a.png", label, [])
    sample, = example("Mine")(str(tmp_path), "train")
    assert sample["id"] == "a" and (sample["label"].numpy() == label).all()


def test_the_loss_has_the_value_of_its_formula(example):
    loss = example("BrierLoss")()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
    assert loss == pytest.approx(0.5)        # (1 - 0.5)² + 0.5²
