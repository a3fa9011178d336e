"""PNG files written a few rows at a time.

For pictures that are too large to be in memory twice, and for 1-bit masks.
PNG (Portable Network Graphics), W3C recommendation, third edition, 2025.
"""
import contextlib
import os
import struct
import zlib

import numpy as np

from utils.errors import DataError, shown
from utils.files.whole_file import WholeFile, cannot_write
from utils.images.palette import palette_table

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 2**31 - 1                # rows or columns that the format allows
# kind: (bits per sample, color type)
_KINDS = {"palette": (8, 3), "gray": (8, 0), "gray16": (16, 0), "rgb": (8, 2), "mask": (1, 0)}


class PngStrips(WholeFile):
    """Writes a PNG of known size from top to bottom; the file appears complete or not at all.

    kind: "palette" uint8 (H, W) with `palette`, a list of [r, g, b]; "gray" uint8 (H, W); "gray16"
        class ids above 255, (H, W); "rgb" uint8 (H, W, 3); "mask" bool (H, W), one bit per pixel.
    description: text in Latin letters, stored in the file (chunk tEXt, keyword Description).

    As a context manager it finishes at the end of the block and discards after any error.
    Raises DataError, which names the file, if it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, height: int, width: int, kind: str,
                 palette: list | None = None, description: str = ""):
        if max(height, width) > _LARGEST:
            raise DataError(f"{height}x{width} is too large for a PNG", shown(path))
        self.height, self.width, self.kind = height, width, kind
        self._rows, self._pack = 0, zlib.compressobj(4)
        bits, color_type = _KINDS[kind]
        try:
            super().__init__(path)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            self._stream = open(self.temporary, "wb")
        except OSError as error:
            super().discard()
            raise cannot_write(path, error) from None
        self._write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
        if kind == "palette":
            assert palette is not None, 'kind "palette" needs a palette'
            self._chunk(b"PLTE", palette_table(palette).tobytes())
        if description:
            self._chunk(b"tEXt", b"Description\0" + description.encode("latin-1"))

    def write(self, rows: np.ndarray):
        """Append rows from the top: (h, W), or (h, W, 3) for kind "rgb"."""
        if self.kind == "mask":
            rows = np.packbits(np.asarray(rows, bool), axis=1)
        elif self.kind == "gray16":
            rows = np.asarray(rows).astype(">u2").view(np.uint8).reshape(len(rows), -1)
        else:
            rows = np.asarray(rows, np.uint8).reshape(len(rows), -1)
        lines = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        # The first byte of a row names its filter: colors compress better as differences.
        lines[:, 0] = self.kind == "rgb"
        lines[:, 1:] = rows
        if self.kind == "rgb":
            lines[:, 4:] -= rows[:, :-3]
        self._rows += len(rows)
        self._data(self._pack.compress(lines.data))

    def finish(self):
        """Write the end of the picture and give the file its name."""
        assert self._rows == self.height, f"{self._rows} of {self.height} rows were written"
        self._data(self._pack.flush())
        self._chunk(b"IEND", b"")
        try:
            self._stream.close()
            super().finish()
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from None

    def discard(self):
        """Remove what was written, if that is possible; does nothing after `finish`."""
        with contextlib.suppress(OSError):      # a full disk may fail here again
            self._stream.close()
        super().discard()

    def __enter__(self) -> "PngStrips":
        return self

    def _data(self, data):
        if data:
            self._chunk(b"IDAT", data)

    def _chunk(self, name, data):
        self._write(struct.pack(">I", len(data)) + name + data
                    + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

    def _write(self, data):
        try:
            self._stream.write(data)
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from None
