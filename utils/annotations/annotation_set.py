"""Labels as annotation tools export them: what every format is read into.

A format is one file of this folder. `utils/annotations/formats.py` lists them; it says what a file
must define. Coordinates are in pixels of the image, x to the right and y down; (0, 0) is the upper
left corner of the first pixel.
"""
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DataError, listed, shown
from utils.files.jsonc import unusable_character

Size = tuple[int, int]              # (height, width)
MOST_PIXELS = 1 << 28               # of an image whose size an annotation states
MOST_NAME = 4096                    # characters of the name of an image, with folders
FARTHEST = 1e6                      # pixels from the image, for a coordinate


class Category(NamedTuple):
    """A class of the annotation file. color: [r, g, b] if the file has one."""

    name: str
    color: list[int] | None = None


class Runs(NamedTuple):
    """A mask as run lengths: of zeros, ones, zeros, ... column by column, as in COCO.

    counts: int64 (N,), not negative, whose sum is the number of pixels. size: of the whole image.
    """

    counts: np.ndarray
    size: Size


class Cutout(NamedTuple):
    """A mask of a part of the image: bool (h, w), whose first pixel is row `top`, column `left`."""

    pixels: np.ndarray
    top: int = 0
    left: int = 0


class Region(NamedTuple):
    """One annotated object or area.

    category: index into AnnotationSet.categories. rings: outlines, each float64 (K, 2), x then y.
    They are united, but one that lies inside another is a hole. mask: in place of rings.
    place: for messages, "instances.json: annotations[17]".
    """

    category: int
    rings: Sequence[np.ndarray]
    mask: Runs | Cutout | None
    place: str


class AnnotatedImage(NamedTuple):
    """The annotation of one image.

    image: its file name as the annotation writes it, relative, with "/", from `image_name`. It is
    looked up by the end of its path below the folder of images; without the extension of a picture
    it fits every extension.
    size: as the annotation states it. place: for messages. regions: (size of the image) -> its
    regions in painting order, the top one last; it is pickled for workers, so it is a
    functools.partial of a function, or a method, and not a lambda. Raises DataError.
    other_names: looked up in this order if there is no file `image`, such as the name before a tool
    put characters before it. file: of this image's annotation, where each has its own: a pixel
    cache is valid until it changes.
    """

    image: str
    size: Size | None
    place: str
    regions: Callable[[Size], Sequence[Region]]
    other_names: tuple[str, ...] = ()
    file: Path | None = None


class AnnotationSet(NamedTuple):
    """What a file or folder of annotations contains.

    format: its name, as `--init` says it: "COCO JSON". overlap: which region an overlap shows, as
    the tool draws it: "order", the later one, or "area", the smaller one.
    """

    format: str
    categories: Sequence[Category]
    images: Sequence[AnnotatedImage]
    overlap: str = "order"


class Findings:
    """What reading annotations has found, by kind, with the places where.

    wrong: the annotations cannot be used before it is mended. left_out: the rest can be used
    without these. remarks: what is used, and may be a mistake.
    """

    def __init__(self):
        self.wrong: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        self.remarks: dict[str, list[str]] = {}

    def refuse(self, place: str, what: str) -> None:
        """Note an item that must be mended: "instances.json: annotations[3]", "no category 7"."""
        self.wrong.append(f"{place}: {what}")

    def leave_out(self, place: str, what: str) -> None:
        """Note an item that is not used. what: the same text for every item of a kind."""
        self.left_out.setdefault(what, []).append(place)

    def remark(self, place: str, what: str) -> None:
        """Note an item that is used but looks wrong. what: as for leave_out."""
        self.remarks.setdefault(what, []).append(place)

    def lines(self) -> list[str]:
        """One line for each kind of what was left out and of what looks wrong, with a few places.

        "3 left out: outlines of fewer than three points (a.json: annotations[17], ...)"
        """
        return [f"{len(places)} {verb}: {what} ({listed(places, 3)})"
                for verb, kinds in (("left out", self.left_out), ("used", self.remarks))
                for what, places in kinds.items()]


def image_name(text: Any, place: str) -> str:
    """A file name of an annotation, relative and with "/". Raises DataError if it is none.

    A drive, a leading slash and an address (https://host) are dropped: images are looked up by the
    end of their path. ".." is refused.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{shortly(text)} is not the name of an image", place)
    wrong = unusable_character(text)
    if wrong:
        raise DataError(f"the name of the image contains {wrong}", place)
    if len(text) > MOST_NAME:
        raise DataError(f"the name of the image has {len(text)} characters", place)
    parts = text.replace("\\", "/").split("://", 1)[-1].split("/")
    if ".." in parts:
        raise DataError(f"the name {shortly(text)} leaves the folder of the images", place,
                        "write names relative to the folder of the images, without ..")
    parts = [part for part in parts if part not in ("", ".") and not part.endswith(":")]
    if not parts:
        raise DataError(f"{shortly(text)} is not the name of an image", place)
    return "/".join(parts)


def image_size(height: Any, width: Any, place: str) -> Size:
    """(height, width) that an annotation states. Raises DataError unless both are usable."""
    for value, name in ((height, "height"), (width, "width")):
        if type(value) not in (int, float) or not 1 <= value < math.inf or value != int(value):
            raise DataError(f"the {name} is {shortly(value)}; expected a whole number above 0",
                            place)
    if height * width > MOST_PIXELS:
        raise DataError(f"an image of {shortly(int(height))} x {shortly(int(width))} pixels; the "
                        f"limit is {MOST_PIXELS}", place)
    return int(height), int(width)


def ring(values: Any, place: str) -> np.ndarray:
    """An outline, float64 (K, 2), of [x, y, x, y, ...] or [[x, y], ...] as JSON has it.

    Raises DataError unless it consists of pairs of finite numbers that are near the image. There
    may be fewer than three points.
    """
    if not isinstance(values, list):
        raise DataError(f"an outline is {shortly(values)}; expected a list of numbers", place)
    flat = values
    if values and isinstance(values[0], list):
        if not all(isinstance(point, list) and len(point) == 2 for point in values):
            raise DataError("a point of an outline is not a pair [x, y]", place)
        flat = [number for point in values for number in point]
    if not set(map(type, flat)) <= {int, float}:        # True is an int too
        wrong = next(value for value in flat if type(value) not in (int, float))
        raise DataError(f"a coordinate is {shortly(wrong)}; expected a number", place)
    if len(flat) % 2:
        raise DataError(f"an outline has {len(flat)} numbers; expected pairs of x and y", place)
    try:
        points = np.array(flat, np.float64).reshape(-1, 2)
    except OverflowError:
        raise DataError("a coordinate is larger than any number", place) from None
    check_near(points, place)
    return points


def check_near(points: np.ndarray, place: str) -> None:
    """Raise DataError unless all coordinates are finite and near the image."""
    if points.size and not np.abs(points).max() <= FARTHEST:      # also refuses NaN
        wrong = points[~(np.abs(points) <= FARTHEST)][0]
        raise DataError(f"a coordinate is {wrong:g}; expected a pixel of the image", place)


def shortly(value: Any) -> str:
    """A value of a file as it stands in a message: printable, at most 40 characters."""
    if isinstance(value, dict):
        text = "an object"
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    elif isinstance(value, int) and abs(value) >= 10 ** 40:     # str() of it may take minutes
        text = "a number of more than 40 digits"
    else:
        text = shown(repr(value[:60] if isinstance(value, str) else value))
    return text if len(text) <= 40 else text[:37] + "..."


def hex_color(text: Any) -> list[int] | None:
    """[r, g, b] of a color as tools write it, "#c06060"; None for anything else."""
    if not isinstance(text, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", text.strip()):
        return None
    return list(bytes.fromhex(text.strip()[1:]))
