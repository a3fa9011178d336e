"""Label Studio: the JSON that it exports (also as JSON-MIN), with brush strokes and outlines; or a
folder with a JSON file for each task or annotation, as it writes to cloud storage.

    [{"data": {"image": "/data/upload/1/6a4f1e2b-a.jpg"},
      "annotations": [{"was_cancelled": false, "result": [
          {"original_width": 640, "original_height": 480, "image_rotation": 0,
           "value": {"points": [[10, 20], …], "polygonlabels": ["car"]}}, …]}]}, …]

Coordinates are per cent of the image. Rectangles turn about their upper left corner, ellipses about
their center. Later results lie above earlier ones. A brush mask is an RGBA picture, packed by
@thi.ng/rle-pack (see `_unpacked`); a pixel belongs to it from half of the full alpha on. A bit mask
is a PNG in base64, whose pixels belong to it unless they are transparent.

Of a task with several annotations the ground truth counts, or else the newest one; cancelled ones
do not count, and predictions neither. Upload puts 8 characters before the name of a file: a name is
looked up with and without them. Layout: labelstud.io/guide/task_format and labelstud.io/tags.
"""
import base64
import binascii
import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

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
    image_name,
    image_size,
    ring,
    shortly,
)
from utils.annotations.json_file import json_files, open_regular, read_json
from utils.annotations.outlines import ellipse, rectangle
from utils.annotations.png_bytes import MOST_BYTES as MOST_PNG_BYTES
from utils.annotations.png_bytes import read_png
from utils.errors import DataError, shown
from utils.images.picture_files import IMAGE_SUFFIXES

TITLE = "Label Studio JSON"

_LOOKED_AT = 1 << 16        # bytes of a file, until it is recognized
_OPAQUE = 128               # alpha from which a pixel belongs to a brush mask
_HEAD_BITS = 32 + 5 + 4 * 4  # of a brush mask
_64_BITS = (1 << 64) - 1
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
_LABELS = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels", "bitmasklabels",
           "labels")
_SHAPES = ("polygon", "rectangle", "ellipse", "brush", "bitmask")


class _Result(NamedTuple):
    """One shape of an annotation, as the file has it."""

    category: int
    value: dict[str, Any]
    place: str


def recognizes(path: Path) -> bool:
    """Whether a file, or one of the first JSON files of a folder, begins like a task or several."""
    return any(map(_begins_like_tasks, json_files(path)[:3]))


def _begins_like_tasks(file):
    try:
        with open_regular(file) as opened:
            head = opened.read(_LOOKED_AT).decode("utf-8-sig", "replace")
    except (OSError, ValueError):
        return False
    return bool(re.match(r"\s*(\[\s*)?\{", head)) and (
        bool(re.search(r'"(annotations|completions)"\s*:\s*\[', head)
             and re.search(r'"(data|result)"\s*:\s*[{\[]', head))
        or '"original_width"' in head)


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The tasks of an export. Raises DataError if it cannot be read."""
    images: list[tuple[AnnotatedImage, list[_Result]]] = []
    names: dict[str, int] = {}
    if path.is_dir():
        tasks, files = _tasks_of_folder(path, findings)
    else:
        tasks = _tasks_of_file(path)
        files = [None] * len(tasks)
    for (place, task), file in zip(tasks, files, strict=True):
        if not isinstance(task, dict):
            findings.refuse(place, f"a task is {shortly(task)}; expected an object")
            continue
        try:
            image = _image(task, place, names, findings)
        except DataError as error:
            findings.refuse(error.where or place, error.what)
            continue
        if image:
            images.append((image[0]._replace(file=file), image[1]))
    # Ids of categories in the order of their names, not of the tasks, which exports may change.
    order = sorted(names)
    ids = [order.index(name) for name in names]
    return AnnotationSet(TITLE, [Category(name) for name in order], [
        image._replace(regions=functools.partial(_regions, results, ids, image.size))
        for image, results in images])


def _tasks_of_file(path):
    """[(place, task)] of a list of tasks, or of one."""
    content = read_json(path)
    if isinstance(content, dict):
        return [_task(content, shown(path))]
    if not isinstance(content, list):
        raise DataError("expected a list of tasks", shown(path))
    return [(f"{shown(path)}: [{number}]", task) for number, task in enumerate(content)]


def _tasks_of_folder(path, findings):
    """([(place, task)] of all JSON files below a folder, the file of each).

    Annotations of one task are put together; the file is then the one that was changed last.
    """
    tasks, files, first = [], [], {}
    for file in json_files(path):
        if not _begins_like_tasks(file):
            findings.leave_out(shown(file), "a JSON file without tasks")
            continue
        try:
            found = _tasks_of_file(file)
        except DataError as error:
            findings.refuse(error.where or shown(file), error.what)
            continue
        for place, task in found:
            key = task.get("id") if isinstance(task, dict) else None
            own = task.get("annotations") if isinstance(task, dict) else None
            if isinstance(key, int) and isinstance(own, list):
                if key in first:
                    tasks[first[key]][1]["annotations"] += own
                    files[first[key]] = max(files[first[key]], file,
                                            key=lambda one: os.stat(one).st_mtime_ns)
                    continue
                first[key] = len(tasks)
            tasks.append((place, task))
            files.append(file)
    return tasks, files


def _task(content, place):
    """(place, task) of an object: a task, or an annotation that contains its task."""
    task = content.get("task")
    if "result" not in content or not isinstance(task, dict):
        return place, content
    annotation = {key: value for key, value in content.items() if key != "task"}
    return place, {**task, "annotations": [annotation]}


def _image(task, place, names, findings):
    """(the AnnotatedImage of a task, its results); None if it is left out.

    names: {label: number}, extended. Raises DataError.
    """
    if "data" in task or "annotations" in task or "completions" in task:
        annotation, where = _chosen(task, place, findings)
        if annotation is None:
            return None
        results, where = annotation.get("result"), f"{where}.result"
        data = task.get("data")
    else:       # JSON-MIN: the values of the one annotation lie in the task, by control
        lists = [(key, value) for key, value in task.items()
                 if isinstance(value, list) and value and isinstance(value[0], dict)]
        results = [{**item, "value": item} for _, value in lists for item in value
                   if isinstance(item, dict)]
        data, where = task, f"{place}.{'/'.join(shown(key)[:20] for key, _ in lists)}"
    if not isinstance(results, list):
        raise DataError(f"result is {shortly(results)}; expected a list", where)
    name, other = _file_name(data, place)
    found, size = [], None
    labeled = {item.get("id") for item in results if isinstance(item, dict)
               and isinstance(item.get("value"), dict) and _label_key(item["value"])
               and isinstance(item.get("id"), str)}
    for number, item in enumerate(results):
        at = f"{where}[{number}]"
        try:
            size = _size(item, size, at)
            result = _result(item, at, names, labeled, findings)
        except DataError as error:
            findings.refuse(at, error.what)
            continue
        if result:
            found.append(result)
    return AnnotatedImage(name, size, place, _no_regions, other), found


def _chosen(task, place, findings):
    """(the annotation of a task that counts, its place); None if there is none."""
    key = "annotations" if "annotations" in task else "completions"
    given = task.get(key, [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError(f"{key} is {shortly(given)}; expected a list of objects", place)
    usable = []
    for number, one in enumerate(given):
        if one.get("was_cancelled") is True:
            findings.leave_out(f"{place}.{key}[{number}]", "a cancelled annotation")
        else:
            usable.append((number, one))
    if not usable:
        findings.leave_out(place, "a task without an annotation")
        return None, place
    best = max(usable, key=lambda entry: (entry[1].get("ground_truth") is True,
                                          str(entry[1].get("updated_at", "")), entry[0]))
    for number, _ in usable:
        if number != best[0]:
            findings.leave_out(f"{place}.{key}[{number}]", "an annotation of a task that has a "
                               "newer one, or a ground truth")
    return best[1], f"{place}.{key}[{best[0]}]"


def _file_name(data, place):
    """(the name of the image of a task, other names it may have). Raises DataError."""
    if not isinstance(data, dict):
        raise DataError(f"data is {shortly(data)}; expected an object", place)
    texts = {key: _path(value) for key, value in data.items() if isinstance(value, str)}
    pictures = {key: path for key, path in texts.items()
                if path.lower().endswith(IMAGE_SUFFIXES)}
    if len(pictures) > 1:
        pictures = {"image": pictures["image"]} if "image" in pictures else pictures
    if len(pictures) != 1:
        raise DataError(f"{len(pictures) or 'none'} of the values of data "
                        f"{'are names' if pictures else 'is the name'} of pictures: "
                        f"{shortly(', '.join(pictures or texts))}", place,
                        "export tasks with one image each")
    name = image_name(next(iter(pictures.values())), place)
    folder, slash, last = name.rpartition("/")
    match = _UPLOADED.match(last)
    return name, (f"{folder}{slash}{last[match.end():]}",) if match else ()


def _path(text):
    """The path in a value of a task: an address without its query, or that of a local file."""
    local = text.partition("local-files/?d=")[2]
    if local:
        return unquote(local)
    address = "://" in text or text.startswith("/data/")
    return unquote(re.split(r"[?#]", text, maxsplit=1)[0]) if address else text


def _size(item, size, place) -> Size | None:
    """The size that a result states, which is that of the results before it. Raises DataError."""
    if not isinstance(item, dict):
        raise DataError(f"a result is {shortly(item)}; expected an object", place)
    if "original_width" not in item and "original_height" not in item:
        return size
    found = image_size(item.get("original_height"), item.get("original_width"), place)
    if size and found != size:
        raise DataError(f"original_width and original_height are {found[1]} and {found[0]}; those "
                        f"of the results before are {size[1]} and {size[0]}", place)
    return found


def _result(item, place, names, labeled, findings):
    """The _Result of an item; None if it is left out. Raises DataError."""
    value = item.get("value")
    kind = item.get("type")
    key = _label_key(value) if isinstance(value, dict) else None
    if key is None or not _is_shape(value):
        if kind in _SHAPES or (isinstance(value, dict) and _is_shape(value)):
            if item.get("id") in labeled if isinstance(item.get("id"), str) else False:
                return None         # the same shape stands there again, with its label
            findings.leave_out(place, "a shape without a label")
        else:
            findings.leave_out(place, f"a result of type {shortly(kind)}, which is no area")
        return None
    labels = value[key]
    if len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        raise DataError(f"the labels of a shape are {shortly(', '.join(map(str, labels)))}; "
                        "expected one", place)
    if item.get("image_rotation", 0) not in (0, 360, None):
        raise DataError(f"the image was turned in Label Studio (image_rotation "
                        f"{shortly(item['image_rotation'])})", place)
    if "original_width" not in item:
        raise DataError("the size of the image (original_width, original_height) is missing", place)
    return _Result(names.setdefault(labels[0].strip(), len(names)), value, place)


def _label_key(value):
    """The key of the labels of a value, if it has some."""
    return next((key for key in _LABELS if isinstance(value.get(key), list) and value[key]), None)


def _is_shape(value):
    return "points" in value or "rle" in value or "imageDataURL" in value \
        or {"x", "y", "radiusX"} <= value.keys() or {"x", "y", "width", "height"} <= value.keys() \
        and "keypointlabels" not in value


def _no_regions(_) -> list[Region]:
    return []


def _regions(results, ids, stated, size):
    """The regions of an image. stated: its size in the file. Raises DataError."""
    return [_region(result, ids, stated or size) for result in results]


def _region(result, ids, size):
    value, place = result.value, result.place
    category = ids[result.category]
    if "rle" in value:
        return Region(category, [], Cutout(_brush(value["rle"], size, place)), place)
    if "imageDataURL" in value:
        return Region(category, [], Cutout(_bitmask(value["imageDataURL"], size, place)), place)
    scale = np.array([size[1], size[0]]) / 100
    if "points" in value:
        points = ring(value["points"], place) * scale
    else:
        keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else \
            ("x", "y", "width", "height")
        x, y, width, height = (ring([[value.get(key), value.get(other)] for key, other in
                                     (keys[:2], keys[2:])], place) * scale).ravel()
        turn = ring([value.get("rotation") or 0, 0], place)[0, 0]
        points = ellipse(x, y, width, height, turn) if "radiusX" in value else \
            rectangle(x, y, width, height, turn, (x, y))
    check_near(points, place)
    return Region(category, [points], None, place)


def _brush(rle, size, place) -> np.ndarray:
    """The mask of a brush, bool (H, W). Raises DataError."""
    if not isinstance(rle, list) or not set(map(type, rle)) <= {int}:
        raise DataError(f"rle is {shortly(rle)}; expected a list of bytes", place)
    try:
        data = bytes(rle)
    except ValueError:
        raise DataError("rle has a number that is not 0 to 255", place) from None
    return _unpacked(data, size, place)


def _unpacked(data, size, place):
    """The pixels of a packed RGBA picture that are opaque, bool (H, W). Raises DataError.

    A bit stream, the highest bit of a byte first: 32 bits with the number of values, 5 with the
    bits of a value less 1, four times 4 with the bits of a length less 1. Then blocks: one bit, 1
    for a repeated value and 0 for single values; two bits, which of the four lengths follows; the
    number of values less 1; the value, or all of them. (@thi.ng/rle-pack, README.)
    """
    count, pixels = 4 * size[0] * size[1], np.zeros(size[0] * size[1], bool)
    head = int.from_bytes(data[:7].ljust(7, b"\0"), "big")
    stated, bits = head >> 24, (head >> 19 & 31) + 1
    lengths = [(head >> shift & 15) + 1 for shift in (15, 11, 7, 3)]
    if stated != count or bits != 8 or len(data) < 7:
        raise DataError(f"a brush mask of {stated} values of {bits} bits; an image of {size[1]} x "
                        f"{size[0]} has {count} of 8 bits", place)
    start, at, padded = 0, _HEAD_BITS, data + bytes(8)
    while start < count:
        # 64 bits from the byte at this position on, of which at most 7 lie before it: a block
        # begins with at most 27 bits.
        word = int.from_bytes(padded[at >> 3:(at >> 3) + 8], "big") << (at & 7) & _64_BITS
        length = lengths[word >> 61 & 3]
        end = start + (word >> 61 - length & (1 << length) - 1) + 1
        repeated, behind = word >> 63, at + 3 + length
        at = behind + 8 * (1 if repeated else end - start)
        if at > 8 * len(data):
            raise DataError(f"a brush mask ends too early, after {len(data)} bytes", place)
        if end > count:
            raise DataError(f"a brush mask runs over the {count} values of its image", place)
        if not repeated:
            alpha = _bytes_from(data, behind, end - start)[3 - start % 4::4]
            pixels[start // 4:end // 4] = alpha >= _OPAQUE
        elif word >> 53 - length & 255 >= _OPAQUE:
            pixels[start // 4:end // 4] = True      # alpha is the last of four values
        start = end
    return pixels.reshape(size)


def _bytes_from(data, first_bit, count):
    """The values of 8 bits from a position on, uint8 (count,)."""
    first, shift = first_bit >> 3, first_bit & 7
    found = np.frombuffer(data, np.uint8, count + bool(shift), first)
    if not shift:
        return found
    wide = found.astype(np.uint16)
    return ((wide[:-1] << shift | wide[1:] >> 8 - shift) & 255).astype(np.uint8)


def _bitmask(text, size, place) -> np.ndarray:
    """The pixels of a bit mask that are not transparent, bool (H, W). Raises DataError."""
    head, comma, data = text.partition(",") if isinstance(text, str) else ("", "", "")
    if not comma or not head.startswith("data:image/png;base64") or \
            len(data) > 2 * MOST_PNG_BYTES:
        raise DataError("imageDataURL is not a PNG in base64", place)
    try:
        values = read_png(base64.b64decode(data, validate=True), place, size)
    except binascii.Error as error:
        raise DataError(f"imageDataURL is not base64: {error}", place) from None
    if values.shape != (*size, 4):
        raise DataError(f"the PNG of a mask is {' x '.join(map(str, values.shape))}; expected "
                        f"{size[0]} x {size[1]} (height x width) with transparency", place)
    return values[..., 3] > 0
