"""Which bands of pictures a network sees, where they are not the three of 8-bit RGB.

Bands are counted from 1, as GDAL and QGIS do. Their values stay as they are stored: uint8, uint16,
or float32 for all other types. An image may consist of several files (RGB and depth); then the
bands of the further files follow those of the first.
"""
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import ConfigError, DataError, shown
from utils.images.name_pattern import NamePattern

MOST_BANDS = 512
TYPES = ("uint8", "uint16", "float32")
# In a picture for people the values from mean - SHOWN deviations to mean + SHOWN become 0 to 255.
SHOWN = 2.0


@dataclass(frozen=True)
class Bands:
    """The bands of an image, in the order in which a network sees them.

    numbers: from 1, over all files of the image. files: patterns of its further files, relative to
    the folder of the images; "*" is the name of the image there, as far as it stands for the "*" of
    `image`, the pattern of the images. types: of the stored values of each file, of TYPES; empty:
    not known yet. no_data: the stored value of pixels without data, or "nan"; None: all have data.
    fill: for each band what a network sees there, in stored values; empty: what is stored.
    """

    numbers: tuple[int, ...]
    files: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    image: str = "*"
    no_data: float | str | None = None
    fill: tuple[float, ...] = field(default=(), compare=False)

    @property
    def type(self) -> str:
        """The type that holds the values of all files: "uint8", "uint16" or "float32"."""
        return max(self.types, key=TYPES.index)

    @property
    def text(self) -> str:
        """In words: "4 bands of uint16", "bands 4, 3, 2 of uint8"."""
        count = len(self.numbers)
        which = (f"{count} bands" if count > 1 else "one band") \
            if self.numbers == tuple(range(1, count + 1)) else \
            "bands " + ", ".join(map(str, self.numbers))
        more = f", with {', '.join(self.files)}" if self.files else ""
        more += "" if self.no_data is None else f" (no data: {number_text(self.no_data)})"
        return f"{which} of {self.type}{more}" if self.types else which + more

    def typed(self, types: Sequence[str]) -> "Bands":
        """The bands of files with values of these types."""
        return replace(self, types=tuple(types))

    def further_files(self, path: str | os.PathLike, folder: str | os.PathLike | None = None) \
            -> list[Path]:
        """The further files of an image, which may not exist.

        folder: of the images; of it and the folders between it and the image, the patterns are
        relative to the first in which all files exist. None, or one that does not contain the
        image: that of the image.
        """
        if not self.files:
            return []
        image = Path(path)
        if folder is not None and not image.is_relative_to(folder):
            # One of them may be absolute: programs find images by the paths that they are given.
            image, folder = Path(os.path.abspath(path)), os.path.abspath(folder)
        bases = [image.parent]
        if folder is not None and image.is_relative_to(folder):
            bases = [Path(folder), *(base for base in reversed(image.parents)
                                     if base != Path(folder) and base.is_relative_to(folder))]
        found = [self._beside(image, base) for base in bases]
        return next((files for files in found if all(file.is_file() for file in files)), found[0])

    def _beside(self, image, base):
        name = image.relative_to(base).as_posix()
        stem = NamePattern(self.image).stem(name) or os.path.splitext(name)[0]
        return [base / pattern.replace("*", stem, 1) for pattern in self.files]

    def state(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        files = {"files": list(self.files), "image": self.image} if self.files else {}
        no_data = {} if self.no_data is None else {"no_data": self.no_data,
                                                   "fill": list(self.fill)}
        return {"numbers": list(self.numbers), **files, "types": list(self.types), **no_data}

    def stored(self) -> "Bands":
        """The same bands, in which pixels without data keep their stored values."""
        return replace(self, fill=())


def bands_of_state(state: Mapping[str, Any] | None) -> Bands | None:
    """The bands of `Bands.state`; None of None. Raises ValueError for other content."""
    if state is None:
        return None
    numbers, files, types = (state.get(key, []) for key in ("numbers", "files", "types"))
    if not (isinstance(numbers, list) and 0 < len(numbers) <= MOST_BANDS
            and all(type(number) is int and number > 0 for number in numbers)
            and isinstance(files, list) and all(isinstance(file, str) for file in files)
            and isinstance(types, list) and all(one in TYPES for one in types)
            and len(types) == len(files) + 1 and isinstance(state.get("image", "*"), str)
            and (state.get("no_data") is None or is_no_data(state["no_data"]))
            and isinstance(state.get("fill", []), list)
            and len(state.get("fill", [])) in (0, len(numbers))
            and all(map(_is_number, state.get("fill", [])))):
        raise ValueError(f"no bands of pictures: {str(state)[:80]}")
    return Bands(tuple(numbers), tuple(files), tuple(types), state.get("image", "*"),
                 state.get("no_data"), tuple(state.get("fill", [])))


def is_no_data(value: Any) -> bool:
    """Whether a value can be that of pixels without data: a finite number or "nan"."""
    return value == "nan" or _is_number(value)


def number_text(value: float | str) -> str:
    """A value of pixels without data, as people write it: 0, -9999, nan, -3.40282e+38."""
    return value if isinstance(value, str) else f"{value:g}"


def without_data(values: np.ndarray, no_data: float | str) -> np.ndarray:
    """Where values, of any type, are no data: bool of their shape."""
    if no_data == "nan":
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        return values == no_data
    with np.errstate(over="ignore"):        # -1.8e308 of a tag, where float32 is stored
        return values == values.dtype.type(no_data)


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def chosen_bands(bands: int | Sequence[int] | None, band_files: Sequence[str] | None,
                 image: str = "*", no_data: float | str | None = None) -> Bands | None:
    """The bands that the arguments of a dataset choose; None: pictures are read as 8-bit RGB.

    bands: their number, or the list of them. image: the pattern of the names of the images.
    no_data: see `Bands`. Raises ConfigError.
    """
    if no_data is not None and not is_no_data(no_data):
        raise ConfigError(f"expected a finite number or \"nan\", found {no_data!r}", "no_data")
    if bands is None:
        for key, value in (("band_files", band_files), ("no_data", no_data)):
            if value or value == 0:
                raise ConfigError(f"{key} has no effect without bands", key, "say with \"bands\" "
                                  "how many there are in all files of an image")
        return None
    numbers = tuple(range(1, min(bands, MOST_BANDS + 1) + 1)) if isinstance(bands, int) \
        else tuple(bands)
    if not 1 <= len(numbers) <= MOST_BANDS or min(numbers) < 1 or max(numbers) > 65535:
        found = bands if isinstance(bands, int) or len(bands) < 9 else f"{len(bands)} of them"
        raise ConfigError(f"expected 1 to {MOST_BANDS} bands, each counted from 1, found {found}",
                          "bands", "choose the bands to use, such as [1, 2, 3, 8]")
    patterns = tuple(pattern.replace("{stem}", "*") for pattern in band_files or ())
    for pattern in patterns:
        if pattern.count("*") != 1 or os.path.isabs(pattern):
            raise ConfigError(f"expected a relative pattern with one \"*\", found {pattern!r}",
                              "band_files", "\"*\" is the name of the image without its extension, "
                              "such as \"../depth/*.png\"")
    return Bands(numbers, patterns, image=image, no_data=no_data)


def as_picture(values: np.ndarray, mean: Sequence[float], std: Sequence[float],
               shown_bands: Sequence[int] | None = None) -> np.ndarray:
    """uint8 (H, W, 3) to look at: three of the bands of an image (H, W, C), or one of them as gray.

    mean, std: of each band; mean - 2 std becomes black and mean + 2 std white. shown_bands: which
    of the C bands become red, green and blue, from 1; None: the first three, or of one or two the
    first. Raises ConfigError for a band that there is not.
    """
    count = values.shape[2]
    wanted = tuple(shown_bands or ((1, 2, 3) if count > 2 else (1,)))
    if len(wanted) not in (1, 3) or not all(1 <= number <= count for number in wanted):
        raise ConfigError(f"expected one or three bands from 1 to {count}, found "
                          f"{', '.join(map(str, wanted))}", "--bands")
    planes = []
    for number in wanted:
        low = mean[number - 1] - SHOWN * std[number - 1]
        scaled = (values[..., number - 1].astype(np.float32) - np.float32(low)) \
            * np.float32(255 / (2 * SHOWN * std[number - 1]))
        planes.append(np.rint(scaled).clip(0, 255).astype(np.uint8))
    return np.stack(planes * (3 // len(planes)), axis=-1)


def require_types(bands: Bands, types: Sequence[str], path: str | os.PathLike) -> None:
    """Raise DataError unless the files of an image have the types of the bands."""
    if bands.types and tuple(types) != bands.types:
        raise DataError(f"its values are {', '.join(types)}; those of the others are "
                        f"{', '.join(bands.types)}", shown(path),
                        "store all images with values of one type and range")
