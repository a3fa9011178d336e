"""Files that appear complete or not at all, even if the program is killed while it writes."""
import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from utils.errors import DataError, shown
from utils.files.locks import hold, tell_once

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer  # bytes, a memoryview

_T = TypeVar("_T")

UNFINISHED = ".part-"       # the name of every unfinished file begins with this
# Prefix, host (missing in files of version 0.1), random part, suffix.
_NAME = re.compile(re.escape(UNFINISHED) + r"(?:([0-9a-f]{8})-)?[0-9a-f]{16}(?:\.[\w.]+)?")
_OLD = 24 * 3600            # seconds after which an unfinished file of another host is abandoned
_WAITS = (0.1, 0.5, 2.0)    # seconds before what may pass is tried again

# Errors of network drives that pass: a handle that a server has replaced, a busy file.
_PASSING = (errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY)
# Errors of a file system that has no such operation.
_MISSING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
# A folder may also be writable, but not readable.
_NO_FOLDER_FLUSH = (*_MISSING, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT,
           errno.EHOSTDOWN, errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO)


class WholeFile:
    """A file that gets its name only when it is complete.

    temporary: the path to write to until then: a hidden file, empty at first, in the same folder,
        that ends in `suffix`.
    durable: flush the file and its folder to the disk, so that a power failure leaves the old
        file or the new one. Where a file system cannot flush, one notice says so.
    named: whether the file has its name. An error after that (of flushing the folder) means that
        the new file is there, but may not survive a power failure.

    As a context manager it returns `temporary`, finishes at the end of the block and discards
    after any error or interrupt. OSErrors are passed on: the caller words the message. What may
    pass (a stale handle of a network drive) is tried again for some seconds first.

    The first file that a program writes in a folder also removes what killed programs have left
    there (`remove_abandoned`).
    """

    def __init__(self, path: str | os.PathLike, suffix: str = "", durable: bool = False):
        self.path, self.durable, self.named = Path(path), durable, False
        remove_abandoned_once(self.path.parent)
        self.temporary, self._lock = _retried(_create, self.path.parent, suffix)

    def finish(self):
        """Give the file its name."""
        if self.durable:
            _flush_file(self.temporary)
        self._rename()
        self.named = True
        self._let_go()
        if self.durable:
            _flush_folder(self.path.parent)

    def discard(self):
        """Remove what was written, if that is possible; does nothing after `finish`."""
        with contextlib.suppress(OSError):      # would hide the error that led here
            self.temporary.unlink(missing_ok=True)
        self._let_go()

    def _rename(self):
        tries = 0

        def rename():
            nonlocal tries
            tries += 1
            try:
                os.replace(self.temporary, self.path)
            except FileNotFoundError:
                # The answer of a server was lost, but it had renamed the file.
                if tries == 1 or self._lock is None or not os.path.samestat(
                        os.fstat(self._lock.fileno()), os.stat(self.path)):
                    raise
        _retried(rename)

    def _let_go(self):
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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


def append_whole(path: str | os.PathLike, lines: bytes):
    """Append whole lines or nothing: a part of a line would also spoil the next one.

    Raises OSError.
    """
    with open(path, "ab", buffering=0) as stream:
        end = stream.tell()
        try:
            while lines:
                lines = lines[stream.write(lines):]
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(end)
            raise


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
    return DataError(f"cannot write: {error.strerror or error}", shown(path), remedy(error))


def remedy(error: OSError) -> str:
    """What to do about an error of writing a file."""
    if error.errno in _NO_SPACE:
        return "free some space (is there a quota?), or choose a folder on another disk"
    if error.errno in _REFUSED:
        return "choose a folder that you can write to"
    if error.errno in (errno.EXDEV, *_MISSING):
        return "this file system cannot rename or flush files; choose a folder on another one"
    if error.errno in _BROKEN:
        return "the disk or the network drive has failed: check it, or choose a folder on another"
    return "check that the folder exists, is writable and has room"


def make_folder(folder: str | os.PathLike, fix: str = "choose another output folder with -o"):
    """Create a folder and its missing parents. Raises DataError, with `fix`, if that fails."""
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder: {error.strerror or error}", shown(folder),
                        fix) from None


def remove_abandoned(folder: str | os.PathLike, claimed: bool = False):
    """Delete the unfinished files of killed programs in `folder`.

    A program holds a lock on each file that it is writing, which ends with it. So a file of this
    host without a lock is abandoned. Where that proves nothing (a file of another host, or no
    locks here) a file counts as abandoned a day after it was last written.
    claimed: nobody but this process writes in the folder, so the host does not matter.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match:
                with contextlib.suppress(OSError):      # of another user, or just finished
                    _remove_if_abandoned(entry.path, claimed or match[1] == _host())


def _remove_if_abandoned(path, own_host):
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
                         | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        free = hold(descriptor)
        proven = free and own_host or time.time() - status.st_mtime > _OLD
        if stat.S_ISREG(status.st_mode) and free is not False and proven:
            os.unlink(path)
    finally:
        os.close(descriptor)


# Only a folder's first file looks for others: a folder may contain millions.
remove_abandoned_once = functools.cache(remove_abandoned)


@functools.cache
def _host():
    """Eight digits that identify this machine among those that share a disk."""
    import platform
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _create(folder, suffix):
    """(path, open file that holds its lock) of a new empty file; (path, None) without locks."""
    while True:
        path = folder / f"{UNFINISHED}{_host()}-{os.urandom(8).hex()}{suffix}"
        # open() applies the umask. tempfile would create a file for its owner alone, and the umask
        # can only be read by setting it, which affects all threads.
        stream = open(path, "xb", buffering=0)
        held = hold(stream.fileno())
        if held and os.fstat(stream.fileno()).st_nlink:
            return path, stream
        stream.close()
        if held is None:        # a file that is open cannot be renamed under Windows
            return path, None
        # Otherwise another program took it for abandoned before it had its lock.


def _retried(call: Callable[..., _T], *args: object) -> _T:
    """call(*args), tried again after an error that may pass."""
    for wait in _WAITS:
        try:
            return call(*args)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(wait)
    return call(*args)


def _flush_file(path):
    """Wait until the content of a file is on the disk."""
    try:
        _retried(_flush, path)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        tell_once("flush", f"{shown(path.parent)}: this file system cannot flush a file "
                           f"({error.strerror}): after a power failure, the last files may be lost")


def _flush_folder(path):
    """Wait until the names in a folder are on the disk."""
    try:
        _retried(_flush, path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
        tell_once("flush folder", f"{shown(path)}: this file system cannot flush a folder "
                                  f"({error.strerror}): after a power failure, the last files may "
                                  "be those before")


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
