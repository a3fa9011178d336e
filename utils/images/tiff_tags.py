"""Reads from the tags of a TIFF file how its pixels are stored, and how many pages it has.

Pillow opens a fixed list of kinds and drops bands and bits of some without saying so; the tags
(Adobe, TIFF 6.0, 1992; BigTIFF, 2007) tell before a pixel is decoded.
"""
import struct
from collections.abc import Collection
from typing import BinaryIO, NamedTuple

_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}      # bytes and unsigned integers
_MOST_VALUES = 64
_MOST_PAGES = 10_000
_REDUCED_OR_MASK = 0b101        # of NewSubfileType: a smaller copy, or a transparency mask
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}
WHITE_IS_ZERO, RGB = 0, 2


class TiffTags(NamedTuple):
    """How the first page of a TIFF file is stored.

    bits: of each band. kind: 1 unsigned, 2 signed, 3 float. photometric: see TIFF 6.0.
    planar: whether the bands lie one after the other. extra: bands beyond those of the color
    space; alpha: whether the first of them is declared as alpha. pages: without smaller copies.
    """

    bits: int
    kind: int
    samples: int
    photometric: int
    planar: bool
    extra: int
    alpha: bool
    pages: int

    @property
    def text(self) -> str:
        """The bands and bits in words."""
        bands = "one band" if self.samples == 1 else f"{self.samples} bands"
        apart = ", stored one after the other," if self.planar and self.samples > 1 else ""
        return f"{bands}{apart} of {self.bits} bits, {_FORMATS.get(self.kind, 'of another kind')}"


class Tags(NamedTuple):
    """The tags of one page that are integers, and the byte order of the file, "<" or ">"."""

    values: dict[int, tuple[int, ...]]
    order: str


def tiff_tags(file: BinaryIO) -> TiffTags | None:
    """The tags of an open file; None if it is not a TIFF file, or is damaged."""
    try:
        start = _start(file)
        if start is None:
            return None
        place, order, big = start
        first, place = _directory(file, place, order, big)
        return _described(first, 1 + _further_pages(file, place, order, big))
    except (struct.error, ValueError, OSError, OverflowError):
        return None


def tiff_pages(file: BinaryIO) -> list[Tags] | None:
    """All integers of the tags of each page, without smaller copies and masks.

    None if the file is not a TIFF file, or is damaged.
    """
    try:
        start = _start(file)
        if start is None:
            return None
        place, order, big = start
        file.seek(0, 2)
        most = file.tell()          # a list has no more values than the file has bytes
        pages, seen = [], set()
        while place and place not in seen and len(seen) < _MOST_PAGES:
            seen.add(place)
            tags, place = _directory(file, place, order, big, most)
            if not (pages and tags.get(254, (0,))[0] & _REDUCED_OR_MASK):
                pages.append(Tags(tags, order))
        return pages
    except (struct.error, ValueError, OSError, OverflowError):
        return None


def tag_values(file: BinaryIO, wanted: Collection[int]) -> dict[int, tuple[int, bytes, int]]:
    """{tag: (type, values in little-endian order, their number)} of the first page.

    wanted: tags of text, integers of 16 bits or floats of 64 bits. Empty if the file is not a TIFF
    file, or is damaged.
    """
    sizes, found = {2: 1, 3: 2, 12: 8}, {}
    try:
        start = _start(file)
        if start is None:
            return {}
        place, order, big = start
        table, wide, room = _table(file, place, order, big)
        step = 20 if big else 12
        file.seek(0, 2)
        length = file.tell()
        for first in range(0, len(table), step):
            tag, kind, count = struct.unpack_from(order + "HH" + wide, table, first)
            if tag not in wanted or kind not in sizes or not 0 < count <= length:
                continue
            size = sizes[kind] * count
            content = table[first + step - room:first + step]
            if size > room:
                file.seek(struct.unpack(order + wide, content)[0])
                content = file.read(size)
            if len(content) < size:
                return {}
            form = {2: "s", 3: "H", 12: "d"}[kind]
            values = struct.unpack(f"{order}{count}{form}", content[:size])
            found[tag] = kind, struct.pack(f"<{count}{form}", *values), count
    except (struct.error, ValueError, OSError, OverflowError):
        return {}
    return found


def _start(file):
    """(place of the first directory, byte order, whether BigTIFF); None: no TIFF file."""
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return None
    number, = struct.unpack(order + "H", start[2:4])
    if number not in (42, 43):
        return None
    place, = struct.unpack(order + "Q", start[8:16]) if number == 43 else \
        struct.unpack(order + "I", start[4:8])
    return place, order, number == 43


def _described(tags, pages):
    samples = tags.get(277, (1,))[0]
    extra = tags.get(338, ())
    photometric = tags.get(262, (0,))[0]
    colors = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    return TiffTags(max(tags.get(258, (1,))), tags.get(339, (1,))[0], samples, photometric,
                    tags.get(284, (1,))[0] == 2, max(samples - colors, 0),
                    bool(extra) and extra[0] in (1, 2) or samples == 4 == colors + 1 and not extra,
                    pages)


def _further_pages(file, place, order, big):
    seen, pages = set(), 0
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        tags, place = _directory(file, place, order, big)
        pages += not tags.get(254, (0,))[0] & _REDUCED_OR_MASK
    return pages


def _directory(file, place, order, big, most=_MOST_VALUES):
    """({tag: values}, place of the next directory): the lists of up to `most` integers."""
    table, wide, room = _table(file, place, order, big)
    step = 20 if big else 12
    following, = struct.unpack(order + wide, file.read(room))
    tags = {}
    for start in range(0, len(table), step):
        tag, kind, length = struct.unpack_from(order + "HH" + wide, table, start)
        if kind not in _TYPES or not 0 < length <= most:
            continue
        form = order + str(length) + _TYPES[kind]
        value = table[start + step - room:start + step]
        if struct.calcsize(form) > room:
            file.seek(struct.unpack(order + wide, value)[0])
            value = file.read(struct.calcsize(form))
        tags[tag] = struct.unpack_from(form, value)
    return tags, following


def _table(file, place, order, big):
    """(the entries of the directory at a place, the format of a place, the bytes of its values)."""
    file.seek(place)
    wide, size, step, room = ("Q", 8, 20, 8) if big else ("I", 2, 12, 4)
    count, = struct.unpack(order + ("Q" if big else "H"), file.read(size))
    if count > 4096:
        raise ValueError("not a directory of tags")
    return file.read(count * step), wide, room
