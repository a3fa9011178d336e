"""The sum of resized logit maps, computed in strips that fit in a core's cache.

Views of one image at several scales are all resized to its size and summed. A bilinear resize is
a small matrix for the rows and one for the columns, a resize of a resize is their product, and
the sum over views is one product of matrices placed side by side: so each strip of the result
costs one matrix product, and no view ever exists at the image's size. Meant for a CPU: full
precision, and sizes chosen for its caches.
"""
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.machine.tensors import Logits

ROWS, COLUMNS = 32, 128     # of one block of the result
MOST_HELD = 0.25            # largest size of all held views, as a share of the result


class _Band(NamedTuple):
    """A resize along one axis, for some neighboring outputs.

    output, sample: the first output and the first sample. weights: (outputs, samples).
    """

    output: int
    sample: int
    weights: torch.Tensor


class _View(NamedTuple):
    """A view, float32 (N, C, h, w), and its resize from h to H and from w to W."""

    logits: torch.Tensor
    down: list[_Band]       # h to H; multiplied by the weight of the view
    across: list[_Band]     # w to W


class ViewSum:
    """Sum of weight * resize(...resize(view, a), b) to (N, C, *size), float32.

    size: (H, W) of the result. Views may have any size. For any number of views, memory is
    bounded by the result and a quarter of it; views that fit in this quarter need no more than
    themselves until `total` is called.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = (size[0], size[1])
        self._views: list[_View] = []
        self._total: Logits | None = None       # the sum of the views that are no longer held

    def add(self, view: Logits, weight: float, *resizes: tuple[tuple[int, int], bool]):
        """Add a view (N, C, h, w) that goes through resizes, each ((H, W), align_corners)."""
        held = sum(v.logits.numel() for v in self._views)
        n, classes, *_ = view.shape
        if self._views and held + view.numel() > MOST_HELD * n * classes * self._pixels():
            self._total, self._views = self.total(), []
        heights, widths, aligned = zip(*((*sizes, corners) for sizes, corners in resizes),
                                       strict=True)
        down = [band._replace(weights=band.weights * weight)
                for band in _bands(view.shape[2], heights, aligned, ROWS)]
        across = _bands(view.shape[3], widths, aligned, COLUMNS)
        self._views.append(_View(view.float(), down, across))

    def strips(self) -> Iterator[tuple[slice, Logits]]:
        """The sum, a few rows at a time: (rows, float32 (N, C, rows, W)), from the top."""
        first = self._views[0]
        (n, classes), width = first.logits.shape[:2], self.size[1]
        tallest = sum(max(band.weights.shape[1] for band in view.down) for view in self._views)
        buffer = first.logits.new_empty(n * classes * tallest * width)
        for number, (output, _, weights) in enumerate(first.down):
            bands = [view.down[number] for view in self._views]
            matrix = torch.cat([band.weights for band in bands], 1)
            height = matrix.shape[1]
            stacked = buffer[:n * classes * height * width].view(n, classes, height, width)
            self._stack(bands, stacked)
            rows = slice(output, output + len(weights))
            strip = matrix @ stacked
            if self._total is not None:
                strip += self._total[:, :, rows]
            yield rows, strip

    def _stack(self, bands, stacked):
        """Write the samples of each view's band, resized from w to W, one below the other.

        bands: one of `down` for each view. stacked: (N, C, samples of all bands, W).
        """
        top = 0
        for view, band in zip(self._views, bands, strict=True):
            below = top + band.weights.shape[1]
            source = view.logits[:, :, band.sample:band.sample + band.weights.shape[1]]
            for left, start, weights in view.across:
                stacked[..., top:below, left:left + len(weights)] = (
                    source[..., start:start + weights.shape[1]] @ weights.T)
            top = below

    def total(self) -> Logits:
        """The whole sum, float32 (N, C, H, W); at least one view must have been added."""
        total = self._total
        if total is None:
            first = self._views[0].logits
            total = first.new_empty(*first.shape[:2], *self.size)
        if self._views:
            for rows, strip in self.strips():
                total[:, :, rows] = strip
        return total

    def _pixels(self):
        return self.size[0] * self.size[1]


@functools.lru_cache(maxsize=128)
def _bands(n, sizes, aligned, step):
    """A chain of bilinear resizes of n samples along one axis, as bands of `step` outputs each.

    sizes: the length after each resize; aligned: align_corners of each. Samples with weight 0 at
    both ends of a band are left out.
    """
    matrix = torch.eye(n)
    for size, corners in zip(sizes, aligned, strict=True):
        if size != len(matrix):
            matrix = F.interpolate(matrix[None, None], (size, n), mode="bilinear",
                                   align_corners=corners)[0, 0]
    bands = []
    for first in range(0, len(matrix), step):
        band = matrix[first:first + step]
        used = band.any(0).nonzero()
        low, high = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(first, low, band[:, low:high].contiguous()))
    return bands
