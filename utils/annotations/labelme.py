"""labelme: a JSON file beside or for each image (github.com/wkentaro/labelme, docs of the project).

    {"imagePath": "a.jpg", "imageHeight": 480, "imageWidth": 640, "imageData": "...",
     "shapes": [{"label": "leaf", "shape_type": "polygon", "points": [[x, y], ...]}, ...]}

Polygons, rectangles (also turned ones), circles and masks have an area. Lines and points have none
and are left out. Later shapes lie above earlier ones. A picture inside the file is not read.
"""
import base64
import binascii
import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Cutout,
    Findings,
    Size,
    image_name,
    image_size,
    ring,
    shortly,
)
from utils.annotations.json_file import head_and_tail, json_files, parse_json, read_bytes
from utils.annotations.outlines import ellipse, rectangle
from utils.annotations.png_bytes import read_png
from utils.annotations.stored_regions import stored
from utils.errors import DataError, shown, size_text

TITLE = "labelme JSON"
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_OWN = re.compile(rb'"(?:imagePath|imageData|imageHeight)"\s*:')
_PICTURE = re.compile(rb'("imageData"\s*:\s*")[^"]*')
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


def recognizes(path: Path) -> bool:
    """Whether a file, or one of the first JSON files of a folder, has shapes as labelme writes."""
    for file in json_files(path)[:3]:
        text = head_and_tail(file)
        if _SHAPES.search(text) and _OWN.search(text):
            return True
    return False


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The annotations of a file, or of all below a folder; classes in alphabetical order."""
    root = path if path.is_dir() else path.parent
    found = []
    for file in json_files(path):
        place = shown(file.relative_to(root))
        try:
            content = _content(file, place)
            if not isinstance(content, dict) or "shapes" not in content:
                findings.leave_out(place, "a JSON file without shapes")
                continue
            image = _image(content, file.relative_to(root).parent, place)
            found.append((file, *image, _shapes(content["shapes"], image[1], place, findings)))
        except DataError as error:
            findings.refuse(error.where or place, error.what)
    names = sorted({shape[0] for *_, shapes in found for shape in shapes})
    index_of = {name: number for number, name in enumerate(names)}
    images = [AnnotatedImage(name, size, place, stored(
        ((index_of[label], rings, mask, number) for label, rings, mask, number in shapes),
        f"{place}: shapes"), file=file) for file, name, size, place, shapes in found]
    return AnnotationSet(TITLE, [Category(name) for name in names], images)


def _content(file, place):
    """The JSON of a file; the picture in it is cut out before it is parsed."""
    data = read_bytes(file)
    try:
        return parse_json(_PICTURE.sub(rb"\1", data), place)
    except DataError:
        return parse_json(data, place)


def _image(content, folder, place):
    """(name, size, place) of the image. imagePath is a path from the JSON file, of any system."""
    path = content.get("imagePath")
    if not isinstance(path, str):
        raise DataError(f"\"imagePath\" is {shortly(path)}; expected the name of an image", place)
    name = image_name(re.split(r"[/\\]", path)[-1], place)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = None if height is None and width is None else image_size(height, width, place)
    return (folder / name).as_posix(), size, place


def _shapes(entries, size, place, findings):
    """[(label, rings, mask, number)] of the shapes that have an area."""
    if not isinstance(entries, list):
        raise DataError(f"\"shapes\" is {shortly(entries)}; expected a list", place)
    found = []
    for number, shape in enumerate(entries):
        here = f"{place}: shapes[{number}]"
        try:
            label, kind = _label(shape, here), shape.get("shape_type") or "polygon"
            if kind in _WITHOUT_AREA:
                findings.leave_out(here, f"a {kind}, which has no area")
                continue
            points = ring(shape.get("points"), here)
            if kind == "mask":
                found.append((label, (), _mask(shape, points, size, here), number))
                continue
            outline = _outline(kind, points, here)
        except DataError as error:
            findings.refuse(here, error.what)
            continue
        if len(outline) < 3:
            findings.leave_out(here, "an outline of fewer than three points")
        else:
            found.append((label, (outline,), None, number))
    return found


def _label(shape, place):
    if not isinstance(shape, dict):
        raise DataError(f"it is {shortly(shape)}; expected an object", place)
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"\"label\" is {shortly(label)}; expected the name of a class", place)
    return label.strip()


def _outline(kind: Any, points, place):
    """The ring of a shape. Raises DataError for an unknown kind."""
    if kind in ("polygon", "oriented_rectangle"):
        return points
    if kind not in ("rectangle", "circle"):
        raise DataError(f"the shape {shortly(kind)} is not known", place)
    if kind == "rectangle" and len(points) == 4:
        return points
    if len(points) != 2:
        raise DataError(f"a {kind} has {len(points)} points; expected 2", place)
    if kind == "circle":
        return ellipse(*points[0], *[math.dist(*points)] * 2)
    (left, top), (right, bottom) = points
    return rectangle(left, top, right - left, bottom - top)


def _mask(shape, points, size, place):
    """The mask of a shape, as a function that decodes its PNG. size: of the image, if known."""
    text = shape.get("mask")
    if not isinstance(text, str):
        raise DataError(f"\"mask\" is {shortly(text)}; expected a PNG in base64", place)
    if len(points) != 2:
        raise DataError(f"a mask has {len(points)} points; expected two corners", place)
    left, top = np.floor(points.min(0)).astype(int).tolist()
    right, bottom = np.floor(points.max(0)).astype(int).tolist()
    height, width = bottom - top + 1, right - left + 1
    if size and (height > size[0] or width > size[1]):
        raise DataError(f"a mask of {size_text((height, width))} pixels (height x width) in an "
                        f"image of {size_text(size)}", place)
    return functools.partial(_decoded, text, (top, left), (height, width))


def _decoded(text: str, corner: tuple[int, int], size: Size, place: str) -> Cutout:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the mask is not base64", place) from None
    pixels = read_png(data, place, size)
    if pixels.ndim != 2 or pixels.shape != size:
        raise DataError(f"the mask is {pixels.shape[0]}x{pixels.shape[1]}, its corners say "
                        f"{size[0]}x{size[1]} (height x width)", place)
    return Cutout(pixels != 0, *corner)
