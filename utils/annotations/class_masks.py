"""One mask file for each class of an image: the file names say which image and which class.

    masks/{stem}_{class}.png            masks/a_cat.png, masks/a_dog.png belong to a.jpg
    masks/{class}/{stem}.png            masks/cat/a.png, masks/dog/a.png
    masks/{stem}_{class:cat|big_dog}.png   the names of the classes, if they contain the "_"

Such a pattern is given in place of a file. {stem} is the name of the image without its extension,
and * any other text. Without a list {class} is as short as the pattern allows. A mask has one value
besides 0, whichever; of a JPEG the pixels from 128 on count. Where masks of an image overlap, the
smaller one lies above the larger one; how much they overlap is said for a part of the images.
"""
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.annotations.annotation_set import (
    AnnotatedImage,
    AnnotationSet,
    Category,
    Findings,
    Region,
    image_name,
)
from utils.annotations.cvat_masks import cut_out
from utils.errors import DataError, listed, shown, size_text
from utils.images.image_io import read_stored
from utils.images.picture_files import LABEL_SUFFIXES, evenly_spaced, picture_files

TITLE = "one mask for each class"

_SUFFIXES = (*LABEL_SUFFIXES, ".jpg", ".jpeg")
_CLASS = re.compile(r"\{class(?::([^{}]*))?\}")
_TOKEN = re.compile(r"(\{class(?::[^{}]*)?\}|\{stem\}|\*\*|\*)")
_LOOKED_AT = 40             # images whose masks are compared when they are found
_READ = 4                   # images whose masks are read, until a folder is recognized
_WHITE = 128                # of a JPEG


def recognizes(path: Path) -> bool:
    """Whether a path is a pattern with {class} and {stem}."""
    text = path.as_posix()
    return bool(_CLASS.search(text)) and "{stem}" in text


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The classes and images that the files of a pattern name. Raises DataError."""
    root, pattern = _split(path)
    if not root.is_dir():
        raise DataError(f"no such folder: {shown(root)}", shown(path))
    masks: dict[str, dict[str, Path]] = {}
    for file in picture_files(root, _SUFFIXES):
        name = "/".join(file.parts[len(root.parts):])
        found = pattern.fullmatch(os.path.splitext(name)[0] if _any_suffix(path) else name)
        if not found:
            findings.leave_out(shown(file), "a file whose name does not fit the pattern")
            continue
        stem = found["folders"] + found["stem"]
        other = masks.setdefault(stem, {}).setdefault(found["class_"], file)
        if other != file:
            findings.refuse(shown(file), f"{shown(other.name)} is also the mask of "
                            f"{shown(found['class_'])} of {shown(stem)}")
    if not masks:
        raise DataError("no file fits the pattern", shown(path))
    names = sorted({name for files in masks.values() for name in files})
    ids = {name: number for number, name in enumerate(names)}
    images = [AnnotatedImage(image_name(stem, shown(root)), None, shown(next(iter(files.values()))),
                             functools.partial(_regions, sorted(
                                 (ids[name], file) for name, file in files.items())),
                             file=max(files.values(), key=_changed))
              for stem, files in masks.items()]
    for files in evenly_spaced(list(masks.values()), _LOOKED_AT):
        _say_overlaps(files, min(len(masks), _LOOKED_AT), findings)
    return AnnotationSet(TITLE, [Category(name) for name in names], images, overlap="area")


def pattern_of(folder: Path, stems: Iterable[str]) -> str | None:
    """The pattern that the files of a folder of masks follow, as text below it; None: none.

    stems: the names of the images without extension. Each file must be named after an image, a
    class must have masks of several images, and the files that are looked at must be masks that
    differ from each other. Names that differ in a number alone are objects and not classes.
    """
    known, paths = set(stems), picture_files(folder, _SUFFIXES)
    files = [os.path.splitext("/".join(path.parts[len(folder.parts):]))[0] for path in paths]
    if len(known) < 2 or len(files) < 3 or known & set(files):
        return None
    for split, pattern in ((_after_stem, "{stem}%s{class%s}"), (_folder_of_class,
                                                                "{class%s}/{stem}")):
        found = [split(name, known) for name in files]
        if not all(found):
            continue
        classes = sorted({one[1] for one in found if one})
        signs = {one[2] for one in found if one}
        images = [one[0] for one in found if one]
        if len(classes) < 2 or len(signs) != 1 or len(set(images)) == len(images) \
                or len(classes) > len(set(images)):
            continue
        if len({re.sub(r"\d+$", "", name) for name in classes}) == 1:
            return None             # mask_1, mask_2: objects that are counted, not classes
        of_image: dict[str, list[Path]] = {}
        for path, image in zip(paths, images, strict=True):
            of_image.setdefault(image, []).append(path)
        if not all(map(_are_masks, evenly_spaced(list(of_image.values()), _READ))):
            return None
        sign = signs.pop()
        listing = ":" + "|".join(classes) if any(sign in name for name in classes) else ""
        return pattern % ((sign, listing) if sign != "/" else listing)
    return None


def _after_stem(name, stems):
    """(the stem, the class, the sign between them) of "a_cat", or None; the longest stem counts."""
    for end in range(len(name) - 2, 0, -1):
        if name[end] in "_-. " and name[:end] in stems and "/" not in name[end:]:
            return name[:end], name[end + 1:], name[end]
    return None


def _folder_of_class(name, stems):
    """(the stem, the class, "/") of "cat/a", or None."""
    folder, _, stem = name.partition("/")
    return (stem, folder, "/") if folder and stem in stems else None


def _split(path):
    """(the folder above the first part with a sign, the pattern of the rest)."""
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if _TOKEN.search(part))
    text, seen = "", set()
    # Of the names that end with the "_" and the name of a class, the longest class counts.
    stem = "[^/]+?" if "{class:" in path.as_posix() else "[^/]+"
    for part in _TOKEN.split("/".join(parts[first:])):
        if not _TOKEN.fullmatch(part):
            text += re.escape(part)
        elif part in ("*", "**"):
            text += "[^/]+" if part == "*" else ".+"
        else:
            name = "stem" if part == "{stem}" else "class_"
            if name in seen:
                text += f"(?P={name})"
                continue
            seen.add(name)
            names = None if name == "stem" else _CLASS.fullmatch(part)
            listed_names = names[1] if names and names[1] else None
            text += f"(?P<{name}>" + (
                stem if name == "stem" else
                "|".join(map(re.escape, sorted(listed_names.split("|"), key=len, reverse=True)))
                if listed_names else "[^/]+?") + ")"
    return Path(*parts[:first]) if first else Path(), \
        re.compile(f"(?P<folders>(?:.*/)?){text}", re.DOTALL)


def _any_suffix(path):
    """Whether a pattern has no extension, and fits every one."""
    return os.path.splitext(path.name)[1].lower() not in _SUFFIXES


def _changed(file):
    """When a file was changed last."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0            # reported where it is read


def _regions(files, size):
    """The regions of an image: one for each mask. Raises DataError."""
    found = []
    for category, file in files:
        pixels = _mask(file)
        if pixels.shape != tuple(size):
            raise DataError(f"the mask is {size_text(pixels.shape)} (height x width), its image "
                            f"{size_text(size)}", shown(file))
        found.append(Region(category, [], cut_out(pixels), shown(file)))
    return found


def _are_masks(files):
    """Whether the files are masks of one image, and no copies of one label."""
    try:
        masks = [_mask(file) for file in files]
    except DataError:
        return False
    if len({mask.shape for mask in masks}) != 1:
        return False
    return len(masks) == 1 or not masks[0].any() or any(
        (mask != masks[0]).any() for mask in masks[1:])


def _mask(file):
    """The pixels of a mask file, bool (H, W). Raises DataError."""
    stored = read_stored(file)
    values = stored.max(2) if stored.ndim == 3 else stored
    if file.suffix.lower() in (".jpg", ".jpeg"):
        return values >= _WHITE
    highest = values.max(initial=0)
    pixels = values == highest if highest else np.zeros(values.shape, bool)
    others = np.unique(values[~pixels & (values != 0)])
    if len(others):
        raise DataError(f"values {listed([0, *others.tolist(), int(highest)], 4)}: this is not a "
                        "mask of one class", shown(file),
                        "store 0 and one other value, without smoothing")
    return pixels


def _say_overlaps(files, looked_at, findings):
    """Note how many pixels of an image several masks claim."""
    try:
        masks = [_mask(file) for file in files.values()]
    except DataError:
        return          # reported where the image is read
    if len({mask.shape for mask in masks}) != 1:
        return
    count = np.sum(masks, 0, dtype=np.uint16)
    several = int((count > 1).sum())
    if several:
        findings.remark(f"{shown(next(iter(files.values())))}: {several} of {count.size} pixels",
                        "images whose masks overlap, where the smallest is on top (of "
                        f"{looked_at} images looked at)")
