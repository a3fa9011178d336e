"""The resize of a whole picture to the size at which a network sees it.

Validation (dataloader.augmentation.transforms), prediction (utils.predict.predictor) and the runner
of exported graphs (utils.export.onnx_network) all resize by `WholeView`, so a network sees the same
pixels everywhere. A base size is one of three:

None        pictures keep their size
512         the long side is 512 pixels, as "base_size" of a loader says
(512, 1024) the smallest size that covers 512 rows and 1024 columns, as validation with "val" and a
            "crop_size" resizes before it cuts out the center
"""
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

from utils.images.types import Image

OPENCV = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}

BaseSize: TypeAlias = int | tuple[int, int] | None


class Span(NamedTuple):
    """Along one axis: source pixels [start, start + length) fill crop pixels [0, shown)."""

    start: int
    length: int
    shown: int

    @property
    def scale(self) -> float:
        """Crop pixels per source pixel."""
        return self.shown / self.length

    def inside(self, total: int) -> np.ndarray:
        """(total,) int64: for each pixel of an axis, its place in the part, or the nearest one."""
        return np.clip(np.arange(total) - self.start, 0, self.length - 1)


class WholeView(NamedTuple):
    """A picture at a base size: rows and columns say which pixels it shows, and how large.

    Nearly always all of them. If a side would be a fraction of a pixel too short, up to a pixel of
    the view is left out at the edges, so that both sides have the same scale.
    """

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the view."""
        return self.rows.shown, self.columns.shown

    def cut(self, image: Image) -> Image:
        """The view of an image (H, W, C): (*size, C) of the same type."""
        return resized(image, self.rows, self.columns)


def whole_view(height: int, width: int, base_size: BaseSize) -> WholeView | None:
    """How a picture of height x width pixels is resized; None if it keeps its size."""
    if base_size is None:
        return None
    if isinstance(base_size, int):
        zoom = base_size / max(height, width)
    else:
        zoom = max(base_size[0] / height, base_size[1] / width)
    rows, columns = (span(length, shown_length(length, zoom), zoom, 0.5)
                     for length in (height, width))
    kept = rows == (0, height, height) and columns == (0, width, width)
    return None if kept else WholeView(rows, columns)


def as_seen(image: Image, base_size: BaseSize) -> Image:
    """An image (H, W, 3) as a network of this base size sees it."""
    height, width = image.shape[:2]
    view = whole_view(height, width, base_size)
    return image if view is None else view.cut(image)


def base_size_text(base_size: BaseSize | list[int]) -> str:
    """A base size in words, for messages and tables."""
    if base_size is None:
        return "their own size"
    if isinstance(base_size, int):
        return f"{base_size} pixels (long side)"
    return f"the size that covers {base_size[0]}x{base_size[1]} pixels"


def shown_length(length: int, zoom: float) -> int:
    """The pixels of an axis of `length` pixels at this zoom, at least one."""
    return max(1, math.floor(length * zoom + 0.5))


def span(length: int, crop: int, zoom: float, place: float) -> Span:
    """The part of an axis of `length` pixels that `crop` pixels show at this zoom.

    place: its position, in [0, 1). The part has whole source pixels, so that image and
    label cover exactly the same; this changes the zoom by less than half a pixel.
    """
    needed = crop / zoom
    if needed >= length:
        return Span(0, length, min(crop, shown_length(length, zoom)))
    block = 2 ** max(0, math.floor(-math.log2(zoom) + 1e-9))     # halving is fast on whole blocks
    taken = min(length, max(1, block * round(needed / block)))
    return Span(int(place * (length - taken + 1)), taken, crop)


def resized(image: Image, rows: Span, columns: Span, interpolation: str = "linear") -> Image:
    """The pixels (H, W, C) of an image that the spans take, at the size that they show.

    interpolation: "linear", "cubic" or "lanczos" (Pillow's, which averages where it reduces).
    """
    image = np.asarray(image[rows.start:rows.start + rows.length,
                             columns.start:columns.start + columns.length])
    if (rows.shown, columns.shown) == (rows.length, columns.length):
        return image
    size = columns.shown, rows.shown
    if interpolation == "lanczos":
        return _lanczos(image, size)
    for _ in range(halvings(rows.scale, columns.scale)):
        image = halved(image)
    return by_bands(lambda part: cv2.resize(part, size, interpolation=OPENCV[interpolation]), image)


def by_bands(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray,
             most: int = 64) -> np.ndarray:
    """function(image) of an image (H, W, C), called with at most `most` bands at a time.

    For functions of OpenCV, which take few channels and drop the axis of a single one.
    """
    count = image.shape[2]
    if 1 < count <= most:
        return function(image)
    parts = (function(np.ascontiguousarray(image[..., first:first + most]))
             for first in range(0, count, most))
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def _lanczos(image, size):
    from PIL import Image as Pillow
    if image.dtype == np.uint8 and image.shape[2] == 3:
        picture = Pillow.fromarray(np.ascontiguousarray(image))
        return np.array(picture.resize(size, Pillow.Resampling.LANCZOS))
    planes = [np.array(Pillow.fromarray(image[..., band].astype(np.float32)).resize(
        size, Pillow.Resampling.LANCZOS)) for band in range(image.shape[2])]
    result = np.stack(planes, axis=-1)
    if image.dtype == np.float32:
        return result
    return np.rint(result).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)


def halvings(*scales: float) -> int:
    """How often an image is halved first: bilinear sampling skips pixels below scale 1/2."""
    return max(0, math.floor(-math.log2(max(scales)) + 1e-9))


def halved(image: Image) -> Image:
    """The image at half size, by averaging."""
    height, width = image.shape[:2]
    size = (width + 1) // 2, (height + 1) // 2
    if image.ndim == 2:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return by_bands(lambda part: cv2.resize(part, size, interpolation=cv2.INTER_AREA), image)
