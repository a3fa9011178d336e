"""The windows of sliding inference: their positions, and the mean of their outputs.

All windows of an image have one size. They start at regular strides along each axis, every pixel
lies in at least one of them, and where they overlap their logits (or probabilities) are averaged.
The predictor and SegFix (utils.segfix.refiner) take their windows from here.
"""
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits

BLOCK_BYTES = 256 << 20     # the most memory for the logits of one block of a very large image

Tiling = Literal["even", "source", "fit", "spread"]
TILINGS = get_args(Tiling)
Place = tuple[int, int]                     # first row and first column of a window
View = tuple[int, int, torch.Tensor]        # the place, and the logits (N, C, h, w) there


@dataclass(frozen=True)
class Windows:
    """The windows over an image of `size` (H, W), in pixels.

    tile: height and width of every window. rows, columns: the first rows and the first columns of
    the windows, ascending; each pair of them is a window. A window may reach beyond the image.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    rows: list[int]
    columns: list[int]

    @property
    def places(self) -> list[Place]:
        """The first row and column of every window, row by row."""
        return [(top, left) for top in self.rows for left in self.columns]

    def area(self, top: int, left: int) -> tuple[slice, slice]:
        """The rows and columns of the window that starts at (top, left)."""
        return slice(top, top + self.tile[0]), slice(left, left + self.tile[1])

    def cover(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """How many windows cover each row (H,) and each column (W,), float32.

        Their product is the number of windows that cover a pixel.
        """
        counts = []
        for length, window, starts in zip(self.size, self.tile, (self.rows, self.columns),
                                          strict=True):
            count = torch.zeros(length, device=device)
            for start in starts:
                count[start:start + window] += 1
            counts.append(count)
        return counts[0], counts[1]


def overlapping_windows(size: tuple[int, int], tile: tuple[int, int] | None, overlap: float,
                        tiling: Tiling = "even",
                        stride: tuple[int, int] | None = None) -> Windows:
    """Windows over an image of `size` (H, W); neighbors share the part `overlap` of a window.

    tile: (h, w) of a window; None means the size of the image divided by 2.5.
    overlap: from 0, below 1. The stride is rounded up to whole pixels.
    tiling: "even" takes the stride of each axis from the window's size on it, and moves the last
        window back inside the image. "source" takes the stride of both axes from the height of
        the window (never more than its width), and lets the last windows reach beyond the image,
        as yassouali/pytorch-segmentation does. "fit" is "even" with windows that are never larger
        than the image. "spread" takes the fewest windows, at equal distances.
    stride: (down, across) in pixels, in place of `overlap`.
    """
    source = tiling == "source"
    if tile is None:
        tile = max(1, int(size[0] // 2.5)), max(1, int(size[1] // 2.5))
    if tiling in ("fit", "spread"):
        fitting = min(tile[0], size[0]), min(tile[1], size[1])
        if tiling == "spread":
            return spread_windows(size, fitting)
        stride = stride or _strides(tile, overlap)
        return strided_windows(size, fitting, stride)
    if stride is not None:
        return strided_windows(size, tile, stride)
    down, across = _strides(tile, overlap, 0 if source else 1e-9)
    if source:
        across = min(down, tile[1])
    return strided_windows(size, tile, (down, across), inside=not source)


def _strides(tile, overlap, slack=1e-9):
    """The strides (down, across) of windows that share the part `overlap`.

    slack: rounding errors may make a whole number slightly larger. Subtracting a little keeps ceil
    from adding a pixel; the source adds it.
    """
    down, across = (max(1, math.ceil(length * (1 - overlap) - slack)) for length in tile)
    return down, across


def checked_stride(stride: int | tuple[int, int] | None, tiling: Tiling,
                   tile: tuple[int, int] | None) -> tuple[int, int] | None:
    """The stride of the config as (down, across). Raises ConfigError for one that is impossible."""
    if stride is None:
        return None
    steps = (stride, stride) if isinstance(stride, int) else stride
    if tiling in ("source", "spread"):
        raise ConfigError(f"stride has no effect with tiling {tiling!r}, which has its own",
                          "predict.stride", "leave it out")
    if tile is None:
        raise ConfigError("a stride needs windows of a fixed size", "predict.stride",
                          "give predict.crop_size too")
    if len(steps) != 2 or min(steps) < 1 or steps[0] > tile[0] or steps[1] > tile[1]:
        raise ConfigError(f"stride must be from 1 to crop_size {list(tile)}, found {stride}: a "
                          "larger one leaves gaps between windows", "predict.stride")
    return steps[0], steps[1]


def spread_windows(size: tuple[int, int], tile: tuple[int, int]) -> Windows:
    """The fewest windows of `tile` (h, w) that cover an image of `size`, at equal distances.

    The distance is a fraction of a pixel, and each start is cut off to whole pixels (EoMT, Kerssies
    et al., CVPR 2025, and its code).
    """
    starts = []
    for length, window in zip(size, tile, strict=True):
        number = math.ceil(length / window)
        shared = (number * window - length) / (number - 1) if number > 1 else 0
        # 1e-9: a whole number may come out a little too small, which would miss the last pixel.
        starts.append([int(place * (window - shared) + 1e-9) for place in range(number)])
    return Windows(size, tile, *starts)


def strided_windows(size: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int],
                    inside: bool = True) -> Windows:
    """Windows of `tile` (h, w) that start every `stride` pixels (down, across).

    inside: moves the last window of an axis back to the far edge of the image; otherwise it
    starts at its stride and reaches beyond the image.
    """
    starts = []
    for length, window, step in zip(size, tile, stride, strict=True):
        room = max(length - window, 0)
        strides = [number * step for number in range(math.ceil(room / step) + 1)]
        starts.append([min(start, room) for start in strides] if inside else strides)
    return Windows(size, tile, *starts)


def batched_windows(read: Callable[[int, int], ImageBatch], places: list[Place],
                    tile: tuple[int, int], batch: int, mirrors: tuple[bool, ...] = (False,)
                    ) -> Iterator[tuple[list[tuple[int, int, bool]], ImageBatch]]:
    """Yields M <= `batch` windows of N images: ([(top, left, mirrored)], (M * N, 3, h, w)).

    read: (top, left) -> the part (N, 3, <= h, <= w) of N normalized images that the window covers.
    mirrors: one copy of every window for each entry, mirrored left to right where it is True.
    """
    copies = [(*place, mirrored) for place in places for mirrored in mirrors]
    for first in range(0, len(copies), batch):
        group = copies[first:first + batch]
        yield group, _joined([filled(read(top, left), tile, mirrored)
                              for top, left, mirrored in group])


def filled(crop: ImageBatch, tile: tuple[int, int], mirrored: bool = False) -> ImageBatch:
    """The crop (N, 3, <= h, <= w) padded to `tile` (h, w) with zeros, the mean color.

    mirrored: mirrors the result left to right.
    """
    missing = tile[0] - crop.shape[2], tile[1] - crop.shape[3]
    if any(missing):
        crop = F.pad(crop, (0, missing[1], 0, missing[0]))
    return crop.flip(-1) if mirrored else crop


def mean_of_windows(windows: Windows, views: Iterator[View], repeats: int = 1) -> Logits:
    """The mean over the windows that cover each pixel, float32 (N, C, H, W).

    views: `repeats` outputs for each window. The part beyond the image is left out.
    """
    total = None
    for top, left, view in views:
        if total is None:
            total = empty_map(view, (*view.shape[:2], *windows.size)).zero_()
        area = total[(..., *windows.area(top, left))]
        area.add_(view[..., :area.shape[2], :area.shape[3]])
    assert total is not None, "an image has at least one window"
    down, across = windows.cover(total.device)
    return total.div_(down[:, None] * across * repeats)


def mean_in_blocks(windows: Windows, views_at: Callable[[list[Place]], Iterator[View]],
                   classes: int, device: torch.device | str, repeats: int = 1,
                   most_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, slice, Logits]]:
    """The mean of `mean_of_windows` in blocks, for images whose logits do not fit in memory.

    views_at: places -> the outputs (1, C, h, w) of the windows there, `repeats` of each.
    most_bytes: the most memory for logits; a block is at least two windows wide.
    yields: (rows, columns, mean (1, C, rows, columns)); the blocks cover the image once. A window
        that crosses the border between two blocks is computed for both.
    """
    height, width = windows.tile
    block_width = max(2 * width, most_bytes // (4 * classes * height))
    down, across = windows.cover(device)
    for left in range(0, windows.size[1], block_width):
        columns = slice(left, min(windows.size[1], left + block_width))
        touching = [first for first in windows.columns
                    if first < columns.stop and first + width > columns.start]
        # No later row of windows reaches the pixels above its top: they are complete. The sums of
        # the pixels below are kept for the next row.
        total = torch.zeros(1, classes, height, columns.stop - columns.start, device=device)
        for top, below in zip(windows.rows, [*windows.rows[1:], windows.size[0]], strict=True):
            for _, first, view in views_at([(top, each) for each in touching]):
                _add_overlap(total, view, first - columns.start)
            complete = total[:, :, :below - top]
            count = down[top:below, None] * (across[columns] * repeats)
            yield slice(top, below), columns, complete / count
            total = torch.cat((total[:, :, below - top:], torch.zeros_like(complete)), 2)


def empty_map(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialized float32 tensor on the device of `like`, channels last if `like` is."""
    channels_last = (not like.is_contiguous()
                     and like.is_contiguous(memory_format=torch.channels_last))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=torch.float32, device=like.device, memory_format=layout)


def _joined(crops):
    return torch.cat(crops) if len(crops) > 1 else crops[0]


def _add_overlap(total, view, left):
    """Add the columns of `view` that lie in `total`; `left`, its first column, may be negative."""
    if left < 0:
        view, left = view[..., -left:], 0
    area = total[..., left:left + view.shape[3]]
    area.add_(view[..., :area.shape[3]])
