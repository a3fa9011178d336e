"""The files of an export: of a folder, or of a zip, which is read without unpacking it."""
import functools
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError, shown
from utils.images.picture_files import walk_folders

MOST_FILES = 2_000_000      # of a zip


class FileTree(NamedTuple):
    """A folder or a zip. names: of all its files, relative to it, with "/", sorted.

    Hidden files, and the copies that macOS adds to a zip, are left out.
    """

    root: Path
    names: list[str]

    def folder_of(self, name: str) -> str | None:
        """Where a file of this name lies, as "" or "folder/": the uppermost place; else None."""
        found = [one for one in self.names if one == name or one.endswith(f"/{name}")]
        return min(found, key=lambda one: (one.count("/"), one))[:-len(name)] if found else None


def file_tree(path: Path) -> FileTree:
    """The files of a folder or zip. Raises DataError if it cannot be read or a zip is unsafe."""
    if path.is_dir():
        depth = len(path.parts)
        return FileTree(path, sorted("/".join((*Path(place).parts[depth:], name))
                                     for place, _, names in walk_folders(path) for name in names))
    return FileTree(path, sorted(_members(path)))


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, by its name and its first bytes."""
    try:
        if path.suffix.lower() != ".zip" or not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(4) in (b"PK\3\4", b"PK\5\6")
    except (OSError, ValueError):
        return False


def tree_if_zip(path: Path) -> FileTree | None:
    """The files of a zip; None if it is not a zip that can be read. Never raises."""
    try:
        return file_tree(path) if is_zip(path) else None
    except DataError:
        return None


def read_member(root: Path, name: str, most: int, cut: bool = False) -> bytes:
    """The content of one file of a folder or zip, at most `most` bytes.

    name: one of FileTree.names. cut: give the beginning of a larger file. Raises DataError if it
    cannot be read, or is larger.
    """
    place = place_of(root, name)
    try:
        if root.is_dir():
            if not stat.S_ISREG(os.stat(root / name).st_mode):      # a pipe would wait forever
                raise DataError("this is not a regular file", place)
            with open(root / name, "rb") as file:
                data = file.read(most + 1)
        else:
            archive, infos = _opened(root, os.getpid(), *_version(root))
            if infos[name].flag_bits & 1:
                raise DataError("the file is encrypted", place, "unpack the zip")
            with archive.open(infos[name]) as file:     # its length in the zip may be a lie
                data = file.read(most + 1)
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:      # zipfile and its decompressors raise many types on bad bytes
        raise DataError(f"the file cannot be read: {error or type(error).__name__}",
                        place) from None
    if len(data) > most and not cut:
        raise DataError(f"the file is larger than {most >> 20} MiB", place)
    return data[:most]


def place_of(root: Path, name: str) -> str:
    """A file of a folder or zip for messages: "export.zip/annotations.xml"."""
    return shown(f"{root}/{name}" if name else root)


def file_of(root: Path, name: str) -> Path | None:
    """The file `name` of a folder; None for that of a zip."""
    return root / name if root.is_dir() else None


def _members(path):
    """The names of the files of a zip. Raises DataError for one that leaves the folder."""
    archive, infos = _opened(path, os.getpid(), *_version(path))
    if len(archive.infolist()) > MOST_FILES:
        raise DataError(f"the zip has {len(archive.infolist())} files; the limit is {MOST_FILES}",
                        shown(path))
    for name in infos:
        parts = name.split("/")
        if ".." in parts or re.match(r"/|.*\\|[A-Za-z]:", name, re.DOTALL):
            raise DataError(f"the zip has a file {shown(name[:80])!r}, which would leave the "
                            "folder it is unpacked to", shown(path), "export it again")
    if len(infos) < len(archive.infolist()):
        raise DataError(f"{len(archive.infolist()) - len(infos)} files of the zip have the names "
                        "of others", shown(path), "export it again")
    return [name for name in infos if not name.endswith("/")
            and not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))]


@functools.lru_cache(maxsize=4)
def _opened(path, process, size, changed):
    """(an open zip, its entries by name).

    process: the id of the process; workers that shared an open file would share its position.
    """
    try:
        archive = zipfile.ZipFile(path)
    except MemoryError:
        raise
    except Exception as error:      # zipfile raises many types on bad bytes
        raise DataError(f"the zip cannot be read: {error or type(error).__name__}",
                        shown(path), "export or copy it again") from None
    return archive, {info.filename: info for info in archive.infolist()}


def _version(path):
    """(size, time of the last change) of a file. Raises DataError if there is none."""
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", shown(path)) from None
    return state.st_size, state.st_mtime_ns
