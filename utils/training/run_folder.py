"""The folder of one run: saved/<name>/<YYYY-MM-DD_HH-MM-SS>[-n]/."""
import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, ConfigError
from utils.files.locks import release, take
from utils.files.whole_file import remove_abandoned
from utils.machine import distributed

LONGEST_NAME = 255          # bytes of a file name on usual file systems
RUNNING = ".running"        # the locked file in the folder of a run in progress


def create_run_folder(save_dir: str, name: str) -> Path:
    """Create the folder of a run, which no other run shares; returns it on every rank.

    Raises ConfigError if it cannot be created.
    """
    try:
        return distributed.from_main(lambda: _create(runs_folder(save_dir, name)), OSError,
                                     ConfigError)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"cannot create a run folder: {error}", f"trainer.save_dir: {save_dir}",
                          "choose a folder that can be written") from None


def runs_folder(save_dir: str, name: str) -> Path:
    """The folder of all runs of a name, which is cleaned to be one component of a path."""
    return Path(save_dir) / _safe(name)


def is_run_of(name: str, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint in the folder of the runs of `name` is of a run of this name.

    Two names can be cleaned to the same. A folder that was renamed by hand counts under its new
    name.
    """
    stored = checkpoint["config"].get("name", name)
    return stored == name or not isinstance(stored, str) or _safe(stored) != _safe(name)


def check_save_dir(save_dir: str, name: str):
    """Raise ConfigError, before any work is done, if no folder for a run can be created."""
    existing = runs_folder(save_dir, name).absolute()
    # A link to nowhere exists, and no folder can be made in its place.
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        # os.access is no help: root has every permission, also on a read-only file system.
        os.rmdir(tempfile.mkdtemp(prefix=".writable", dir=existing))
    except OSError as error:
        reason = ("is a file" if existing.is_file() else "is a link to nowhere"
                  if existing.is_symlink() and not existing.exists()
                  else f"cannot be written ({error.strerror})")
        raise ConfigError(f"cannot keep runs in {save_dir!r}: {existing} {reason}",
                          "trainer.save_dir", "choose a folder that can be written") from None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder` while the block runs. Call it on rank 0.

    The claim is a lock on the file RUNNING, which ends with the process, even if it is killed.
    Temporary files of killed writers are deleted, in this folder and in the other run folders
    next to it. Raises CheckpointError if another process trains in the folder.
    """
    stream = _lock(folder, patience=1.0)
    if stream is None:
        raise CheckpointError("another process trains in this folder", str(folder),
                              "wait for it or stop it; without -r a new training starts")
    try:
        _remove_stale(folder)
        for other in folder.parent.glob(f"*/{RUNNING}"):
            if not other.parent.samefile(folder):
                dead = _lock(other.parent)
                if dead:
                    _remove_stale(other.parent)
                    release(other, dead)
        yield
    finally:
        release(folder / RUNNING, stream)


def _lock(folder, patience=0.0):
    """Lock the file RUNNING of `folder` and return it open; None if another process holds it.

    patience: seconds to try again, because another run that starts at the same time looks for dead
    claims and can hold this lock for a moment.
    """
    try:
        return take(folder / RUNNING, patience)
    except OSError as error:
        raise CheckpointError(f"cannot write in the run folder: {error.strerror}", str(folder),
                              "copy the checkpoint to a folder that you can write") from None


def _remove_stale(folder):
    """Delete temporary files that a killed writer left in `folder`, which is claimed."""
    remove_abandoned(folder, claimed=True)
    # Unfinished checkpoints used to end in .pth.PID.tmp: remove that pattern after a release.
    for path in folder.glob(".*.pth.*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def run_facts() -> dict[str, Any]:
    """What is needed to repeat a run: versions, command line, git revision; and the time, UTC."""
    import torch
    return {"time": datetime.now(timezone.utc).isoformat(), "python": platform.python_version(),
            "torch": str(torch.__version__), "command": " ".join(sys.argv), "revision": _revision()}


def dataset_facts(dataset: Any) -> dict[str, Any]:
    """The length of a dataset and a hash of its samples' order, which must not change on resume."""
    ids = "\0".join(sample.id for sample in getattr(dataset, "samples", ()))
    return {"length": len(dataset),
            "ids": hashlib.sha256(ids.encode("utf-8", "surrogateescape")).hexdigest()}


def _create(parent):
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for n in range(1000):
        folder = parent / (stamp if n == 0 else f"{stamp}-{n}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        return folder
    raise ConfigError(f"a thousand runs share the second {stamp} in {parent}")


def _safe(name):
    """A run name as one component of a path, which cannot lead out of save_dir."""
    cleaned = "".join("_" if c in '/\\:\0' or "\ud800" <= c <= "\udfff" else c for c in name)
    cleaned = cleaned.strip(". ")[:100]
    while len(os.fsencode(cleaned)) > LONGEST_NAME:
        cleaned = cleaned[:-1]
    return cleaned or "run"


@functools.cache
def _revision():
    try:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short",
                               "HEAD"], capture_output=True, text=True, timeout=5,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
