"""Pairs predicted label files with true ones, and counts them all or reports all that is wrong."""
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli.console import notice
from utils.errors import DataError, counted, listed, shown
from utils.files.file_jobs import work_through
from utils.images.image_io import read_label, read_stored
from utils.images.picture_files import IMAGE_SUFFIXES, picture_files
from utils.images.types import Labels
from utils.metrics import Scores

SHOWN = 20             # problems in a message
SHOWN_VALUES = 8


class LabelFileScores(NamedTuple):
    """The scores of label files.

    scores: for a JSON file. text: tables to print. summary: a short text for a file.
    measured: the same scores, and those of the single images. names: of the images, by img_index.
    """

    scores: dict[str, Any]
    text: str
    summary: str
    measured: Scores
    names: list[str]
    class_names: list[str]


def pair_files(truths: dict[str, Path], folder: Path, suffixes: tuple[str, ...],
               formats: tuple[str, ...] = IMAGE_SUFFIXES) -> tuple[dict[str, Path], list[str]]:
    """({name: prediction}, problems): for each name of `truths` the file that begins with it.

    After the name comes the extension, or anything that begins with neither a letter nor a digit.
    Names that contain folders are compared as a whole first, then by their last part. Of several
    files that begin with a name, the one whose name the others continue is the prediction
    (x.png, and not x_overlay.png). The others, and predictions of nothing in `truths`, are left
    out with a notice; but if a prediction is missing, the latter are problems too.
    formats: the suffixes of files that may have been meant where a prediction is missing.
    """
    found, problems, strangers, extra = {}, [], [], []
    files = picture_files(folder, suffixes)
    for name, paths in files_by_name(truths, folder, files, problems, strangers).items():
        stems = [os.path.splitext(path)[0] for path in paths]
        stem_of_first, first = min(zip(stems, paths, strict=True), key=_shortest)
        found[name] = first
        for path, stem in zip(paths, stems, strict=True):
            if stem.startswith(stem_of_first) and stem != stem_of_first:
                extra.append(stem[len(stem_of_first):])
            elif path != first:
                problems.append(f"{shown(path)}: a second prediction of {shown(name)}; the first "
                                f"is {shown(first)}")
    missing = [name for name in truths if name not in found]
    if missing:
        problems += [f"{shown(path)}: a prediction without truth" for path in strangers]
        problems += _missing(truths, missing, folder, suffixes, formats)
        return found, problems
    if strangers:
        notice(f"left out: {len(strangers)} predictions without truth ("
               + listed(strangers, SHOWN_VALUES, text=lambda path: shown(path.name)) + ")")
    if extra:
        endings = Counter(re.sub(r"/.*", "/...", ending) for ending in extra)
        notice(f"left out: {len(extra)} files whose names continue that of a prediction ("
               + listed(endings.most_common(), SHOWN_VALUES,
                        text=lambda pair: f"{shown(pair[0])}: {pair[1]}") + ")")
    return found, problems


def _shortest(pair):
    return len(pair[0]), pair


def files_by_name(truths: Mapping[str, Path | None], folder: Path, files: Iterable[Path],
                  problems: list[str], strangers: list[Path]) -> dict[str, list[Path]]:
    """name of `truths` -> those of the files below a folder that begin with it; see `pair_files`.

    Files that begin with several names are added to `problems`, those with none to `strangers`.
    """
    found: dict[str, list[Path]] = {}
    by_last_part = {}
    for name in truths:
        by_last_part.setdefault(name.rpartition("/")[2], []).append(name)
    for path in files:
        relative = os.path.splitext(path.relative_to(folder).as_posix())[0]
        name = next((start for start in _prefixes(relative) if start in truths), None)
        if name is None:
            last = next((start for start in _prefixes(relative.rpartition("/")[2])
                         if start in by_last_part), None)
            candidates = by_last_part.get(last, ())
            if not candidates:
                strangers.append(path)
                continue
            if len(candidates) > 1:
                problems.append(f"{shown(path)}: may belong to {len(candidates)} files of the "
                                "truth")
                continue
            name = candidates[0]
        found.setdefault(name, []).append(path)
    return found


def _missing(truths, missing, folder, suffixes, formats):
    """A line for each name without a prediction; says if there is one in another format."""
    others = tuple(suffix for suffix in formats if suffix not in suffixes)
    elsewhere: dict[str, Path] = {}
    for path in picture_files(folder, others):
        for start in _prefixes(os.path.splitext(path.relative_to(folder).as_posix())[0]):
            elsewhere.setdefault(start, path)
    for name in missing:
        other = elsewhere.get(name) or elsewhere.get(name.rpartition("/")[2])
        if other:
            yield (f"{shown(other)}: a {other.suffix} file; predictions are label files "
                   f"({', '.join(suffixes)}), because JPEG, for example, changes class ids")
        else:
            yield f"{shown(truths[name])}: no prediction {shown(name)} in {shown(folder)}"


def count_all(count: Callable[[str], Any], names: Collection[str], workers: int,
              problems: Iterable[str]) -> list[Any]:
    """count(name) for every name, in threads, in order.

    Raises one DataError for `problems` and for every DataError of `count`.
    """
    outcome = work_through(names, count, workers, "scoring")
    require_none(problems, outcome.failed)
    return outcome.done


def require_none(problems: Iterable[str], errors: Collection[DataError]):
    """Raises one DataError that lists the problems and errors, if there are any."""
    problems = [*problems, *(error.in_one_line for error in errors)]
    if problems:
        raise DataError(f"{len(problems)} {'file is' if len(problems) == 1 else 'files are'} "
                        "wrong, no score is given:\n    " + listed(problems, SHOWN, "\n    "),
                        fix="; ".join(dict.fromkeys(
                            error.fix for error in errors if error.fix)) or None)


def require_below(ids: Labels, end: int, stored: Labels, path: Path, expected: str,
                  fix: str | None = None) -> Labels:
    """Returns `ids` if all are below `end`; else raises DataError with the stored values.

    ids, stored: (H, W), any integer dtype.
    """
    wrong = ids >= end
    if wrong.any():
        values, counts = np.unique(stored[wrong], return_counts=True)
        found = listed(list(zip(values, counts, strict=True)), SHOWN_VALUES,
                       text=lambda pair: f"{pair[0]} ({counted(pair[1], 'pixel')})")
        raise DataError(f"holds {found}; expected {expected}", shown(path), fix)
    return ids


def read_prediction(path: Path, fix: str) -> Labels:
    """The stored values of a predicted label file, (H, W). Raises DataError if it cannot be read.

    fix: what to do about a color picture.
    """
    try:
        return read_label(path)
    except DataError as error:
        if read_stored(path).ndim == 2:
            raise
        raise DataError("is a color picture, not a map of class ids", error.where, fix) from None


def require_size(ids: Labels, path: Path, truth: Labels, truth_path: Path):
    """Raises DataError if the label map or volume `ids` does not have the size of the truth."""
    if ids.shape != truth.shape:
        found, expected = ("x".join(map(str, shape)) for shape in (ids.shape, truth.shape))
        axes = "height x width" if ids.ndim == truth.ndim == 2 else "slices x height x width"
        raise DataError(f"is {found}, the truth {shown(truth_path.name)} {expected} ({axes})",
                        shown(path))


def _prefixes(name: str) -> Iterator[str]:
    """The name and its prefixes that end before a non-alphanumeric character, longest first."""
    yield name
    for match in reversed(list(re.finditer(r"[\W_]", name))):
        yield name[:match.start()]
