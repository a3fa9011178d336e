"""TIFF files written by hand, of kinds that no encoder here writes."""
import struct

import numpy as np

_CODES = {3: "H", 4: "I"}       # the types SHORT and LONG


def tiff(*pages: np.ndarray, order: str = "<", planar: bool = False, kind: int = 1,
         bits: int | None = None, of_page: dict[int, dict] | None = None,
         **tags: int | list[int]) -> bytes:
    """An uncompressed file with one page per array, (H, W) or (H, W, bands).

    order: "<" or ">" of all numbers. planar: the bands one after the other. kind: SampleFormat,
    1 unsigned, 2 signed, 3 float. bits: of a value, where it is not that of the array, whose rows
    are then packed. of_page: {page: {tag: value or list}}. tags: tagNUMBER=value of the first page.
    """
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    first = {int(key[3:]): value for key, value in tags.items()}
    for number, page in enumerate(pages):
        more = {**(first if number == 0 else {}), **(of_page or {}).get(number, {})}
        last = number == len(pages) - 1
        data += _page(page, len(data), order, planar, kind, bits, more, last)
    return data


def _page(array, start, order, planar, kind, bits, more, last):
    height, width = array.shape[:2]
    bands = 1 if array.ndim == 2 else array.shape[2]
    pixels = _packed(array, bits) if bits else \
        (np.moveaxis(array, -1, 0) if planar else array).astype(array.dtype.newbyteorder(order)) \
        .tobytes()
    parts = bands if planar else 1
    values = {256: width, 257: height, 258: [bits or 8 * array.itemsize] * bands, 259: 1,
              262: 2 if bands > 2 else 1, 273: [0] * parts, 277: bands, 278: height,
              279: [len(pixels) // parts] * parts, 284: 2 if planar else 1, 339: [kind] * bands,
              **more}
    lists = {tag: value if isinstance(value, list) else [value] for tag, value in values.items()}
    beyond = start + 2 + 12 * len(lists) + 4
    room = sum(len(_encoded(tag, value, order)) for tag, value in lists.items()
               if len(_encoded(tag, value, order)) > 4)
    lists[273] = [beyond + room + k * len(pixels) // parts for k in range(parts)]
    entries, far = b"", b""
    for tag, value in sorted(lists.items()):
        body = _encoded(tag, value, order)
        place = body.ljust(4, b"\0")
        if len(body) > 4:
            place = struct.pack(order + "I", beyond + len(far))
            far += body
        entries += struct.pack(order + "HHI", tag, _type(tag), len(value)) + place
    end = beyond + room + len(pixels)
    following = struct.pack(order + "I", 0 if last else end + end % 2)
    return struct.pack(order + "H", len(lists)) + entries + following + far + pixels \
        + (b"" if last else bytes(end % 2))


def _type(tag):
    return 4 if tag in (254, 256, 257, 273, 278, 279) else 3


def _encoded(tag, values, order):
    return struct.pack(order + str(len(values)) + _CODES[_type(tag)], *values)


def _packed(array, bits):
    rows = ("".join(format(int(value), f"0{bits}b") for value in row) for row in array)
    return b"".join(bytes(int(row[k:k + 8].ljust(8, "0"), 2) for k in range(0, len(row), 8))
                    for row in rows)
