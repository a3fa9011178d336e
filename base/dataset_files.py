"""Finds the files of a dataset: reads split lists, pairs images with labels, compares headers.

BaseDataset offers these functions as methods under the same names. report: called with the text
of each problem; the dataset collects the problems and raises them in one DataError.
"""
import codecs
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError, listed, shown, size_text
from utils.images.headers import Header, UnreadableFile, read_header
from utils.images.name_pattern import NamePattern, find_files, matching, separate
from utils.images.picture_files import IMAGE_SUFFIXES, NO_LABELS

SHOWN_FIXES = 3
_COUNT = re.compile(r"\(\d+ pixels?\)")
_WRONG_NAMES = ("give image and label the same name, or say how they differ (Folder: label_ending, "
                "image_pattern, label_pattern)")


class Problem(str):
    """One line on what is wrong. fix: what to do about it.

    kind: problems of one kind are listed together; by default what follows the last ": ".
    """

    fix: str
    kind: str

    def __new__(cls, text: str, fix: str, kind: str = ""):
        problem = super().__new__(cls, text)
        problem.fix, problem.kind = fix, kind or kind_of(text)
        return problem


def kind_of(problem: str) -> str:
    """What a problem shares with others of its kind."""
    return getattr(problem, "kind", "") or _COUNT.sub("", problem.rpartition(": ")[2])


def fix_of(problems: list[str]) -> str:
    """What to do about several problems: the fix of each kind, once."""
    fixes = dict.fromkeys(getattr(problem, "fix", "repair or remove these files")
                          for problem in problems)
    return listed(fixes, SHOWN_FIXES, "\n       ")


class Sample(NamedTuple):
    """One image of a split. `label` is None where a split has no labels."""

    id: str
    image: Path | None
    label: Path | None


def first_folder(root: Path, candidates: tuple[str, ...],
                 report: Callable[[str], None]) -> Path | None:
    """The first of the candidates that is a folder below `root`; None is reported."""
    if not root.is_dir():
        report(Problem(f"{shown(root)}: no such folder (data_dir)",
                       "set data_dir to the folder that contains the dataset"))
        return None
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    report(Problem(f"{shown(root)}: found no folder {' or '.join(candidates)} in it",
                   "set data_dir to the folder that contains the dataset"))
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
        report(Problem(f"{shown(path)}: the list is empty", "write one name in each line"))
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
    report(Problem(f"{shown(list_path)}:{number}: no such file: {shown(name)}",
                   "correct the list, or copy the missing files", "no such file"))
    return None


class StemFiles(NamedTuple):
    """The files below an image folder and a label folder, by the stems that pairs share.

    unused: those that fit neither pattern.
    """

    image_dir: Path
    label_dir: Path
    images: dict[str, Path]
    labels: dict[str, Path]
    unused: list[Path]
    label_pattern: NamePattern
    label_suffixes: tuple[str, ...]     # the first one is shown where a label is missing

    def pair(self, place: str, stem: str, report: Callable[[str], None]) -> Sample | None:
        """The image and label of a stem; what is missing is reported, with the place."""
        if stem not in self.images:
            report(Problem(f"{place}: no image {shown(stem)} in {shown(self.image_dir)}",
                           "correct the list, or copy the missing files", "no image"))
        elif stem not in self.labels:
            report(self._missing_label(place, stem))
        else:
            return Sample(stem, self.images[stem], self.labels[stem])
        return None

    def _missing_label(self, place, stem):
        name, fix = self.label_pattern.name(stem), "add the missing labels, or remove these images"
        if name is None:
            return Problem(f"{place}: no label {self.label_pattern.text} for it in "
                           f"{shown(self.label_dir)}", fix)
        expected = self.label_dir / name
        other = _other_file(expected, self.images[stem])
        return Problem(f"{place}: no label {shown(expected)}"
                       f"{self.label_pattern.suffix or self.label_suffixes[0]}"
                       + (f", only {shown(other.name)}" if other else ""),
                       NO_LABELS[other.suffix.lower()] if other else f"{fix}; or {_WRONG_NAMES}",
                       f"no label, only {other.suffix.lower()}" if other else "no label")


def stem_files(image_dir: Path, label_dir: Path, report: Callable[[str], None],
               label_suffixes: tuple[str, ...], image_pattern: NamePattern,
               label_pattern: NamePattern, without: tuple[str, ...] = (),
               image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> StemFiles:
    """The files of both folders. without: stems to leave out. image_suffixes: of images.

    The folders may be one, or one may contain the other: a file that fits both patterns belongs
    to the one that says more about it. Two files with the same stem are reported. Raises
    DataError if it is unclear which files are labels.
    """
    found = find_files(image_dir, image_suffixes), find_files(label_dir, label_suffixes)
    images, labels = matching(found[0], image_pattern), matching(found[1], label_pattern)
    unclear = separate(images, labels, (image_dir, label_dir), (image_pattern, label_pattern))
    if unclear:
        raise DataError(f"{len(unclear)} files may be images or labels: "
                        + listed(unclear, SHOWN_FIXES, text=shown), shown(label_dir),
                        "the names must tell images and labels of one folder apart: set "
                        "image_pattern and label_pattern, such as \"*_mask.png\" (Folder)")
    unused = {file.key: file.path for file in (*found[0], *found[1])
              if file.key not in images and file.key not in labels}
    return StemFiles(image_dir, label_dir, _by_stem(images, without, report),
                     _by_stem(labels, without, report), list(unused.values()), label_pattern,
                     label_suffixes)


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
    image_pattern, label_pattern = (NamePattern(f"*{ending}", any_suffix=True)
                                    for ending in (image_ending, label_ending))
    files = stem_files(image_dir, label_dir, report, label_suffixes, image_pattern, label_pattern,
                       without)
    return pairs_of(files, report, stems)


def pairs_of(files: StemFiles, report: Callable[[str], None],
             stems: list[tuple[str, str]] | None = None) -> Iterator[Sample]:
    """The pairs of `files`, of all stems or of those given; see `pair_by_stem`."""
    if stems is None:
        if files.image_dir.is_dir() and not files.images and not files.labels:
            report(Problem(f"{shown(files.image_dir)}: no images",
                           "set data_dir to the folder that contains the dataset"))
        for stem in sorted(files.labels.keys() - files.images.keys()):
            report(Problem(f"{shown(files.labels[stem])}: a label without an image in "
                           f"{shown(files.image_dir)}",
                           f"add the missing images, or remove these labels; or {_WRONG_NAMES}"))
        stems = [(shown(files.images[stem]), stem) for stem in sorted(files.images)]
    for place, stem in stems:
        pair = files.pair(place, stem, report)
        if pair:
            yield pair


def images_only(folder: Path, report: Callable[[str], None], ending: str = "",
                stems: list[tuple[str, str]] | None = None) -> Iterator[Sample]:
    """The images of a split that has no labels; ending and stems as in pair_by_stem."""
    pattern = NamePattern(f"*{ending}", any_suffix=True)
    images = _by_stem(matching(find_files(folder, IMAGE_SUFFIXES), pattern), (), report)
    if stems is None:
        if not images:
            report(Problem(f"{shown(folder)}: no images",
                           "set data_dir to the folder that contains the dataset"))
        stems = [(shown(images[stem]), stem) for stem in sorted(images)]
    for place, stem in stems:
        if stem in images:
            yield Sample(stem, images[stem], None)
        else:
            report(Problem(f"{place}: no image {shown(stem)} in {shown(folder)}",
                           "correct the list, or copy the missing files", "no image"))


def header_problem(image: Path, label: Path | None, label_header: Callable[[Path], Header],
                   read: tuple[list, list] | None = None,
                   image_header: Callable[[Path], Header] = read_header) \
        -> tuple[str | None, bool]:
    """Check one pair by its headers. Returns (problem or None, whether a file is unreadable).

    read: lists of images and of labels, to which (path, header) is added. image_header,
    label_header: read the header of a file.
    """
    images, labels = read or ([], [])
    try:
        facts = [os.stat(path) for path in (image, label) if path is not None]
        for path, fact in zip((image, label), facts, strict=False):
            if not stat.S_ISREG(fact.st_mode):
                return f"{shown(path)}: not a regular file", True
        if len(facts) == 2 and os.path.samestat(*facts):
            return Problem(f"{shown(image)}: image and label are one file",
                           "the label of an image must be another file"), False
        of_image = image_header(image)
        images.append((image, of_image))
        if label is None:
            return None, False
        of_label = label_header(label)
        labels.append((label, of_label))
    except DataError as error:
        return error.in_one_line, isinstance(error, UnreadableFile)
    except OSError as error:
        return f"{shown(error.filename)}: {error.strerror}", True
    if of_image.fits(of_label):
        return None, False
    return Problem(f"{shown(image)} is {size_text(of_image.size)} (height x width) but its label "
                   f"{shown(label)} is {size_text(of_label.size)}",
                   "give image and label the same size", "other size"), False


def _by_stem(files, without, report):
    """{stem: path} of the values of {key: (stem, path)}; two files of one stem are reported."""
    by_stem = {}
    for stem, path in files.values():
        if stem in without:
            continue
        if stem in by_stem:
            report(Problem(f"{shown(path)}: same name as {shown(by_stem[stem])}",
                           "remove or rename one of them; or say which files are used "
                           "(Folder: image_pattern and label_pattern, such as \"*.png\")"))
        by_stem.setdefault(stem, path)
    return by_stem


def _other_file(path, image):
    """A file of this name with an extension of NO_LABELS, not the image; None if there is none."""
    candidates = (path.with_name(path.name + end) for suffix in NO_LABELS
                  for end in (suffix, suffix.upper()))
    return next((candidate for candidate in candidates
                 if candidate.is_file() and not candidate.samefile(image)), None)


def _without_suffix(name):
    """A file name without its image extension; other dots are part of the name."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name
