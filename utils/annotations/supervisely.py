"""Supervisely: a project folder or zip, with meta.json and a JSON file for each image.

    meta.json               {"classes": [{"title": "car", "color": "#c06060", …}], …}
    DATASET/ann/a.jpg.json  {"size": {"height": 480, "width": 640}, "objects": [
        {"classTitle": "car", "geometryType": "polygon",
         "points": {"exterior": [[x, y], …], "interior": [[[x, y], …], …]}},
        {"geometryType": "bitmap", "bitmap": {"data": "…", "origin": [x, y]}}, …]}
    DATASET/img/a.jpg

Interiors are holes. Whole coordinates are indices of pixels, as Supervisely exports them and its
SDK draws them: a polygon has the pixels of its line too, a rectangle those of its last row and
column, a hole those of its own line. Fractions are points, as in its labeling tool. A bitmap is a
PNG, compressed by zlib, in base64, whose first pixel is at `origin`: pixels belong to it if they
are opaque, or not 0 where it has no transparency; those of an alpha_mask from half of the full
alpha on. Later objects lie above earlier ones. Points, lines, graphs and cuboids have no area and
are left out. Layout: docs.supervisely.com, "Supervisely annotation format";
developer.supervisely.com, "Coordinate system".
"""
import base64
import binascii
import functools
import zlib
from pathlib import Path

import cv2
import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Cutout,
    Findings,
    Region,
    hex_color,
    image_name,
    image_size,
    ring,
    shortly,
)
from utils.annotations.file_tree import file_of, file_tree, place_of, read_member, tree_if_zip
from utils.annotations.json_file import parse_json
from utils.annotations.outlines import rectangle
from utils.annotations.png_bytes import read_png
from utils.errors import DataError, shown, size_text

TITLE = "Supervisely"

_META = "meta.json"
_MOST_META = 1 << 26
_MOST_BYTES = 1 << 29       # of the JSON of one image
_WITH_AREA = ("polygon", "rectangle", "bitmap", "alpha_mask")
_WITHOUT_AREA = ("point", "line", "polyline", "graph", "cuboid", "cuboid_3d")
_OPAQUE = 128               # of an alpha_mask
_PNG_OVERHEAD = 1 << 20     # bytes of a PNG besides those of its pixels


def recognizes(path: Path) -> bool:
    """Whether a folder or zip has a meta.json that lists classes."""
    try:
        if path.is_dir():
            return (path / _META).is_file() and _classes(path, _META) is not None
        tree = tree_if_zip(path)
        folder = tree.folder_of(_META) if tree else None
        return tree is not None and folder is not None \
            and _classes(tree.root, folder + _META) is not None
    except (DataError, OSError, ValueError):
        return False


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The classes and images of a project. Raises DataError if it cannot be read."""
    tree = file_tree(path)
    project = tree.folder_of(_META)
    if project is None:
        raise DataError(f"no {_META} in it", shown(path))
    categories, ids = _categories(tree.root, project + _META, findings)
    names = [name for name in tree.names if name.startswith(project)
             and name.split("/")[-2:-1] == ["ann"] and name.lower().endswith(".json")]
    if not names:
        raise DataError("no ann/*.json of any image in it", shown(path),
                        "give the folder of the project")
    images = [image for name in names if (image := _image(tree.root, name, ids, findings))]
    return AnnotationSet(TITLE, categories, images)


def _classes(root, name):
    """The list of classes of a meta.json; None if it has none. Raises DataError."""
    meta = parse_json(read_member(root, name, _MOST_META), place_of(root, name))
    classes = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not all(
            isinstance(one, dict) and isinstance(one.get("title"), str) for one in classes):
        return None
    return classes


def _categories(root, name, findings):
    """(the classes, {title: index}). Raises DataError."""
    categories, ids, place = [], {}, place_of(root, name)
    classes = _classes(root, name)
    if classes is None:
        raise DataError("expected \"classes\": a list of objects with \"title\"", place)
    for number, one in enumerate(classes):
        title = one["title"].strip()
        if not title or title in ids:
            findings.refuse(f"{place}: classes[{number}]", "it has no title" if not title else
                            f"the title {shortly(title)} is that of another class")
            continue
        ids[title] = len(categories)
        categories.append(Category(title, hex_color(one.get("color"))))
    return categories, ids


def _image(root, name, ids, findings):
    """The AnnotatedImage of one JSON file; None, and a finding, if it cannot be used."""
    place = place_of(root, name)
    try:
        size, objects = _objects(root, name)
        folder, _, last = name.rpartition("/")
        image = image_name(f"{folder[:-3]}img/{last[:-5]}", place)
    except DataError as error:
        findings.refuse(error.where or place, error.what)
        return None
    for number, one in enumerate(objects):
        at = f"{place}: objects[{number}]"
        kind = one.get("geometryType") if isinstance(one, dict) else None
        if not isinstance(one, dict):
            findings.refuse(at, f"it is {shortly(one)}; expected an object")
        elif kind not in _WITH_AREA:
            findings.leave_out(at, f"geometry {shortly(kind)}, which "
                               + ("has no area" if kind in _WITHOUT_AREA else "is unknown"))
        elif _title(one) not in ids:
            findings.refuse(at, f"the class {shortly(one.get('classTitle'))} is not in {_META}")
    return AnnotatedImage(image, size, place, functools.partial(_regions, root, name, ids),
                          file=file_of(root, name))


def _objects(root, name):
    """(the size of the image, the list of objects) of a JSON file. Raises DataError."""
    place = place_of(root, name)
    content = parse_json(read_member(root, name, _MOST_BYTES), place)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list) \
            or not isinstance(content.get("size"), dict):
        raise DataError("expected an object with \"size\" and a list \"objects\"", place)
    size = image_size(content["size"].get("height"), content["size"].get("width"), place)
    return size, content["objects"]


def _regions(root, name, ids, size):
    """The regions of an image of this size. Raises DataError."""
    found, place = [], place_of(root, name)
    for number, one in enumerate(_objects(root, name)[1]):
        at = f"{place}: objects[{number}]"
        if not isinstance(one, dict) or one.get("geometryType") not in _WITH_AREA:
            continue
        if _title(one) not in ids:
            raise DataError(f"the class {shortly(one.get('classTitle'))} is not in {_META}", at)
        category = ids[_title(one)]
        if one["geometryType"] in ("bitmap", "alpha_mask"):
            found.append(Region(category, [], _bitmap(one, size, at), at))
        else:
            found.append(_outlined(category, one, size, at))
    return found


def _title(one):
    """The class of an object; None if it has none."""
    title = one.get("classTitle")
    return title.strip() if isinstance(title, str) else None


def _outlined(category, one, size, place):
    """The Region of a polygon or rectangle. Raises DataError."""
    points = one.get("points")
    if not isinstance(points, dict):
        raise DataError(f"points are {shortly(points)}; expected an object", place)
    exterior, interior = ring(points.get("exterior"), place), points.get("interior", [])
    if not isinstance(interior, list):
        raise DataError(f"interior is {shortly(interior)}; expected a list", place)
    if one["geometryType"] == "polygon":
        rings = [exterior, *(ring(hole, place) for hole in interior)]
        if all((points == np.floor(points)).all() for points in rings):
            return Region(category, [], _drawn(rings, size), place)
        return Region(category, rings, None, place)
    if len(exterior) != 2:
        raise DataError(f"a rectangle has {len(exterior)} points; expected two corners", place)
    (left, top), (right, bottom) = exterior.min(0), exterior.max(0)
    last = int((exterior == np.floor(exterior)).all())
    return Region(category, [rectangle(left, top, right - left + last, bottom - top + last)], None,
                  place)


def _drawn(rings, size):
    """The Cutout of a polygon, and of the lines around it and its holes. rings: whole numbers."""
    outer = rings[0]
    if len(outer) < 3:
        return Cutout(np.zeros((0, 0), bool))
    most = np.array(size)[::-1]
    left, top = first = np.clip(outer.min(0), 0, most).astype(int)
    last = np.clip(outer.max(0) + 1, first, most).astype(int)
    pixels = np.zeros((last - first)[::-1], np.uint8)
    for number, points in enumerate(rings):
        if pixels.size and len(points) > 2:
            cv2.fillPoly(pixels, [(points - first).astype(np.int32)], int(number == 0))
    return Cutout(pixels > 0, int(top), int(left))


def _bitmap(one, size, place):
    """The Cutout of a bitmap, which lies in the image. Raises DataError."""
    content = one.get("bitmap") or one.get("alpha_mask")
    if not isinstance(content, dict) or not isinstance(content.get("data"), str):
        raise DataError("expected \"bitmap\" with \"data\" and \"origin\"", place)
    origin = ring(content.get("origin"), place)
    left, top = origin.ravel() if origin.shape == (1, 2) else (-1, -1)
    if left != int(left) or top != int(top) or left < 0 or top < 0:
        raise DataError(f"origin is {shortly(content.get('origin'))}; expected the column and row "
                        "of a pixel", place)
    try:
        packed = base64.b64decode(content["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"data is not base64: {error}", place) from None
    values = read_png(_inflated(packed, size, place), place, size)
    if values.ndim == 3:
        if values.shape[2] != 4:
            raise DataError("the PNG of a bitmap is a color picture without transparency", place)
        values = values[..., 3]
    pixels = values >= _OPAQUE if one["geometryType"] == "alpha_mask" else values > 0
    if top + pixels.shape[0] > size[0] or left + pixels.shape[1] > size[1]:
        raise DataError(f"a bitmap of {size_text(pixels.shape)} (height x width) at row {int(top)} "
                        f"and column {int(left)} is not within the image of {size_text(size)}",
                        place)
    return Cutout(pixels, int(top), int(left))


def _inflated(packed, size, place):
    """The PNG of zlib data; a PNG that is not compressed is taken too. Raises DataError."""
    if packed[:4] == b"\x89PNG":
        return packed
    stream, most = zlib.decompressobj(), _PNG_OVERHEAD + 8 * size[0] * size[1]
    try:
        data = stream.decompress(packed, most)
    except zlib.error as error:
        raise DataError(f"data is not compressed by zlib: {error}", place) from None
    if stream.unconsumed_tail:
        raise DataError(f"data has more than {most} bytes; a PNG of {size_text(size)} pixels has "
                        "fewer", place)
    return data
