"""Activation checkpointing: the same numbers with less kept for backward."""
import torch
from torch import nn

from models.layers import checkpointing


class Counted(nn.Module):
    """A linear layer with dropout that counts its calls."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.calls = nn.Linear(4, 4), nn.Dropout(0.5), 0

    def forward(self, x, offset):
        self.calls += 1
        return self.drop(self.linear(x)) + offset


def gradient(block, active):
    torch.manual_seed(3)
    block.zero_grad()
    checkpointing.run(block, torch.ones(2, 4), 1.0, active=active).sum().backward()
    grad = block.linear.weight.grad
    assert grad is not None
    return grad


def test_a_checkpointed_block_with_dropout_has_equal_gradients():
    block = Counted()
    assert gradient(block, active=True).equal(gradient(block, active=False))


def test_a_checkpointed_block_is_computed_again_in_backward():
    block = Counted()
    gradient(block, active=True)
    assert block.calls == 2


def test_without_gradients_a_checkpointed_block_is_computed_once():
    block = Counted()
    with torch.no_grad():
        checkpointing.run(block, torch.ones(2, 4), 1.0, active=True)
    assert block.calls == 1
