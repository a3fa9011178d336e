"""Reads pictures of any bands and types: PNG, JPEG and their kind, TIFF, and NumPy arrays.

Nothing is scaled: the values are those that are stored, and those of every file must be finite.
NumPy files (.npy, or .npz with one array, or one called "image") hold (H, W), (H, W, bands) or
(bands, H, W): the first axis is that of the bands if it is shorter than the last one. No object in
them is unpickled. A file without a suffix is recognized by its first bytes.
"""
import ast
import io
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import DataError, shown, size_text
from utils.images.bands import MOST_BANDS, TYPES, Bands, require_types, without_data
from utils.images.headers import (
    Header,
    UnreadableFile,
    max_pixels,
    orientation_of,
    pillow_open,
    pnm_maximum,
    read_bytes,
    read_checked,
    read_header,
)
from utils.images.image_io import oriented, pillow_load, read_image, read_pair, unchanged_values
from utils.images.picture_files import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from utils.images.tiff_values import MOST_VALUES, tiff_form, tiff_values
from utils.images.types import PADDING_16_BITS, Image, Labels

BAND_SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)      # of pictures that `read_bands` reads
_EXACT = 2 ** 24            # float32 holds all whole numbers up to this
_NPY = b"\x93NUMPY"
_LONGEST_HEADER = 10_000    # of an array, in bytes


class Form(NamedTuple):
    """What a file of a picture holds: header of its size, number of bands, type (of TYPES)."""

    header: Header
    bands: int
    type: str


def read_input(path: str | os.PathLike, white: float | None = None, bands: Bands | None = None,
               folder: str | os.PathLike | None = None) -> Image:
    """An image as a network takes it: `read_bands` with bands, else `read_image`."""
    return read_image(path, white) if bands is None else read_bands(path, bands, folder)


def input_header(path: str | os.PathLike, bands: Bands | None = None,
                 folder: str | os.PathLike | None = None) -> Header:
    """The header of an image as `read_input` reads it, with all its files."""
    return read_header(path) if bands is None else bands_header(path, bands, folder)


def read_input_pair(image: str | os.PathLike, label: str | os.PathLike, bands: Bands | None,
                    folder: str | os.PathLike | None = None, palette=None,
                    values: Labels | None = None, white: float | None = None) \
        -> tuple[Image, Labels]:
    """An image as `read_input` reads it, and its label; values: of a label already read.

    The label of pixels without data in any band becomes PADDING_16_BITS, of 16 bits. Raises
    DataError as `utils.images.image_io.read_pair`.
    """
    if bands is None:
        return read_pair(image, label, palette, values, white)
    stored, turn, missing = _oriented_bands(image, bands, folder)
    picture, labels = read_pair(image, label, palette, values, white, (stored, turn))
    if missing is not None and missing.any():
        labels = np.where(missing, PADDING_16_BITS, labels).astype(np.uint16)
    return picture, labels


def read_bands(path: str | os.PathLike, bands: Bands, folder: str | os.PathLike | None = None) \
        -> np.ndarray:
    """The bands of an image, (H, W, C) of `bands.type`, turned by its EXIF or TIFF tag.

    folder: see `Bands.further_files`. Values without data become those of `bands.fill`. Raises
    DataError, which names the file, for files that cannot be read, of another type or size, with
    too few bands, or with values that are not finite.
    """
    return _oriented_bands(path, bands, folder)[0]


def types_of(path: str | os.PathLike, bands: Bands, folder: str | os.PathLike | None = None) \
        -> list[str]:
    """The type of each file of an image. Raises DataError as `read_bands`."""
    return [band_form(file).type for file in _files(path, bands, folder)]


def bands_header(path: str | os.PathLike, bands: Bands, folder: str | os.PathLike | None = None) \
        -> Header:
    """The header of an image; unused_bands: those of its files that are not among `bands`.

    Raises DataError as `read_bands`, as far as the beginnings of the files show it.
    """
    files = _files(path, bands, folder)
    forms = [band_form(file) for file in files]
    require_types(bands, [form.type for form in forms], path)
    _require_bands(sum(form.bands for form in forms), bands, path)
    for file, form in zip(files[1:], forms[1:], strict=True):
        if form.header.size != forms[0].header.size:
            raise _other_size(file, form.header.size, path, forms[0].header.size)
    unused = sum(form.bands for form in forms) - len(set(bands.numbers))
    return forms[0].header._replace(unused_bands=unused, alpha=False)


def picture_header(path: str | os.PathLike) -> Header:
    """The header of a picture that `read_image` or `read_bands` reads. Raises DataError."""
    if _is_array(path):
        return band_form(path).header
    try:
        return read_header(path)
    except UnreadableFile:
        raise
    except DataError:           # a TIFF of a kind that Pillow does not know
        if not _is_tiff(read_bytes(path, ends_only=True)):
            raise
        return band_form(path).header


def band_form(path: str | os.PathLike) -> Form:
    """The form of one file, from its beginning. Raises DataError if it cannot be read."""
    if _is_array(path):
        shape, dtype = _array_form(read_bytes(path), path)[:2]
        height, width, bands = _as_image(shape)
        return Form(Header(width, height), bands, _type_of(dtype))
    start = read_bytes(path, ends_only=True)
    if _is_tiff(start):
        with open(path, "rb") as file:
            form = tiff_form(file, path)
        _require_few(form.bands, path)
        header = Header(form.width, form.height, form.orientation, form.dtype.itemsize * 8)
        return Form(header, form.bands, _type_of(form.dtype))
    header = read_header(path)
    with pillow_open(path, path) as image:
        bands = _bands_of_mode(image.mode, start)
    return Form(header, bands, "uint16" if header.bits == 16 else "uint8")


def _oriented_bands(path, bands, folder):
    """(the bands (H, W, C) of an image as displayed, orientation of its first file, missing).

    missing: bool (H, W), the pixels that have no data in any band; None if the bands do not say
    what that is.
    """
    parts, first_turn = [], 1
    for number, file in enumerate(_files(path, bands, folder)):
        values, turn = _stored(file)
        first_turn = turn if number == 0 else first_turn
        parts.append(oriented(values, turn))
        if parts[0].shape[:2] != parts[-1].shape[:2]:
            raise _other_size(file, parts[-1].shape, path, parts[0].shape)
    require_types(bands, [_type_of(part.dtype) for part in parts], path)
    _require_bands(sum(part.shape[2] for part in parts), bands, path)
    wanted = [number - 1 for number in bands.numbers]
    kind = bands.type if bands.types else max(map(_type_of, (part.dtype for part in parts)),
                                              key=TYPES.index)
    if bands.no_data is None:
        return _chosen(parts, wanted, kind, path), first_turn, None
    missing = [without_data(part, bands.no_data) for part in parts]
    values = _chosen([np.where(no, part.dtype.type(0), part) for no, part in
                      zip(missing, parts, strict=True)], wanted, kind, path)
    without = np.concatenate(missing, axis=2)[..., wanted]
    if without.any():
        _fill(values, without, bands)
    return values, first_turn, without.all(-1)


def _fill(values, without, bands):
    """Write into values (H, W, C), where they are without data, those of `bands.fill`."""
    fill = np.array(bands.fill or [float(bands.no_data)] * values.shape[2])
    if values.dtype.kind == "u":
        fill = np.rint(fill).clip(0, np.iinfo(values.dtype).max)
    with np.errstate(over="ignore"):
        np.copyto(values, fill.astype(values.dtype), where=without)


def _chosen(parts, wanted, kind, path):
    """The bands `wanted`, from 0, of the values (H, W, bands) of all files: (H, W, C) of a type."""
    values = parts[0] if len(parts) == 1 else \
        np.concatenate([_as_type(part, kind, path) for part in parts], axis=2)
    if wanted != list(range(values.shape[2])):
        values = values[..., wanted]
    # Arrays are read-only as they are read, which torch warns of.
    return np.require(_as_type(values, kind, path), requirements=["C", "W"])


def _files(path, bands, folder):
    """The first file of an image and its further ones, which must exist."""
    further = bands.further_files(path, folder)
    for file in further:
        if not file.is_file():
            raise DataError(f"a file of this image is missing: {shown(file)}", shown(path),
                            "add it, or correct \"band_files\", which are relative to the folder "
                            "of the images")
    return [Path(path), *further]


def _stored(path):
    """(values (H, W, bands) of one file as stored, its orientation)."""
    if _is_array(path):
        values, turn = _array_values(path), 1
    else:
        data, probe = read_checked(path)
        values, turn = _tiff(data, path) if _is_tiff(data) else _picture(data, probe, path)
    _require_few(values.shape[2], path)
    return values, turn


def _tiff(data, path):
    form = tiff_form(io.BytesIO(data), path)
    _require_few(form.bands, path)
    return tiff_values(data, path), form.orientation


def _picture(data, probe, path):
    """What `_stored` returns, for formats of one, three or four bands of 8 or 16 bits."""
    if probe and probe.for_opencv:
        count = _bands_of_mode(None, data) if probe.kind == "png" else None
        values = unchanged_values(data)
        if values is not None:
            turn = orientation_of(pillow_open(io.BytesIO(data), path)) if probe.has_exif else 1
            return _in_order(values, count), turn
    if pnm_maximum(data) > 255 and data[:2] in (b"P5", b"P6"):
        values = unchanged_values(data)
        if values is None:
            raise UnreadableFile(f"damaged PGM or PPM ({len(data)} bytes)", shown(path),
                                 "copy or download the file again")
        return _in_order(values, None), 1
    image, turn = pillow_load(data, path)
    mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else \
        "L" if image.mode == "1" else "RGB"
    values = np.array(image if image.mode == mode else image.convert(mode))
    return values.reshape(*values.shape[:2], -1), turn


def _in_order(values, count):
    """OpenCV's values with red first, and of the bands that the file has (None: all)."""
    if values.ndim == 2:
        return values[..., None]
    if count == 1:
        return values[..., :1]
    if count == 2:                  # gray and alpha, which OpenCV decodes as four
        return values[..., [0, 3]]
    order = [2, 1, 0, 3] if values.shape[2] == 4 and count != 3 else [2, 1, 0]
    return values[..., order]


def _bands_of_mode(mode, start):
    """The bands of a file of another kind than TIFF, by Pillow's mode or by a PNG's color type."""
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return {0: 1, 4: 2, 6: 4}.get(start[25], 3)
    return {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGBA": 4}.get(mode, 3)


def _is_tiff(data):
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _is_array(path):
    suffix = os.path.splitext(path)[1].lower()
    return suffix in ARRAY_SUFFIXES if suffix else \
        read_bytes(path, ends_only=True).startswith(_NPY)


def _array_values(path) -> np.ndarray:
    """The array of a NumPy file as (H, W, bands)."""
    data = read_bytes(path)
    shape, dtype, fortran, read = _array_form(data, path)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    raw = read(size)
    if len(raw) < size:
        raise UnreadableFile(f"damaged array: {len(raw)} of {size} bytes are there", shown(path),
                             "copy or write the file again")
    values = np.frombuffer(raw[:size], dtype).reshape(shape, order="F" if fortran else "C")
    if values.ndim == 2:
        return values[..., None]
    return np.moveaxis(values, 0, 2) if shape[0] < shape[2] else values


def _array_form(data: bytes, path: str | os.PathLike) \
        -> tuple[tuple[int, ...], np.dtype, bool, Callable[[int], bytes]]:
    """(shape, dtype, whether in Fortran's order, a function that reads n bytes of its values)."""
    if data[:4] == b"PK\x03\x04":
        stream = _member(data, path)
    else:
        stream = io.BytesIO(data)
    try:
        start = stream.read(12)
        if start[:6] != _NPY or start[6] not in (1, 2, 3):
            raise ValueError("it does not begin as a NumPy array")
        length, head = (struct.unpack("<H", start[8:10])[0], start[10:]) if start[6] == 1 else \
            (struct.unpack("<I", start[8:12])[0], b"")
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header has {length} bytes")
        header = ast.literal_eval((head + stream.read(length - len(head))).decode("latin-1"))
        shape, dtype = header["shape"], np.dtype(header["descr"])
        fortran = bool(header["fortran_order"])
        if not (isinstance(shape, tuple) and all(type(side) is int for side in shape)):
            raise ValueError("its shape is no list of numbers")
    except (ValueError, KeyError, TypeError, SyntaxError, struct.error, zipfile.BadZipFile,
            EOFError, OSError, RecursionError, MemoryError) as error:
        raise UnreadableFile(f"not an array of NumPy that can be read: {error}", shown(path),
                             "write it with numpy.save") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        what = "Python objects, which are not unpickled" if dtype.hasobject else f"{dtype} values"
        raise DataError(f"an array of {what}", shown(path),
                        "save an array of integers or floats")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(f"an array of shape {str(shape)[:60]}", shown(path),
                        "save (H, W), (H, W, bands) or (bands, H, W)")
    height, width, bands = _as_image(shape)
    _require_few(bands, path)
    if height * width > max_pixels() or height * width * bands > MOST_VALUES * max_pixels():
        raise DataError(f"an array of shape {shape}; the limit is {max_pixels():,} pixels and "
                        f"{MOST_VALUES} times as many values", shown(path),
                        "cut the picture up, or raise SEGWRIGHT_MAX_PIXELS")
    return shape, dtype, fortran, stream.read


def _member(data, path):
    """The open array of a .npz file: the only one, or the one called "image"."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        name = names[0] if len(names) == 1 else "image.npy"
        if name in names:
            return archive.open(name)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UnreadableFile(f"damaged archive of arrays: {error}", shown(path),
                             "write it again with numpy.savez") from None
    raise DataError(f"{len(names)} arrays, none of which is called image", shown(path),
                    "save one array, or call that of the image \"image\"")


def _as_image(shape):
    """(height, width, bands) of an array of this shape."""
    if len(shape) == 2:
        return (*shape, 1)
    return (shape[1], shape[2], shape[0]) if shape[0] < shape[2] else shape


def _type_of(dtype):
    """The type, of TYPES, in which values of a type are kept."""
    if dtype.kind == "b":
        return "uint8"
    name = dtype.newbyteorder("=").name
    return name if name in TYPES else "float32"


def _as_type(values, kind, path):
    """Values (H, W, bands) of a type of TYPES; all of them are finite."""
    if kind == "float32" and values.dtype.kind in "iu" and values.itemsize > 2 \
            and values.size and max(-int(values.min()), int(values.max())) > _EXACT:
        raise DataError(f"its values reach {max(-int(values.min()), int(values.max()))}; above "
                        f"{_EXACT} float32 does not hold all whole numbers", shown(path),
                        "divide them, or store them as 16 bits")
    with np.errstate(over="ignore"):
        values = values.astype(kind, copy=False)
    if kind == "float32" and not np.isfinite(values).all():
        wrong = ~np.isfinite(values)
        row, column, band = np.argwhere(wrong)[0].tolist()
        raise DataError(f"{int(wrong.sum())} of {values.size} values are NaN or infinite, the "
                        f"first at row {row}, column {column} of band {band + 1}", shown(path),
                        "\"no_data\": \"nan\" beside \"bands\" ignores pixels of NaN "
                        "(docs/own_data.md); replace infinite values by numbers")
    return values


def _require_few(bands, path):
    if bands > MOST_BANDS:
        raise DataError(f"it has {bands} bands; the limit is {MOST_BANDS}", shown(path),
                        "store only the bands to use")


def _require_bands(count: int, bands: Bands, path: str | os.PathLike):
    most = max(bands.numbers)
    if most > count:
        raise DataError(f"it has {count} bands, and band {most} is used", shown(path),
                        "correct \"bands\", or give all images the same bands")


def _other_size(file, size: Sequence[int], path, expected: Sequence[int]):
    return DataError(f"{shown(file)} is {size_text(size)} (height x width), and the image "
                     f"{size_text(expected)}", shown(path), "give all files of an image one size")
