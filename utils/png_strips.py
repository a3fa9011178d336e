"""PNG files written a few rows at a time.

For pictures that are too large to be in memory twice, and for 1-bit masks.
PNG (Portable Network Graphics), W3C recommendation, third edition, 2025.
"""
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from utils.errors import DataError
from utils.image_io import shown
from utils.whole_files import WholeFile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 2**31 - 1                # rows or columns that the format allows
# kind: (bits of a sample, colour type)
_KINDS = {"palette": (8, 3), "grey16": (16, 0), "rgb": (8, 2), "mask": (1, 0)}


class PngStrips:
    """Writes a PNG of known size from the top; the file appears whole, on `close`, or not at all.

    kind: "palette" uint8 (H, W) with `palette`, a list of [r, g, b]; "grey16"
        class ids above 255; "rgb" uint8 (H, W, 3); "mask" bool (H, W), one bit a pixel.
    As a context manager it closes, or removes what it wrote if there was an error.
    Raises DataError naming the file that cannot be written.
    """

    def __init__(self, path: str | os.PathLike, height: int, width: int, kind: str,
                 palette: list | None = None):
        if max(height, width) > _LARGEST:
            raise DataError(f"{width}x{height} is too large for a PNG", shown(path))
        self.path, self.height, self.width, self.kind = Path(path), height, width, kind
        self._rows, self._whole, self._file = 0, None, None
        self._pack = zlib.compressobj(4)
        bits, colours = _KINDS[kind]
        head = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))]
        if kind == "palette":
            table = np.zeros((256, 3), np.uint8)
            table[:min(len(palette), 256)] = np.asarray(palette, np.uint8)[:256]
            head.append((b"PLTE", table.tobytes()))
        try:
            self._whole = WholeFile(self.path)
            self._file = open(self._whole.temporary, "wb")
            self._file.write(_SIGNATURE)
            for name, data in head:
                self._chunk(name, data)
        except OSError as error:
            self._fail(error)

    def write(self, rows: np.ndarray):
        """The next rows: (h, W), or (h, W, 3) of kind "rgb"."""
        if self.kind == "mask":
            rows = np.packbits(np.asarray(rows, bool), axis=1)
        elif self.kind == "grey16":
            rows = np.asarray(rows).astype(">u2").view(np.uint8).reshape(len(rows), -1)
        else:
            rows = np.asarray(rows, np.uint8).reshape(len(rows), -1)
        lines = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        # The first byte of a row names its filter: colours pack better as differences.
        lines[:, 0] = self.kind == "rgb"
        lines[:, 1:] = rows
        if self.kind == "rgb":
            lines[:, 4:] -= rows[:, :-3]
        self._rows += len(rows)
        self._data(self._pack.compress(lines))

    def close(self):
        """Finish the file and give it its name."""
        assert self._rows == self.height, f"{self._rows} of {self.height} rows were written"
        self._data(self._pack.flush())
        try:
            self._chunk(b"IEND", b"")
            self._file.close()
            self._whole.finish()
        except OSError as error:
            self._fail(error)

    def discard(self):
        """Remove what was written; nothing to do for a file that is finished."""
        try:
            if self._file:
                self._file.close()
        finally:
            if self._whole:
                self._whole.discard()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()

    def _data(self, data):
        if not data:
            return
        try:
            self._chunk(b"IDAT", data)
        except OSError as error:
            self._fail(error)

    def _chunk(self, name, data):
        self._file.write(struct.pack(">I", len(data)) + name + data
                         + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

    def _fail(self, error):
        try:
            self.discard()
        except OSError:         # the disk that is full may refuse to close, too
            pass
        raise DataError(f"cannot write: {error.strerror or error}", shown(self.path),
                        "check that the folder exists, is writable and has room") from None
