"""Reads from the first bytes of a picture file its size and orientation, and if it is complete."""
import functools
import os
import re
import stat
import struct
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from utils.errors import ConfigError, DataError, shown
from utils.images.picture_files import ARRAY_SUFFIXES
from utils.images.tiff_tags import TiffTags, tiff_tags

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# All formats that Pillow may open, by content: the decoders of rare ones (PSD, PCX, FLI) have had
# many security holes, and one starts another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS_KEY = "SEGWRIGHT_MAX_PIXELS"
# Pillow's default limit; a larger header is a mistake or an attack. None: see max_pixels.
MAX_PIXELS: int | None = None
_USUAL_MAX_PIXELS = 178_956_970
_HEAD_BYTES = 65536
_TAIL_BYTES = 4096
_EXIF_ORIENTATION = 0x0112
COPY_AGAIN = "copy or download the file again, or remove it"    # of a damaged file


def max_pixels() -> int:
    """The largest number of pixels that a picture may have.

    Raises ConfigError if the environment variable does not contain a number of pixels.
    """
    return _max_pixels_of(os.environ.get(MAX_PIXELS_KEY)) if MAX_PIXELS is None else MAX_PIXELS


@functools.lru_cache(maxsize=8)
def _max_pixels_of(text):
    if not text:
        return _USUAL_MAX_PIXELS
    try:
        count = float(text) if "_" not in text else 0
    except ValueError:
        count = 0
    if not (1 <= count <= 2 ** 53 and count == int(count)):
        raise ConfigError(f"{text!r} is not a number of pixels", MAX_PIXELS_KEY,
                          "set it to a whole number such as 200000000 or 2e8, or unset it")
    return int(count)


def allow_pixels(count: int):
    """Accept pictures of up to `count` pixels. Readers refuse a file whose header claims more."""
    global MAX_PIXELS
    from PIL import Image
    MAX_PIXELS = count
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)
    # OpenCV reads this before it decodes for the first time; Pillow decodes what OpenCV refuses.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(max(count, 1 << 30))


class UnreadableFile(DataError):
    """A file that cannot be opened or decoded: the kind that `on_corrupt: "skip"` may replace."""


class Header(NamedTuple):
    """Size and orientation of a picture, and what else its file contains.

    width, height: in pixels as stored, before `orientation` (EXIF, 1 to 8) is applied.
    bits: of a stored value; 32 also for floats. frames: of an animation, or pages. alpha: whether
    it has a band of alpha. unused_bands: further bands that `read_image` leaves out.
    """

    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    frames: int = 1
    alpha: bool = False
    unused_bands: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as displayed."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.height, self.width

    def fits(self, label: "Header") -> bool:
        """Whether a label has the size of this image, as displayed or, not turned, as stored."""
        return label.size == self.size \
            or (label.orientation == 1 and label.size == self.stored_size)


class Probe(NamedTuple):
    """The header of a PNG, JPEG or WebP file, as far as it decides how the file is decoded."""

    width: int
    height: int
    kind: str               # "png", "jpeg", "webp"
    for_opencv: bool        # OpenCV decodes it to the values that `read_image` promises
    has_exif: bool          # Pillow must read the orientation
    bits: int = 8
    scan_start: int = 0     # JPEG: the position of the picture data
    gray: bool = False
    alpha: bool = False
    animated: bool = False


def read_header(path: str | os.PathLike) -> Header:
    """Size and orientation of a picture, from the ends of its file, without decoding it.

    Raises DataError for files that are not pictures and for too many pixels.
    """
    data = read_bytes(path, ends_only=True)
    probe = _probe(data)
    if probe and not (probe.has_exif or probe.animated):
        _refuse_bomb(probe.width, probe.height, path)
        return Header(probe.width, probe.height, 1, max(probe.bits, 8), 1, probe.alpha)
    with pillow_open(path, path) as image:
        turn, frames = orientation_of(image), _frames(image)
        if probe:
            return Header(probe.width, probe.height, turn, max(probe.bits, 8), frames, probe.alpha)
        if image.format == "TIFF":
            tags = tags_of(path)
            # Pillow gives the size as displayed.
            height, width = image.size if turn >= 5 else image.size[::-1]
            return Header(width, height, turn) if tags is None else \
                Header(width, height, turn, max(tags.bits, 8), tags.pages, tags.alpha,
                       tags.extra - tags.alpha)
        bits = 16 if pnm_maximum(data) > 255 else 8
        return Header(image.width, image.height, turn, bits, frames,
                      image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info)


def read_checked(path: str | os.PathLike) -> tuple[bytes, Probe | None]:
    """(the bytes of a picture file, its probe); the probe is None for formats other than Probe's.

    Raises DataError if the file is not complete or its header claims too many pixels.
    """
    data = read_bytes(path)
    probe = _probe(data)
    if probe:
        _refuse_bomb(probe.width, probe.height, path)
        _require_complete(data, probe, path)
    return data, probe


def read_bytes(path: str | os.PathLike, ends_only: bool = False) -> bytes:
    """The bytes of a file. ends_only: of a large file, only its first and last bytes, joined.

    Raises UnreadableFile if it cannot be opened or is not a regular file.
    """
    try:
        # Opening a pipe would wait forever for a program that writes to it.
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


def _refuse_bomb(width: int, height: int, path: str | os.PathLike):
    """Raises DataError if the header of the file `path` claims more pixels than are allowed."""
    if width * height > max_pixels():
        raise _bomb(f"{width} x {height} pixels", path)


def pillow_open(source: str | os.PathLike | BinaryIO, path: str | os.PathLike) -> "PillowImage":
    """Open a picture with Pillow, which reads the header only.

    source: the file, or its bytes as a stream. path: the file's name, for messages.
    Raises UnreadableFile if it is not a picture, DataError if it has too many pixels.
    """
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = max(max_pixels(), Image.MAX_IMAGE_PIXELS or 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # serious faults raise, here or in later checks
            image = Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise _bomb("more pixels than Pillow accepts", path) from None
    except MemoryError:                         # says nothing about the file
        raise
    except Exception as error:                  # Pillow's parsers raise many types on bad bytes
        size = os.stat(path).st_size
        reason = ("the file is empty" if not size else
                  f"not a picture that can be read ({size} bytes)"
                  if isinstance(error, Image.UnidentifiedImageError) else
                  f"cannot be read ({size} bytes): {error}")
        if os.fspath(path).lower().endswith(ARRAY_SUFFIXES) and size:
            raise DataError("an array of NumPy is read with \"bands\" only", shown(path),
                            "give \"bands\" in the args of the dataset (docs/own_data.md); a "
                            "network for RGB takes pictures") from None
        tags = tags_of(source)
        if tags is not None and isinstance(error, Image.UnidentifiedImageError):
            raise DataError(f"a TIFF with {tags.text} cannot be read", shown(path),
                            "give \"bands\" in the args of the dataset if it is an image "
                            "(docs/own_data.md); or write the bands to use as a gray or RGB "
                            "picture of 8 or 16 bits, pixel by pixel") from None
        raise UnreadableFile(reason, shown(path),
                             COPY_AGAIN) from None
    try:
        _refuse_bomb(image.width, image.height, path)
    except DataError:
        image.close()
        raise
    return image


def pnm_maximum(data: bytes) -> int:
    """The value that means white in a PGM or PPM file that begins with `data`; else 0."""
    found = re.match(rb"P[2356]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s", data[:4096])
    return int(found[3]) if found else 0


def tags_of(source: str | os.PathLike | BinaryIO) -> TiffTags | None:
    """The tags of a TIFF file or stream; None if it is not a TIFF file, or is damaged."""
    if isinstance(source, (str, os.PathLike)):
        try:
            with open(source, "rb") as file:
                return tiff_tags(file)
        except OSError:
            return None
    return tiff_tags(source)


def orientation_of(picture: "PillowImage") -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, not turned, if it has none.

    Only the tag counts: Pillow's getexif also takes an orientation from XMP, which browsers and
    OpenCV leave alone. Pillow turns a TIFF when it is loaded; ask before.
    """
    from PIL.Image import Exif
    image: Any = picture
    try:
        if image.format == "TIFF":
            turn = image.tag_v2.get(_EXIF_ORIENTATION, 1)
        else:
            if image.format == "PNG" and "exif" not in image.info:
                image.load()                    # the chunk may stand after the picture data
            exif = Exif()
            exif.load(image.info.get("exif", b""))
            turn = exif.get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:                           # a broken EXIF block does not turn a picture
        return 1
    return turn if turn in range(1, 9) else 1


def _frames(image):
    """The number of frames of an animation; JPEG files may contain previews, which are none."""
    if image.format not in ("GIF", "PNG", "WEBP"):
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:                           # damaged: reported when it is read
        return 1


def _probe(data):
    """The probe of a file that begins with `data`; None for formats that Pillow must decode."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 33:
        width, height, bits, color_type = struct.unpack(">IIBB", data[16:26])
        # The tag stands before or after the picture data, which is not worth searching.
        first = data.find(b"IDAT")
        has_exif = data.find(b"eXIf", 0, first) > 0 or b"eXIf" in data[-_TAIL_BYTES:]
        return Probe(width, height, "png", bits >= 8 and color_type in (0, 2, 4, 6), has_exif, bits,
                     gray=color_type == 0,
                     alpha=color_type in (4, 6) or data.find(b"tRNS", 0, first) > 0,
                     animated=data.find(b"acTL", 0, first) > 0)
    if data[:2] == b"\xff\xd8":
        return _probe_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _probe_webp(data)
    return None


def _probe_jpeg(data):
    place, has_exif, frame = 2, False, None
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:                                     # fill byte
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack(">BHHB", data[place + 4:place + 10])
        elif marker == 0xE1 and data[place + 4:place + 8] == b"Exif":
            has_exif = True
        if marker == 0xDA and frame:
            bits, height, width, channels = frame
            if not (width and height):
                return None
            return Probe(width, height, "jpeg", bits == 8 and channels in (1, 3), has_exif, bits,
                         place)
        place += 2 + int.from_bytes(data[place + 2:place + 4], "big")
    return None


def _probe_webp(data):
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        animated, has_exif, alpha = (bool(data[20] & bit) for bit in (2, 8, 16))
        return Probe(width, height, "webp", not animated, has_exif, alpha=alpha, animated=animated)
    if chunk == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return Probe(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), "webp", True, False,
                     alpha=bool(packed >> 28 & 1))
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return Probe(width & 0x3FFF, height & 0x3FFF, "webp", True, False)
    return None


def _require_complete(data, probe, path):
    """Raises UnreadableFile if the end is missing: OpenCV fills the rest with gray, silently."""
    if probe.kind == "jpeg":
        # Picture data cannot contain an end marker, but an EXIF thumbnail before it can.
        complete = data.rfind(b"\xff\xd9", probe.scan_start) > 0
    elif probe.kind == "png":
        complete = _reaches_end(data)
    else:
        complete = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if not complete:
        raise UnreadableFile(f"truncated {probe.kind.upper()} ({len(data)} bytes): its end is "
                             "missing", shown(path), COPY_AGAIN)


def _reaches_end(data):
    """Whether the chunks of a PNG lead to the last one.

    OpenCV reserves memory for the length that a chunk states, up to 4 GB, before it checks that
    so many bytes follow.
    """
    place = 8
    while place + 12 <= len(data):
        if data[place + 4:place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(data[place:place + 4], "big")
    return False


def _bomb(size, path):
    return DataError(f"the header says {size}; the limit is {max_pixels():,}", shown(path),
                     f"cut the picture up, or raise the limit: --max-pixels of inference.py, or "
                     f"the environment variable {MAX_PIXELS_KEY}")
