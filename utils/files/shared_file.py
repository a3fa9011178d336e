"""Changes a file that several programs read, change and replace at the same time.

The programs lock the folder where the system can. Where it cannot (Windows, many network file
systems), a program looks again after a moment whether its change is still in the file, and makes
it again if another program has replaced it. No file for the lock is left behind.
"""
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import DataError, shown
from utils.files.locks import hold
from utils.files.whole_file import WholeFile, cannot_write, write_bytes

PATIENCE = 30.0             # seconds to wait for another program's lock; it may be suspended
TRIES = 100                 # of a change, while other programs replace the file
PAUSE = 0.2                 # seconds until a change without a lock is looked for


def change_file(path: Path, changed: Callable[[bytes | None], bytes],
                kept: Callable[[bytes | None], bool]):
    """Replace a file by what `changed` makes of it, without losing a change of another program.

    changed: gets the content, None if there is no file, and returns the new one. It is called
        again if another program was faster.
    kept: whether a content contains the change.
    Raises DataError if the file cannot be read or written; it is then what it was before.
    """
    with locked(path.parent) as alone:
        for _ in range(TRIES):
            before = content(path)
            data = changed(before)
            if not _replaced(path, before, data):
                continue
            if alone:
                return
            time.sleep(PAUSE * (0.5 + random.random()))
            if kept(content(path)):
                return
    raise DataError("cannot write: other programs replace it all the time", shown(path),
                    "choose another folder")


def content(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", shown(path),
                        "mend it, move it away, or choose another folder") from None


def set_aside(path: Path, data: bytes) -> tuple[Path, bool]:
    """(file next to `path` with the content `data`, whether it is new): `path` will lose it."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.old" + (f"-{number}" if number > 1 else ""))
        there = content(aside)
        if there is None:
            write_bytes(aside, data)
        if there in (None, data):
            return aside, there is None
        number += 1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep other programs out of the block if possible; yields whether it is."""
    descriptor = None
    try:
        descriptor = _lock(folder)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder):
    """A descriptor that holds the lock until it is closed; None if there is no lock to be had."""
    deadline = time.monotonic() + PATIENCE
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:                 # Windows opens no folders
        return None
    while (held := hold(descriptor)) is False and time.monotonic() < deadline:
        time.sleep(0.02)
    if held:
        return descriptor
    os.close(descriptor)
    return None


def _replaced(path, before, data):
    """Replace the file unless it is no longer `before`; returns whether it was replaced."""
    try:
        file = WholeFile(path)
        try:
            file.temporary.write_bytes(data)
            if content(path) != before:
                return False
            file.finish()
            return True
        finally:
            file.discard()
    except OSError as error:
        raise cannot_write(path, error) from None
