"""What happens to a crop after the warp: colour, blur, holes.

Named in a loader's args as "transforms": [{"type": NAME, "args": {...}}, ...] and
applied in that order. To add one: a public subclass of PixelTransform in any file of
this package.
"""
from abc import ABC, abstractmethod
from typing import Literal

import cv2
import numpy as np

SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


class PixelTransform(ABC):
    """A random operation on the crop that leaves its size as it is.

    All randomness comes from `rng`, so a sample is a function of (seed, epoch, index).
    """

    p: float = 1.0      # how often the operation takes place

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *,
                 image_border: tuple, label_border: int) -> tuple[np.ndarray, np.ndarray]:
        """image uint8 (h, w, 3) RGB, label (h, w) as stored -> both, possibly the same arrays.

        The inputs are not changed. image_border: the mean colour; label_border: the
        stored value that means "ignored"; for operations that hide a part of the image.
        """
        if self.p < 1 and rng.random() >= self.p:
            return image, label
        return self.apply(image, label, rng, image_border, label_border)

    @abstractmethod
    def apply(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator,
              image_border: tuple, label_border: int) -> tuple[np.ndarray, np.ndarray]:
        """The operation itself."""


class GaussianBlur(PixelTransform):
    """Blur by a Gaussian of random width.

    sigma: range in pixels, or the largest of a range from 0; null: what the kernel
    size suggests (OpenCV's rule). kernel_size: range of odd sizes; null: about 3.3
    sigma, so that a sigma below 0.61 changes nothing, as in yassouali's trainer.
    MIC-DKFZ: sigma null, kernel_size [3, 7], p 0.5. NVIDIA: sigma [0.15, 1.3],
    kernel_size [11, 11].
    """

    def __init__(self, sigma: float | tuple[float, float] | None = 1.0,
                 kernel_size: tuple[int, int] | None = None, p: float = 1.0):
        if sigma is None and kernel_size is None:
            raise ValueError("sigma and kernel_size are both null: one has to say how wide the "
                             "blur is")
        self.sigma = None if sigma is None else _range(
            (0, sigma) if isinstance(sigma, (int, float)) else sigma, "sigma", 0)
        self.kernel_size = kernel_size and _range(kernel_size, "kernel_size", 1)
        if kernel_size and not all(side % 2 for side in kernel_size):
            raise ValueError(f"kernel_size must be odd, got {list(kernel_size)}")
        self.p = _probability(p)

    def apply(self, image, label, rng, image_border, label_border):
        sigma = 0.0 if self.sigma is None else rng.uniform(*self.sigma)
        if self.kernel_size:
            low, high = self.kernel_size
            side = low + 2 * int(rng.integers((high - low) // 2 + 1))
            if sigma == 0 and self.sigma is not None:
                return image, label         # 0 would ask OpenCV for its own sigma
        else:
            side = int(3.3 * sigma) | 1
        if side > 1:
            image = cv2.GaussianBlur(image, (side, side), sigma,
                                     borderType=cv2.BORDER_REFLECT_101)
        return image, label


class ColorJitter(PixelTransform):
    """Brightness, contrast, saturation and hue by random factors.

    brightness, contrast, saturation: a factor from [factor_low, factor_high], or from
    1 ± a number. hue: a turn of the colour circle by ± a share of it (at most 0.5), or
    from a range. order "fixed": as listed, as hoya012's trainer does with 0.3 each;
    "random": any order, as torchvision and PaddleSeg do. Blends with black, with the
    mean grey, and with the grey of each pixel; hue turns in HSV (torchvision's
    definitions).
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
                raise ValueError(f"hue is a share of the colour circle, at most 0.5 to either "
                                 f"side, got {hue}")
            self.steps.append((turn_hue, (low, high)))
        if not self.steps:
            raise ValueError("brightness, contrast, saturation and hue are all 0: nothing would "
                             "change")
        self.order, self.p = order, _probability(p)

    def apply(self, image, label, rng, image_border, label_border):
        order = range(len(self.steps)) if self.order == "fixed" \
            else rng.permutation(len(self.steps))
        for number in order:
            step, limits = self.steps[number]
            image = step(image, rng.uniform(*limits))
        return image, label


class RandomDistort(PixelTransform):
    """Colour distortion of PaddleSeg's Cityscapes recipe, in random order.

    *_range: the factor is drawn from 1 ± range; hue_range: the turn of the hue from
    ± range, of a circle of 256. *_prob: how often each takes place.
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

    def apply(self, image, label, rng, image_border, label_border):
        for number in rng.permutation(len(self.steps)):
            step, limits, prob = self.steps[number]
            if rng.random() < prob:
                image = step(image, rng.uniform(*limits))
        return image, label


class PhotometricDistortion(PixelTransform):
    """Photometric distortion of SSD (Liu et al., 2016) as mmsegmentation has it.

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

    def apply(self, image, label, rng, image_border, label_border):
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
    """One whole number in [-limit, limit] added to all channels, as openseg and HRNet do.

    openseg: limit 10, p 1. HRNet: limit 10, p 0.5.
    """

    def __init__(self, limit: int = 10, p: float = 1.0):
        self.limit, self.p = _limit(limit), _probability(p)

    def apply(self, image, label, rng, image_border, label_border):
        return shift_values(image, int(rng.integers(-self.limit, self.limit + 1))), label


class RGBShift(PixelTransform):
    """A number in [-limit, limit] added to each channel on its own (MIC-DKFZ: 10, p 0.5)."""

    def __init__(self, limit: float = 10, p: float = 0.5):
        self.limit, self.p = _limit(limit), _probability(p)

    def apply(self, image, label, rng, image_border, label_border):
        shift = rng.uniform(-self.limit, self.limit, 3)
        table = np.rint(np.arange(256)[:, None] + shift).clip(0, 255).astype(np.uint8)
        return cv2.LUT(image, table[None]), label


class Cutout(PixelTransform):
    """Rectangles of the mean colour whose pixels are ignored. DeVries & Taylor, 2017.

    holes: number, or a range of it. size: range of a rectangle's height and width,
    drawn separately, as shares of the crop's. Centres are uniform over the crop, and
    what lies outside is cut off. mmsegmentation leaves the label as it is, which asks
    the network for what it cannot see; here it becomes ignore_index.
    """

    aliases = ("CutOut",)

    def __init__(self, holes: int | tuple[int, int] = 1,
                 size: tuple[float, float] = (0.1, 0.3), p: float = 0.5):
        self.holes = _range((holes, holes) if isinstance(holes, int) else holes, "holes", 1)
        self.size = _range(size, "size", 0)
        if self.size[1] > 1:
            raise ValueError(f"size is a share of the crop, at most 1, got {list(size)}")
        self.p = _probability(p)

    def apply(self, image, label, rng, image_border, label_border):
        height, width = label.shape
        image, label = image.copy(), label.copy()
        for _ in range(int(rng.integers(self.holes[0], self.holes[1] + 1))):
            rows = _hole(height, rng.uniform(*self.size), rng.random())
            columns = _hole(width, rng.uniform(*self.size), rng.random())
            image[rows, columns] = image_border
            label[rows, columns] = label_border
        return image, label


def shift_values(image: np.ndarray, shift: float) -> np.ndarray:
    """`shift` added to every value, cut off at 0 and 255."""
    if shift == 0:
        return image
    return cv2.LUT(image, np.rint(np.arange(256) + shift).clip(0, 255).astype(np.uint8))


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Every value times `factor`: a blend with black."""
    return _blend_with_grey(image, factor, 0)


def change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the mean grey of the image."""
    if factor == 1:
        return image
    return _blend_with_grey(image, factor, round(cv2.mean(_grey(image))[0]))


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with the grey version of the image."""
    if factor == 1:
        return image
    grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def turn_hue(image: np.ndarray, share: float) -> np.ndarray:
    """The hue of every pixel turned by `share` of the colour circle."""
    if share == 0:
        return image
    table = np.repeat(np.arange(256.0)[:, None], 3, 1)
    # OpenCV writes a circle as 256 steps and reads it as 255.
    table[:, 0] = (table[:, 0] + 256 * share) % 256 * 255 / 256
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL),
                  np.rint(table[None]).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def change_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """A blend with a smoothed version; its outermost pixels stay, as in Pillow."""
    if factor == 1:
        return image
    smooth = cv2.filter2D(image, -1, SMOOTH)
    result = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    result[[0, -1]], result[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return result


def _blend_with_grey(image, factor, grey):
    if factor == 1:
        return image
    values = np.rint(factor * np.arange(256) + (1 - factor) * grey)
    return cv2.LUT(image, values.clip(0, 255).astype(np.uint8))


def _grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _hole(length, share, place):
    """A slice of about share · length around a uniform centre, inside [0, length)."""
    side = max(1, round(share * length))
    start = int(place * length) - side // 2
    return slice(max(0, start), min(length, start + side))


def _probability(p):
    if not 0 <= p <= 1:
        raise ValueError(f"a probability is from 0 to 1, got {p}")
    return p


def _limit(limit):
    if not 0 < limit <= 255:
        raise ValueError(f"limit must be above 0 and at most 255, got {limit}")
    return limit


def _range(limits, name, lowest):
    low, high = limits
    if not lowest <= low <= high:
        raise ValueError(f"{name} must be [smallest, largest], at least {lowest}, got "
                         f"{list(limits)}")
    return low, high


def _around_one(amount, name):
    """The range of a factor: as given, or 1 ± a number and never below 0."""
    if isinstance(amount, (int, float)):
        amount = (max(0.0, 1 - amount), 1 + amount) if amount >= 0 else (1.0, 0.0)
    return _range(amount, name, 0)
