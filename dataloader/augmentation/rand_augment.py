"""RandAugment for image and label. Cubuk et al., 2019, arXiv:1909.13719.

Operations and ranges of MIC-DKFZ's segmentation trainer. Different on purpose: all
geometric operations of a draw are combined into one warp, so that image and label are
resampled once; and pixels from outside the image have no label (there the label is
mirrored with the image, so that an object has two left halves).
"""
import math
from typing import Literal

import cv2
import numpy as np

from dataloader.augmentation.pixel_transforms import (
    PixelTransform,
    change_brightness,
    change_contrast,
    change_saturation,
)
from utils.images.types import Image, Labels

BINS = 10                                      # of each range; a magnitude is one of them
AMOUNT = np.linspace(0, 0.9, BINS)             # contrast, brightness, color: factor 1 ± this
THRESHOLD = np.linspace(256, 0, BINS)          # brighter values are inverted; 256: none
BITS = np.rint(np.linspace(8, 4, BINS)).astype(int)
SIGMA = np.linspace(0, 2, BINS)                # pixels, of the unsharp mask
SHEAR = np.tan(np.radians(np.linspace(0, 16.7, BINS)))
TRANSLATION = np.linspace(0, 0.2, BINS)        # of the width or height
ROTATION = np.radians(np.linspace(0, 30, BINS))
UNSHARP = 0.5                                  # share of the difference that is added

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
STRONG = ("solarize", "posterize", "equalize", "invert")     # not in "light"
OPERATIONS = ("identity", "contrast", "brightness", "color", "unsharp", "blur",
              *STRONG, *GEOMETRIC)


class RandAugment(PixelTransform):
    """n operations out of 15, each with probability p, at one magnitude.

    n: operations drawn, with replacement. magnitude: 0 to 9, the bin of each range;
    its sign is random. mode "light" leaves out solarize, posterize, equalize and
    invert. Contrast, brightness, color up to 1 ± 0.9; solarize 256 to 0; posterize 8
    to 4 bits; unsharp sigma up to 2; blur 3x3; shear up to 16.7 degrees; translation
    up to 0.2 of the size; rotation up to 30 degrees. Images are mirrored at the border,
    labels there are ignore_index. MIC-DKFZ's configs use n 3, magnitude 3.
    """

    def __init__(self, n: int = 3, magnitude: int = 3, p: float = 0.5,
                 mode: Literal["all", "light"] = "all"):
        if n < 1 or not 0 <= magnitude < BINS or not 0 <= p <= 1:
            raise ValueError(f"n must be at least 1, magnitude from 0 to {BINS - 1} and p from 0 "
                             f"to 1, got {n}, {magnitude} and {p}")
        self.n, self.magnitude, self.chance = n, magnitude, p
        self.operations = [name for name in OPERATIONS if mode == "all" or name not in STRONG]

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        names = [self.operations[k] for k in rng.integers(len(self.operations), size=self.n)]
        happens = rng.random(self.n) < self.chance
        signs = np.where(rng.random(self.n) < 0.5, -1, 1)
        to_source = np.eye(3)
        for name, sign, applied in zip(names, signs, happens, strict=True):
            if applied and name in GEOMETRIC:
                to_source = to_source @ affine(name, self.magnitude, sign, label.shape)
            elif applied:
                image = recolor(image, name, self.magnitude, sign)
        if not np.array_equal(to_source, np.eye(3)):
            size = label.shape[::-1]
            image = cv2.warpAffine(image, to_source[:2], size,
                                   flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                   borderMode=cv2.BORDER_REFLECT)
            label = cv2.warpAffine(label, to_source[:2], size,
                                   flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                                   borderMode=cv2.BORDER_CONSTANT, borderValue=label_border)
        return image, label


def affine(name: str, magnitude: int, sign: int, shape: tuple[int, int]) -> np.ndarray:
    """(3, 3): maps a shown pixel (x, y) to its source, about the center of shape (H, W)."""
    height, width = shape
    matrix = np.eye(3)
    if name == "rotate":
        angle = sign * ROTATION[magnitude]
        matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    elif name == "shear_x":
        matrix[0, 1] = sign * SHEAR[magnitude]
    elif name == "shear_y":
        matrix[1, 0] = sign * SHEAR[magnitude]
    elif name == "translate_x":
        matrix[0, 2] = sign * TRANSLATION[magnitude] * width
    else:
        matrix[1, 2] = sign * TRANSLATION[magnitude] * height
    center = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    # Without rounding errors, so that apply recognizes that nothing moves.
    return matrix if np.array_equal(matrix, np.eye(3)) \
        else center @ matrix @ np.linalg.inv(center)


def recolor(image: Image, name: str, magnitude: int, sign: int) -> Image:
    """The image, uint8 (H, W, 3), after one of the operations that do not move pixels."""
    factor = 1 + sign * AMOUNT[magnitude]
    values = np.arange(256)
    if name == "contrast":
        return change_contrast(image, factor)
    if name == "brightness":
        return change_brightness(image, factor)
    if name == "color":
        return change_saturation(image, factor)
    if name == "solarize":
        return _mapped(image, np.where(values >= THRESHOLD[magnitude], 255 - values, values))
    if name == "posterize":
        return _mapped(image, values & (256 - 2 ** (8 - BITS[magnitude])))
    if name == "invert":
        return _mapped(image, 255 - values)
    if name == "equalize":
        return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])
    if name == "unsharp" and SIGMA[magnitude]:
        soft = cv2.GaussianBlur(image, (0, 0), SIGMA[magnitude])
        return cv2.addWeighted(image, 1 + UNSHARP, soft, -UNSHARP, 0)
    if name == "blur":
        return cv2.blur(image, (3, 3))
    return image


def _mapped(image, values):
    """The image with every value v replaced by values[v]."""
    return cv2.LUT(image, values.astype(np.uint8))
