"""Says which parts of pictures are not used: pages, bands, most of the range of their values."""
import json
import math
import os
from collections.abc import Callable, Sequence

from utils.errors import UserError, shown
from utils.images.bands import Bands, number_text
from utils.images.headers import Header, read_header
from utils.images.image_io import alpha_varies, deep_values
from utils.images.picture_files import TIFF_SUFFIXES, evenly_spaced
from utils.images.tiff_tags import tag_values

HEADERS = 500       # pictures of a folder without a dataset whose headers are read
# What a dataset can do about it, if it takes bands.
USE_ALL = ("\"bands\" in the args of the loader uses all bands and bits, and the pages of TIFFs "
           "(docs/own_data.md)")
_GDAL_NODATA = 42113
DECODED = 8         # pictures that are decoded to see how far their values reach, and their alpha


def partly_used(files: Sequence[tuple[str | os.PathLike, Header]], what: str = "images",
                white: float | None = None) -> list[str]:
    """One sentence with numbers for each part of the files that `read_image` leaves out.

    files: each with its header. what: they are, in the sentences. white: see utils.images.image_io;
    a number also tells that a range is meant on purpose. Decodes at most DECODED files of each
    kind; those that cannot be read are left out.
    """
    parts = [
        _further(files, what, lambda header: header.frames - 1, lambda header, path:
                 f"have several pages or frames ({header.frames} in {path}): only the first is "
                 "used"),
        _further(files, what, lambda header: header.unused_bands, lambda header, path:
                 f"have more bands than gray or RGB (up to {header.unused_bands} more, in {path}): "
                 "these are not used"),
        _alpha(files, what)]
    if what == "images":
        parts.append(_missing(files))
        parts.append(_range([file for file in files if file[1].bits > 8], white))
    return [part for part in parts if part]


def unused_bands(files: Sequence[tuple[str | os.PathLike, Header]], bands: Bands) -> list[str]:
    """A sentence with numbers if files have bands that are not used, or mark missing pixels.

    files: each with its header, as `utils.images.band_files.bands_header` reads it.
    """
    part = _further(files, "images", lambda header: header.unused_bands, lambda header, path:
                    f"have more bands than those used (up to {header.unused_bands} more, in "
                    f"{path}): {bands.text} are used")
    return [one for one in (part, _missing(files, bands.no_data)) if one]


def _missing(files, no_data=None):
    """About TIFF files in which GDAL says which value marks pixels without data.

    no_data: the value that is taken for that.
    """
    marked = [(path, value) for path, value in
              _of_some([path for path, _ in files], no_data_of, HEADERS)
              if value is not None and value != no_data]
    if not marked:
        return None
    path, value = marked[0]
    text = number_text(value)
    return (f"{len(marked)} images say which value means \"no data\" ({text} in {shown(path)}): it "
            "is used like any other; " + (
                f"\"no_data\": {json.dumps(value)} with \"bands\" ignores these pixels "
                "(docs/own_data.md)" if no_data is None else
                f"ignored are those of {number_text(no_data)} (\"no_data\")"))


def no_data_of(path: str | os.PathLike) -> float | str | None:
    """The value of pixels without data that GDAL has noted in a TIFF: a number or "nan", or None.

    Raises OSError if the file cannot be opened.
    """
    if not os.fspath(path).lower().endswith(TIFF_SUFFIXES):
        return None
    with open(path, "rb") as file:
        found = tag_values(file, [_GDAL_NODATA]).get(_GDAL_NODATA)
    try:
        value = float(found[1].rstrip(b"\0 ")) if found else None
    except ValueError:
        return None
    if value is None or math.isinf(value):
        return None
    return "nan" if math.isnan(value) else int(value) if value.is_integer() else value


def unused_in(paths: Sequence[str | os.PathLike], white: float | None = None) -> list[str]:
    """`partly_used` of picture files, of which at most HEADERS are looked at."""
    return partly_used(_of_some(paths, read_header, HEADERS), white=white)


def _further(files, what, number, text):
    """About the files with a number(header) above 0. text: of the header and path with the most."""
    many = [file for file in files if number(file[1])]
    if not many:
        return None
    path, header = max(many, key=lambda file: number(file[1]))
    return f"{len(many)} of {len(files)} {what} {text(header, shown(path))}"


def _alpha(files, what):
    some = [path for path, header in files if header.alpha]
    answers = _of_some(some, alpha_varies)
    varying = [path for path, varies in answers if varies]
    if not varying:
        return None
    return (f"{len(some)} of {len(files)} {what} have a band of alpha, which is not used; it is "
            f"not 1 everywhere in {len(varying)} of the {len(answers)} that were read, for example "
            f"{shown(varying[0])}")


def _range(files, white):
    """About pictures of 16 bits, and of 32 if white says how they are scaled."""
    answers = _of_some([path for path, _ in files], deep_values)
    answers = [(path, values, white or top) for path, (values, top) in answers
               if values.size and values.itemsize > 1 and (white or top)]
    if not answers:
        return None
    path, highest, top = max(((path, values.max().item(), top) for path, values, top in answers),
                             key=lambda answer: answer[1])
    read = (f"{len(files)} images have more than 8 bits; of the {len(answers)} that were read the "
            "values")
    if highest > top:
        return f"{read} reach {highest}, in {shown(path)}: those above {top:g} (white) become 255"
    if 2 * highest > top:
        return None
    used = round(255 * highest / top) + 1
    fitting = 2 ** int(highest).bit_length() - 1 if isinstance(highest, int) else f"{highest:g}"
    return (f"{read} reach only {highest} of {top:g}, which gives {used} of 256 gray levels; "
            f"\"white\": {fitting} in the args of Folder would use all")


def _of_some(paths: Sequence, question: Callable, most: int = DECODED) -> list[tuple]:
    """(path, answer) of at most `most` of the paths."""
    answers = []
    for path in evenly_spaced(paths, most):
        try:
            answers.append((path, question(path)))
        except (UserError, OSError):    # reported, or replaced, when it is read
            continue
    return answers
