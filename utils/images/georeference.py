"""Carries the georeference of a GeoTIFF to a label map: where on Earth its pixels lie.

The tags of GeoTIFF (OGC 19-008r4, 2019) are copied as they are, so no package is needed: pixel
scale, tie points, transformation, the three lists of keys of the coordinate system, and what GDAL
adds as text. They hold for a label map because it has the pixels of the image.
"""
import os
import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.files.whole_file import write_bytes
from utils.images.headers import tags_of
from utils.images.palette import palette_table
from utils.images.tiff_tags import tag_values
from utils.images.types import Labels

_NAMES = {33550: "ModelPixelScale", 33922: "ModelTiepoint", 34264: "ModelTransformation",
          34735: "GeoKeyDirectory", 34736: "GeoDoubleParams", 34737: "GeoAsciiParams"}
_PLACED_BY = (33550, 34264)     # one of them says where pixels lie
_ROWS = 256                     # of a strip
_LARGEST = 2 ** 32 - 2 ** 24    # of a file whose places have 32 bits


class Georeference(NamedTuple):
    """The tags of GeoTIFF: (number, type, values as bytes in little-endian order, their number)."""

    tags: tuple[tuple[int, int, bytes, int], ...]


def georeference_of(path: str | os.PathLike) -> Georeference | None:
    """The georeference of a file; None for files without one, and for those that are turned."""
    if not os.path.isfile(path):        # a pipe would be waited for
        return None
    try:
        with open(path, "rb") as file:
            if file.read(2) not in (b"II", b"MM") or _turned(file):
                return None
            found = tag_values(file, _NAMES)
    except OSError:
        return None
    if not any(tag in found for tag in _PLACED_BY):
        return None
    return Georeference(tuple((tag, *found[tag]) for tag in sorted(found)))


def write_label_tiff(path: str | os.PathLike, labels: Labels, palette: Sequence[Sequence[int]],
                     georeference: Georeference | None, label_ids: Sequence[int] | None = None):
    """Write class ids (H, W) as a TIFF with the colors of a palette, or with 16 bits without them.

    labels: may be mapped from a file; they are read strip by strip. label_ids: what is stored for
    each class; None: its id. 16 bits are used as by `utils.images.image_io.write_label`. The file
    appears complete or not at all. Raises DataError if it cannot be written.
    """
    write_bytes(path, label_tiff(labels, palette, georeference, label_ids))


def label_tiff(labels: Labels, palette: Sequence[Sequence[int]],
               georeference: Georeference | None, label_ids: Sequence[int] | None = None) -> bytes:
    """The content of the file that `write_label_tiff` writes."""
    height, width = labels.shape
    table = None if label_ids is None else np.array(label_ids)
    wide = len(palette) > 256 or (table is not None and table.max() > 255) or any(
        labels[top:top + _ROWS].max() > 255 for top in range(0, height, _ROWS))
    kind, strips = ("<u2" if wide else "u1"), []
    for top in range(0, height, _ROWS):
        strip = np.asarray(labels[top:top + _ROWS])
        strip = strip if table is None else table[strip]
        strips.append(zlib.compress(strip.astype(kind).tobytes(), 6))
    bits = 16 if wide else 8
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits]), 259: (3, [8]),
               262: (3, [1 if wide else 3]), 273: (4, [0] * len(strips)), 277: (3, [1]),
               278: (4, [_ROWS]), 279: (4, list(map(len, strips))), 339: (3, [1])}
    if not wide:
        colors = np.zeros((256, 3), np.uint16)
        stored = palette_table(palette)
        places = np.arange(len(stored)) if table is None else table
        colors[places[:len(stored)]] = stored[:len(places)].astype(np.uint16) * 257
        entries[320] = (3, colors.T.ravel().tolist())
    tags = {tag: (kind, len(values), struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}",
                                                 *values))
            for tag, (kind, values) in entries.items()}
    for tag, kind, content, count in georeference.tags if georeference else ():
        tags[tag] = (kind, count, content)
    return _file(tags, strips)


def _file(tags, strips):
    """A TIFF of one page. tags: {number: (type, count, bytes)}; 273 is filled with the places."""
    beyond = 8 + 2 + 12 * len(tags) + 4
    room = sum(len(content) + len(content) % 2 for _, _, content in tags.values()
               if len(content) > 4)
    places, at = [], beyond + room
    for strip in strips:
        places.append(at)
        at += len(strip)
    if at > _LARGEST:
        raise ValueError("a label map of 4 GB does not fit a TIFF")
    kind, count, _ = tags[273]
    tags[273] = kind, count, struct.pack(f"<{count}I", *places)
    head, far = b"", b""
    for tag, (kind, count, content) in sorted(tags.items()):
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack("<I", beyond + len(far))
            far += content + bytes(len(content) % 2)
        head += struct.pack("<HHI", tag, kind, count) + place
    return b"".join([struct.pack("<2sHIH", b"II", 42, 8, len(tags)), head, struct.pack("<I", 0),
                     far, *strips])


def _turned(file: BinaryIO) -> bool:
    found = tag_values(file, {274: "Orientation"})
    return tags_of(file) is None or (274 in found and found[274][1] != struct.pack("<H", 1))
