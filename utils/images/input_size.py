"""The exact size at which a network sees a picture, as published evaluations state it.

A base size (utils.images.base_size) is the size of validation during a training. An `InputSize`
repeats the preprocessing of another program to the pixel: which side is resized to what, how it is
rounded and interpolated, what is padded or cut away, and at which size the logits are scored.
"""
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import ConfigError
from utils.images.headers import max_pixels
from utils.images.types import Image
from utils.machine.tensors import LabelBatch, Logits

_OPENCV = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
_PILLOW = {"lanczos": "LANCZOS", "antialias": "BILINEAR"}
_SIZES = ("input_size", "multiple", "input_crop")       # one of these makes the others count


class InputSize:
    """The size at which the network sees an image, and at which its logits are scored.

    It takes the place of base_size. Without input_size, multiple and input_crop images keep their
    size, and the other keys of this block have no effect.

    input_size: a number is the length of the short side; [height, width] is exactly that size,
        also if the image has another ratio; null is the size of the image.
    long_side: the most pixels of the long side. If the short side would make it longer, the image
        becomes smaller, so that it fits (mmsegmentation's scale [2048, 512]).
    multiple: both sides are rounded up to a multiple of this number.
    fill: how a side reaches the multiple: "stretch" resizes the image to it (mmsegmentation), "pad"
        adds the mean color on the right and at the bottom and leaves it out again (openseg).
    rounding: of a side that is not a whole number of pixels, "nearest" or "floor".
    interpolation: of the image. "linear" and "cubic" are OpenCV's, which skip pixels when they
        reduce; "lanczos" and "antialias" (bilinear) are Pillow's, which average them.
    logits_interpolation: from the size of the network's input to the size that is scored.
    input_crop: only the center of the resized image is predicted and scored; a number is a square.
        Files and pictures show the whole image all the same.
    scale_from: "input" resizes the network's input for the other scales; "image" makes each scale
        from the image itself, with input_size and long_side times the scale (mmsegmentation).
    score_at: "label": logits get the size of the label. "input": the label is resized to the size
        of the input instead, which is easier and gives another score.
    """

    def __init__(self, input_size: int | tuple[int, int] | None = None,
                 long_side: int | None = None, multiple: int = 1,
                 fill: Literal["stretch", "pad"] = "stretch",
                 rounding: Literal["nearest", "floor"] = "nearest",
                 interpolation: Literal["linear", "cubic", "lanczos", "antialias"] = "linear",
                 logits_interpolation: Literal["linear", "cubic", "nearest"] = "linear",
                 input_crop: int | tuple[int, int] | None = None,
                 scale_from: Literal["input", "image"] = "input",
                 score_at: Literal["label", "input"] = "label"):
        self.input_size, self.long_side, self.multiple = input_size, long_side, multiple
        self.fill, self.rounding, self.interpolation = fill, rounding, interpolation
        self.logits_interpolation, self.scale_from = logits_interpolation, scale_from
        self.score_at = score_at
        self.input_crop = (input_crop, input_crop) if isinstance(input_crop, int) else input_crop
        self._require_sizes()
        self._require_effect()

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return any(getattr(self, key) != _USUAL[key] for key in _SIZES)

    def describe(self) -> dict[str, Any]:
        """The keys that differ from their defaults, for reports."""
        settings = {key: getattr(self, key) for key, usual in _USUAL.items()
                    if getattr(self, key) != usual}
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in settings.items()}

    def whole(self) -> "InputSize":
        """The same without input_crop and score_at: for files and pictures of whole images."""
        settings = {key: getattr(self, key) for key in self.describe()
                    if key not in ("input_crop", "score_at")}
        return InputSize(**settings) if set(settings) & set(_SIZES) else InputSize()

    def view(self, height: int, width: int, scale: float = 1.0) -> "InputView":
        """How an image of height x width pixels is seen; scale: of input_size and long_side."""
        rows, columns = kept = self._resized(height, width, scale)
        if self.fill == "stretch":
            rows, columns = (_rounded_up(side, self.multiple) for side in kept)
        crop = self.input_crop
        if crop is None:
            inside = (0, 0, rows, columns)
        else:
            shown = min(rows, crop[0]), min(columns, crop[1])
            inside = (rows - shown[0]) // 2, (columns - shown[1]) // 2, *shown
        padded = _rounded_up(inside[2], self.multiple), _rounded_up(inside[3], self.multiple)
        return InputView((height, width), kept, (rows, columns), inside, padded, self)

    def _resized(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Rows and columns of the resized image, before they are rounded up to a multiple."""
        if isinstance(self.input_size, tuple):
            rows, columns = self.input_size
            return self._whole_pixels(rows * scale), self._whole_pixels(columns * scale)
        zoom = scale
        if self.input_size is not None:
            short, long = self.input_size, self.long_side
            if scale != 1:      # mmsegmentation cuts off the fraction of both
                short, long = int(short * scale), long and int(long * scale)
            zoom = short / min(height, width)
            if long is not None:
                zoom = min(zoom, long / max(height, width))
        return self._whole_pixels(height * zoom), self._whole_pixels(width * zoom)

    def _whole_pixels(self, length):
        # A product such as 3 * (512 / 3) may lie a little below the whole number it stands for.
        half = 0.5 if self.rounding == "nearest" else 1e-9
        return max(1, int(length + half))

    def _require_sizes(self):
        limit = max_pixels()
        for key in ("input_size", "input_crop", "long_side", "multiple"):
            value = getattr(self, key)
            sides = value if isinstance(value, tuple) else [1 if value is None else value]
            if len(sides) not in (1, 2) or min(sides) < 1 or sides[0] * sides[-1] > limit:
                raise ConfigError(f"{key} must be positive and give at most {limit:,} pixels; "
                                  f"found {value}", f"predict.{key}")
        if self.long_side is not None and not isinstance(self.input_size, int):
            raise ConfigError("long_side limits the long side where input_size is the length of "
                              f"the short side; input_size is {self.input_size}",
                              "predict.long_side", "leave it out")
        if isinstance(self.input_size, int) and self.long_side is not None \
                and self.long_side < self.input_size:
            raise ConfigError(f"long_side {self.long_side} is shorter than the short side "
                              f"{self.input_size}", "predict.long_side")

    def _require_effect(self):
        unused = [key for key in _USUAL if key not in _SIZES
                  and getattr(self, key) != _USUAL[key]] if not self.active else []
        if unused:
            raise ConfigError(f"{unused[0]} has no effect: images keep their size",
                              f"predict.{unused[0]}", "give input_size, multiple or input_crop")
        if self.input_crop is not None and self.score_at == "label":
            raise ConfigError("input_crop predicts the center of an image only, which cannot be "
                              "scored at the size of the label", "predict.input_crop",
                              'set predict.score_at="input"')
        if self.fill == "pad" and self.multiple == 1:
            raise ConfigError("fill has no effect: multiple is 1", "predict.fill",
                              "give multiple, or leave it out")


# Every key at the value that leaves images as they are.
_USUAL = {key: one.default for key, one in inspect.signature(InputSize).parameters.items()}


@dataclass(frozen=True)
class InputView:
    """How one image is seen: resized, then cut to its center, then padded on the right and bottom.

    source: height and width of the image. kept: after the resize to input_size. resized: after a
    second resize to a multiple, as mmsegmentation does it. inside: the part of the resized image
    that is predicted, (top, left, rows, columns). padded: the size of the network's input.
    """

    source: tuple[int, int]
    kept: tuple[int, int]
    resized: tuple[int, int]
    inside: tuple[int, int, int, int]
    padded: tuple[int, int]
    of: InputSize

    @property
    def scored(self) -> tuple[int, int]:
        """Height and width of the logits that are scored."""
        return self.source if self.of.score_at == "label" else (self.inside[2], self.inside[3])

    def cut(self, image: Image) -> Image:
        """An image uint8 (H, W, 3) resized and cut, (rows, columns, 3); not padded yet."""
        top, left, rows, columns = self.inside
        for size in (self.kept, self.resized):
            image = _resize(image, size, self.of.interpolation)
        return image[top:top + rows, left:left + columns]

    def logits(self, logits: Logits) -> Logits:
        """Logits (N, C, *padded) of the network as they are scored, float32 (N, C, *scored)."""
        return self.at_scored(logits, self.scored)

    def at_scored(self, logits: Logits, scored: tuple[int, int]) -> Logits:
        """`logits` of a view at another scale, whose result has the size `scored`."""
        part = logits[..., :self.inside[2], :self.inside[3]]
        return resize_logits(part, scored, self.of.logits_interpolation)

    def labels(self, labels: LabelBatch) -> LabelBatch:
        """Labels (N, H, W) as they are scored, (N, *scored)."""
        if self.of.score_at == "label":
            return labels
        for axis, (source, resized, first, shown) in enumerate(zip(
                self.source, self.resized, self.inside[:2], self.inside[2:], strict=True), start=1):
            places = _nearest(source, resized)[first:first + shown]
            labels = labels.index_select(axis, torch.from_numpy(places).to(labels.device))
        return labels


def resize_logits(logits: Logits, size: tuple[int, int], interpolation: str) -> Logits:
    """Logits (N, C, h, w) at `size` (H, W), float32: "linear", "cubic" or "nearest".

    None of them averages when it reduces. They agree with OpenCV's to the last digits of a float.
    """
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.contiguous()
    if interpolation == "nearest":
        rows, columns = (torch.from_numpy(_nearest(old, new)).to(logits.device)
                         for old, new in zip(logits.shape[-2:], size, strict=True))
        return logits.index_select(-2, rows).index_select(-1, columns)
    mode = {"linear": "bilinear", "cubic": "bicubic"}[interpolation]
    return F.interpolate(logits.contiguous(), size, mode=mode, align_corners=False)


def _nearest(old, new):
    """For each of `new` pixels, the one of `old` below its center, as Pillow's "nearest"."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _resize(image, size, interpolation):
    """An image uint8 (H, W, 3) at `size` (rows, columns)."""
    if image.shape[:2] == size:
        return image
    if interpolation in _OPENCV:
        return cv2.resize(image, (size[1], size[0]), interpolation=_OPENCV[interpolation])
    from PIL import Image as Pillow
    method = getattr(Pillow.Resampling, _PILLOW[interpolation])
    return np.array(Pillow.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]),
                                                                         method))


def _rounded_up(length, multiple):
    return -(-length // multiple) * multiple
