"""YOLO segmentation: a text file for each image, and data.yaml with the names of the classes.

    data.yaml             names: [cat, dog], or a line "0: cat" for each
    labels/train/a.txt    0 0.1 0.2 0.5 0.2 0.5 0.7      class, then x y x y … of an outline
    images/train/a.jpg

Coordinates are parts of the width and height of the image. The folder or zip with data.yaml, that
file itself, or a folder of text files may be given; data.yaml is also looked for in the two folders
above. Without it the names are the lines of a classes.txt, as Label Studio and X-AnyLabeling write
it; without both the classes are called "class 0", … The smaller of two outlines lies above the
larger one, as in the training of Ultralytics. A line of five numbers is a box: it has no outline
and is left out. Layout: docs.ultralytics.com/datasets/segment, docs.cvat.ai.
"""
import functools
import os
import re
from pathlib import Path

import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Findings,
    Region,
    check_near,
    image_name,
    shortly,
)
from utils.annotations.file_tree import (
    FileTree,
    file_of,
    file_tree,
    place_of,
    read_member,
    tree_if_zip,
)
from utils.annotations.outlines import lies_outside
from utils.annotations.yaml_names import yaml_names
from utils.errors import DataError, shown
from utils.images.class_names import mistake_in

TITLE = "YOLO segmentation"

BEYOND = 0.01               # of the image, that an outline may reach beyond it without a remark
_MOST_BYTES = 1 << 26       # of the text of one image
_MOST_YAML = 1 << 20
_LOOKED_AT = 200            # files of a folder, until it is recognized
_FIRST_LINE = re.compile(rb"\s*\d{1,5}(?:[ \t]+[-+.\deE]+){4,}[ \t]*(?:[\r\n]|$)")
_OTHER_TEXTS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "requirements.txt",
                "notes.txt", "readme.txt", "obj_train_data.txt"}
_LISTS = (".train.txt", ".val.txt", ".test.txt")        # train.py --init writes them
_CLASSES = "classes.txt"
_HEAD = 4096


def recognizes(path: Path) -> bool:
    """Whether this is a data.yaml with names, or a folder or zip with one, or with such texts."""
    try:
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
            return _has_names(path.parent, path.name)
        if path.is_dir():
            return _recognizes_folder(path)
        tree = tree_if_zip(path)
        return tree is not None and (_yaml_of(tree) is not None or bool(
            _classes_of(tree) and _texts(tree, None)))
    except (DataError, OSError, ValueError):
        return False


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The classes and texts of a folder or zip. Raises DataError if there are none."""
    given = path.name if path.is_file() and path.suffix.lower() in (".yaml", ".yml") else None
    tree = file_tree(path.parent if given else path)
    yaml = given or _yaml_of(tree)
    names = _names(tree, yaml)
    texts = _texts(tree, yaml)
    if not texts:
        raise DataError("no text files with labels in it", shown(tree.root),
                        "give the folder that contains labels/")
    used, boxes, outlines = set(), 0, 0
    images = []
    for name, image in texts:
        place = place_of(tree.root, name)
        try:
            lines = _lines(tree.root, name)
            images.append(AnnotatedImage(image_name(image, place), None, place, _no_regions,
                                         file=file_of(tree.root, name)))
        except DataError as error:
            findings.refuse(error.where or place, error.what)
            continue
        for number, parts in lines:
            at = f"{place}:{number}"
            wrong = _wrong(parts, names)
            if wrong:
                findings.refuse(at, wrong)
            elif len(parts) == 5:
                boxes += 1
                findings.leave_out(at, "a box, which has no outline")
            else:
                outlines += 1
                used.add(int(parts[0]))
                _judge_place(parts, at, findings)
    if boxes and not outlines:
        raise DataError(f"all {boxes} lines are boxes (class, x, y, width, height): these are "
                        "labels of detection", shown(tree.root), "export outlines instead, as YOLO "
                        "segmentation")
    if names is None:
        names = {number: f"class {number}" for number in range(max(used, default=-1) + 1)}
    ids = {number: index for index, number in enumerate(sorted(names))}
    return AnnotationSet(TITLE, [Category(names[number]) for number in sorted(names)], [
        image._replace(regions=functools.partial(_regions, tree.root, name, ids))
        for image, (name, _) in zip(images, _read(texts, images, tree.root), strict=True)],
        overlap="area")


def _read(texts, images, root):
    """Those of the texts that have an image."""
    places = {image.place for image in images}
    return [(name, image) for name, image in texts if place_of(root, name) in places]


def _no_regions(_) -> list[Region]:
    return []


def _regions(root, name, ids, size):
    """The regions of an image of this size. Raises DataError."""
    found, place = [], place_of(root, name)
    for number, parts in _lines(root, name):
        at = f"{place}:{number}"
        wrong = _wrong(parts, ids)
        if wrong:
            raise DataError(wrong, at)
        if len(parts) == 5:
            continue
        points = _points(parts, at)
        if lies_outside(points, 1, 1):
            continue
        points *= (size[1], size[0])
        check_near(points, at)
        found.append(Region(ids[int(parts[0])], [points], None, at))
    return found


def _lines(root, name):
    """(number, words) of each line of a text that is not empty. Raises DataError."""
    text = read_member(root, name, _MOST_BYTES).decode("utf-8-sig", "replace")
    lines = ((number, line.split()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, parts) for number, parts in lines if parts]


def _wrong(parts, names):
    """What is wrong with the words of a line, or None. names: with the known classes as keys."""
    if not re.fullmatch(r"\d{1,9}", parts[0], re.ASCII):
        return f"the class is {shortly(parts[0])}; expected a number"
    if names is not None and int(parts[0]) not in names:
        return f"class {parts[0]} has no name; there are {len(names)} names"
    if len(parts) != 5 and (len(parts) < 7 or len(parts) % 2 == 0):
        return (f"{len(parts) - 1} numbers follow the class; expected x and y of three points or "
                "more")
    return None


def _judge_place(parts, place, findings):
    """Note a line whose coordinates are no numbers, or lie outside the image."""
    try:
        points = _points(parts, place)
    except DataError as error:
        findings.refuse(place, error.what)
        return
    low, high = points.min(0), points.max(0)
    if lies_outside(points, 1, 1):
        findings.leave_out(place, "outlines outside their image: coordinates are parts of its "
                                  "width and height, from 0 to 1")
    elif (low < -BEYOND).any() or (high > 1 + BEYOND).any():
        findings.remark(place, f"outlines more than {100 * BEYOND:g} % beyond their image")


def _points(parts, place):
    """The points of a line, float64 (K, 2), as parts of width and height. Raises DataError."""
    try:
        numbers = list(map(float, parts[1:]))
    except ValueError:
        numbers = []
    if not numbers or any("_" in part for part in parts):       # float("1_0") is 10
        raise DataError(f"coordinates are {shortly(' '.join(parts[1:]))}; expected numbers", place)
    points = np.array(numbers).reshape(-1, 2)
    check_near(points, place)
    return points


def _texts(tree, yaml):
    """(the name of a text, that of its image without extension) for each image."""
    beside = yaml.rpartition("/")[0] if yaml else None
    texts = [name for name in tree.names if name.lower().endswith(".txt")]
    below = [name for name in texts if "labels" in name.split("/")[:-1]
             and not _is_other(tree.root, name)]
    if not below:
        below = [name for name in texts if not _is_other(tree.root, name)
                 and name.rpartition("/")[0] != beside]
    found = []
    for name in below:
        *folders, last = name[:-4].split("/")
        if "labels" in folders:         # labels/train/a and train/labels/a: their last "labels"
            place = len(folders) - 1 - folders[::-1].index("labels")
            folders[place] = "images"
        found.append((name, "/".join((*folders, last))))
    return found


def _is_other(root, name):
    """Whether a text has the name of a list or a remark, and not the content of labels."""
    last = name.rpartition("/")[2].lower()
    return (last in _OTHER_TEXTS or last.endswith(_LISTS)) and not _begins_as_label(root, name)


def _begins_as_label(root, name):
    return bool(_FIRST_LINE.match(read_member(root, name, _HEAD, cut=True)))


def _names(tree, yaml):
    """{number: name} of the classes; None if they are nowhere. Raises DataError."""
    place = tree.root, yaml
    above = []
    if yaml is None:
        root = tree.root.resolve()
        above = [folder for folder in (root, *root.parents[:2]) if folder.is_dir()]
        place = next(((folder, name) for folder in above for name in _yamls(folder)), None)
    if place is None:
        own = _classes_of(tree)
        place = (tree.root, own) if own else next(
            ((folder, _CLASSES) for folder in above if (folder / _CLASSES).is_file()), None)
        return None if place is None else _listed_names(*place)
    data = read_member(*place, most=_MOST_YAML)
    if re.search(rb"^kpt_shape\s*:", data, re.MULTILINE):
        raise DataError("kpt_shape: these are labels of keypoints", place_of(*place),
                        "export outlines instead, as YOLO segmentation")
    return yaml_names(data, place_of(*place))


def _classes_of(tree: FileTree):
    """The uppermost classes.txt of a tree, or None."""
    return min((name for name in tree.names if name.rpartition("/")[2].lower() == _CLASSES),
               key=lambda name: (name.count("/"), name), default=None)


def _listed_names(root, name):
    """{number: name}, one in each line. Raises DataError if two are the same."""
    text = read_member(root, name, _MOST_YAML).decode("utf-8-sig", "replace")
    names = [line.strip() for line in text.strip().splitlines()]
    wrong = mistake_in(names)
    if wrong:
        raise DataError(wrong, place_of(root, name), "write the name of one class in each line")
    return dict(enumerate(names))


def _yaml_of(tree: FileTree):
    """The uppermost YAML file with names of a tree, or None."""
    found = sorted((name for name in tree.names if name.lower().endswith((".yaml", ".yml"))),
                   key=lambda name: (name.count("/"), name))
    return next((name for name in found[:_LOOKED_AT] if _has_names(tree.root, name)), None)


def _yamls(folder):
    """The YAML files with names that lie in a folder itself."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries
                       if entry.name.lower().endswith((".yaml", ".yml")) and entry.is_file())
    return [name for name in names[:_LOOKED_AT] if _has_names(folder, name)]


def _has_names(root, name):
    try:
        data = read_member(root, name, _MOST_YAML)
    except DataError:
        return False
    return bool(re.search(rb"^names\s*:", data, re.MULTILINE)
                and re.search(rb"^(train|val|test|nc|path|kpt_shape)\s*:", data, re.MULTILINE))


def _recognizes_folder(path):
    """Whether a folder has a data.yaml, or text files of labels in it or in its "labels"."""
    if _yamls(path):
        return True
    for folder in (path, path / "labels", *_subfolders(path), *_subfolders(path / "labels")):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(_LOOKED_AT), entries, strict=False)]
        texts = [name for name in names if name.lower().endswith(".txt")
                 and name.lower() not in _OTHER_TEXTS and not name.lower().endswith(_LISTS)]
        for name in sorted(texts)[:20]:
            head = read_member(folder, name, _HEAD, cut=True)
            if head.strip():        # an outline may have more numbers than the head of the file
                if _FIRST_LINE.match(head):
                    return True
                break
    return False


def _subfolders(path):
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries
                      if entry.is_dir() and not entry.name.startswith("."))[:20]
