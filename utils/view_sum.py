"""The sum of resized logit maps, made in strips that fit a core's cache.

Views of one image at several scales are all resized to its size and summed.
A bilinear resize is a small matrix for the rows and one for the columns, a
resize of a resize is their product, and the sum over views is one product of
matrices set side by side: so each strip of the result costs one matrix product
and no view ever exists at the image's size. For a CPU: in full precision, and
made for its caches.
"""
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

ROWS, COLUMNS = 32, 128     # of one block of the result
# Small maps that are held at a time, as a share of the result: more are summed up first.
MOST_HELD = 0.25


class ViewSum:
    """Sum of weight * resize(...resize(view, a), b) to (N, C, *size), float32.

    size: (H, W) of the result. Views may have any size; memory is bounded by
    the result and a quarter, however many there are, and without `total` by the
    views alone.
    """

    def __init__(self, size: tuple[int, int]):
        self.size, self._views, self._total = tuple(size), [], None

    def add(self, view: torch.Tensor, weight: float, *resizes: tuple[tuple[int, int], bool]):
        """Add a view (N, C, h, w) that goes through resizes, each ((H, W), align_corners)."""
        held = sum(v.numel() for v, _, _ in self._views)
        n, classes, *_ = view.shape
        if self._views and held + view.numel() > MOST_HELD * n * classes * self._pixels():
            self._total, self._views = self.total(), []
        steps = tuple(zip(*((*sizes, aligned) for sizes, aligned in resizes), strict=True))
        heights, widths, aligned = steps
        down = _bands(view.shape[2], heights, aligned, ROWS)
        across = _bands(view.shape[3], widths, aligned, COLUMNS)
        down = [(first, low, band * weight) for first, low, band in down]
        self._views.append((view.float(), down, across))

    def strips(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The sum, a few rows at a time: (rows, (N, C, rows, W)), from the top."""
        first = self._views[0][0]
        (n, classes), width = first.shape[:2], self.size[1]
        tallest = sum(max(band.shape[1] for _, _, band in down) for _, down, _ in self._views)
        wide = first.new_empty(n * classes * tallest * width)
        for number in range(len(self._views[0][1])):
            bands = [down[number] for _, down, _ in self._views]
            matrix = torch.cat([band for _, _, band in bands], 1)
            height = matrix.shape[1]
            stacked = wide[:n * classes * height * width].view(n, classes, height, width)
            top = 0
            for (view, _, across), (_, low, band) in zip(self._views, bands, strict=True):
                below = top + band.shape[1]
                source = view[:, :, low:low + band.shape[1]]
                for left, start, columns in across:
                    stacked[..., top:below, left:left + len(columns)] = (
                        source[..., start:start + columns.shape[1]] @ columns.T)
                top = below
            rows = slice(bands[0][0], bands[0][0] + len(matrix))
            strip = matrix @ stacked
            if self._total is not None:
                strip += self._total[:, :, rows]
            yield rows, strip

    def total(self) -> torch.Tensor:
        """The whole sum, (N, C, H, W)."""
        if not self._views:
            return self._total
        first = self._views[0][0]
        total = self._total
        if total is None:
            total = first.new_empty(*first.shape[:2], *self.size)
        for rows, strip in self.strips():
            total[:, :, rows] = strip
        return total

    def _pixels(self):
        return self.size[0] * self.size[1]


@functools.lru_cache(maxsize=128)
def _bands(n, sizes, aligned, step):
    """A chain of resizes of n samples, as matrices of `step` outputs each.

    sizes: the lengths in turn; aligned: align_corners of each.
    returns: [(first output, first sample, matrix (outputs, samples))], without the
        samples at both ends that count for nothing.
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
        bands.append((first, low, band[:, low:high].contiguous()))
    return bands
