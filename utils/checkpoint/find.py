"""Finds checkpoints: the one that -r names, and the newest undamaged one.

Within a run the newest checkpoint is that of the last step, whatever the times of the files say:
copies, restored files and wrong clocks do not change it. If the run was taken back to an earlier
step, what was trained after that is newer than what was left behind. Between runs the one that
saved last is the newer one, by the time that its checkpoint states; that of the file stands in
for older checkpoints, which state none.

A file is only passed over if its content proves that it cannot be used. If one cannot be read, it
may be the newest: that is an error.
"""
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from utils.checkpoint.format import TrainingCheckpoint, can_resume
from utils.checkpoint.read import (
    DamagedCheckpoint,
    MissingCheckpoint,
    UnreadableCheckpoint,
    contents_of,
    peek,
    read_training,
    verify,
)
from utils.cli.console import notice, warn
from utils.errors import CheckpointError

LAST, BEST, PERIODIC = "last.pth", "model_best.pth", "checkpoint-epoch{}.pth"
PUBLISHED = "model.pth"     # in a folder of tools.publish

_T = TypeVar("_T")


def find_checkpoint(text: str, folder: str = "saved") -> str:
    """The path of the checkpoint to predict with that `text` means; says which if it is no file.

    text: a path; the folder of a run, for its model_best.pth; one of tools.publish, for its
        model.pth; a folder of runs, or "auto" for `folder`, for the newest model_best.pth in it.
    Raises CheckpointError if there is none.
    """
    if text != "auto" and not os.path.isdir(text):
        return text
    place = Path(folder if text == "auto" else text)
    path: Path | None = place / BEST
    if text != "auto" and not path.exists() and (place / PUBLISHED).is_file():
        path = place / PUBLISHED
    if not path.exists():
        own = next(place.glob("*.pth"), None)
        path = None if own else newest_best(place)
    if path is None:
        last = newest_file(place, LAST)
        raise CheckpointError(f"there is no {BEST} to take", str(place),
                              (f"give {last}, of a training without a validation" if last
                               else "train first, or give a path") + f"; {contents_of(place)}")
    notice(f"checkpoint {path}")
    return str(path)


def training_checkpoint(text: str) -> Path:
    """The path of the checkpoint to resume from.

    text: a path; the folder of a run, for its last.pth; a folder of runs, for the newest in it.
    Says which if it is a folder. Raises CheckpointError if the folder has none.
    """
    path = Path(text)
    if not path.is_dir():
        return path
    found = path / LAST
    if not found.exists():
        newest = None if next(path.glob("*.pth"), None) else newest_training(path)
        if newest is None:
            raise CheckpointError(f"there is no {LAST} to resume from", text,
                                  f"give a file; {contents_of(path)}")
        found = newest[1]
    notice(f"resuming from {found}")
    return found


def newest_best(folder: str | Path) -> Path | None:
    """The newest undamaged model_best.pth under `folder`, or None; as `newest_file`."""
    return newest_file(folder, BEST)


def newest_file(folder: str | Path, name: str) -> Path | None:
    """The newest undamaged checkpoint of this file name under `folder`, or None.

    Prints a warning for each newer file that it skips. Raises UnreadableCheckpoint.
    """
    found, skipped = _peeked(_below(Path(folder), name))
    newest_first = sorted(found, key=lambda one: (one.saved, one.order), reverse=True)
    sound = _first_sound(newest_first, skipped, verify)
    if sound is None:
        _warn_of_skipped(skipped, None)
    return sound and sound[1]


def newest_training(folder: str | Path, fits: Callable[[Mapping[str, Any]], bool] | None = None) \
        -> tuple[TrainingCheckpoint, Path] | None:
    """(checkpoint, path) of the newest file from which a training can resume, or None.

    Looks at every .pth file in `folder` and in its subfolders, one level deep, whose content
    (without the values of the tensors) `fits`. Prints a warning for each newer file that it skips.
    Raises UnreadableCheckpoint.
    """
    folder = Path(folder)
    paths, folders = _content(folder)
    paths += [path for inner in folders for path in _content(inner)[0]]
    early, known = _passed_by_last(paths)
    for considered in ([path for path in paths if path not in early], paths) if early else (paths,):
        found, skipped = _peeked(considered, fits, known)
        newest_first = _newest_first(_without_weights(found, skipped))
        sound = _first_sound(newest_first, skipped, read_training)
        if sound:
            return sound
    _warn_of_skipped(skipped, None)
    return None


def newest_peeked(folder: str | Path, fits: Callable[[Mapping[str, Any]], bool] | None = None) \
        -> "Peeked | None":
    """What orders the file that `newest_training` takes, if it is undamaged, or None.

    Reads no values of tensors, and warns of no file. Raises UnreadableCheckpoint.
    """
    folder = Path(folder)
    paths, folders = _content(folder)
    paths += [path for inner in folders for path in _content(inner)[0]]
    early, known = _passed_by_last(paths)
    found, _ = _peeked([path for path in paths if path not in early], fits, known)
    return next(iter(_newest_first(_without_weights(found, []))), None)


def later_than(folder: Path, checkpoint: Mapping[str, Any]) -> list["Peeked"]:
    """The checkpoints of trainings in a folder that are newer than this one, the last step first.

    Raises UnreadableCheckpoint.
    """
    order = _order(checkpoint)
    paths = [path for path in _content(folder)[0]
             if (epoch_of(path.name) or checkpoint["epoch"]) + 1 >= checkpoint["epoch"]]
    found, _ = _peeked(paths)
    return sorted((one for one in found if one.trains and one.order[:-1] > order),
                  key=lambda one: one.order, reverse=True)


@dataclass
class Peeked:
    """What orders a checkpoint among others.

    order: within its run. saved: the time of the last save in seconds since 1970. lineage, epoch,
    step: see utils.checkpoint.format. trains: whether a training can resume from it.
    """

    path: Path
    order: tuple
    saved: float
    lineage: list[list[int]]
    epoch: int
    step: int
    trains: bool
    content: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Peeked":
        """Read what orders the checkpoint in a file. Raises CheckpointError."""
        content = peek(path)
        # last.pth is written after the others: it is the newer one of equals.
        return cls(path, (*_order(content), path.name == LAST), _saved(path, content),
                   content.get("lineage", []), content.get("epoch") or 0, content.get("step", 0),
                   can_resume(content), content)

    def is_before(self, lineage: list[list[int]]) -> bool:
        """Whether a run of this lineage went through this checkpoint, or can still reach it."""
        own = len(self.lineage)
        return lineage[:own] == self.lineage \
            and (own == len(lineage) or self.step <= lineage[own][1])


def _order(content):
    """What grows in a run from save to save."""
    return (line_number(content.get("lineage", [])), content.get("step", 0),
            content.get("epoch") or 0, content.get("samples", 0))


def line_number(lineage: list[list[int]]) -> int:
    """How often a run was taken back, over all of its files."""
    return lineage[-1][0] if lineage else 0


def epoch_of(name: str) -> int | None:
    """The epoch in the file name of a periodic checkpoint, or None for other names."""
    match = re.fullmatch(PERIODIC.format(r"(\d+)"), name)
    return int(match[1]) if match else None


def _saved(path, content):
    try:
        return datetime.fromisoformat(content["versions"]["time"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return modified(path)


def modified(path: Path) -> float:
    """The time at which a file was last written; 0 if it cannot be found out."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """(checkpoint files, folders) in a folder; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            files, folders = [], []
            for entry in entries:
                (folders if entry.is_dir() else files).append(folder / entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        raise _unlisted(folder, error) from None
    return [path for path in files if path.suffix == ".pth"], folders


def _below(folder: Path, name: str) -> list[Path]:
    """Every file of a name in a folder and its subfolders."""
    def fail(error):
        raise _unlisted(error.filename, error)
    if not folder.is_dir():
        return []
    return [Path(place, name) for place, _, names in os.walk(folder, onerror=fail)
            if name in names]


def _unlisted(folder, error):
    return UnreadableCheckpoint(f"the folder could not be read: {error.strerror or error}",
                                str(folder), "its checkpoints may be the newest: try again, or "
                                             "make it readable")


def _first_sound(ordered: Iterable[Peeked], skipped: list, read: Callable[[Path], _T]) \
        -> tuple[_T, Path] | None:
    """(what `read` returns, path) of the first sound file, or None; the others are `skipped`.

    Warns of those if there is one. Raises UnreadableCheckpoint.
    """
    for one in ordered:
        try:
            content = read(one.path)
        except UnreadableCheckpoint:
            raise
        except CheckpointError as error:
            skipped.append((one.path, error))
        else:
            _warn_of_skipped(skipped, one.path)
            return content, one.path
    return None


def _peeked(paths: Iterable[Path], fits=None, known: Mapping[Path, Peeked] | None = None):
    """(Peeked of each usable file, (path, error) of the others). known: of files read before."""
    found, skipped = [], []
    for path in paths:
        try:
            one = (known or {}).get(path) or Peeked.of(path)
        except UnreadableCheckpoint:
            raise
        except MissingCheckpoint:           # a broken link, or deleted in the meantime
            continue
        except CheckpointError as error:
            skipped.append((path, error))
            continue
        if fits is None or fits(one.content):
            found.append(one)
    return found, skipped


def _without_weights(found, skipped):
    """Move checkpoints from which no training can resume to the skipped ones."""
    skipped += [(one.path, CheckpointError("it contains weights, but no state of a training"))
                for one in found if not one.trains]
    return [one for one in found if one.trains]


def _newest_first(found: list[Peeked]) -> list[Peeked]:
    """Run by run; of each run, which is a folder, the last step first."""
    newest: dict[Path, Peeked] = {}
    for one in sorted(found, key=lambda one: one.order):
        newest[one.path.parent] = one
    return sorted(found, key=lambda one: (newest[one.path.parent].saved, one.path.parent,
                                          one.order), reverse=True)


def _passed_by_last(paths: list[Path]) -> tuple[set[Path], dict[Path, Peeked]]:
    """(periodic checkpoints of epochs before that of last.pth, Peeked of each last.pth).

    There can be hundreds of the first, which are then not read.
    """
    passed, known = set(), {}
    for folder in {path.parent for path in paths}:
        try:
            last = known[folder / LAST] = Peeked.of(folder / LAST)
        except CheckpointError:
            continue
        passed |= {path for path in paths if path.parent == folder and last.trains
                   and (epoch_of(path.name) or last.epoch) + 1 < last.epoch}
    return passed, known


def _warn_of_skipped(skipped, taken: Path | None):
    """Warn of files that would have been taken otherwise."""
    for path, error in skipped:
        damaged = isinstance(error, DamagedCheckpoint)
        if taken is None or damaged and path.parent == taken.parent \
                or modified(path) >= modified(taken):
            warn(f"skipping {path}: {error.what}")
