"""Operations on the crop after the warp: color, blur, holes.

They are named in a loader's args as "transforms": [{"type": NAME, "args": {...}}, ...]
and applied in that order. To add one, write a public subclass of PixelTransform in any
file of this package.
"""
from abc import ABC, abstractmethod
from typing import Literal

import cv2
import numpy as np

from utils.images.base_size import by_bands
from utils.images.types import Image, Labels

SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


class PixelTransform(ABC):
    """A random operation on the crop that keeps its size.

    All random draws come from `rng`, so a sample depends only on (seed, epoch, index).
    """

    p: float = 1.0      # probability of the operation
    for_rgb = True      # whether it changes colors: other bands than RGB of 8 bits are refused

    def __call__(self, image: Image, label: Labels, rng: np.random.Generator, *,
                 image_border: tuple, label_border: int) -> tuple[Image, Labels]:
        """image uint8 (h, w, 3) RGB, label (h, w) as stored -> both, possibly the same arrays.

        The inputs are not changed. Unless it is `for_rgb`, the image may have any bands and type.
        For operations that hide a part of the image: image_border is the mean color, label_border
        the stored value that means "ignored".
        """
        if self.p < 1 and rng.random() >= self.p:
            return image, label
        return self.apply(image, label, rng, image_border, label_border)

    @abstractmethod
    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        """The operation; arguments and result as those of __call__."""


class GaussianBlur(PixelTransform):
    """Blur by a Gaussian of random width.

    sigma: range in pixels, or the upper limit of a range from 0; null: computed from the
    kernel size (OpenCV's rule). kernel_size: range of odd sizes; null: about 3.3 sigma, so
    that a sigma below 0.61 changes nothing, as in yassouali's trainer.
    MIC-DKFZ: sigma null, kernel_size [3, 7], p 0.5. NVIDIA: sigma [0.15, 1.3],
    kernel_size [11, 11].
    """

    for_rgb = False

    def __init__(self, sigma: float | tuple[float, float] | None = 1.0,
                 kernel_size: tuple[int, int] | None = None, p: float = 1.0):
        if sigma is None and kernel_size is None:
            raise ValueError("sigma and kernel_size are both null: one of them must give the width "
                             "of the blur")
        self.sigma = None if sigma is None else _range(
            (0, sigma) if isinstance(sigma, (int, float)) else sigma, "sigma", 0)
        self.kernel_size = kernel_size and _range(kernel_size, "kernel_size", 1)
        if kernel_size and not all(side % 2 for side in kernel_size):
            raise ValueError(f"kernel_size must be odd, got {list(kernel_size)}")
        self.p = _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        sigma = 0.0 if self.sigma is None else rng.uniform(*self.sigma)
        if self.kernel_size:
            low, high = self.kernel_size
            side = low + 2 * int(rng.integers((high - low) // 2 + 1))
            if sigma == 0 and self.sigma is not None:
                return image, label         # for 0 OpenCV would choose a sigma
        else:
            side = int(3.3 * sigma) | 1
        if side > 1:
            image = by_bands(lambda part: cv2.GaussianBlur(
                part, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101), image)
        return image, label


class ColorJitter(PixelTransform):
    """Brightness, contrast, saturation and hue by random factors.

    brightness, contrast, saturation: a factor from [factor_low, factor_high], or from
    1 ± a number. hue: a rotation of the color circle by ± a share of it (at most 0.5), or
    from a range. order "fixed": as listed, as hoya012's trainer does with 0.3 each;
    "random": any order, as torchvision and PaddleSeg do. As torchvision defines them, the
    first three blend with black, with the mean gray and with the gray of each pixel; hue
    rotates in HSV.
    """

    def __init__(self, brightness: float | tuple[float, float] = 0.0,
                 contrast: float | tuple[float, float] = 0.0,
                 saturation: float | tuple[float, float] = 0.0,
                 hue: float | tuple[float, float] = 0.0,
                 order: Literal["fixed", "random"] = "fixed", p: float = 1.0):
        self.steps = []
        for name, step, amount in (("brightness", change_brightness, brightness),
                                   ("contrast", change_contrast, contrast),
                                   ("saturation", change_saturation, saturation)):
            if amount != 0:
                self.steps.append((step, _around_one(amount, name)))
        if hue != 0:
            low, high = (-hue, hue) if isinstance(hue, (int, float)) else hue
            if not -0.5 <= low <= high <= 0.5:
                raise ValueError("hue is a share of the color circle, at most 0.5 in either "
                                 f"direction, got {hue}")
            self.steps.append((turn_hue, (low, high)))
        if not self.steps:
            raise ValueError("brightness, contrast, saturation and hue are all 0: nothing would "
                             "change")
        self.order, self.p = order, _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        order = range(len(self.steps)) if self.order == "fixed" \
            else rng.permutation(len(self.steps))
        for number in order:
            step, limits = self.steps[number]
            image = step(image, rng.uniform(*limits))
        return image, label


class RandomDistort(PixelTransform):
    """Color distortion of PaddleSeg's Cityscapes recipe, in random order.

    *_range: the factor is drawn from 1 ± range; hue_range: the rotation of the hue from
    ± range, of a circle of 256. *_prob: probability of each.
    """

    def __init__(self, brightness_range: float = 0.25, brightness_prob: float = 1.0,
                 contrast_range: float = 0.25, contrast_prob: float = 1.0,
                 saturation_range: float = 0.25, saturation_prob: float = 1.0,
                 hue_range: float = 63, hue_prob: float = 1.0,
                 sharpness_range: float = 0.5, sharpness_prob: float = 0.0):
        if not 0 <= hue_range <= 128:
            raise ValueError(f"hue_range is at most half the circle of 256, got {hue_range}")
        self.steps = [
            (change_brightness, _around_one(brightness_range, "brightness_range"),
             brightness_prob),
            (change_contrast, _around_one(contrast_range, "contrast_range"), contrast_prob),
            (change_saturation, _around_one(saturation_range, "saturation_range"),
             saturation_prob),
            (turn_hue, (-hue_range / 256, hue_range / 256), hue_prob),
            (change_sharpness, _around_one(sharpness_range, "sharpness_range"),
             sharpness_prob)]
        for *_, prob in self.steps:
            _probability(prob)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        for number in rng.permutation(len(self.steps)):
            step, limits, prob = self.steps[number]
            if rng.random() < prob:
                image = step(image, rng.uniform(*limits))
        return image, label


class PhotometricDistortion(PixelTransform):
    """Photometric distortion of SSD (Liu et al., 2016), as in mmsegmentation.

    Each with probability 0.5: a shift by ± brightness; a factor on all values
    (contrast), before or after the others; a factor on the saturation of HSV; a shift
    of the hue by a whole number up to ± hue on OpenCV's circle of 180.
    """

    aliases = ("PhotoMetricDistortion",)

    def __init__(self, brightness: float = 32, contrast: tuple[float, float] = (0.5, 1.5),
                 saturation: tuple[float, float] = (0.5, 1.5), hue: int = 18):
        if brightness < 0 or not 0 <= hue <= 90:
            raise ValueError(f"brightness must be at least 0 and hue from 0 to 90, got "
                             f"{brightness} and {hue}")
        self.brightness, self.hue = brightness, hue
        self.contrast = _range(contrast, "contrast", 0)
        self.saturation = _range(saturation, "saturation", 0)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        chosen = rng.random(5) < 0.5
        scale = rng.uniform(*self.contrast) if chosen[1] else 1.0
        if chosen[0]:
            image = shift_values(image, rng.uniform(-self.brightness, self.brightness))
        if chosen[1] and chosen[4]:
            image = change_brightness(image, scale)
        factor = rng.uniform(*self.saturation) if chosen[2] else 1.0
        turn = int(rng.integers(-self.hue, self.hue + 1)) if chosen[3] else 0
        if factor != 1 or turn:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            table = np.stack([(np.arange(256) + turn) % 180,
                              np.clip(np.rint(np.arange(256) * factor), 0, 255),
                              np.arange(256)], -1).astype(np.uint8)
            image = cv2.cvtColor(cv2.LUT(image, table[None]), cv2.COLOR_HSV2RGB)
        if chosen[1] and not chosen[4]:
            image = change_brightness(image, scale)
        return image, label


class BrightnessShift(PixelTransform):
    """Adds one whole number in [-limit, limit] to all channels, as openseg and HRNet do.

    openseg: limit 10, p 1. HRNet: limit 10, p 0.5.
    """

    def __init__(self, limit: int = 10, p: float = 1.0):
        self.limit, self.p = _limit(limit), _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        return shift_values(image, int(rng.integers(-self.limit, self.limit + 1))), label


class RGBShift(PixelTransform):
    """Adds a separate number in [-limit, limit] to each channel (MIC-DKFZ: 10, p 0.5)."""

    def __init__(self, limit: float = 10, p: float = 0.5):
        self.limit, self.p = _limit(limit), _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        shift = rng.uniform(-self.limit, self.limit, 3)
        table = np.rint(np.arange(256)[:, None] + shift).clip(0, 255).astype(np.uint8)
        return cv2.LUT(image, table[None]), label


class BandJitter(PixelTransform):
    """Multiplies every band by a factor of its own, and adds a number of its own.

    For images with bands of any type; RGBShift and ColorJitter are for RGB. gain: the factor is
    drawn from 1 ± gain. offset: the number is drawn from ± offset times the standard deviation of
    the band in the crop. Integers are rounded and clipped to the range of their type.
    """

    for_rgb = False

    def __init__(self, gain: float = 0.1, offset: float = 0.1, p: float = 0.5):
        if not 0 <= gain < 1 or not 0 <= offset < 100 or not gain + offset:
            raise ValueError(f"gain is from 0 to below 1 and offset from 0 to 100, not both 0; got "
                             f"{gain} and {offset}")
        self.gain, self.offset, self.p = gain, offset, _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        bands = image.shape[2]
        factors = rng.uniform(1 - self.gain, 1 + self.gain, bands)
        offsets = rng.uniform(-self.offset, self.offset, bands) * image.std(
            (0, 1), dtype=np.float64)
        changed = image * factors.astype(np.float32) + offsets.astype(np.float32)
        if image.dtype != np.float32:
            changed = np.rint(changed).clip(0, np.iinfo(image.dtype).max)
        return changed.astype(image.dtype), label


class Cutout(PixelTransform):
    """Rectangles of the mean color whose pixels are ignored. DeVries & Taylor, 2017.

    holes: number of rectangles, or its range. size: range of a rectangle's height and
    width, drawn separately, as shares of the crop's. Centers are uniform over the crop;
    rectangles are cut off at its edges. mmsegmentation keeps the label, so that the network
    is trained on what it cannot see; here it becomes ignore_index.
    """

    aliases = ("CutOut",)
    for_rgb = False

    def __init__(self, holes: int | tuple[int, int] = 1,
                 size: tuple[float, float] = (0.1, 0.3), p: float = 0.5):
        self.holes = _range((holes, holes) if isinstance(holes, int) else holes, "holes", 1)
        self.size = _range(size, "size", 0)
        if self.size[1] > 1:
            raise ValueError(f"size is a share of the crop, at most 1, got {list(size)}")
        self.p = _probability(p)

    def apply(self, image: Image, label: Labels, rng: np.random.Generator, image_border: tuple,
              label_border: int) -> tuple[Image, Labels]:
        height, width = label.shape
        image, label = image.copy(), label.copy()
        for _ in range(int(rng.integers(self.holes[0], self.holes[1] + 1))):
            rows = _hole(height, rng.uniform(*self.size), rng.random())
            columns = _hole(width, rng.uniform(*self.size), rng.random())
            image[rows, columns] = image_border
            label[rows, columns] = label_border
        return image, label


def shift_values(image: Image, shift: float) -> Image:
    """uint8 (H, W, 3): `shift` added to every value, clipped to 0..255."""
    if shift == 0:
        return image
    return cv2.LUT(image, np.rint(np.arange(256) + shift).clip(0, 255).astype(np.uint8))


def change_brightness(image: Image, factor: float) -> Image:
    """uint8 (H, W, 3): every value times `factor`, a blend with black."""
    return _blend_with_gray(image, factor, 0)


def change_contrast(image: Image, factor: float) -> Image:
    """uint8 (H, W, 3): a blend with the mean gray of the image."""
    if factor == 1:
        return image
    return _blend_with_gray(image, factor, round(cv2.mean(_gray(image))[0]))


def change_saturation(image: Image, factor: float) -> Image:
    """uint8 (H, W, 3): a blend with the gray version of the image."""
    if factor == 1:
        return image
    gray = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def turn_hue(image: Image, share: float) -> Image:
    """uint8 (H, W, 3): the hue of every pixel rotated by `share` of the color circle."""
    if share == 0:
        return image
    table = np.repeat(np.arange(256.0)[:, None], 3, 1)
    # OpenCV writes a circle as 256 steps and reads it as 255.
    table[:, 0] = (table[:, 0] + 256 * share) % 256 * 255 / 256
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL),
                  np.rint(table[None]).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def change_sharpness(image: Image, factor: float) -> Image:
    """uint8 (H, W, 3): a blend with a smoothed version; the outermost pixels stay, as in Pillow."""
    if factor == 1:
        return image
    smooth = cv2.filter2D(image, -1, SMOOTH)
    result = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    result[[0, -1]], result[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return result


def _blend_with_gray(image, factor, gray):
    """factor · image + (1 - factor) · gray, rounded and clipped."""
    if factor == 1:
        return image
    values = np.rint(factor * np.arange(256) + (1 - factor) * gray)
    return cv2.LUT(image, values.clip(0, 255).astype(np.uint8))


def _gray(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _hole(length, share, place):
    """A slice of about share · length around a uniform center, cut to [0, length)."""
    side = max(1, round(share * length))
    start = int(place * length) - side // 2
    return slice(max(0, start), min(length, start + side))


def _probability(p):
    """p, checked."""
    if not 0 <= p <= 1:
        raise ValueError(f"a probability is from 0 to 1, got {p}")
    return p


def _limit(limit):
    """limit, checked."""
    if not 0 < limit <= 255:
        raise ValueError(f"limit must be above 0 and at most 255, got {limit}")
    return limit


def _range(limits, name, lowest):
    """(smallest, largest) of the argument `name`, checked."""
    low, high = limits
    if not lowest <= low <= high:
        raise ValueError(f"{name} must be [smallest, largest], at least {lowest}, got "
                         f"{list(limits)}")
    return low, high


def _around_one(amount, name):
    """The range of a factor: as given, or 1 ± a number, not below 0."""
    if isinstance(amount, (int, float)):
        amount = (max(0.0, 1 - amount), 1 + amount) if amount >= 0 else (1.0, 0.0)
    return _range(amount, name, 0)
