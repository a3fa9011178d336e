"""Decodes TIFF files of any number of bands: the values as stored, without a conversion.

Pillow and OpenCV decode fixed lists of kinds; neither decodes more than four bands of 16 bits. Read
here are strips and tiles, bands pixel by pixel or one after the other, pages of one size as bands,
both byte orders, BigTIFF, integers and floats of 8 to 64 bits, and the predictors 1 to 3 (Adobe:
TIFF 6.0, 1992, and Photoshop TIFF Technical Note 3, 2005). Deflate is decompressed by zlib. LZW,
PackBits, LZMA and Zstandard are given to the libtiff in Pillow as gray pictures of bytes.
"""
import io
import os
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DataError, shown
from utils.images.headers import UnreadableFile, max_pixels
from utils.images.tiff_tags import Tags, tiff_pages

MOST_VALUES = 4             # of a picture, for each pixel that may be read
_NONE, _DEFLATE, _BY_LIBTIFF = 1, (8, 32946), {5: "LZW", 32773: "PackBits", 34925: "LZMA",
                                               50000: "Zstandard"}
_OTHER = {2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 33003: "JPEG 2000",
          33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_KINDS = {1: "u", 2: "i", 3: "f"}
_REMEDY = ("convert it, for example with gdal_translate -co COMPRESS=DEFLATE, to integers or "
           "floats of 8, 16 or 32 bits")


class TiffForm(NamedTuple):
    """How the values of a TIFF file are stored: size as stored, bands of all pages, their type."""

    height: int
    width: int
    bands: int
    dtype: np.dtype
    orientation: int


def tiff_form(source: Any, path: str | os.PathLike) -> TiffForm:
    """The form of a TIFF file. source: an open file, or a stream of its bytes; path: for messages.

    Raises DataError if the file is damaged, or stored in a way that cannot be read.
    """
    return _form(_pages(source, path), path)


def tiff_values(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """The values (H, W, bands) of a TIFF file as stored, in the byte order of the machine.

    Where 0 is white, unsigned values are turned round. Raises DataError as `tiff_form`, and if
    the pixel data are damaged.
    """
    pages = _pages(io.BytesIO(data), path)
    form = _form(pages, path)
    values = np.zeros((form.height, form.width, form.bands), form.dtype)
    first = 0
    for page in pages:
        _fill(values[..., first:first + page.bands], page, data, path)
        first += page.bands
    return values


class _Page(NamedTuple):
    """One page. boxes: (row, column, first band, bands, place, length) of each strip or tile.

    box: (height, width) of a tile or whole strip as it is stored; tiled: edges are filled up.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype         # in the byte order of the file
    compression: int
    predictor: int
    orientation: int
    inverted: bool
    planar: bool
    box: tuple[int, int]
    tiled: bool
    places: tuple[int, ...]
    lengths: tuple[int, ...]


def _pages(source, path):
    found = tiff_pages(source)
    if not found:
        raise UnreadableFile("a damaged TIFF file: its tags cannot be read", shown(path),
                             "copy or download the file again")
    return [_page(tags, path) for tags in found]


def _form(pages, path):
    first, bands = pages[0], sum(page.bands for page in pages)
    for number, page in enumerate(pages[1:], 2):
        if (page.height, page.width, page.dtype) != (first.height, first.width, first.dtype):
            raise DataError(f"page {number} is {page.height}x{page.width} of {page.dtype.name}, "
                            f"page 1 {first.height}x{first.width} of {first.dtype.name}: pages are "
                            "read as bands of one picture", shown(path),
                            "store each picture in a file of its own")
    pixels = first.height * first.width
    if pixels > max_pixels() or pixels * bands > MOST_VALUES * max_pixels():
        raise DataError(f"the tags say {first.height}x{first.width} pixels of {bands} bands; the "
                        f"limit is {max_pixels():,} pixels and {MOST_VALUES} times as many values",
                        shown(path), "cut the picture up, or raise SEGWRIGHT_MAX_PIXELS")
    return TiffForm(first.height, first.width, bands, first.dtype.newbyteorder("="),
                    first.orientation)


def _page(tags: Tags, path):
    values = tags.values
    one = {tag: entry[0] for tag, entry in values.items() if entry}
    bits, kind = values.get(258, (1,)), one.get(339, 1)
    photometric, compression = one.get(262, _BLACK_IS_ZERO), one.get(259, 1)
    width, height, bands = one.get(256, 0), one.get(257, 0), one.get(277, 1)
    problem = None
    if len(set(bits)) != 1 or len(set(values.get(339, (1,)))) != 1:
        problem = "bands of different types"
    elif bits[0] not in (8, 16, 32, 64) or kind not in _KINDS or (kind == 3 and bits[0] == 8):
        problem = f"values of {bits[0]} bits, {'' if kind in _KINDS else 'of another kind'}"
    elif photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        problem = "a palette" if photometric == 3 else "colors that are not RGB"
    elif one.get(266, 1) != 1:
        problem = "bits in reverse order"
    elif compression != _NONE and compression not in (*_DEFLATE, *_BY_LIBTIFF):
        problem = f"compression {_OTHER.get(compression, compression)}"
    elif one.get(317, 1) not in (1, 2, 3) or (one.get(317) == 3) > (kind == 3):
        problem = f"predictor {one[317]}"
    if problem:
        raise DataError(f"a TIFF with {problem.strip(', ')} cannot be read band by band",
                        shown(path), _REMEDY)
    dtype = np.dtype(f"{tags.order}{_KINDS[kind]}{bits[0] // 8}")
    tiled = 322 in one
    box = (one.get(323, 0), one[322]) if tiled else \
        (min(one.get(278, height), height), width)
    places, lengths = (values.get(tag, ()) for tag in ((324, 325) if tiled else (273, 279)))
    page = _Page(height, width, bands, dtype, compression, one.get(317, 1),
                 one.get(274, 1) if one.get(274, 1) in range(1, 9) else 1,
                 photometric == _WHITE_IS_ZERO and kind == 1,
                 one.get(284, 1) == 2 and bands > 1, box, tiled, places, lengths)
    if min(width, height, bands, *box) < 1 or len(places) != len(lengths) \
            or len(places) != _boxes(page):
        raise UnreadableFile("a damaged TIFF file: its tags contradict each other", shown(path),
                             "copy or download the file again")
    return page


def _boxes(page):
    rows, columns = (-(-size // side) for size, side in
                     zip((page.height, page.width), page.box, strict=True))
    return rows * columns * (page.bands if page.planar else 1)


def _fill(values, page, data, path):
    """Decode the strips or tiles of a page into values (H, W, bands)."""
    height, width = page.box
    columns = -(-page.width // width)
    per_plane = len(page.places) // (page.bands if page.planar else 1)
    bands = 1 if page.planar else page.bands
    for number, (place, length) in enumerate(zip(page.places, page.lengths, strict=True)):
        if not (place or length):
            continue            # a sparse file leaves out what is 0
        plane, index = divmod(number, per_plane)
        top, left = index // columns * height, index % columns * width
        rows = height if page.tiled else min(height, page.height - top)
        target = values[top:top + rows, left:left + width,
                        plane:plane + 1] if page.planar else \
            values[top:top + rows, left:left + width]
        box = _box(data[place:place + length], page, (rows, width, bands), path)
        target[...] = box[:target.shape[0], :target.shape[1]]
    if page.inverted:
        np.subtract(np.iinfo(values.dtype).max, values, out=values)


def _box(stored, page, shape, path):
    """The values of a strip or tile, of this shape, from its stored bytes."""
    rows, width, bands = shape
    size = rows * width * bands * page.dtype.itemsize
    try:
        raw = _decompressed(stored, page.compression, size)
    except Exception as error:          # zlib and Pillow raise several types on bad bytes
        if isinstance(error, MemoryError):
            raise
        raise _damaged(path) from None
    if len(raw) < size:
        raise _damaged(path)
    if page.predictor == 3:
        return _of_float_predictor(raw, shape, page.dtype)
    values = np.frombuffer(raw, page.dtype, rows * width * bands).reshape(shape)
    if page.predictor == 2:             # each value is the difference to its left neighbor
        return np.cumsum(values, axis=1, dtype=page.dtype.newbyteorder("="))
    return values


def _decompressed(stored, compression, size):
    if compression == _NONE:
        return stored
    if compression in _DEFLATE:
        return zlib.decompressobj().decompress(stored, size)
    from PIL import Image
    # libtiff unpacks the bytes: they are given to it as one strip of a gray picture.
    entries = ((256, size), (257, 1), (258, 8), (259, compression), (262, 1), (273, 122),
               (277, 1), (278, 1), (279, len(stored)))
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + struct.pack("<I", 0)
    with Image.open(io.BytesIO(header + stored), formats=("TIFF",)) as image:
        return image.tobytes()


def _of_float_predictor(raw, shape, dtype):
    """Floats whose bytes were split into planes, the highest first, and differenced."""
    rows, width, bands = shape
    sums = np.cumsum(np.frombuffer(raw, np.uint8, rows * width * bands * dtype.itemsize)
                     .reshape(rows, width * dtype.itemsize, bands), axis=1, dtype=np.uint8)
    planes = sums.reshape(rows, dtype.itemsize, width * bands)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{dtype.itemsize}") \
        .reshape(shape)


def _damaged(path):
    return UnreadableFile("damaged TIFF: its pixel data are not complete", shown(path),
                          "copy or download the file again")
