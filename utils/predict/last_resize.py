"""A network's logits before its last resize.

Most networks compute logits at an eighth or a quarter of the image's size and end in a bilinear
resize. Labels, and sums over several scales, can be computed from the small logits, without
making the large ones. `models.layers.resize.resize_to` calls `watched` here, so that a
`LastResize` can leave out the resize.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.machine.tensors import ImageBatch, Logits

_watches = []       # innermost last; a resize belongs to the innermost watch on the same image


class SmallLogits(NamedTuple):
    """logits: (N, C, h, w). align_corners: of the bilinear resize that was left out."""

    logits: Logits
    align_corners: bool


class LastResize:
    """Runs a network without its last resize, if it ends in one.

    model: Its first eval forward is inspected. The shortcut is taken only if the result is the
        tensor that a single `resize_to(logits, x)` returned.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._present: bool | None = None       # None until the first forward

    def __call__(self, x: ImageBatch) -> Logits | SmallLogits:
        """SmallLogits if the network ends in a resize of x (N, 3, H, W), else its result."""
        if self._present is False:
            return self.model(x)
        with _watching(_Watch(x, leave_out=self._present is True)) as watch:
            result = self.model(x)
        last = [call for call in watch.calls if call.result is result]
        if self._present is None:
            self._present = len(watch.calls) == 1 and len(last) == 1
        elif not last and watch.calls:
            # This time the network computed on with the logits, which are too small: run it again.
            self._present = False
            return self.model(x)
        if self._present and last:
            return SmallLogits(last[0].small, last[0].align_corners)
        return result


def watched(small: torch.Tensor, like: Any, align_corners: bool,
            resize: Callable[[], torch.Tensor]) -> torch.Tensor:
    """`resize()`, or `small` (N, C, h, w) itself if a LastResize leaves out this resize.

    like: what `small` is resized to; the resize is watched if this is the network's input.
    """
    watch = next((w for w in reversed(_watches) if w.image is like), None)
    if watch is None:
        return resize()
    result = small if watch.leave_out else resize()
    watch.calls.append(_Call(small, align_corners, result))
    return result


def is_watched() -> bool:
    """Whether a LastResize is running a network."""
    return bool(_watches)


class _Call(NamedTuple):
    """One resize: its input, and the tensor that the network got from it."""

    small: torch.Tensor
    align_corners: bool
    result: torch.Tensor


class _Watch:
    """The resizes of one forward to the size of its image."""

    def __init__(self, image, leave_out):
        self.image, self.leave_out = image, leave_out
        self.calls: list[_Call] = []


@contextmanager
def _watching(watch: _Watch) -> Iterator[_Watch]:
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)
