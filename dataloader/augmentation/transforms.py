"""Augmentation: one warp that computes only the crop, then operations on its pixels.

The recipe (scale 0.5 to 2 of base_size, rotation by up to 10 degrees, crop, flip,
light blur) is that of the yassouali/RankDice trainers. Different on purpose:
images are padded with the mean color and labels with ignore_index (there: black
and class 0); image and label are sampled once, in the same geometry (there the
label drifts by up to a pixel and is resampled twice); below half size the image
is first halved by averaging, which removes aliasing.
"""
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np

from dataloader.augmentation.pixel_transforms import GaussianBlur
from utils.config.build import build
from utils.config.schema import Components
from utils.errors import ConfigError
from utils.images.base_size import (
    OPENCV,
    Span,
    by_bands,
    halved,
    halvings,
    resized,
    shown_length,
    span,
    whole_view,
)
from utils.images.headers import max_pixels
from utils.images.types import Image, Labels

SCALE = (0.5, 2.0)       # of base_size
ASPECT = (0.9, 1.1)      # width over height, relative to that of the image
ANGLE = 10.0             # degrees
SIGMA = 1.0              # pixels
REDRAWS = 10             # of the place of a crop in which one class has too many pixels
PROBE = 8                # that share is measured at every 8th row and column of the crop


class Crop(NamedTuple):
    """image uint8 (h, w, 3), label (h, w), and how the part of the source was moved.

    mirrored: by an odd number of flips, so that left and right body parts are exchanged.
    flip, vflip: left to right, then top to bottom; turns: then by 90 degrees counterclockwise.
    """

    image: Image
    label: Labels
    mirrored: bool = False
    flip: bool = False
    vflip: bool = False
    turns: int = 0


class Augmentation:
    """Turns a whole image and label into the pixels that are trained or validated on.

    With augment: random scale, rotation, crop, flip and blur. With val and a
    crop_size: the short side is resized to it and the center is cut out. With
    neither: the whole image (resized to base_size, if one is given).

    base_size: long side of the image before the random scale; None keeps its size. With augment
        also [height, width]: exactly that size, whatever the proportion of the image.
    base_side: "short": base_size is the short side; only with augment.
    crop_size: side of a square, or [height, width]; None gives crops of the size
        that the image has at base_size. With val and crop_size, base_size has no effect.
    scale: false, true for 0.5 to 2, or [smallest, largest] factor.
    scale_step: the factors are the smallest one plus multiples of this step, each equally
        often; null: all numbers in between.
    flip: half of the samples are mirrored left to right. vflip: half of them top to bottom.
    rot90: turned by 0, 90, 180 or 270 degrees, each equally often. A quarter turn of a crop that
        is not square is cut with height and width exchanged, so the crop keeps its size; without
        a crop_size, images that are not square are only turned by 0 or 180 degrees.
    rotate: false, true for up to 10 degrees, or the largest angle in degrees.
    blur: false, true for a Gaussian of sigma up to 1 pixel, or the largest sigma.
    aspect: false, true for 0.9 to 1.1, or [smallest, largest] factor by which the
        proportion width : height changes; the area stays the same.
    cat_max_ratio: the largest share of the labeled pixels of a crop that one class may
        have: the place of the crop is drawn again, up to 10 times, until the crop has two
        classes and none exceeds the share (0.75 is common). 1: off.
    transforms: further operations on the crop, in order (`--list transforms`).
    interpolation: of images: "linear", "cubic" or "lanczos". The first two halve an image first
        where the scale is below one half; "lanczos" averages at any scale below 1.
    border: color [r, g, b], 0 to 255, of pixels outside the image; null: the mean color.
    border_place: where an image lies that is smaller than its crop: "end" has the border below
        and on the right (before mirroring), "random" on all sides.

    scale, flip, vflip, rot90, rotate and blur have no effect without `augment`.
    """

    def __init__(self, base_size: int | list[int] | None = None,
                 crop_size: int | list[int] | None = None,
                 augment: bool = False, scale: bool | list[float] = True, flip: bool = False,
                 rotate: bool | float = False, blur: bool | float = False, val: bool = False,
                 aspect: bool | tuple[float, float] = False, cat_max_ratio: float = 1.0,
                 transforms: Annotated[Sequence, Components("transforms")] = (),
                 vflip: bool = False, rot90: bool = False,
                 base_side: Literal["long", "short"] = "long", scale_step: float | None = None,
                 interpolation: Literal["linear", "cubic", "lanczos"] = "linear",
                 border: list[int] | None = None,
                 border_place: Literal["end", "random"] = "end"):
        self.options = {"base_size": base_size, "crop_size": crop_size, "augment": augment,
                        "scale": scale, "flip": flip, "rotate": rotate, "blur": blur, "val": val,
                        "aspect": aspect, "cat_max_ratio": cat_max_ratio,
                        "transforms": transforms, "vflip": vflip, "rot90": rot90,
                        "base_side": base_side, "scale_step": scale_step,
                        "interpolation": interpolation, "border": border,
                        "border_place": border_place}
        if augment and val:
            raise ConfigError("augment and val are both true: crops are either random or central",
                              "augment", "set one of them to false")
        if crop_size is not None and not (augment or val):
            raise ConfigError(f"crop_size {crop_size} has no effect without augment or val",
                              "crop_size", "\"augment\": true crops at random, \"val\": true at "
                              "the center; leave crop_size out for whole images")
        if not 0 < cat_max_ratio <= 1:
            raise ConfigError("cat_max_ratio must be above 0 and at most 1, got "
                              f"{cat_max_ratio}", "cat_max_ratio")
        for key, given in (("aspect", aspect), ("cat_max_ratio", cat_max_ratio < 1),
                           ("transforms", transforms), ("scale_step", scale_step is not None),
                           ("interpolation", interpolation != "linear"),
                           ("border", border is not None), ("border_place", border_place != "end")):
            if given and not augment:
                raise ConfigError(f"{key} has no effect without augment", key,
                                  f"set \"augment\": true, or leave {key} out")
        self.base_size = _base_size(base_size, base_side, augment)
        self.base_side, self.crop_size = base_side, _size(crop_size)
        base = self.base_size or 1
        largest = max(math.prod(self.crop_size or (1,)),
                      math.prod(base) if isinstance(base, tuple) else base ** 2)
        if largest > max_pixels():
            raise ConfigError(f"images of {largest:,} pixels; the limit is {max_pixels():,}",
                              "base_size, crop_size")
        self.augment, self.val = augment, val
        self.scale = _factors(scale, SCALE, "scale") if augment else (1.0, 1.0)
        self.scale_steps = None if scale_step is None else _steps(self.scale, scale_step)
        self.aspect = _factors(aspect, ASPECT, "aspect")
        self.cat_max_ratio = cat_max_ratio
        self.flip, self.vflip, self.rot90 = (augment and one for one in (flip, vflip, rot90))
        self.max_angle = _amount(rotate, ANGLE, "rotate") if augment else 0.0
        self.interpolation, self.border_place = interpolation, border_place
        self.border = None if border is None else _color(border)
        max_sigma = _amount(blur, SIGMA, "blur") if augment else 0.0
        self.pixel_transforms = [GaussianBlur(max_sigma)] if max_sigma else []
        self.pixel_transforms += [build("transforms", section) for section in transforms]

    def changed(self, **options: Any) -> "Augmentation":
        """An Augmentation with some options changed."""
        return Augmentation(**{**self.options, **options})

    def require_bands(self, bands: str) -> None:
        """Raise ConfigError, by name, if a part is for RGB of 8 bits only.

        bands: the text of those that the images have.
        """
        first = len(self.pixel_transforms) - len(self.options["transforms"])
        for number, transform in enumerate(self.pixel_transforms[first:]):
            if transform.for_rgb:
                raise ConfigError(f"{type(transform).__name__} is for RGB of 8 bits; the images "
                                  f"are {bands}", f"transforms[{number}]", "remove it; "
                                  "GaussianBlur, Cutout and BandJitter take any bands")
        if self.border is not None:
            raise ConfigError(f"border is a color of RGB; the images are {bands}", "border",
                              "leave it out: the mean of each band pads images")

    def __call__(self, image: Image, label: Labels, rng: np.random.Generator, *,
                 image_border: tuple, label_border: int, train_ids: np.ndarray | None = None,
                 center: tuple[int, int] | None = None) -> Crop:
        """The crop of image (H, W, C) and label uint8 or uint16 (H, W), as stored.

        The inputs are not changed. image_border, label_border: values outside the image;
        label_border is the stored value of an ignored pixel. train_ids: table from stored
        values to classes, for cat_max_ratio; None: stored values are the classes. center:
        (y, x) of a pixel that a random crop must show; if the rotation moves it out of the
        image, the crop shows the nearest pixel inside.
        """
        view = self.draw_view(label, rng, label_border, train_ids, center)
        image, label = view.cut(image, label, self.border or image_border, label_border)
        for transform in self.pixel_transforms:
            image, label = transform(image, label, rng, image_border=image_border,
                                     label_border=label_border)
        return Crop(image, label, view.flip != view.vflip, view.flip, view.vflip, view.turns)

    def draw_view(self, label: Labels, rng: np.random.Generator, label_border: int = 255,
                  train_ids: np.ndarray | None = None,
                  center: tuple[int, int] | None = None) -> "View":
        """The part of an image with this label (H, W) to show; makes all geometric draws."""
        height, width = label.shape
        zooms = self._zooms(height, width)
        crop_height, crop_width = self.crop_size or (shown_length(height, zooms[0]),
                                                     shown_length(width, zooms[1]))
        if not self.augment:
            if not self.crop_size:
                whole = whole_view(height, width, self.base_size)
                rows, columns = whole or (Span(0, height, height), Span(0, width, width))
            else:
                zoom = max(crop_height / height, crop_width / width)
                rows = span(height, crop_height, zoom, 0.5)
                columns = span(width, crop_width, zoom, 0.5)
            return View(rows, columns, (crop_height, crop_width))
        low, high = self.scale
        scale = rng.uniform(low, high) if self.scale_steps is None else \
            self.scale_steps[rng.integers(len(self.scale_steps))]
        angle = rng.uniform(-self.max_angle, self.max_angle)
        down, right, mirrored = rng.random(3)
        narrowest, widest = self.aspect
        stretch = math.sqrt(rng.uniform(narrowest, widest)) if self.aspect != (1.0, 1.0) else 1.0
        # Drawn only if they are used, so that the other draws of a sample stay the same.
        upside_down = bool(self.vflip and rng.random() < 0.5)
        turns = int(rng.integers(4)) if self.rot90 else 0
        if self.crop_size is None and height != width:
            turns -= turns % 2
        if turns % 2:
            crop_height, crop_width = crop_width, crop_height
        zoom_y, zoom_x = zooms[0] * scale / stretch, zooms[1] * scale * stretch
        tries = REDRAWS if self.cat_max_ratio < 1 else 0
        while True:
            rows = span(height, crop_height, zoom_y, down)
            columns = span(width, crop_width, zoom_x, right)
            view = View(rows, columns, (crop_height, crop_width), angle,
                        bool(self.flip and mirrored < 0.5), upside_down, turns,
                        self.interpolation)
            if self.border_place == "random":
                view = view.within_border(down, right)
            if center is not None:
                view = view.around(center, label.shape, (down, right))
            if not tries or self._is_mixed(view.probe(label), label_border, train_ids):
                return view
            tries -= 1
            down, right = rng.random(2)

    def _zooms(self, height, width):
        """The zoom of rows and of columns of an image of this size, before the random scale."""
        if self.base_size is None:
            return 1.0, 1.0
        if isinstance(self.base_size, tuple):
            return self.base_size[0] / height, self.base_size[1] / width
        side = (min if self.base_side == "short" else max)(height, width)
        return self.base_size / side, self.base_size / side

    def _is_mixed(self, stored, label_border, train_ids):
        """Whether stored values (P,) have two classes and none exceeds cat_max_ratio."""
        ids, ignored = stored, label_border
        if train_ids is not None:
            ids, ignored = train_ids[stored], train_ids[label_border]
        classes, counts = np.unique(ids, return_counts=True)
        counts = counts[classes != ignored]
        return len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum()


class View(NamedTuple):
    """A part of an image that fills a crop of size = (height, width) pixels.

    Without an angle, rows x columns of the source fill the crop from `before` = (row,
    column) on, and the rest is border. With an angle (degrees, counterclockwise), the
    image is first rotated about its center. The crop is then mirrored left to
    right (flip) and top to bottom (vflip), and turned by 90 degrees
    counterclockwise, `turns` times; an odd number exchanges its height and width.
    """

    rows: Span
    columns: Span
    size: tuple[int, int]
    angle: float = 0.0
    flip: bool = False
    vflip: bool = False
    turns: int = 0
    interpolation: str = "linear"
    before: tuple[int, int] = (0, 0)

    def within_border(self, down: float, right: float) -> "View":
        """The image at another place in its border; down, right: where, each in [0, 1).

        Along an axis on which there is no border nothing changes.
        """
        missing = self.size[0] - self.rows.shown, self.size[1] - self.columns.shown
        return self._replace(before=(int(down * (missing[0] + 1)), int(right * (missing[1] + 1))))

    def cut(self, image: Image, label: Labels, image_border: tuple,
            label_border: int) -> tuple[Image, Labels]:
        """The crops of image (H, W, 3) and label (H, W), sampled once, in the same geometry."""
        cut = self._warp if self.angle else self._resize
        image, label = cut(image, label, image_border, label_border)
        if self.vflip:
            image, label = _flipped(image, 0), cv2.flip(label, 0)
        if self.turns:
            image, label = (np.ascontiguousarray(np.rot90(each, self.turns))
                            for each in (image, label))
        return image, label

    def around(self, center: tuple[int, int], shape: tuple[int, int],
               place: tuple[float, float]) -> "View":
        """A view of this size that shows the pixel `center` (y, x) of an image of `shape` (H, W).

        place: (down, right), each in [0, 1): where the crop lies among all that show the
        pixel and stay inside the image.
        """
        y, x = self._rotated(center, shape)
        return self._replace(rows=_span_over(self.rows, shape[0], y, place[0]),
                             columns=_span_over(self.columns, shape[1], x, place[1]))

    def probe(self, label: Labels, step: int = PROBE) -> np.ndarray:
        """(P,): values of label (H, W) at every step-th row and column of the crop's inside."""
        v, u = np.mgrid[step // 2:self.size[0]:step, step // 2:self.size[1]:step]
        x, y = self._matrix(label.shape) @ np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
        x, y = np.rint(x).astype(int), np.rint(y).astype(int)
        inside = (x >= 0) & (x < label.shape[1]) & (y >= 0) & (y < label.shape[0])
        return label[y[inside], x[inside]]

    def _resize(self, image, label, image_border, label_border):
        (top, height, rows), (left, width, columns) = self.rows, self.columns
        image = resized(image, self.rows, self.columns, self.interpolation)
        label = label[top:top + height, left:left + width]
        if (rows, columns) != (height, width):
            # INTER_NEAREST aligns corners; INTER_NEAREST_EXACT aligns pixel centers, as
            # INTER_LINEAR does.
            label = cv2.resize(label, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
        if (rows, columns) != self.size:
            top, left = self.before
            widths = top, self.size[0] - rows - top, left, self.size[1] - columns - left
            image = _padded(image, widths, image_border)
            label = cv2.copyMakeBorder(label, *widths, cv2.BORDER_CONSTANT, value=label_border)
        if self.flip:
            image, label = _flipped(image, 1), cv2.flip(label, 1)
        return np.ascontiguousarray(image), np.ascontiguousarray(label)

    def _warp(self, image, label, image_border, label_border):
        to_source = self._matrix(image.shape[:2])
        size = self.size[::-1]
        times = halvings(self.rows.scale, self.columns.scale)
        image, to_image = self._needed_region(image, to_source, times)
        label, to_label = self._needed_region(label, to_source, 0)
        flags = OPENCV[self.interpolation] | cv2.WARP_INVERSE_MAP
        if image.shape[2] == 3 and image.dtype == np.uint8:
            # OpenCV warps four channels twice as fast as three, with the same values.
            image = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), to_image, size,
                                   flags=flags, borderMode=cv2.BORDER_CONSTANT,
                                   borderValue=(*image_border, 0))
            image = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
        else:
            image = np.stack([cv2.warpAffine(
                np.ascontiguousarray(image[..., band]), to_image, size, flags=flags,
                borderMode=cv2.BORDER_CONSTANT, borderValue=value)
                for band, value in enumerate(image_border)], axis=-1)
        label = cv2.warpAffine(label, to_label, size,
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_CONSTANT, borderValue=label_border)
        return image, label

    def _matrix(self, shape):
        """(2, 3): maps pixel (x, y) of the crop to the source, both counted at pixel centers."""
        sx, sy = self.columns.scale, self.rows.scale
        # Crop pixel -> its center in the scaled image -> rotated there -> source.
        mirror = np.array([[-1, 0, self.size[1] - 1], [0, 1, 0], [0, 0, 1.0]]) if self.flip \
            else np.eye(3)
        place = _translation(self.columns.start * sx + 0.5 - self.before[1],
                             self.rows.start * sy + 0.5 - self.before[0])
        center = _translation(shape[1] * sx / 2, shape[0] * sy / 2)
        back = _translation(-shape[1] * sx / 2, -shape[0] * sy / 2)
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        shrink = np.diag([1 / sx, 1 / sy, 1])
        return (_translation(-0.5, -0.5) @ shrink @ center @ turn @ back @ place @ mirror)[:2]

    def _rotated(self, point, shape):
        """The pixel (y, x) that `point` is rotated to, or the nearest one inside the image."""
        sy, sx = self.rows.scale, self.columns.scale
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        y, x = (point[0] + 0.5 - shape[0] / 2) * sy, (point[1] + 0.5 - shape[1] / 2) * sx
        y, x = cos * y - sin * x, cos * x + sin * y
        return (min(max(math.floor(y / sy + shape[0] / 2), 0), shape[0] - 1),
                min(max(math.floor(x / sx + shape[1] / 2), 0), shape[1] - 1))

    def _needed_region(self, image, to_source, times):
        """The part of the image that the crop needs, halved, and the matrix (2, 3) into it."""
        height, width = self.size
        corners = to_source @ np.array([[-1, width, -1, width], [-1, -1, height, height],
                                        [1, 1, 1, 1]])
        step = 2 ** times
        more = _MORE[self.interpolation] * step
        left, right = _aligned(corners[0].min() - more, corners[0].max() + more,
                               image.shape[1], step)
        top, bottom = _aligned(corners[1].min() - more, corners[1].max() + more,
                               image.shape[0], step)
        region = image[top:bottom, left:right]
        # An incomplete block at the far edge is completed by repeating the edge.
        missing = (-region.shape[0] % step, -region.shape[1] % step)
        if any(missing):
            def completed(part):
                return cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
            region = completed(region) if region.ndim == 2 else by_bands(completed, region)
        for _ in range(times):
            region = halved(region)
        shift = _translation(0.5 - left, 0.5 - top)
        shrink = np.diag([1 / step, 1 / step, 1])
        full = np.vstack([to_source, [0, 0, 1]])
        return region, (_translation(-0.5, -0.5) @ shrink @ shift @ full)[:2]


def _padded(image, widths, border):
    """An image (H, W, C) with a border of these widths: above, below, left, right."""
    above, below, left, right = widths
    if image.shape[2] == 3:
        return cv2.copyMakeBorder(image, above, below, left, right, cv2.BORDER_CONSTANT,
                                  value=border)
    height, width, bands = image.shape
    result = np.empty((above + height + below, left + width + right, bands), image.dtype)
    result[...] = border
    result[above:above + height, left:left + width] = image
    return result


def _flipped(image, axis):
    """An image (H, W, C) mirrored along an axis: 0 top to bottom, 1 left to right."""
    return cv2.flip(image, axis) if image.shape[2] == 3 else \
        np.ascontiguousarray(np.flip(image, axis))


# Pixels of the halved image on every side of the crop that its edge is interpolated from.
_MORE = {"linear": 1, "cubic": 2, "lanczos": 4}


def _span_over(part, length, point, place):
    """A span of the same length that covers the pixel `point` of an axis of `length` pixels."""
    first, last = max(0, point - part.length + 1), min(point, length - part.length)
    return part._replace(start=first + int(place * (last - first + 1)))


def _aligned(low, high, length, step):
    """[low, high) extended to whole blocks of `step` pixels and cut to [0, length)."""
    first = min(max(0, math.floor(low / step) * step), (length - 1) // step * step)
    last = max(min(length, math.ceil(high / step) * step), first + 1)
    return first, last


def _translation(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _size(crop_size):
    """crop_size as (height, width), or None."""
    if crop_size is None:
        return None
    size = [crop_size] * 2 if isinstance(crop_size, int) else list(crop_size)
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"crop_size must be a positive number or [height, width], got "
                          f"{crop_size}", "crop_size")
    return tuple(size)


def _base_size(base_size, base_side, augment):
    """base_size as a number, (height, width) or None."""
    if base_side != "long" and not isinstance(base_size, int):
        raise ConfigError(f"base_side has no effect: base_size is {base_size}", "base_side",
                          "give base_size as one number, or leave base_side out")
    if not augment and (base_side != "long" or isinstance(base_size, list)):
        key = "base_side" if base_side != "long" else "base_size"
        raise ConfigError(f"{key} {base_side if key == 'base_side' else base_size} resizes in "
                          "training only", key,
                          "predict.input_size sets such a size for validation and prediction")
    if base_size is None:
        return None
    sides = [base_size] * 2 if isinstance(base_size, int) else list(base_size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"base_size must be at least 1, or [height, width], got {base_size}",
                          "base_size")
    return base_size if isinstance(base_size, int) else (sides[0], sides[1])


def _steps(scale, step):
    """The factors smallest, smallest + step, … up to the largest."""
    smallest, largest = scale
    if not 0 < step <= largest - smallest:
        raise ConfigError(f"scale_step must be above 0 and at most {largest - smallest:g}, the "
                          f"range of scale, got {step}", "scale_step")
    count = math.floor((largest - smallest) / step + 1e-9) + 1
    return [smallest + step * number for number in range(count)]


def _color(border):
    """border as (r, g, b)."""
    if len(border) != 3 or not all(0 <= value <= 255 for value in border):
        raise ConfigError(f"border must be [r, g, b] from 0 to 255, got {border}", "border")
    return tuple(border)


def _factors(value, default, key):
    """The range of a factor: (1, 1) for false, the default for true, or as given."""
    if isinstance(value, bool):
        return default if value else (1.0, 1.0)
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ConfigError(f"{key} must be true, false or [smallest, largest] factor above 0, got "
                          f"{value}", key)
    smallest, largest = value
    return smallest, largest


def _amount(value, default, key):
    """The largest amount: 0 for false, the default for true, or as given."""
    if isinstance(value, bool):
        return default if value else 0.0
    if value < 0:
        raise ConfigError(f"{key} must be true, false or a positive number, got {value}", key)
    return float(value)
