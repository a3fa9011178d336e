"""Finds the newest undamaged checkpoint in a folder."""
import contextlib
from collections.abc import Iterable
from pathlib import Path

from utils.checkpoint.format import TrainingCheckpoint, can_resume
from utils.checkpoint.read import read_checkpoint, verify_archive
from utils.errors import CheckpointError


def find_checkpoint(text: str, folder: str = "saved") -> str:
    """Return `text`, a path; for "auto" the newest model_best.pth under `folder`.

    Raises CheckpointError if there is none.
    """
    if text != "auto":
        return text
    path = newest_checkpoint(folder, "model_best.pth")
    if path is None:
        raise CheckpointError("there is no model_best.pth to take", folder,
                              "train first, or give a path")
    return str(path)


def newest_checkpoint(folder: str | Path, name: str = "last.pth") -> Path | None:
    """The newest undamaged file called `name` under `folder`, or None.

    Prints a warning for each newer file that it skips.
    """
    for path in _newest_first(Path(folder).glob(f"**/{name}")):
        try:
            verify_archive(path)
            return path
        except CheckpointError as error:
            _warn_skipped(path, error)
    return None


def newest_training(folder: str | Path) -> tuple[TrainingCheckpoint, Path] | None:
    """(checkpoint, path) of the newest file from which a training can resume, or None.

    Looks at every .pth file in `folder` and in its subfolders, one level deep. Prints a warning
    for each newer file that it skips.
    """
    folder = Path(folder)
    for path in _newest_first([*folder.glob("*.pth"), *folder.glob("*/*.pth")]):
        try:
            checkpoint = read_checkpoint(path)
            if can_resume(checkpoint):
                return checkpoint, path
            raise CheckpointError("it contains weights, but no state of a training", str(path))
        except CheckpointError as error:
            _warn_skipped(path, error)
    return None


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    # last.pth is written after the others: if the times are equal, it is the newer file.
    dated = []
    for path in paths:
        with contextlib.suppress(OSError):      # a broken link, or deleted in the meantime
            if path.is_file():
                dated.append((path.stat().st_mtime_ns, path.name == "last.pth", path))
    return [path for *_, path in sorted(dated, reverse=True)]


def _warn_skipped(path, error):
    from utils.cli.console import warn
    warn(f"skipping {path}: {error.what}")
