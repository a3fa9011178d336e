"""Pairs predicted label files with true ones, and counts them all or reports all that is wrong."""
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DataError, listed, shown
from utils.files.file_jobs import work_through
from utils.images.picture_files import picture_files
from utils.images.types import Labels

SHOWN = 20             # problems in a message
SHOWN_VALUES = 8


class LabelFileScores(NamedTuple):
    """scores: for a JSON file. text: tables to print. summary: a short text for a file."""

    scores: dict[str, Any]
    text: str
    summary: str


def pair_files(truths: dict[str, Path], folder: Path, suffixes: tuple[str, ...]) \
        -> tuple[dict[str, Path], list[str]]:
    """({name: prediction}, problems): for each name of `truths` the file that begins with it.

    After the name comes the extension, or anything that begins with neither a letter nor a digit.
    Names that contain folders are compared as a whole first, then by their last part.
    """
    found, problems = {}, []
    by_last_part = {}
    for name in truths:
        by_last_part.setdefault(name.rpartition("/")[2], []).append(name)
    for path in picture_files(folder, suffixes):
        relative = os.path.splitext(path.relative_to(folder).as_posix())[0]
        name = next((start for start in _prefixes(relative) if start in truths), None)
        if name is None:
            last = next((start for start in _prefixes(relative.rpartition("/")[2])
                         if start in by_last_part), None)
            candidates = by_last_part.get(last, ())
            if len(candidates) != 1:
                problems.append(f"{shown(path)}: a prediction without truth" if not candidates else
                                f"{shown(path)}: may belong to {len(candidates)} files of the "
                                "truth")
                continue
            name = candidates[0]
        if name in found:
            problems.append(f"{shown(path)}: a second prediction of {shown(name)}; the first is "
                            f"{shown(found[name])}")
        found.setdefault(name, path)
    problems += [f"{shown(truths[name])}: no prediction {shown(name)} in {shown(folder)}"
                 for name in truths if name not in found]
    return found, problems


def count_all(count: Callable[[str], Any], names: Collection[str], workers: int,
              problems: Iterable[str]) -> list[Any]:
    """count(name) for every name, in threads, in order.

    Raises one DataError for `problems` and for every DataError of `count`.
    """
    outcome = work_through(names, count, workers, "scoring")
    problems = [*problems, *(error.in_one_line for error in outcome.failed)]
    if problems:
        raise DataError(f"{len(problems)} {'file is' if len(problems) == 1 else 'files are'} "
                        "wrong, no score is given:\n    " + listed(problems, SHOWN, "\n    "),
                        fix="; ".join(dict.fromkeys(
                            error.fix for error in outcome.failed if error.fix)) or None)
    return outcome.done


def require_below(ids: Labels, end: int, stored: Labels, path: Path, expected: str,
                  fix: str | None = None) -> Labels:
    """Returns `ids` if all are below `end`; else raises DataError with the stored values.

    ids, stored: (H, W), any integer dtype.
    """
    wrong = ids >= end
    if wrong.any():
        values, counts = np.unique(stored[wrong], return_counts=True)
        found = listed(list(zip(values, counts, strict=True)), SHOWN_VALUES,
                       text=lambda pair: f"{pair[0]} ({pair[1]} pixels)")
        raise DataError(f"holds {found}; expected {expected}", shown(path), fix)
    return ids


def require_size(ids: Labels, path: Path, truth: Labels, truth_path: Path):
    """Raises DataError if the label map `ids` does not have the size of the truth."""
    if ids.shape != truth.shape:
        raise DataError(f"is {ids.shape[1]}x{ids.shape[0]}, the truth {shown(truth_path.name)} "
                        f"{truth.shape[1]}x{truth.shape[0]}", shown(path))


def _prefixes(name: str) -> Iterator[str]:
    """The name and its prefixes that end before a non-alphanumeric character, longest first."""
    yield name
    for match in reversed(list(re.finditer(r"[\W_]", name))):
        yield name[:match.start()]
