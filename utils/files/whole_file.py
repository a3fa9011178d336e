"""Files that appear complete or not at all, even if the program is killed while it writes."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from utils.errors import DataError, shown

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer  # bytes, a memoryview

UNFINISHED = ".part-"       # the name of every unfinished file begins with this


class WholeFile:
    """A file that gets its name only when it is complete.

    temporary: the path to write to until then: a hidden file, empty at first, in the same folder,
        that ends in `suffix`.
    durable: flush the file and its folder to the disk, so that a power failure leaves the old
        file or the new one.

    As a context manager it returns `temporary`, finishes at the end of the block and discards
    after any error or interrupt. OSErrors are passed on: the caller words the message.
    """

    def __init__(self, path: str | os.PathLike, suffix: str = "", durable: bool = False):
        self.path, self.durable = Path(path), durable
        self.temporary = self.path.parent / f"{UNFINISHED}{os.urandom(8).hex()}{suffix}"
        # open() applies the umask. tempfile would create a file for its owner alone, and the umask
        # can only be read by setting it, which affects all threads.
        open(self.temporary, "xb").close()

    def finish(self):
        """Give the file its name."""
        if self.durable:
            _flush(self.temporary)
        os.replace(self.temporary, self.path)
        if self.durable:
            _flush(self.path.parent)

    def discard(self):
        """Remove what was written, if that is possible; does nothing after `finish`."""
        with contextlib.suppress(OSError):      # would hide the error that led here
            self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None):
        try:
            if kind is None:
                self.finish()
        finally:
            self.discard()


def write_bytes(path: str | os.PathLike, data: "ReadableBuffer"):
    """Write a file, complete or not at all. Raises DataError if it cannot be written."""
    with unfinished(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def unfinished(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """A WholeFile that raises DataError in place of OSError."""
    try:
        with WholeFile(path, suffix) as temporary:
            yield temporary
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: str | os.PathLike, error: OSError) -> DataError:
    """The DataError that reports `error` from writing the file `path`."""
    return DataError(f"cannot write: {error.strerror or error}", shown(path),
                     "check that the folder exists, is writable and has room")


def make_folder(folder: str | os.PathLike, fix: str = "choose another output folder with -o"):
    """Create a folder and its missing parents. Raises DataError, with `fix`, if that fails."""
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder: {error.strerror or error}", shown(folder),
                        fix) from None


def _flush(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
