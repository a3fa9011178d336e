"""The formats of annotation tools: recognizes which one a file or folder has, and reads it.

A format is a file of this folder, listed in FORMATS, that defines

    TITLE                       its name in messages, "COCO JSON"
    recognizes(path) -> bool    whether a file or folder has this format; it looks at little, and
                                no file of another kind makes it raise or run long
    read(path, findings) -> AnnotationSet
                                what it contains; single mistakes go to `findings`, and a DataError
                                says that nothing can be read
"""
import codecs
import contextlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from utils.annotations.annotation_set import AnnotationSet, Findings
from utils.annotations.file_tree import file_tree, is_zip, read_member
from utils.annotations.json_file import head_and_tail
from utils.errors import DataError, counted, shown

FORMATS: tuple[str, ...] = (          # in the order in which they are tried
    "coco", "labelme", "cvat", "cvat_masks", "label_studio", "supervisely", "yolo", "class_masks")
_SUFFIXES = (".json", ".xml", ".zip")
_LOOKED_AT, _ABOVE = 20, 2      # files of a folder, folders above it


def format_of(path: Path) -> ModuleType | None:
    """The module of the first format that recognizes a file or folder; None: no format does.

    Raises DataError for a zip that no format recognizes because it is unsafe or cannot be read, and
    for text in UTF-16.
    """
    found = next((module for module in map(_module, FORMATS) if module.recognizes(path)), None)
    if found is None and head_and_tail(path).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the text is in UTF-16, annotations are read in UTF-8", shown(path),
                        "save it in UTF-8")
    if found is None and is_zip(path):
        tree = file_tree(path)
        if tree.names:
            read_member(path, tree.names[0], 1, cut=True)
        raise DataError("no annotations of a known tool among its "
                        f"{counted(len(tree.names), 'file')}", shown(path),
                        f"known are {_titles()}")
    return found


def followed_pattern(folder: Path, stems: Iterable[str]) -> Path | None:
    """The pattern of a format that the files of a folder follow, or None.

    stems: the names of the images, without extension. A format whose files only make sense together
    with the images defines `pattern_of`.
    """
    for module in map(_module, FORMATS):
        pattern = module.pattern_of(folder, stems) if hasattr(module, "pattern_of") else None
        if pattern is not None:
            return folder / pattern
    return None


def annotations_near(folder: Path) -> tuple[Path, str] | None:
    """(path, name of its format) of annotations in a folder, or of a project above it; or None.

    For the message that the folder itself is none: export.zip or labels.json may lie in it, and the
    meta.json of Supervisely lies above.
    """
    inside = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    above = [path for path in folder.absolute().parents[:_ABOVE] if any(path.glob("*.json"))]
    for path in (*inside[:_LOOKED_AT], *above):
        with contextlib.suppress(DataError):        # a zip of something else
            module = format_of(path)
            if module is not None:
                return path, module.TITLE
    return None


def read_annotations(path: Path, findings: Findings) -> AnnotationSet:
    """What a file or folder of annotations contains. Raises DataError if no format fits it."""
    module = format_of(path)
    if module is None:
        raise DataError("these are no annotations of a known tool", shown(path),
                        f"known are {_titles()}"
                        if path.exists() else "there is no such file or folder")
    return module.read(path, findings)


def _titles():
    return ", ".join(_module(name).TITLE for name in FORMATS)


def _module(name):
    return importlib.import_module(f"utils.annotations.{name}")
