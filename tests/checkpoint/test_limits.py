"""A small file does not make a program build a huge network."""
import pytest
import torch
from torch import nn

from utils.checkpoint.limits import count_values, network_within
from utils.checkpoint.load import model_from_checkpoint
from utils.errors import CheckpointError

SMALL = {"w": torch.zeros(10)}


@pytest.mark.parametrize("build", [
    lambda: nn.Linear(10 ** 6, 10 ** 6), lambda: nn.Conv2d(10 ** 5, 10 ** 5, 3),
    lambda: nn.BatchNorm2d(10 ** 12), lambda: torch.full((10 ** 7, 10 ** 5), 1.),
    lambda: torch.zeros(10 ** 12), lambda: torch.ones(size=(10 ** 6, 10 ** 6)),
    lambda: [torch.zeros(1) for _ in range(10 ** 6)]])
def test_a_network_far_larger_than_its_weights_is_refused_before_it_takes_memory(build):
    with pytest.raises(CheckpointError, match="describes a network of at least"), \
            network_within(SMALL, "x.pth"):
        build()


def test_a_network_that_fits_its_weights_is_built_as_without_the_limit():
    torch.manual_seed(0)
    plain = nn.Conv2d(300, 3000, 3)
    torch.manual_seed(0)
    with network_within(plain.state_dict(), "x.pth"):
        limited = nn.Conv2d(300, 3000, 3)
    assert torch.equal(plain.weight, limited.weight)


def test_the_config_of_a_checkpoint_cannot_ask_for_a_huge_network():
    checkpoint = {"model": SMALL, "class_names": ["x"] * 10 ** 7,
                  "normalization": {"mean": [0.5] * 3}, "config": {
        "arch": {"type": "PSPNet", "args": {"backbone": "resnet18"}}}}
    with pytest.raises(CheckpointError, match="the file contains 1e-05 million"):
        model_from_checkpoint(checkpoint, where="x.pth")


def test_values_are_counted_as_stored_and_as_met():
    inner = [1, 2]
    assert count_values([inner, inner, {"a": 3}]) == (7, 10)
    assert count_values(5) == (0, 1)
