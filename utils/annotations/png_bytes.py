"""Reads PNG pictures that stand inside other files: in a zip, or as text in JSON."""
import io
import struct
import warnings

import numpy as np

from utils.annotations.annotation_set import MOST_PIXELS, Size
from utils.errors import DataError, size_text

MOST_BYTES = 1 << 28        # of one PNG


def read_png(data: bytes, place: str, most: Size | None = None,
             colors: bool = False) -> np.ndarray:
    """The values of a PNG: uint8 or uint16 (H, W), or uint8 (H, W, 3) RGB or (H, W, 4) RGBA.

    A palette file without transparency gives its values, one with transparency gives RGBA.
    most: the largest height and width that are accepted. colors: palettes give RGB, and there is
    no alpha. Raises DataError, before anything is decoded, if the picture is larger; and if it is
    not a whole PNG.
    """
    from PIL import Image
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        width, height = size = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        if most and (height > most[0] or width > most[1]):
            raise DataError(f"a mask of {size_text(size[::-1])} pixels (height x width) in an "
                            f"image of {size_text(most)}", place)
        if height * width > MOST_PIXELS:
            raise DataError(f"a picture of {size_text(size[::-1])} pixels; the limit is "
                            f"{MOST_PIXELS}", place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of pictures that are larger than usual
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if "transparency" in image.info and not colors:
                    return np.array(image.convert("RGBA"))
                if image.mode.startswith("I"):
                    return np.array(image).astype(np.uint16)
                if image.mode in ("1", "L"):
                    wanted = "L"
                elif colors or image.mode not in ("P", "RGBA", "LA"):
                    wanted = "RGB"
                else:
                    wanted = "P" if image.mode == "P" else "RGBA"
                return np.array(image if image.mode == wanted else image.convert(wanted))
    except MemoryError:
        raise
    except Exception as error:      # Pillow's parsers raise many types on bad bytes
        text = "it is empty" if not data else str(error).split(":")[0] or type(error).__name__
        if "cannot identify" in text:       # the rest of that text is an address in memory
            text = "it is not a PNG, or its beginning is damaged"
        raise DataError(f"the PNG cannot be read: {text}", place) from None
