"""CVAT's "Segmentation mask": a zip or folder with masks in color, and labelmap.txt.

    labelmap.txt                        name:r,g,b:parts:actions, a line for each class
    SegmentationClass/a.png             the mask of a.jpg, in color, or with the number of the line
    ImageSets/Segmentation/default.txt  the names of the images

The layout is that of PASCAL VOC (docs.cvat.ai, "Segmentation mask"). Black pixels have no class if
labelmap.txt does not name black.
"""
import functools
import re
from pathlib import Path

import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Cutout,
    Findings,
    Region,
    image_name,
    shortly,
)
from utils.annotations.file_tree import file_of, file_tree, place_of, read_member, tree_if_zip
from utils.annotations.png_bytes import MOST_BYTES, read_png
from utils.errors import DataError, counted, listed, shown

TITLE = "CVAT segmentation mask"

_MAP, _MASKS, _LISTS = "labelmap.txt", "SegmentationClass/", "ImageSets/Segmentation/"
_MOST_MAP = 1 << 20
_MOST_LIST = 1 << 26
_SHOWN_COLORS = 3


def recognizes(path: Path) -> bool:
    """Whether a folder or zip has labelmap.txt and SegmentationClass, or is the latter itself."""
    try:
        if path.is_dir():
            root = _project(path)
            return (root / _MAP).is_file() and (root / _MASKS).is_dir()
        tree = tree_if_zip(path)
        folder = tree.folder_of(_MAP) if tree else None
        return tree is not None and folder is not None \
            and any(name.startswith(folder + _MASKS) for name in tree.names)
    except (OSError, ValueError):
        return False


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The classes and masks of an export. Raises DataError if it cannot be read."""
    tree = file_tree(_project(path) if path.is_dir() else path)
    project = tree.folder_of(_MAP)
    if project is None:
        raise DataError(f"no {_MAP} in it", shown(path))
    categories, codes = _categories(tree.root, project + _MAP, findings)
    begin = project + _MASKS
    masks = {name[len(begin):-4]: name for name in tree.names
             if name.startswith(begin) and name.lower().endswith(".png")}
    others = [name for name in tree.names
              if name.startswith(begin) and not name.lower().endswith(".png")]
    for name in others:
        findings.leave_out(place_of(tree.root, name), "a file that is not a PNG")
    for name in tree.names:
        if name.startswith(project + _LISTS) and name.lower().endswith(".txt"):
            text = read_member(tree.root, name, _MOST_LIST).decode("utf-8-sig", "replace")
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip() and line.strip() not in masks:
                    findings.leave_out(f"{place_of(tree.root, name)}:{number}",
                                       "the name of an image without a mask")
    if not masks:
        raise DataError(f"no masks in {_MASKS}", shown(path))
    return AnnotationSet(TITLE, categories, [
        AnnotatedImage(image_name(stem, place_of(tree.root, name)), None,
                       place_of(tree.root, name),
                       functools.partial(_regions, tree.root, name, codes),
                       file=file_of(tree.root, name))
        for stem, name in masks.items()])


def _project(path):
    """The folder that contains SegmentationClass."""
    return path.parent if path.name == _MASKS[:-1] and not (path / _MASKS).is_dir() else path


def _categories(root, name, findings):
    """(the classes, {0xRRGGBB: index}). Raises DataError if there are none."""
    categories, codes, names, place = [], {}, set(), place_of(root, name)
    text = read_member(root, name, _MOST_MAP).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        at, line = f"{place}:{number}", line.strip()
        if not line or line.startswith("#"):
            continue
        parts = re.fullmatch(r"(.*?):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(:.*)?", line,
                             re.ASCII)
        color = [int(parts[i]) for i in (2, 3, 4)] if parts else []
        title = parts[1].strip() if parts else ""
        if not title or max(color) > 255:
            findings.refuse(at, f"{shortly(line)} is not a class; expected "
                                "name:r,g,b:parts:actions")
            continue
        code = color[0] << 16 | color[1] << 8 | color[2]
        if title in names or code in codes:
            findings.refuse(at, f"the {'name' if title in names else 'color'} of {shortly(title)} "
                            "is that of a class above")
            continue
        names.add(title)
        codes[code] = len(categories)
        categories.append(Category(title, color))
    if not categories:
        raise DataError("no class in it; expected lines name:r,g,b:parts:actions", place)
    return categories, codes


def _regions(root, name, codes, size):
    """The regions of a mask: one for each class in it. Raises DataError."""
    place = place_of(root, name)
    values = read_png(read_member(root, name, MOST_BYTES), place, size, colors=True)
    if values.shape[:2] != tuple(size):
        raise DataError(f"the mask is {values.shape[0]}x{values.shape[1]}, its image "
                        f"{size[0]}x{size[1]} (height x width)", place)
    if values.ndim == 3:
        wide = values.astype(np.int32)
        stored, known = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], codes
    else:
        stored, known = values, {index: index for index in codes.values()}
    found, rest = [], np.ones(stored.shape, bool)
    for code, category in known.items():
        pixels = stored == code
        rest &= ~pixels
        if pixels.any():
            found.append(Region(category, [], cut_out(pixels), place))
    unknown = np.unique(stored[rest & (stored != 0)])
    if len(unknown):
        text = listed(unknown.tolist(), _SHOWN_COLORS, text=lambda code: str(
            (code >> 16, code >> 8 & 255, code & 255)) if values.ndim == 3 else str(code))
        raise DataError(f"{counted(int((rest & (stored != 0)).sum()), 'pixel')} of "
                        f"{'colors' if values.ndim == 3 else 'values'} that {_MAP} does not name: "
                        f"{text}", place)
    return found


def cut_out(pixels: np.ndarray) -> Cutout:
    """The part of a mask, bool (H, W), that is not empty."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Cutout(pixels[:0, :0])
    return Cutout(pixels[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], int(rows[0]),
                  int(columns[0]))
