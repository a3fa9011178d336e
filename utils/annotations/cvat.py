"""CVAT for images 1.1: an XML file, alone or in the zip or folder that CVAT exports with it.

    <annotations>
      <meta> … <label><name>car</name><color>#c06060</color><type>any</type></label> …
      <image id="0" name="a.jpg" width="640" height="480">
        <polygon label="car" points="1.5,2;30,2;30,40" z_order="0" occluded="0"/>
        <box xtl ytl xbr ybr rotation/>  <ellipse cx cy rx ry rotation/>
        <mask left top width height rle="3, 5, 7"/>

The runs of a mask are of zeros, ones, zeros, … row by row of its box. Shapes of a larger z_order
lie above others, and later ones above earlier ones; occluded ones are drawn like all. Polylines,
points, cuboids, skeletons and tags have no area and are left out. CVAT for video (tracks) names no
images and is refused. Layout: docs.cvat.ai, "XML annotation format".
"""
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.parsers import expat

import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Cutout,
    Findings,
    Region,
    Size,
    check_near,
    hex_color,
    image_name,
    image_size,
    shortly,
)
from utils.annotations.file_tree import file_tree, is_zip, place_of, read_member
from utils.annotations.json_file import MOST_BYTES
from utils.annotations.outlines import ellipse, rectangle
from utils.errors import DataError, shown, size_text, unknown

TITLE = "CVAT for images (XML)"

_FILE = "annotations.xml"
_HEAD = 4096
_MOST_DEPTH = 50            # CVAT writes 7 levels
_WITH_AREA = {"polygon": ("points",), "box": ("xtl", "ytl", "xbr", "ybr", "rotation"),
              "ellipse": ("cx", "cy", "rx", "ry", "rotation"),
              "mask": ("left", "top", "width", "height", "rle")}
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
# Types of labels in the file whose shapes have no area.
_TYPES_WITHOUT_AREA = {*_WITHOUT_AREA, "tags"}
# Each text fits in one way only: else a long row of digits would be tried in endlessly many.
_NUMBER = r"\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?\s*"
_POINTS = re.compile(rf"{_NUMBER},{_NUMBER}(?:;{_NUMBER},{_NUMBER})*", re.ASCII)
_RUNS = re.compile(r"\s*\d{1,10}\s*(?:,\s*\d{1,10}\s*)*", re.ASCII)


class _Shape(NamedTuple):
    """A shape of the file. given: its attributes that say where it is."""

    kind: str
    category: int
    z_order: float
    given: dict[str, str]
    place: str


def recognizes(path: Path) -> bool:
    """Whether this is CVAT's XML, or a folder or zip that contains it as annotations.xml."""
    try:
        root, name = _source(path)
        return b"<annotations" in read_member(root, name, _HEAD, cut=True)
    except DataError:
        return False


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The labels and images of the XML. Raises DataError if it cannot be read, or is of a video."""
    root, name = _source(path)
    place = place_of(root, name)
    found = _Reader(place, findings)
    found.parse(read_member(root, name, MOST_BYTES))
    if not found.images and found.tracks:
        raise DataError(f"{found.tracks} tracks of a video, and no images: tracks do not name the "
                        "images they are drawn on", place,
                        "export the task from CVAT as \"CVAT for images 1.1\"")
    return AnnotationSet(TITLE, found.categories, found.images)


def _source(path):
    """(the folder or zip, the name of the XML in it). Raises DataError if there is none."""
    if path.is_dir():
        root, name = path, _FILE
        if not (path / name).is_file():
            raise DataError(f"no {_FILE} in it", shown(path))
    elif is_zip(path):
        root, folder = path, file_tree(path).folder_of(_FILE)
        if folder is None:
            raise DataError(f"no {_FILE} in it", shown(path))
        name = folder + _FILE
    elif path.suffix.lower() == ".xml":
        root, name = path.parent, path.name
    else:
        raise DataError("this is not an XML file", shown(path))
    return root, name


class _Reader:
    """Collects labels and images while the parser goes through the file."""

    def __init__(self, place: str, findings: Findings):
        self.place, self.findings = place, findings
        self.categories: list[Category] = []
        self.images: list[AnnotatedImage] = []
        self.tracks = 0
        self._ids: dict[str, int] = {}
        self._open: list[str] = []              # names of the elements around the position
        self._label: dict[str, str] = {}        # texts of the <label> around it
        self._text: list[str] | None = None
        self._image: tuple[str, Size, str] | None = None
        self._shapes: list[_Shape] = []
        self._parser = expat.ParserCreate()

    def parse(self, data: bytes):
        """Read the file. Raises DataError if it is not XML, or declares entities."""
        parser = self._parser
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._characters
        # CVAT writes no document type. One could declare entities that expand to gigabytes, or
        # that name files of this machine.
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            raise DataError(f"this is not XML: {expat.errors.messages.get(error.code, error)} "
                            f"(line {error.lineno}, column {error.offset + 1})",
                            self.place) from None
        except (ValueError, LookupError) as error:      # an encoding that Python does not know
            if isinstance(error, DataError):
                raise
            raise DataError(f"this is not XML: {str(error)[:80]}", self.place) from None

    def _here(self):
        return f"{self.place}:{self._parser.CurrentLineNumber}"

    def _refuse_doctype(self, *_) -> NoReturn:
        raise DataError("the XML declares a document type, which may define entities; CVAT writes "
                        "none", self._here(), "export it again from CVAT")

    def _start(self, name, attributes):
        self._open.append(name)
        if len(self._open) > _MOST_DEPTH:
            raise DataError(f"the XML is nested more than {_MOST_DEPTH} levels deep", self._here())
        if self._open[:2] == ["annotations", "meta"]:
            if name == "label":
                self._label = {}
            elif self._open[-2] == "label":
                self._text = []
        elif self._open == ["annotations", "image"]:
            self._begin_image(attributes)
        elif self._open[:2] == ["annotations", "image"] and len(self._open) == 3:
            self._add_shape(name, attributes)
        elif self._open == ["annotations", "track"]:
            self.tracks += 1
            self.findings.leave_out(self._here(), "a track, which names no image")

    def _characters(self, text):
        if self._text is not None:
            self._text.append(text)

    def _end(self, name):
        if self._text is not None and self._open[-2:-1] == ["label"]:
            self._label[name] = "".join(self._text).strip()
            self._text = None
        elif name == "label" and self._open[:2] == ["annotations", "meta"]:
            self._add_label()
        elif self._open == ["annotations", "image"]:
            self._end_image()
        self._open.pop()

    def _add_label(self):
        label, here = self._label, self._here()
        name = label.get("name", "")
        if label.get("type", "") in _TYPES_WITHOUT_AREA or label.get("parent"):
            return      # of points and the like; their shapes are counted where they are drawn
        if not name:
            self.findings.refuse(here, "a label without a name")
        elif name in self._ids:
            pass        # a project lists its labels once for every task
        else:
            self._ids[name] = len(self.categories)
            self.categories.append(Category(name, hex_color(label.get("color"))))

    def _begin_image(self, attributes):
        here = self._here()
        try:
            height, width = (_whole(attributes.get(key), key, here) for key in ("height", "width"))
            self._image = (image_name(attributes.get("name"), here),
                           image_size(height, width, here), here)
        except DataError as error:
            self.findings.refuse(here, error.what)
            self._image = None
        self._shapes = []

    def _add_shape(self, kind, attributes):
        here = self._here()
        if kind in _WITHOUT_AREA:
            self.findings.leave_out(here, f"<{kind}>, which has no area")
        elif kind not in _WITH_AREA:
            self.findings.leave_out(here, f"<{shown(kind)[:30]}>, which is unknown")
        elif attributes.get("label") not in self._ids:
            self.findings.refuse(here, unknown("label", attributes.get("label", "")[:40],
                                               list(self._ids)[:20]))
        else:
            try:
                z_order = _number(attributes.get("z_order", "0"), "z_order", here)
            except DataError as error:
                self.findings.refuse(here, error.what)
                return
            given = {key: attributes[key] for key in _WITH_AREA[kind] if key in attributes}
            self._shapes.append(_Shape(kind, self._ids[attributes["label"]], z_order, given, here))

    def _end_image(self):
        if self._image:
            name, size, place = self._image
            self._shapes.sort(key=lambda shape: shape.z_order)
            self.images.append(AnnotatedImage(name, size, place,
                                              functools.partial(_regions, self._shapes)))
        self._image, self._shapes = None, []


def _regions(shapes, size):
    """The regions of an image of this size. Raises DataError."""
    return [_region(shape, size) for shape in shapes]


def _region(shape, size):
    given, place = shape.given, shape.place
    if shape.kind == "mask":
        return Region(shape.category, [], _mask(given, size, place), place)
    if shape.kind == "polygon":
        text = given.get("points", "")
        if not _POINTS.fullmatch(text):
            raise DataError(f"points are {shortly(text)}; expected x,y;x,y;…", place)
        ring = np.array(text.replace(";", ",").split(","), np.float64).reshape(-1, 2)
    else:
        first, second, third, fourth, turn = (
            _number(given.get(key, "0" if key == "rotation" else None), key, place)
            for key in _WITH_AREA[shape.kind])
        ring = ellipse(first, second, third, fourth, turn) if shape.kind == "ellipse" else \
            rectangle(first, second, third - first, fourth - second, turn)
    check_near(ring, place)
    return Region(shape.category, [ring], None, place)


def _mask(given, size, place):
    """The Cutout of a mask. Raises DataError, before it is decoded, if it is not in the image."""
    left, top, width, height = (_whole(given.get(key), key, place)
                                for key in ("left", "top", "width", "height"))
    if not (0 <= left <= left + width <= size[1] and 0 <= top <= top + height <= size[0]):
        raise DataError(f"a mask from ({left}, {top}) to ({left + width}, {top + height}) is not "
                        f"within the image of {size_text(size)} (height x width)", place)
    text = given.get("rle", "")
    if not _RUNS.fullmatch(text):
        raise DataError(f"rle is {shortly(text)}; expected lengths with commas", place)
    runs = np.array(text.split(","), np.int64)
    if runs.sum() != width * height:        # at most 10 digits each: the sum fits 64 bits
        raise DataError(f"the runs of a mask have {runs.sum()} pixels; its box has "
                        f"{width * height}", place)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return Cutout(pixels.reshape(height, width), top, left)


def _number(text: Any, name: str, place: str) -> float:
    """A number of an attribute. Raises DataError."""
    if not isinstance(text, str) or not re.fullmatch(_NUMBER, text, re.ASCII):
        raise DataError(f"{name} is {shortly(text)}; expected a number", place)
    return float(text)


def _whole(text: Any, name: str, place: str) -> int:
    """A whole number of an attribute. Raises DataError."""
    value = _number(text, name, place)
    if value != int(value) if abs(value) < 1e15 else True:
        raise DataError(f"{name} is {shortly(text)}; expected a whole number", place)
    return int(value)
