"""Finds the files of a dataset: reads split lists, pairs images with labels, compares headers.

BaseDataset offers these functions as methods under the same names. report: called with the text
of each problem; the dataset collects the problems and raises them in one DataError.
"""
import codecs
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError, shown
from utils.images.headers import Header, UnreadableFile, read_header
from utils.images.picture_files import IMAGE_SUFFIXES, picture_files


class Sample(NamedTuple):
    """One image of a split. `label` is None where a split has no labels."""

    id: str
    image: Path | None
    label: Path | None


def first_folder(root: Path, candidates: tuple[str, ...],
                 report: Callable[[str], None]) -> Path | None:
    """The first of the candidates that is a folder below `root`; None is reported."""
    if not root.is_dir():
        report(f"{shown(root)}: no such folder (data_dir)")
        return None
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    report(f"{shown(root)}: found no folder {' or '.join(candidates)} in it")
    return None


def read_list(path: Path, report: Callable[[str], None]) -> list[tuple[int, str]]:
    """(line number, text) of each non-empty line of a split list; an empty list is reported.

    The list may be UTF-8 or UTF-16 with a byte order mark, with any line ends.
    Raises DataError if the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"split file cannot be read: {error.strerror}", shown(path)) from None
    utf_16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)    # as PowerShell writes it
    text = data.decode("utf-16", "replace") if utf_16 else \
        data.decode("utf-8-sig", "surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in stripped if line]
    if not lines:
        report(f"{shown(path)}: the list is empty")
    return lines


def read_stems(path: Path, report: Callable[[str], None]) -> list[tuple[str, str]]:
    """(place in the list, name without extension) of each line of a list of images."""
    return [(f"{shown(path)}:{number}", _without_suffix(line))
            for number, line in read_list(path, report)]


def listed_file(root: Path, name: str, list_path: Path, number: int,
                report: Callable[[str], None]) -> Path | None:
    """The file that line `number` of a list names, with that or another image extension.

    name: relative to `root`, also with a leading slash. A missing file is reported.
    """
    path = root / name.lstrip("/")
    candidates = [path, *([Path(name)] if name.startswith("/") else []),
                  *(path.with_suffix(end) for lower in IMAGE_SUFFIXES
                    for end in (lower, lower.upper()))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    report(f"{shown(list_path)}:{number}: no such file: {shown(name)}")
    return None


def pair_by_stem(image_dir: Path, label_dir: Path, report: Callable[[str], None],
                 label_suffixes: tuple[str, ...], image_ending: str = "", label_ending: str = "",
                 stems: list[tuple[str, str]] | None = None,
                 without: tuple[str, ...] = ()) -> Iterator[Sample]:
    """Pair images with labels by their paths below the two folders, without the extension.

    image_ending, label_ending: different ends of the names before the extension, such as
    "_leftImg8bit" and "_gtFine_labelIds"; files with other ends are skipped. stems: use only
    these, given as (place in a list, stem). without: stems to leave out. Reported are an
    image without a label, a label without an image, two files with the same stem, and two
    folders without any.
    """
    images = _files_by_stem(image_dir, image_ending, IMAGE_SUFFIXES, without, report)
    labels = _files_by_stem(label_dir, label_ending, label_suffixes, without, report)
    if stems is None:
        if image_dir.is_dir() and not images and not labels:
            report(f"{shown(image_dir)}: no images")
        for stem in sorted(labels.keys() - images.keys()):
            report(f"{shown(labels[stem])}: a label without an image in {shown(image_dir)}")
        stems = [(shown(images[stem]), stem) for stem in sorted(images)]
    for place, stem in stems:
        if stem not in images:
            report(f"{place}: no image {shown(stem)} in {shown(image_dir)}")
        elif stem not in labels:
            report(f"{place}: no label {shown(label_dir / stem)}{label_ending}{label_suffixes[0]}")
        else:
            yield Sample(stem, images[stem], labels[stem])


def images_only(folder: Path, report: Callable[[str], None], ending: str = "",
                stems: list[tuple[str, str]] | None = None) -> Iterator[Sample]:
    """The images of a split that has no labels; ending and stems as in pair_by_stem."""
    images = _files_by_stem(folder, ending, IMAGE_SUFFIXES, (), report)
    if stems is None:
        if not images:
            report(f"{shown(folder)}: no images")
        stems = [(shown(images[stem]), stem) for stem in sorted(images)]
    for place, stem in stems:
        if stem in images:
            yield Sample(stem, images[stem], None)
        else:
            report(f"{place}: no image {shown(stem)} in {shown(folder)}")


def header_problem(image: Path, label: Path | None, label_header: Callable[[Path], Header],
                   image_header: Callable[[Path], Header] = read_header) \
        -> tuple[str | None, bool]:
    """Check one pair by its headers. Returns (problem or None, whether a file is unreadable)."""
    try:
        for path in (image, label):
            if path is not None and not stat.S_ISREG(os.stat(path).st_mode):
                return f"{shown(path)}: not a regular file", True
        of_image = image_header(image)
        if label is None:
            return None, False
        of_label = label_header(label)
    except DataError as error:
        return error.in_one_line, isinstance(error, UnreadableFile)
    except OSError as error:
        return f"{shown(error.filename)}: {error.strerror}", True
    if of_label.size == of_image.size or \
            (of_label.orientation == 1 and of_label.size == of_image.stored_size):
        return None, False
    return (f"{shown(image)} is {of_image.size[1]}x{of_image.size[0]} but its label "
            f"{shown(label)} is {of_label.size[1]}x{of_label.size[0]}"), False


def _files_by_stem(folder, ending, suffixes, without, report):
    """{stem: path} of the files below a folder whose names end with `ending` and a suffix."""
    files, depth = {}, len(folder.parts)
    for path in picture_files(folder, suffixes):
        # Several times faster than relative_to, which matters for 100000 files.
        stem = os.path.splitext("/".join(path.parts[depth:]))[0]
        if not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if stem in without:
            continue
        if stem in files:
            report(f"{shown(path)}: same name as {shown(files[stem])}")
        files.setdefault(stem, path)
    return files


def _without_suffix(name):
    """A file name without its image extension; other dots are part of the name."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name
