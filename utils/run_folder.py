"""The folder of one run: saved/<name>/<MM-DD_HH-MM-SS>[-n]/."""
import contextlib
import errno
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from utils import distributed
from utils.errors import CheckpointError, ConfigError
from utils.whole_files import UNFINISHED

try:
    import fcntl
except ImportError:      # no such locks on this system
    fcntl = None

RUNNING = ".running"


def create_run_folder(save_dir: str, name: str) -> Path:
    """A new folder that no other run shares; made by rank 0, the same on every rank."""
    folder = None
    if distributed.is_main():
        try:
            folder = _create(Path(save_dir) / _safe(name))
        except (OSError, ConfigError) as error:
            folder = error
    folder = distributed.broadcast_object(folder)
    if isinstance(folder, Exception):
        raise ConfigError(f"cannot create a run folder: {folder}", f"trainer.save_dir: {save_dir}",
                          "choose a folder that can be written") from None
    return folder


def check_save_dir(save_dir: str):
    """Fail before any work is done when runs cannot be kept in `save_dir`."""
    existing = Path(save_dir).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Tried, not asked: root may write anywhere, except where nothing can be written.
        os.rmdir(tempfile.mkdtemp(prefix=".writable", dir=existing))
    except OSError as error:
        reason = "is a file" if existing.is_file() else f"cannot be written ({error.strerror})"
        raise ConfigError(f"cannot keep runs in {save_dir!r}: {existing} {reason}",
                          "trainer.save_dir", "choose a folder that can be written") from None


@contextlib.contextmanager
def claimed(folder: Path):
    """While the block runs no other process trains in `folder`; CheckpointError if one does.

    The claim is a lock on the file RUNNING, which ends with the process however
    it ends; temporary files of writers that were killed are cleared away, here
    and in the run folders beside this one. Call it on rank 0.
    """
    stream = _lock(folder, patience=1.0)
    if stream is None:
        raise CheckpointError("another process trains in this folder", str(folder),
                              "wait for it or stop it; a training of its own starts without -r")
    try:
        _remove_stale(folder)
        for other in folder.parent.glob(f"*/{RUNNING}"):
            if not other.parent.samefile(folder):
                dead = _lock(other.parent)
                if dead:
                    _remove_stale(other.parent)
                    _unlock(other.parent, dead)
        yield
    finally:
        _unlock(folder, stream)


def _lock(folder, patience=0.0):
    """The open, locked file RUNNING of `folder`; None where another process holds it.

    patience: seconds to try again; a run that starts beside this one looks for
    dead claims and may hold ours for a moment.
    """
    path, deadline = folder / RUNNING, time.monotonic() + patience
    while True:
        try:
            stream = open(path, "a")
        except OSError as error:
            raise CheckpointError(f"cannot write in the run folder: {error.strerror}", str(folder),
                                  "copy the checkpoint to a folder of yours") from None
        try:
            if fcntl:
                # Of this process alone: data workers, which are forked, do not inherit it.
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return stream          # a file system without locks: train without
        stream.close()
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)


def _unlock(folder, stream):
    with contextlib.suppress(OSError):
        (folder / RUNNING).unlink(missing_ok=True)
    stream.close()


def _remove_stale(folder):
    """Delete temporary files that a killed writer left in `folder`."""
    for pattern in (".*.pth.*.tmp", f"{UNFINISHED}*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def run_facts() -> dict:
    """What a reader needs to repeat a run: versions, command line, git revision."""
    import torch
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "command": " ".join(sys.argv), "revision": _revision()}


def dataset_facts(dataset) -> dict:
    """What a resumed run must find again: how many samples there are, in which order."""
    ids = "\0".join(sample.id for sample in getattr(dataset, "samples", ()))
    return {"length": len(dataset),
            "ids": hashlib.sha256(ids.encode("utf-8", "surrogateescape")).hexdigest()}


def _create(parent):
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%m-%d_%H-%M-%S")
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
    """A run name as one path component: it never leaves save_dir."""
    cleaned = "".join("_" if c in '/\\:\0' else c for c in name).strip(". ")
    return cleaned[:100] or "run"


@functools.cache
def _revision():
    try:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short",
                               "HEAD"], capture_output=True, text=True, timeout=5,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
