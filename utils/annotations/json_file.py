"""Reads JSON that another tool wrote, which may be large or hostile."""
import gc
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from utils.errors import DataError, shown
from utils.images.picture_files import picture_files

MOST_BYTES = 2 << 30        # of one file; instances of COCO train2017 take 0.45 GB
_PEEKED = 1 << 16           # bytes at both ends of a file


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file. Raises DataError if it cannot be read or is larger than `most`."""
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", shown(path)) from None
    if len(data) > most:
        raise DataError(f"the file is larger than {most >> 20} MiB", shown(path),
                        "split it into several files")
    return data


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read it. Raises OSError for anything but a regular file.

    Opening a pipe would wait for its writer, and a device may have no end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("this is not a regular file")
    return open(path, "rb")


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file of at most `most` bytes. Raises DataError."""
    return parse_json(read_bytes(path, most), shown(path))


def parse_json(data: bytes, place: str, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of JSON text in UTF-8. Raises DataError, also for NaN and infinity.

    constant: (name) -> value, called in the order of the text for NaN, Infinity and -Infinity,
    which then are no errors.
    """
    collected = gc.isenabled()
    gc.disable()        # nothing becomes garbage here, and looking for it takes a third of the time
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=constant or _refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} is not UTF-8 text", place) from None
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON: {error.msg} (line {error.lineno}, column "
                        f"{error.colno})", place) from None
    except RecursionError:
        raise DataError("the JSON is nested too deep", place) from None
    except ValueError as error:         # a number of more than 4300 digits, or a constant
        raise DataError(f"this is not JSON: {str(error)[:100]}", place) from None
    finally:
        if collected:
            gc.enable()


def _refuse_constant(name) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def json_files(path: Path) -> list[Path]:
    """The JSON file itself, or those below a folder, sorted; [] for anything else."""
    if path.is_dir():
        return picture_files(path, (".json",))
    return [path] if path.suffix.lower() == ".json" and path.is_file() else []


def head_and_tail(path: Path) -> bytes:
    """The beginning and the end of a file, to see what it is; b"" if it cannot be read."""
    try:
        with open_regular(path) as file:
            head = file.read(_PEEKED)
            end = file.seek(0, 2)
            file.seek(max(len(head), end - _PEEKED))
            return head + file.read(_PEEKED)
    except (OSError, ValueError):
        return b""
