"""Networks that end in a resize are run without it, and others as they are."""
import torch
import torch.nn.functional as F
from torch import nn

from models.layers.resize import resize_to
from utils.predict.last_resize import LastResize, SmallLogits


class Net(nn.Module):
    """Ends in a resize to its input, or computes on after it."""

    def __init__(self, computes_on=False):
        super().__init__()
        self.head, self.computes_on = nn.Conv2d(3, 4, 1), computes_on

    def forward(self, x):
        out = resize_to(self.head(F.avg_pool2d(x, 4)), x)
        return out * 2 if self.computes_on else out


def test_a_network_is_run_without_its_last_resize():
    short, x = LastResize(Net().eval()), torch.randn(1, 3, 32, 40)
    for _ in range(2):
        small = short(x)
        assert isinstance(small, SmallLogits) and small.logits.shape == (1, 4, 8, 10)
        assert torch.equal(resize_to(small.logits, x), short.model(x))


def test_a_network_that_computes_on_after_its_resize_is_run_whole():
    short, x = LastResize(Net(computes_on=True).eval()), torch.randn(1, 3, 32, 40)
    for _ in range(2):
        assert torch.equal(short(x), short.model(x))


def test_a_network_that_changes_after_its_first_forward_is_run_whole():
    short, x = LastResize(Net().eval()), torch.randn(1, 3, 32, 40)
    short(x)
    short.model.computes_on = True
    for _ in range(2):
        assert torch.equal(short(x), short.model(x))
