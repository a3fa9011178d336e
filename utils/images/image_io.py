"""Reading and writing images and label maps.

One function reads every image, for training and for inference, and one reads every label. OpenCV
decodes the common kinds, because it is faster; Pillow decodes the rest. Both get bytes, never a
file name: OpenCV crashes on names that are not UTF-8.

Orientation. An image is turned by its EXIF or TIFF tag, and so is a label that has a tag. A label
without a tag stays as it is if it has the size of the displayed image, and is turned like the image
if it has the size of the stored one.

Range. A value of more than 8 bits becomes round(255 * value / white), at most 255. `white` is the
largest value of the type where a caller gives none, and must be given for 32 bits and floats. It
does not affect pictures of 8 bits.
"""
import functools
import io
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import DataError, counted, listed, shown, size_text
from utils.files.whole_file import write_bytes
from utils.images.headers import (
    COPY_AGAIN,
    Probe,
    UnreadableFile,
    orientation_of,
    pillow_open,
    pnm_maximum,
    read_checked,
    tags_of,
)
from utils.images.palette import palette_table
from utils.images.tiff_tags import RGB, WHITE_IS_ZERO, TiffTags
from utils.images.types import Image, Labels

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Palette = Sequence[Sequence[int] | None]    # [r, g, b] of each value; None: no color has the value

_PNG = b"\x89PNG\r\n\x1a\n"
_OPENCV_LOG_ERRORS = 2      # a level of OpenCV's log: errors only
_SHOWN_COLORS = 5
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262     # tags of TIFF


def read_image(path: str | os.PathLike, white: float | None = None) -> Image:
    """Read any picture as uint8 (H, W, 3) RGB, turned by its EXIF tag.

    Gray is repeated, alpha dropped, CMYK and palettes are converted; an animation gives its first
    frame. white: see the module's head. Raises DataError, which names the file, for damaged,
    truncated or huge files and for kinds that cannot be read.
    """
    return _read_image(path, white)[0]


def deep_values(path: str | os.PathLike) -> tuple[np.ndarray, float]:
    """(the values of a picture as stored, the largest value of their type; 0 for 32 bits).

    The values are those that `read_image` scales by `white`. Raises DataError as it does.
    """
    values, _, top = _decoded(path, deep=True)
    return values, top


def alpha_varies(path: str | os.PathLike) -> bool:
    """Whether a pixel of a picture is not opaque."""
    data, _ = read_checked(path)
    image, _ = pillow_load(data, path)
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def map_image(path: str | os.PathLike, white: float | None = None) -> Image:
    """Like `read_image`, but maps uncompressed RGB files (.ppm, TIFF) from disk, as needed.

    So a file larger than memory can be segmented after
    `vips copy large.jpg large.tif[compression=none]`.
    """
    with pillow_open(path, path) as image:
        offset = _raw_offset(image)
        (width, height), turned = image.size, orientation_of(image) != 1
    if offset is None or turned or os.path.getsize(path) < offset + 3 * width * height:
        return read_image(path, white)
    return np.memmap(path, np.uint8, "r", offset, (height, width, 3))


def read_label(path: str | os.PathLike, palette: Palette | None = None) -> Labels:
    """Read the stored values of a label map, (H, W), uint8 or uint16.

    Gray and palette files contain the values. A color file needs `palette`: the value of a pixel
    is the index of its color. Raises DataError, which names the file, if it cannot be read.
    """
    return _read_label(path, palette)[0]


def read_mask(path: str | os.PathLike, threshold: int) -> Labels:
    """A mask of two classes from any picture, uint8 (H, W): 1 where its gray is >= threshold.

    threshold: of the gray value, 0 to 255. For masks that were stored as JPEG or in color. Raises
    DataError as `read_image`.
    """
    import cv2
    return (cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) >= threshold).astype(np.uint8)


def read_label_and_palette(path: str | os.PathLike) -> tuple[Labels, list[list[int]] | None]:
    """(the stored values of a gray or palette file, (H, W), the [r, g, b] of its palette, if any).

    Raises DataError as `read_label`.
    """
    image, probe, turn = _open_label(path)
    if isinstance(image, np.ndarray):
        return image, None
    values = _label_values(image, probe, turn, None, path)
    if image.mode != "P":
        return values, None
    colors = image.getpalette() or []
    return values, np.reshape(colors[:len(colors) // 3 * 3], (-1, 3)).tolist()


def read_pair(image_path: str | os.PathLike, label_path: str | os.PathLike,
              palette: Palette | None = None, label: Labels | None = None,
              white: float | None = None, read: tuple[np.ndarray, int] | None = None) \
        -> tuple[Image, Labels]:
    """Read an image (H, W, 3) and its label (H, W), both oriented as the module's head describes.

    label: the values of a label file that is not a picture, already read. white: see there.
    read: (the image as displayed, its orientation) if it is already read.
    Raises DataError if the sizes differ, and as `read_image` and `read_label`.
    """
    image, turn = read or _read_image(image_path, white)
    values, label_turn = (label, 1) if label is not None else _read_label(label_path, palette)
    if label_turn == 1 and turn >= 5 and values.shape != image.shape[:2]:
        values = oriented(values, turn)
    if values.shape != image.shape[:2]:
        raise DataError(f"image {shown(image_path)} is {size_text(image.shape)} (height x width) "
                        f"but its label is {size_text(values.shape)}", shown(label_path),
                        "give image and label the same size")
    return image, values


def read_stored(path: str | os.PathLike) -> np.ndarray:
    """Any picture as it is stored: values (H, W) of a gray or palette file, else RGB (H, W, 3).

    Raises DataError, which names the file, if it cannot be read.
    """
    image, probe, _ = _open_label(path)
    if isinstance(image, np.ndarray):
        return image
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        return _label_values(image, probe, 1, None, path)
    return np.array(image.convert("RGB"))


def color_codes(rgb: Image) -> np.ndarray:
    """One number, 0xRRGGBB, per color: int32 (H, W) of uint8 (H, W, 3)."""
    codes = rgb[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= rgb[..., channel]
    return codes


def stored_codes(stored: np.ndarray) -> np.ndarray:
    """The values (H, W) of a picture of `read_stored`: its ids, or the `color_codes` of colors."""
    return color_codes(stored) if stored.ndim == 3 else stored


def write_label(path: str | os.PathLike, labels: np.ndarray, palette: Sequence[Sequence[int]]):
    """Write class ids (H, W), any integer dtype, as a palette PNG, or as a 16-bit gray PNG.

    16 bits are used if the palette has more than 256 colors or an id is above 255, so all files
    of one network have the same type. The file appears complete or not at all.
    """
    write_bytes(path, label_png(labels, palette))


def label_png(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> bytes:
    """The content of the file that `write_label` writes."""
    from PIL import Image
    labels = np.ascontiguousarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < 65536:
        raise ValueError(f"labels must be in 0..65535, got {labels.min()}..{labels.max()}")
    if len(palette) > 256 or (labels.size and labels.max() > 255):
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette_table(palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def write_image(path: str | os.PathLike, rgb: np.ndarray):
    """Write uint8 (H, W, 3) RGB or (H, W) gray in the format of the suffix.

    The file appears complete or not at all. Raises DataError, which names the file, if it cannot
    be written.
    """
    import cv2
    suffix = Path(path).suffix.lower()
    picture = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    try:
        done, encoded = cv2.imencode(suffix or ".png", picture)
    except cv2.error as error:
        raise DataError(f"cannot write an image as {suffix!r}", shown(path),
                        "use .png or .jpg") from error
    if not done:
        raise DataError(f"cannot encode an image of shape {rgb.shape}", shown(path))
    write_bytes(path, encoded.data)


def _read_image(path, white):
    """Returns (uint8 (H, W, 3) as displayed, orientation)."""
    image, turn, top = _decoded(path, deep=white is not None)
    image = _eight_bits(image, white, top, path)
    return (image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)), turn


def _decoded(path, deep=False):
    """(values (H, W) or (H, W, 3) as displayed, orientation, largest value of their type or 0).

    deep: refuse a picture of more than 8 bits that can only be decoded to 8.
    """
    import cv2
    data, probe = read_checked(path)
    if probe and probe.for_opencv:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if probe.bits == 16:
            flags |= cv2.IMREAD_ANYDEPTH
        image = _cv2_decode(data, flags)
        if image is not None:
            turn = orientation_of(pillow_open(io.BytesIO(data), path)) if probe.has_exif else 1
            return oriented(image, turn), turn, 65535 if probe.bits == 16 else 255
    if probe and probe.bits == 16:
        raise UnreadableFile(f"damaged PNG ({len(data)} bytes)", shown(path),
                             COPY_AGAIN)
    values, turn, top = _pillow_image(data, path, deep)
    return np.ascontiguousarray(values), turn, top


def _read_label(path, palette):
    """Returns (stored values (H, W) as displayed, orientation)."""
    image, probe, turn = _open_label(path)
    if isinstance(image, np.ndarray):
        return image, turn
    return _label_values(image, probe, turn, palette, path), turn


def _open_label(path: str | os.PathLike) -> "tuple[Labels | PillowImage, Probe | None, int]":
    """(the label, its probe, its orientation).

    The label is the values (H, W) of a gray PNG or PGM, else a loaded Pillow image.
    """
    import cv2
    data, probe = read_checked(path)
    if data[:2] == b"P5" and pnm_maximum(data) != 255:
        pillow_open(io.BytesIO(data), path)
        return _whole_pnm(data, path), probe, 1     # Pillow scales the values to 255 or 65535
    if probe and probe.kind == "png" and probe.gray and probe.bits >= 8 and not probe.has_exif:
        values = _cv2_decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        if values is not None:
            return values, probe, 1
    image, turn = pillow_load(data, path)
    return image, probe, turn


def _label_values(image, probe, turn, palette, path):
    """The stored values (H, W) of a loaded Pillow image, as displayed."""
    values = _stored_values(image, probe, palette, path)
    return values if image.format == "TIFF" else oriented(values, turn)


def _stored_values(image, probe, palette, path):
    if image.mode in ("P", "L"):
        values = np.array(image)
        bits = probe.bits if probe and probe.kind == "png" else _few_bits(image)
        if image.mode == "L" and bits < 8:
            values //= 255 // (2 ** bits - 1)       # Pillow scales few bits to 0..255
        return values
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode.startswith("I"):
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == WHITE_IS_ZERO:
            raise DataError("a label of 16 bits where 0 is white", shown(path),
                            "write it so that 0 is black")
        values = np.array(image)
        if values.size and not 0 <= values.min() <= values.max() < 65536:
            raise DataError(f"label values {values.min()}..{values.max()} do not fit 16 bits",
                            shown(path))
        return values.astype(np.uint16)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(f"a label of mode {image.mode} cannot hold class ids", shown(path),
                        "store class ids as a gray or palette PNG")
    rgb = np.array(image.convert("RGB"))
    # With three equal channels each of them holds the ids; of 16 bits Pillow keeps only eight.
    if palette is None and (rgb == rgb[..., :1]).all() and \
            (probe.bits if probe else _few_bits(image)) <= 8:
        return rgb[..., 0].copy()
    if palette is None:
        raise DataError("the label is a color picture, not a map of class ids", shown(path),
                        "give the color of each class as a palette, or store class ids as a gray "
                        "or palette PNG")
    return _indices_of_colors(rgb, palette, path)


def _indices_of_colors(rgb, palette, path):
    """The index in the palette of every pixel's color, (H, W); DataError for other colors."""
    codes = color_codes(rgb)
    table, missing = _color_table(tuple(color and tuple(color) for color in palette))
    values = table[codes]
    wrong = values == missing
    if wrong.any():
        unknown, counts = np.unique(codes[wrong], return_counts=True)
        colors = listed(np.argsort(-counts), _SHOWN_COLORS, text=lambda i: (
            f"({unknown[i] >> 16}, {unknown[i] >> 8 & 255}, {unknown[i] & 255}) "
            f"on {counted(int(counts[i]), 'pixel')}"))
        raise DataError(f"the label has colors that the palette lacks: {colors}",
                        shown(path), "add them to the palette, or to ignore_colors of the class "
                        "file, or store the label without smoothing (PNG, nearest-neighbor "
                        "resizing)")
    return values


@functools.lru_cache(maxsize=4)
def _color_table(palette):
    """(table from each of the 2^24 colors to its index, the value that marks unknown colors)."""
    kind = np.uint8 if len(palette) <= 255 else np.uint16
    missing = np.iinfo(kind).max
    table = np.full(1 << 24, missing, kind)
    for index, color in enumerate(palette):
        if color is None:
            continue
        r, g, b = color
        code = r << 16 | g << 8 | b
        if table[code] != missing:
            raise DataError(f"the palette has color ({r}, {g}, {b}) twice, for {table[code]} and "
                            f"{index}: color labels cannot be read with it")
        table[code] = index
    return table, missing


def _cv2_decode(data: bytes, flags: int) -> np.ndarray | None:
    """The decoded picture, or None if OpenCV cannot decode it, or it is a damaged PNG."""
    if data[:8] == _PNG and _is_damaged(data):
        return None         # OpenCV's libpng would print a line of its own
    cv2 = _quiet_opencv()
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _is_damaged(png):
    """Whether the pixels of a PNG, still compressed, do not have the checksum that it states."""
    at = len(_PNG)
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at:at + 4], "big")
        if png[at + 4:at + 8] == b"IDAT" and \
                zlib.crc32(memoryview(png)[at + 4:end]) != int.from_bytes(png[end:end + 4], "big"):
            return True
        at = end + 4
    return False


def unchanged_values(data: bytes) -> np.ndarray | None:
    """OpenCV's (H, W) or (H, W, bands), blue first, of the bytes of a picture; None if it cannot.

    They are not turned, and of the type that is stored.
    """
    import cv2
    return _cv2_decode(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)


@functools.cache
def _quiet_opencv():
    """OpenCV without its warnings: the readers here report the same faults, with the file's name.

    The level is set once per process; forked workers inherit it.
    """
    import cv2
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel    # OpenCV 4, 5
    set_level(_OPENCV_LOG_ERRORS)
    return cv2


def _pillow_image(data, path, deep):
    """What `_decoded` returns, for a file that Pillow reads."""
    image, turn = pillow_load(data, path)
    if image.format == "TIFF":
        values, top = _tiff_values(image, data, path, deep)
        return values, turn, top                # Pillow has turned it
    most = pnm_maximum(data)
    if most > 255 and data[:2] in (b"P5", b"P6"):
        return _whole_pnm(data, path), turn, most
    if most > 255 and deep:
        raise _only_eight_bits("a PGM or PPM written as text", path)
    if image.mode == "I":                       # Pillow has scaled it
        return np.array(image).astype(np.uint16), turn, 65535
    return oriented(_rgb(image, path), turn), turn, 255


def _tiff_values(image, data, path, deep):
    """(values (H, W) or (H, W, 3), largest value of their type) of a loaded TIFF."""
    tags = tags_of(io.BytesIO(data)) or TiffTags(8, 1, 1, 1, False, 0, False, 1)
    dark = tags.photometric == WHITE_IS_ZERO
    if (tags.planar and tags.bits > 8 and tags.samples > 1) or \
            (tags.kind == 2 and tags.bits == 8) or (image.mode == "F" and dark):
        raise _unusual(tags, path)
    if image.mode.startswith("I;16"):
        values, top = np.array(image).astype(np.uint16), 2 ** tags.bits - 1
        return (top - values if dark else values), top
    if image.mode == "I" and tags.kind == 1:
        return np.array(image).view(np.uint32), 0
    if image.mode in ("I", "F"):
        return np.array(image), 0
    if tags.bits <= 8:
        return _rgb(image, path), 255
    # Pillow drops the lower half of the bits. What it gives shows whether OpenCV is right.
    high, whole = _rgb(image, path), _cv2_decode(data, _unchanged())
    if whole is not None and whole.dtype == np.uint16 and whole.shape[:2] == high.shape[:2] \
            and whole.ndim == 3 and tags.photometric == RGB and (whole[..., 2::-1] >> 8
                                                                 == high).all():
        return whole[..., 2::-1], 65535
    if deep:
        raise _only_eight_bits(f"a TIFF with {tags.text}", path)
    return high, 255


def _rgb(image, path):
    """A loaded Pillow image of 8 bits per channel as uint8 (H, W, 3)."""
    if image.mode in ("P", "PA"):
        colors, used = len(image.getpalette() or ()) // 3, np.array(image.getchannel(0)).max()
        if used >= colors:
            raise UnreadableFile(f"a pixel has color {used} of a palette of {colors}", shown(path),
                                 "write the picture again with its whole palette")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    with warnings.catch_warnings():
        # Pillow advises RGBA for palettes with transparency; alpha is dropped here.
        warnings.simplefilter("ignore")
        return np.array(image.convert("RGB"))


def _whole_pnm(data, path):
    """The stored values, (H, W) or (H, W, 3), of a binary PGM or PPM."""
    values = _cv2_decode(data, _unchanged())
    if values is None:
        raise UnreadableFile(f"damaged PGM or PPM ({len(data)} bytes)", shown(path),
                             COPY_AGAIN)
    return values if values.ndim == 2 else values[..., ::-1]


def _unchanged():
    import cv2
    return cv2.IMREAD_UNCHANGED


def _few_bits(image):
    """The bits of a gray picture of Pillow."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return bits[0] if isinstance(bits, tuple) else bits


def _unusual(tags, path):
    return DataError(f"a TIFF with {tags.text} cannot be read" + (
        ", where 0 is white" if tags.photometric == WHITE_IS_ZERO else ""), shown(path),
        "write it as unsigned integers of 8 or 16 bits, pixel by pixel, where 0 is black")


def _only_eight_bits(what, path):
    return DataError(f"{what} is read with 8 bits, so \"white\" cannot be applied", shown(path),
                     "write it as PNG with 16 bits per channel")


def _raw_offset(image):
    """The position in its file of an RGB picture's pixels; None if they are not stored plainly."""
    if image.mode != "RGB":
        return None
    first, row = None, 0
    for decoder, (left, top, right, below), offset, arguments in image.tile:
        layout = arguments if isinstance(arguments, tuple) else (arguments, 0, 1)
        first = offset if first is None else first
        if (decoder != "raw" or layout != ("RGB", 0, 1) or left or right != image.width
                or top != row or offset != first + 3 * image.width * top):
            return None
        row = below
    return first if row == image.height else None


def pillow_load(data: bytes, path: str | os.PathLike) -> "tuple[PillowImage, int]":
    """(the Pillow image in the bytes of the file `path`, decoded, its orientation).

    Raises UnreadableFile if it is damaged.
    """
    image = pillow_open(io.BytesIO(data), path)
    turn = orientation_of(image) if image.format == "TIFF" else 1
    try:
        image.load()
    except MemoryError:                         # says nothing about the file
        raise
    except Exception as error:                  # of any type: the file is damaged
        raise UnreadableFile(f"damaged {image.format} ({len(data)} bytes): {error}", shown(path),
                             COPY_AGAIN) from None
    return image, turn if image.format == "TIFF" else orientation_of(image)


def oriented(array: np.ndarray, turn: int) -> np.ndarray:
    """An array (H, W, ...) turned from its stored form by an EXIF orientation, contiguous."""
    if turn >= 5:
        array = array.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _eight_bits(array, white, top, path):
    """uint8 of values of any type; white and top as in the module's head and `_decoded`."""
    if array.dtype == np.uint8:
        return array
    white = white or top
    if not white:
        kind = "floats" if array.dtype.kind == "f" else "32-bit integers"
        raise DataError(f"a picture of {kind} has no fixed range of values", shown(path),
                        "say which value is white, \"white\" in the args of Folder, or convert it "
                        "to 8 or 16 bits per channel")
    if array.dtype == np.uint16:
        return _table_of_range(white)[array]
    if not np.isfinite(array).all():
        raise DataError("the picture has values that are not finite", shown(path),
                        "replace them by numbers")
    return np.rint((array * (255 / white)).clip(0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _table_of_range(white):
    """uint8 (65536,): what each 16-bit value becomes."""
    return np.rint((np.arange(65536) * (255 / white)).clip(0, 255)).astype(np.uint8)
