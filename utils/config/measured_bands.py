"""Finds out whether images hold more than RGB of 8 bits, for `train.py --init`, and measures it."""
import os
from collections.abc import Iterable, Sequence

import numpy as np

from utils.errors import UserError
from utils.images.band_files import band_form, read_bands
from utils.images.bands import Bands
from utils.images.picture_files import evenly_spaced

LOOKED_AT = 60          # images, evenly spaced


def bands_in(images: Sequence[str | os.PathLike]) -> Bands | None:
    """The bands of images that all have the same, of one type; None for RGB and gray of 8 bits.

    Images with a band of alpha are RGB: "bands" in the args of the loader would use it.
    """
    forms = []
    for path in evenly_spaced(images, LOOKED_AT):
        try:
            forms.append(band_form(path))
        except UserError:           # reported when it is read
            continue
    kinds = {(form.bands, form.type) for form in forms}
    if len(kinds) != 1 or any(form.header.alpha for form in forms):
        return None
    (count, kind), = kinds
    if kind == "uint8" and count in (1, 3):
        return None
    return Bands(tuple(range(1, count + 1)), types=(kind,))


def measured(images: Sequence[str | os.PathLike], bands: Bands) \
        -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each band, in stored values, from LOOKED_AT of the images.

    A band without any difference gets a deviation of 1.
    """
    mean, variance = moments(read_bands(path, bands)[::4, ::4].astype(float)
                             for path in evenly_spaced(images, LOOKED_AT))
    std = np.sqrt(np.maximum(variance, 0))
    std[std <= 1e-6 * np.abs(mean)] = 1.0      # what rounding leaves of no difference
    return _rounded(mean), _rounded(std)


def moments(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, variance), (C,), of the pixels of float images (H, W, C)."""
    total, squares, count = 0.0, 0.0, 0
    for image in images:
        pixels = image.reshape(-1, image.shape[2])
        total, squares = total + pixels.sum(0), squares + (pixels ** 2).sum(0)
        count += len(pixels)
    mean = np.asarray(total / count)
    return mean, squares / count - mean ** 2


def _rounded(numbers):
    return [float(f"{value:.6g}") for value in numbers.tolist()]
