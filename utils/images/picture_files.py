"""Finds the picture files below a folder; takes a few evenly spaced items of many."""
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
TIFF_SUFFIXES = (".tif", ".tiff")
ARRAY_SUFFIXES = (".npy", ".npz")   # pictures of any bands, as arrays of NumPy
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# Files that may lie where a label is expected, and why they are none.
_JPEG = ("JPEG changes label values: store labels as PNG; or read masks of two classes with "
         "\"label_threshold\": 128 (Folder)")
NO_LABELS = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".npy": "labels are pictures: store the array of class ids as a gray PNG",
    ".npz": "labels are pictures: store the array of class ids as a gray PNG",
    ".mat": "labels are pictures: store the class ids as a gray PNG",
    ".json": "labels are pictures, or what a tool of docs/own_data.md exports",
    ".xml": "labels are pictures, or a CVAT file; boxes are no class for every pixel",
    ".txt": "labels are pictures, or YOLO segmentation with its data.yaml (docs/own_data.md)",
    ".webp": "store labels as PNG", ".ppm": "store labels as PNG", ".pgm": "store labels as PNG",
}

Item = TypeVar("Item")


def picture_files(folder: str | os.PathLike, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) \
        -> list[Path]:
    """Everything below a folder whose name has one of the suffixes, sorted.

    Linked folders are entered, each real folder once; hidden files are left out. Only names are
    checked: a folder x.jpg is listed too, and fails when it is read.
    """
    found = []
    for place, folders, files in walk_folders(folder):
        found += [Path(place, name) for name in (*files, *folders)
                  if name.lower().endswith(suffixes)]
        folders[:] = [name for name in folders if not name.lower().endswith(suffixes)]
    return sorted(found)


def walk_folders(folder: str | os.PathLike,
                 onerror: Callable[[OSError], None] | None = None) \
        -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk without hidden names, in sorted order, that follows links.

    Yields (folder, names of its folders, names of its files) for every real folder once: links
    may form a circle. A name that the caller removes from the folders is not entered.
    onerror: called with the error of a folder that cannot be listed; default: it is left out.
    """
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=onerror):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, folders, sorted(name for name in files if not name.startswith("."))


def evenly_spaced(items: Sequence[Item], count: int) -> Sequence[Item]:
    """At most `count` of the items at even distances, beginning with the first."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
