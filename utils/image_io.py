"""Reading and writing images and label maps.

One function reads every image, for training and for inference, and one reads
every label. OpenCV decodes the ordinary files, because it is the faster one;
Pillow decodes the rest. Both get bytes, never a file name: OpenCV crashes on
names that are not UTF-8.

Orientation. An image is turned as its EXIF tag says, and so is a label that
has a tag of its own. A label without one was drawn on the picture as displayed
if it has that size; if it has the size of the stored, unturned picture, it is
turned with it.
"""
import contextlib
import functools
import io
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import DataError
from utils.whole_files import WholeFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Of all that Pillow reads, by content: others have had more holes than users (PSD, PCX, FLI),
# and one starts another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# What Pillow refuses by default; a larger header is an accident or an attack.
MAX_PIXELS_KEY = "SEGWRIGHT_MAX_PIXELS"
MAX_PIXELS = int(os.environ.get(MAX_PIXELS_KEY) or 178_956_970)

_HEAD_BYTES = 65536
_TAIL_BYTES = 4096
_EXIF_ORIENTATION = 0x0112
_ERRORS_ONLY = 2         # a level of OpenCV's log


def allow_pixels(count: int):
    """Accept pictures of up to `count` pixels; what a larger header claims is refused."""
    global MAX_PIXELS
    from PIL import Image
    MAX_PIXELS = count
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)
    # Read when OpenCV decodes for the first time; Pillow decodes what it refuses.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(max(count, 1 << 30))


class UnreadableFile(DataError):
    """A file that cannot be opened or decoded: the kind that `on_corrupt: "skip"` may replace."""


class Header(NamedTuple):
    """What the first bytes of a picture say.

    width, height: as stored, before `orientation` (EXIF, 1 to 8) is applied.
    """

    width: int
    height: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as displayed."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.height, self.width


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Any picture as uint8 (H, W, 3) RGB, turned as its EXIF tag says.

    Grey is repeated, alpha dropped, CMYK and palettes converted, 16 bits scaled
    by 1/257; of an animation, the first frame. Damaged, truncated or huge files
    and unknown formats are a DataError that names the file.
    """
    return _oriented(*_read_image(path))


def map_image(path: str | os.PathLike) -> np.ndarray:
    """`read_image`, but uncompressed RGB files (.ppm, TIFF) stay on disk, read where they are used.

    A file that is larger than memory can be segmented in this form:
    `vips copy large.jpg large.tif[compression=none]`.
    """
    with _pillow_open(path, path) as image:
        _refuse_bomb(*image.size, path)
        offset = _raw_offset(image)
        (width, height), turned = image.size, _orientation(image) != 1
    if offset is None or turned or os.path.getsize(path) < offset + 3 * width * height:
        return read_image(path)
    return np.memmap(path, np.uint8, "r", offset, (height, width, 3))


def read_label(path: str | os.PathLike, palette: list | None = None) -> np.ndarray:
    """The stored values of a label map, (H, W), uint8 or uint16.

    Grey and palette files hold the values themselves. A colour file needs
    `palette`, a list of [r, g, b]: the value is the place of the colour in it
    (None holds a place that no colour has).
    """
    return _oriented(*_read_label(path, palette))


def read_pair(image_path: str | os.PathLike, label_path: str | os.PathLike,
              palette: list | None = None, label: np.ndarray | None = None) \
        -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its label (H, W) under one orientation rule (see the module).

    label: what the file holds where it is no picture.
    """
    image, turn = _read_image(image_path)
    label, label_turn = _read_label(label_path, palette) if label is None else (label, 1)
    image = _oriented(image, turn)
    label = _oriented(label, label_turn)
    if label_turn == 1 and turn >= 5 and label.shape != image.shape[:2]:
        label = _oriented(label, turn)
    if label.shape != image.shape[:2]:
        raise DataError(f"image {shown(image_path)} is {_size(image)} but its label is "
                        f"{_size(label)}", shown(label_path),
                        "give image and label the same size")
    return image, label


def read_header(path: str | os.PathLike) -> Header:
    """Size and orientation from the ends of a file, without decoding it."""
    probe = _probe(_read_bytes(path, ends_only=True))
    if probe and not probe.tagged:
        header = Header(probe.width, probe.height)
    else:
        image = _pillow_open(path, path)
        with image:
            header = Header(*image.size, _orientation(image))
    _refuse_bomb(header.width, header.height, path)
    return header


def read_label_colours(path: str | os.PathLike) -> dict[tuple, int] | None:
    """{(r, g, b): pixels} of a label stored in colour; None for one that holds ids."""
    image, _ = _open_label(path)
    if isinstance(image, np.ndarray) or image.mode not in ("RGB", "RGBA"):
        return None
    rgb = np.array(image.convert("RGB"))
    codes, counts = np.unique(_codes(rgb), return_counts=True)
    return {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): int(n)
            for c, n in zip(codes, counts)}


def write_label(path: str | os.PathLike, labels: np.ndarray, palette: list):
    """Write class ids (H, W) as a palette PNG; beyond 255 as a 16-bit grey PNG.

    The file appears whole or not at all.
    """
    from PIL import Image
    labels = np.ascontiguousarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < 65536:
        raise ValueError(f"labels must be in 0..65535, got {labels.min()}..{labels.max()}")
    if labels.size and labels.max() > 255:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        colours = np.zeros((256, 3), np.uint8)
        colours[:min(len(palette), 256)] = np.reshape(np.asarray(palette, np.uint8), (-1, 3))[:256]
        image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    write_bytes(path, buffer.getbuffer())


def write_image(path: str | os.PathLike, rgb: np.ndarray):
    """Write uint8 (H, W, 3) RGB or (H, W) grey in the format of the suffix, whole or not at all."""
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
    write_bytes(path, encoded)


def write_bytes(path: str | os.PathLike, data):
    """Write a file, whole or not at all; OSError becomes DataError."""
    with unfinished(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def unfinished(path: str | os.PathLike, suffix: str = ""):
    """A WholeFile whose OSErrors become DataErrors."""
    try:
        with WholeFile(path, suffix) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror or error}", shown(path),
                        "check that the folder exists, is writable and has room") from None


def make_folder(folder: str | os.PathLike, fix: str = "choose another output folder with -o"):
    """Make a folder, with those above it, where it is not there; OSError becomes DataError."""
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder: {error.strerror or error}", shown(folder),
                        fix) from None


def picture_files(folder: str | os.PathLike, suffixes: tuple = IMAGE_SUFFIXES) -> list[Path]:
    """Everything below a folder whose name has one of the suffixes, sorted.

    Linked folders are entered, each real one once; hidden files are left out.
    Names are all that is looked at: a folder x.jpg is listed, for others to refuse.
    """
    found, entered = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        found += [Path(place, name) for name in (*names, *folders)
                  if name.lower().endswith(suffixes) and not name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith(".")
                            and not name.lower().endswith(suffixes))
    return sorted(found)


def shown(path) -> str:
    """A path as text that any terminal can print: odd characters are escaped."""
    text = os.fsdecode(path) if isinstance(path, (bytes, os.PathLike)) else str(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Probe(NamedTuple):
    width: int
    height: int
    kind: str            # "png", "jpeg", "webp"
    ordinary: bool       # OpenCV decodes it to the bytes we promise
    tagged: bool         # an EXIF block is there: ask Pillow for the orientation
    bits: int = 8
    scan: int = 0        # JPEG: where the picture data starts
    grey: bool = False


def _read_checked(path):
    """(bytes of a whole file, what its header says); no bomb and no half file passes here."""
    data = _read_bytes(path)
    probe = _probe(data)
    if probe:
        _refuse_bomb(probe.width, probe.height, path)
        _require_complete(data, probe, path)
    return data, probe


def _read_image(path):
    """(uint8 (H, W, 3) as stored, orientation)."""
    import cv2
    data, probe = _read_checked(path)
    if probe and probe.ordinary:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if probe.bits == 16:
            flags |= cv2.IMREAD_ANYDEPTH
        image = _cv2_decode(data, flags)
        if image is not None:
            turn = _orientation(_pillow_open(io.BytesIO(data), path)) if probe.tagged else 1
            return _eight_bits(image), turn
    return _pillow_image(data, path)


def _read_label(path, palette):
    """(stored values (H, W), orientation)."""
    image, probe = _open_label(path)
    if isinstance(image, np.ndarray):
        return image, 1
    return _label_values(image, probe, palette, path), _orientation(image)


def _open_label(path):
    """A label as stored: an array of values (ordinary grey PNG) or a loaded Pillow image."""
    import cv2
    data, probe = _read_checked(path)
    if probe and probe.kind == "png" and probe.grey and probe.bits >= 8 and not probe.tagged:
        values = _cv2_decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        if values is not None:
            return values, probe
    image = _pillow_open(io.BytesIO(data), path)
    _refuse_bomb(*image.size, path)
    _pillow_load(image, path, len(data))
    return image, probe


def _label_values(image, probe, palette, path):
    if image.mode in ("P", "L"):
        values = np.array(image)
        if image.mode == "L" and probe and probe.kind == "png" and probe.bits < 8:
            values //= 255 // (2 ** probe.bits - 1)      # Pillow spreads few bits over 0..255
        return values
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode.startswith("I"):
        values = np.array(image)
        if values.size and not 0 <= values.min() <= values.max() < 65536:
            raise DataError(f"label values {values.min()}..{values.max()} do not fit 16 bits",
                            shown(path))
        return values.astype(np.uint16)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(f"a label of mode {image.mode} holds no class ids", shown(path),
                        "store class ids as a grey or palette PNG")
    if palette is None:
        raise DataError("the label is a colour picture, not a map of class ids", shown(path),
                        "give the colour of each class as a palette, or store class ids as a grey "
                        "or palette PNG")
    return _indices_of_colours(np.array(image.convert("RGB")), palette, path)


def _indices_of_colours(rgb, palette, path):
    codes = _codes(rgb)
    table, missing = _colour_table(tuple(c and tuple(c) for c in palette))
    values = table[codes]
    wrong = values == missing
    if wrong.any():
        found, counts = np.unique(codes[wrong], return_counts=True)
        order = np.argsort(-counts)
        listed = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255}) on {n} pixels"
                           for c, n in zip(found[order[:5]], counts[order[:5]]))
        more = f" and {len(found) - 5} more colours" if len(found) > 5 else ""
        raise DataError(f"the label has colours that the palette lacks: {listed}{more}",
                        shown(path), "add them to the palette, or store the label without "
                        "smoothing (PNG, nearest-neighbour resizing)")
    return values


def _codes(rgb):
    """One number per colour."""
    codes = rgb[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= rgb[..., channel]
    return codes


@functools.lru_cache(maxsize=4)
def _colour_table(palette):
    """A table of all 2^24 colours -> index, and the value that marks an unknown colour."""
    kind = np.uint8 if len(palette) <= 255 else np.uint16
    missing = np.iinfo(kind).max
    table = np.full(1 << 24, missing, kind)
    for index, colour in enumerate(palette):
        if colour is None:
            continue
        r, g, b = colour
        code = r << 16 | g << 8 | b
        if table[code] != missing:
            raise DataError(f"the palette has colour ({r}, {g}, {b}) twice, for {table[code]} and "
                            f"{index}: colour labels cannot be read with it")
        table[code] = index
    return table, missing


def _probe(data) -> _Probe | None:
    """What the first bytes say, for the formats OpenCV reads faster; None for others."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 33:
        width, height, bits, colours = struct.unpack(">IIBB", data[16:26])
        # The tag stands before or after the picture data, which is not worth searching.
        tagged = data.find(b"eXIf", 0, data.find(b"IDAT")) > 0 or b"eXIf" in data[-_TAIL_BYTES:]
        return _Probe(width, height, "png", bits >= 8 and colours in (0, 2, 4, 6), tagged, bits,
                      grey=colours == 0)
    if data[:2] == b"\xff\xd8":
        return _probe_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _probe_webp(data)
    return None


def _probe_jpeg(data):
    place, tagged, frame = 2, False, None
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:                                     # fill byte
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack(">BHHB", data[place + 4:place + 10])
        elif marker == 0xE1 and data[place + 4:place + 8] == b"Exif":
            tagged = True
        if marker == 0xDA and frame:
            bits, height, width, parts = frame
            if not (width and height):
                return None
            return _Probe(width, height, "jpeg", bits == 8 and parts in (1, 3), tagged, bits, place)
        place += 2 + int.from_bytes(data[place + 2:place + 4], "big")
    return None


def _probe_webp(data):
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        animated, tagged = data[20] & 2, data[20] & 8
        return _Probe(width, height, "webp", not animated, bool(tagged))
    if chunk == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return _Probe(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), "webp", True, False)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return _Probe(width & 0x3FFF, height & 0x3FFF, "webp", True, False)
    return None


def _require_complete(data, probe, path):
    """OpenCV fills what a truncated file lacks with grey and says nothing: look for the end."""
    if probe.kind == "jpeg":
        # Picture data cannot hold an end marker, but an EXIF thumbnail before it can.
        complete = data.rfind(b"\xff\xd9", probe.scan) > 0
    elif probe.kind == "png":
        complete = _reaches_end(data)
    else:
        complete = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if not complete:
        raise UnreadableFile(f"truncated {probe.kind.upper()} ({len(data)} bytes): its end is "
                             "missing", shown(path), "copy or download the file again")


def _reaches_end(data):
    """Whether the chunks of a PNG lead to the last one. OpenCV reserves what a chunk says it
    holds, up to 4 GB, before it looks whether that is there."""
    place = 8
    while place + 12 <= len(data):
        if data[place + 4:place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(data[place:place + 4], "big")
    return False


def _cv2_decode(data, flags):
    import cv2
    # What it warns of is an error of ours, told once and with the file's name.
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel    # OpenCV 4, 5
    set_level(_ERRORS_ONLY)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _pillow_image(data, path):
    from PIL import Image
    image = _pillow_open(io.BytesIO(data), path)
    _refuse_bomb(*image.size, path)
    _pillow_load(image, path, len(data))
    turn = _orientation(image)
    if image.mode.startswith("I;16"):
        grey = _eight_bits(np.array(image).astype(np.uint16))
        return np.repeat(grey[..., None], 3, axis=2), turn
    if image.mode in ("I", "F"):
        raise DataError(f"a picture of mode {image.mode} has no fixed range of values",
                        shown(path), "convert it to 8 or 16 bits per channel")
    with warnings.catch_warnings():
        # Pillow advises RGBA for palettes with transparency; alpha is dropped anyway.
        warnings.simplefilter("ignore")
        return np.array(Image.Image.convert(image, "RGB")), turn


def _pillow_open(source, path):
    from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # what matters raises, here or in our own checks
            return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise _bomb("more pixels than Pillow accepts", path) from None
    except Exception as error:                  # Pillow's parsers raise many types on bad bytes
        size = os.stat(path).st_size
        reason = ("the file is empty" if not size else
                  f"not a picture that can be read ({size} bytes)"
                  if isinstance(error, Image.UnidentifiedImageError) else
                  f"cannot be read ({size} bytes): {error}")
        raise UnreadableFile(reason, shown(path),
                             "copy or download the file again, or remove it") from None


def _raw_offset(image):
    """Where the pixels of an RGB picture start that lie in its file as they are, or None."""
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


def _pillow_load(image, path, size):
    try:
        image.load()
    except Exception as error:                  # as above: any failure means a damaged file
        raise UnreadableFile(f"damaged {image.format} ({size} bytes): {error}", shown(path),
                             "copy or download the file again") from None


def _orientation(image):
    try:
        turn = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:                           # a broken EXIF block says nothing about turning
        return 1
    return turn if turn in range(1, 9) else 1


def _oriented(array, turn):
    """`array` as displayed, for an EXIF orientation."""
    if turn >= 5:
        array = array.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _eight_bits(array):
    """16 bits to 8: 65535 becomes 255, rounded to nearest."""
    if array.dtype == np.uint8:
        return array
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _read_bytes(path, ends_only=False):
    """The bytes of a file; of a large one, on request, only its head and its tail."""
    try:
        # Opening a pipe would wait forever for somebody to write into it.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UnreadableFile(f"is {kind}", shown(path), "put the picture itself there")
        with open(path, "rb") as file:
            if not ends_only or os.fstat(file.fileno()).st_size <= _HEAD_BYTES + _TAIL_BYTES:
                return file.read()
            head = file.read(_HEAD_BYTES)
            file.seek(-_TAIL_BYTES, os.SEEK_END)
            return head + file.read()
    except OSError as error:
        raise UnreadableFile(f"cannot be opened: {error.strerror or error}",
                             shown(path)) from None


def _refuse_bomb(width, height, path):
    if width * height > MAX_PIXELS:
        raise _bomb(f"{width} x {height} pixels", path)


def _bomb(size, path):
    return DataError(f"the header says {size}; the limit is {MAX_PIXELS:,}", shown(path),
                     f"cut the picture up, or raise the limit: --max-pixels of inference.py, or "
                     f"the environment variable {MAX_PIXELS_KEY}")


def _size(array):
    return f"{array.shape[1]}x{array.shape[0]}"
