"""Skips the start values of weights: drawing them takes most of the time of building a network.

On the meta device and in fake tensors there are no values to draw; everywhere else a test says
with `no_start_values` that it sets all weights itself.
"""
import contextlib
import functools
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensor

_skip_all = False


@contextlib.contextmanager
def no_start_values() -> Iterator[None]:
    """Networks built in the block have memory that nobody has written as weights."""
    global _skip_all
    before, _skip_all = _skip_all, True
    try:
        yield
    finally:
        _skip_all = before


def skip_where_there_are_no_values():
    """Make the functions of torch.nn.init return at once for tensors without values."""
    for name in dir(torch.nn.init):
        if name.endswith("_") and not name.startswith("_"):
            setattr(torch.nn.init, name, _skipping(getattr(torch.nn.init, name)))


def _skipping(function):
    @functools.wraps(function)
    def start(tensor, *args, **options):
        if _skip_all or isinstance(tensor, FakeTensor) or tensor.is_meta:
            return tensor
        return function(tensor, *args, **options)
    return start
