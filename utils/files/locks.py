"""Locks between processes. A lock ends with the process that holds it, even if it is killed.

On a file system without locks (some network drives) everything runs without them, with one notice.
"""
import contextlib
import errno
import os
import time
from pathlib import Path
from typing import IO

from utils.cli.console import notice
from utils.errors import shown

try:
    import fcntl
except ImportError:      # Windows has no such locks
    fcntl = None

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)   # errors of a lock that another one holds
_PAUSE = 0.05            # seconds between two tries
_told = set()            # the guarantees whose absence was reported


def take(path: str | os.PathLike, patience: float = 0.0) -> IO[str] | None:
    """Lock the file `path` and return it open; None if another process holds it.

    patience: seconds to try again. Raises OSError if the file cannot be made.
    """
    path, tries = Path(path), round(patience / _PAUSE)    # no clock, which runs while suspended
    while True:
        stream = open(path, "a", encoding="utf-8")
        try:
            if fcntl:
                # This kind of lock is not inherited by the data workers, which are forked.
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file between open and lock.
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in HELD:
                tell_once("locks", f"{shown(path.parent)}: this file system has no locks "
                                   f"({error.strerror}): it is not noticed if two programs work "
                                   "in this folder at once")
                return stream
        stream.close()
        if tries <= 0:
            return None
        tries -= 1
        time.sleep(_PAUSE)


def release(path: str | os.PathLike, stream: IO[str]):
    """End the lock that `take` returned, and remove its file."""
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
    stream.close()


def hold(descriptor: int) -> bool | None:
    """Lock an open file, for all descriptors that are copies of this one.

    Unlike the lock of `take`, this one also lasts while the program opens and closes the file
    again; data workers that are forked meanwhile share it. Returns False if another one holds it,
    None if there are no locks here.
    """
    if not fcntl:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def tell_once(guarantee: str, text: str):
    """Print a notice that a guarantee is weaker on this file system, once in this program."""
    if guarantee not in _told:
        _told.add(guarantee)
        notice(text)
