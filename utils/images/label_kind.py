"""Tells by the pixels whether a picture is a label map, and whether a label map was smoothed.

A label map consists of areas of one value. A photo has almost none. In a label map that was resized
with interpolation, blurred, drawn with soft edges or stored as JPEG, many values occur only along
the borders of the areas: they are mixtures of two classes, and no class themselves.
"""
import os
from typing import NamedTuple

import numpy as np

from utils.images.image_io import read_stored, stored_codes
from utils.images.types import Labels

_AREA_SHARE = 0.005         # of the pixels: a value with fewer is not one of the frequent ones
_AREA_INSIDE = 0.3          # of the pixels of a frequent value have four equal neighbors, or more
_MIXED_INSIDE = 0.15        # of the pixels of mixed values, at most
_MIXED_PIXELS = 0.65        # of all pixels, at most: more are a picture without areas
_MIXED_VALUES = 4           # at least, and twice as many as there are frequent values
_FEW_VALUES = 3             # enough if all lie between the frequent values around them
_FEW_INSIDE, _FEW_BETWEEN = 0.05, 0.9
_FEW_DISTANCE = 16          # mean distance of these values: class ids lie closer
_PIXELS_JUDGED = 1 << 19    # of a picture, at most


class Mixing(NamedTuple):
    """The mixed values of a label. share: of its pixels. areas: the values that fill areas."""

    count: int
    share: float
    areas: list[int]


def mixing(stored: np.ndarray) -> Mixing | None:
    """The values of a label that are mixtures of others; None if it was not smoothed.

    stored: ids or gray values (H, W), uint8 or uint16, or colors (H, W, 3), whose areas are given
    as 0xRRGGBB.
    """
    stored = _middle(stored)
    if stored.dtype in (np.uint8, np.uint16) and stored.ndim == 2:
        values, codes = np.arange(np.iinfo(stored.dtype).max + 1), stored
    else:
        values, codes = np.unique(stored_codes(stored), return_inverse=True)
        codes = codes.reshape(stored.shape[:2])
    pixels = np.bincount(codes.ravel(), minlength=len(values))
    inside = np.bincount(codes[_surrounded(codes)], minlength=len(values))
    areas = (pixels >= _AREA_SHARE * codes.size) & (inside >= _AREA_INSIDE * pixels)
    rest = (pixels > 0) & ~areas
    count, mixed = int(rest.sum()), int(pixels[rest].sum())
    within = inside[rest].sum()
    found = Mixing(count, mixed / max(codes.size, 1), values[areas].tolist())
    if not areas.any() or not mixed:
        return None
    if count >= max(_MIXED_VALUES, 2 * areas.sum()):
        return found if within < _MIXED_INSIDE * mixed and \
            mixed < _MIXED_PIXELS * codes.size else None
    present = values[pixels > 0].astype(np.int64)
    far = present[-1] - present[0] >= _FEW_DISTANCE * (len(present) - 1)
    if stored.ndim == 2 and far and count >= _FEW_VALUES and within < _FEW_INSIDE * mixed \
            and _share_between(codes, areas[codes]) > _FEW_BETWEEN:
        return found
    return None


def busyness(path: str | os.PathLike) -> float:
    """How little a picture looks like a label map: about 1 for masks, over 50 for photos.

    The number of values (or colors) that cover 95 % of the pixels, times the share of pixels that
    differ from a neighbor. Raises DataError if the file cannot be read.
    """
    stored = _middle(read_stored(path))
    codes = stored_codes(stored)
    pixels = np.sort(np.unique(codes, return_counts=True)[1])[::-1]
    needed = 1 + int(np.searchsorted(np.cumsum(pixels), 0.95 * codes.size))
    return needed * (0.02 + 1 - float(_surrounded(codes).mean()))


def _middle(picture):
    """The rows in the middle, as many as are judged; all rows of most pictures."""
    rows = max(1, min(len(picture), _PIXELS_JUDGED // max(picture.shape[1], 1)))
    first = (len(picture) - rows) // 2
    return picture[first:first + rows]


def _surrounded(values):
    """Bool (H, W): whether the four neighbors of a pixel, as far as it has them, are like it."""
    same = np.ones(values.shape, bool)
    down, right = values[1:] == values[:-1], values[:, 1:] == values[:, :-1]
    same[1:] &= down
    same[:-1] &= down
    same[:, 1:] &= right
    same[:, :-1] &= right
    return same


def _share_between(values: Labels, in_area) -> float:
    """The share of the pixels outside areas that lie between two areas' values near them."""
    import cv2
    near, rest = np.ones((5, 5), np.uint8), ~in_area
    wide = values.astype(np.uint16)
    low = cv2.erode(np.where(in_area, wide, np.uint16(65535)), near)
    high = cv2.dilate(np.where(in_area, wide, np.uint16(0)), near)
    return float(((low < wide) & (wide < high))[rest].mean())
