"""SegFix's directions and offsets, and the refinement of label maps with them.

Yuan et al., SegFix: Model-Agnostic Boundary Refinement for Segmentation, ECCV
2020, arXiv:2007.04269, as in the files and scripts of openseg.

A direction is the angle atan2(dy, dx), with y down, from a pixel to the inside of its region. An
offset (dy, dx) is one step in that direction, or (0, 0) for a pixel that is not a border. The
refinement is one gather: every pixel takes the label at its position plus `scale` offsets.

Differs from the scripts: labels are gathered and never interpolated. The scripts interpolate class
ids and round, which gives wrong ids in current versions of PyTorch. An angle of exactly 0 or 180
degrees is mirrored like any other, because targets are computed from the mirrored label.
"""
import colorsys
import functools
import math

import numpy as np
import torch

DIRECTIONS = (4, 8, 16, 32)
_REACH = 8192             # pixels: the largest step for which int16 positions are used


def direction_vectors(directions: int = 8) -> np.ndarray:
    """Returns the (dy, dx) of each direction class, int8 (directions, 2), by angle from -180 up.

    8: the neighbors of a pixel. 16 and 32: the pixels at Chebyshev distance 2 and 4. 4: left, up,
    right, down. Raises ValueError for a number of directions that is not in DIRECTIONS.
    """
    if directions not in DIRECTIONS:
        raise ValueError(f"directions must be one of {DIRECTIONS}, got {directions}")
    reach = max(1, directions // 8)
    axis = range(-reach, reach + 1)
    ring = [(y, x) for y in axis for x in axis if max(abs(y), abs(x)) == reach]
    # Left is both 180 and -180 degrees; it comes first.
    ring.sort(key=lambda v: -4 if v == (0, -reach) else math.atan2(*v))
    return np.array(ring[::2] if directions == 4 else ring, np.int8)


def offset_class_names(directions: int = 8) -> list[str]:
    """Returns the names of a SegFix network's channels: no border, border, and the directions."""
    names = (["left", "up left", "up", "up right", "right", "down right", "down", "down left"]
             if directions == 8 else
             [f"{-180 + index * 360 / directions:g} degrees" for index in range(directions)])
    return ["no border", "border", *names]


def offset_colors(directions: int = 8) -> list[list[int]]:
    """Returns an RGB color for each of `offset_class_names`: black, white, and hues by angle."""
    hues = [colorsys.hsv_to_rgb(index / directions, 1.0, 1.0) for index in range(directions)]
    return [[0, 0, 0], [255, 255, 255], *([round(255 * part) for part in hue] for hue in hues)]


def moved_directions(directions: int = 8, flip: bool = False, vflip: bool = False,
                     turns: int = 0) -> np.ndarray:
    """Returns the direction class after moving the image, uint8 (directions,).

    flip: mirrored left to right; vflip: then top to bottom; turns: then turned by 90 degrees
    counterclockwise, so often.
    """
    index = np.arange(directions)
    index = directions // 2 - index if flip else index
    index = -index if vflip else index
    return ((index - turns * directions // 4) % directions).astype(np.uint8)


def offset_map(mask_probs: torch.Tensor, direction_scores: torch.Tensor) -> torch.Tensor:
    """Returns the offsets int8 (N, H, W, 2), (dy, dx), of a network's output at full size.

    mask_probs: float (N, 2, H, W); a pixel is a border if the second one exceeds 0.5, and only
        border pixels get an offset other than (0, 0).
    direction_scores: float (N, D, H, W); the largest one gives the direction.
    """
    vectors = torch.from_numpy(direction_vectors(direction_scores.shape[1]))
    vectors = torch.cat([torch.zeros(1, 2, dtype=torch.int8), vectors])
    border = mask_probs[:, 1] > 0.5
    index = (direction_scores.max(dim=1).indices + 1) * border
    return vectors.to(index.device)[index]


def refine(labels: np.ndarray, offset: np.ndarray, scale: float = 2.0) -> np.ndarray:
    """Returns labels[clamp(y + scale·dy), clamp(x + scale·dx)] for every pixel.

    labels: (H, W) of any dtype, class ids or a mask. offset: (H, W, 2), (dy, dx), of any integer
    or float dtype. scale: 2 for semantic labels and 1 for instances, as published. scale · offset
    is rounded to whole pixels, halves away from 0.
    """
    return Refinement(offset, scale)(labels)


class Refinement:
    """`refine` for several label maps with one offset map, such as the masks of all instances.

    offset, scale: see `refine`. size: (H, W) of the offsets.
    Raises ValueError if the offset is not (H, W, 2) of finite numbers.
    """

    def __init__(self, offset: np.ndarray, scale: float = 2.0):
        offset = np.asarray(offset)
        if offset.ndim != 3 or offset.shape[2] != 2 or offset.dtype.kind not in "iuf":
            raise ValueError(f"an offset map has numbers of shape (H, W, 2), got {offset.dtype} "
                             f"{offset.shape}")
        self.size = offset.shape[:2]
        self._steps = _whole_steps(offset, scale)
        self._map = None

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Returns refined labels, (H, W) or (H, W, channels), as a new array of the same dtype.

        Raises ValueError if labels and offsets differ in size.
        """
        if labels.shape[:2] != self.size:
            raise ValueError(f"labels of {labels.shape[0]}x{labels.shape[1]} pixels (height x "
                             f"width), offsets of {self.size[0]}x{self.size[1]}")
        if labels.dtype == bool:
            return self(labels.view(np.uint8)).view(bool)
        if not labels.size:
            return labels.copy()
        fits_int16 = self._steps.dtype == np.int16 and max(self.size) <= 32767 - _REACH
        cv2_channels = labels.ndim == 2 or labels.shape[2] in (3, 4)
        if fits_int16 and cv2_channels and labels.dtype in (np.uint8, np.uint16, np.int16):
            return self._remap(labels)
        return self._gather(labels)

    def _remap(self, labels):
        import cv2
        if self._map is None:
            self._map = _columns_first(self._steps)
            self._map += _pixel_grid(self.size)
        # Positions are whole pixels, so nearest is exact; a replicated border clamps them.
        return cv2.remap(                               # pyright: ignore[reportCallIssue]
            np.ascontiguousarray(labels), self._map,
            None,                                       # pyright: ignore[reportArgumentType]
            cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)

    def _gather(self, labels):
        height, width = self.size
        rows = np.arange(height, dtype=np.int64)[:, None] + self._steps[..., 0]
        columns = np.arange(width, dtype=np.int64) + self._steps[..., 1]
        return labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]


def _whole_steps(offset, scale):
    """Returns scale · offset in whole pixels: int16 if no step exceeds _REACH, else int32."""
    if offset.dtype.kind == "f" or not float(scale).is_integer():
        steps = offset.astype(np.float64) * scale
        if not np.isfinite(steps).all():
            raise ValueError("the offset map contains values that are not finite")
        offset, scale = np.copysign(np.floor(np.abs(steps) + 0.5), steps), 1
    # A step of 2^30 pixels leaves every image, so clipping there changes nothing.
    reach = max(abs(float(offset.min())), abs(float(offset.max()))) if offset.size else 0
    if reach * abs(scale) > _REACH:
        return (offset.astype(np.float64) * scale).clip(-2 ** 30, 2 ** 30).astype(np.int32)
    steps = offset.astype(np.int16)
    steps *= np.int16(scale)
    return steps


def _columns_first(steps):
    """Returns the int16 steps (H, W, 2), (dy, dx), as (dx, dy), contiguous in memory."""
    import cv2
    if steps.flags.c_contiguous:
        swapped = np.empty_like(steps)
        cv2.mixChannels([steps], [swapped], [1, 0, 0, 1])
        return swapped
    # scipy returns MATLAB's memory order: two planes, column by column.
    return cv2.merge([cv2.transpose(np.ascontiguousarray(steps[..., axis].T)) for axis in (1, 0)])


@functools.lru_cache(maxsize=2)
def _pixel_grid(size):
    """Returns (x, y) of every pixel, int16 (H, W, 2); cached, because many images share a size."""
    height, width = size
    grid = np.empty((height, width, 2), np.int16)
    grid[..., 0] = np.arange(width, dtype=np.int16)
    grid[..., 1] = np.arange(height, dtype=np.int16)[:, None]
    return grid
