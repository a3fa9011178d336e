"""Finds out whether images hold more than RGB of 8 bits, for `train.py --init`, and measures it."""
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.images.band_files import band_form, read_bands
from utils.images.bands import Bands, without_data
from utils.images.partly_used import no_data_of
from utils.images.picture_files import evenly_spaced

LOOKED_AT = 60          # images, evenly spaced


def bands_in(images: Sequence[str | os.PathLike]) -> Bands | None:
    """The bands of images that all have the same, of one type; None for RGB and gray of 8 bits.

    Images with a band of alpha are RGB: "bands" in the args of the loader would use it. What is no
    data is what TIFF files say, if they agree; of other files of floats it is NaN.
    """
    forms, marks = [], set()
    for path in evenly_spaced(images, LOOKED_AT):
        try:
            forms.append(band_form(path))
            marks.add(no_data_of(path))
        except (UserError, OSError):            # reported when it is read
            continue
    kinds = {(form.bands, form.type) for form in forms}
    if len(kinds) != 1 or any(form.header.alpha for form in forms):
        return None
    (count, kind), = kinds
    if kind == "uint8" and count in (1, 3):
        return None
    marks -= {None}
    no_data = marks.pop() if len(marks) == 1 else "nan" if kind == "float32" and not marks else None
    return Bands(tuple(range(1, count + 1)), types=(kind,), no_data=no_data)


class Measured(NamedTuple):
    """What `measured` finds. bands: without a value of no data if no image has it.

    mean, std: of each band, in stored values. missing: the share of the pixels that have no data in
    any band; images, of: how many images have such pixels, and how many were looked at.
    """

    bands: Bands
    mean: list[float]
    std: list[float]
    missing: float
    images: int
    of: int


def measured(images: Sequence[str | os.PathLike], bands: Bands) -> Measured:
    """Measure bands in LOOKED_AT of the images; values without data do not count.

    A band without any difference gets a deviation of 1.
    """
    shares, found = [], False

    def pixels():
        nonlocal found
        for path in evenly_spaced(images, LOOKED_AT):
            stored = read_bands(path, bands)
            values = stored[::4, ::4].astype(float)
            if bands.no_data is not None:
                without = without_data(stored, bands.no_data)
                values[without[::4, ::4]] = np.nan
                shares.append(without.all(-1).mean())
                found |= bool(without.any())
            yield values
    mean, variance = moments(pixels())
    std = np.sqrt(np.maximum(variance, 0))
    std[std <= 1e-6 * np.abs(mean)] = 1.0      # what rounding leaves of no difference
    return Measured(bands if found else replace(bands, no_data=None), _rounded(mean), _rounded(std),
                    float(np.mean(shares or [0])), sum(share > 0 for share in shares), len(shares))


def moments(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, variance), (C,), of the pixels of float images (H, W, C) that are not NaN."""
    total, squares, count = 0.0, 0.0, 0
    for image in images:
        pixels = image.reshape(-1, image.shape[2])
        total, squares = total + np.nansum(pixels, 0), squares + np.nansum(pixels ** 2, 0)
        count = count + np.count_nonzero(~np.isnan(pixels), 0)
    count = np.maximum(count, 1)        # of a band that has no data anywhere
    mean = np.asarray(total / count)
    return mean, squares / count - mean ** 2


def _rounded(numbers):
    return [float(f"{value:.6g}") for value in numbers.tolist()]
