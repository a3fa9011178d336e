"""Reads, writes and finds the MATLAB files of SegFix: offsets and distance maps.

There is one `.mat` file per image, with the name of the image (openseg-group/openseg.pytorch):

    offsets         mat: (H, W, 2) integers or floats, (dy, dx)
    distance maps   depth, dir_deg: (H, W) uint8, and the scalar deg_reduce; the angle is
                    deg_reduce · dir_deg - 180 degrees
"""
import io
import os
from pathlib import Path, PurePath

import numpy as np

from utils.errors import DataError, first_line, listed, shown, size_text
from utils.files.whole_file import write_bytes
from utils.images.headers import UnreadableFile, read_bytes
from utils.images.picture_files import IMAGE_SUFFIXES, picture_files
from utils.segfix.targets import DEGREES_PER_STEP, stored_angle

SUFFIX = ".mat"
_SUFFIXES = (SUFFIX, ".txt", *IMAGE_SUFFIXES)
_ENDINGS = ("_pred", "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds",
            "_gtFine_instanceIds")


def read_offsets(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the offsets (H, W, 2), (dy, dx), of a file, in the dtype in which they are stored.

    size: the (H, W) that they must have. Raises DataError naming the file if it is missing,
    damaged, not an offset file, or of another size.
    """
    offset = _variables(path, ("mat",))["mat"]
    if offset.ndim != 3 or offset.shape[2] != 2 or offset.dtype.kind not in "iuf":
        raise DataError(f"contains {offset.dtype} of shape {offset.shape}, not the (H, W, 2) "
                        "numbers of an offset map", shown(path))
    if offset.dtype.kind == "f" and not np.isfinite(offset).all():
        raise DataError("contains offsets that are not finite", shown(path))
    _require_size(offset.shape[:2], size, path)
    return offset


def write_offsets(path: str | os.PathLike, offset: np.ndarray):
    """Write offsets (H, W, 2) as int32, like the published files, completely or not at all."""
    _write(path, mat=np.ascontiguousarray(offset, np.int32))


def read_distance_maps(path: str | os.PathLike, size: tuple[int, int] | None = None) \
        -> tuple[np.ndarray, np.ndarray]:
    """Returns (depth uint8 (H, W), angle float32 (H, W) in degrees) of a file of distance maps.

    size: the (H, W) that they must have. Raises DataError as `read_offsets` does.
    """
    variables = _variables(path, ("depth", "dir_deg"), ("deg_reduce",))
    depth, dir_deg = variables["depth"], variables["dir_deg"]
    if depth.ndim != 2 or depth.shape != dir_deg.shape:
        raise DataError(f"depth is {depth.shape} and dir_deg {dir_deg.shape}; expected (H, W) "
                        "twice", shown(path))
    _require_size(depth.shape, size, path)
    step = (float(variables["deg_reduce"].ravel()[0]) if "deg_reduce" in variables
            else DEGREES_PER_STEP)
    return depth, stored_angle(dir_deg, step)


def write_distance_maps(path: str | os.PathLike, depth: np.ndarray, dir_deg: np.ndarray):
    """Write the result of utils.segfix.targets.distance_maps, completely or not at all."""
    _write(path, dir_deg=dir_deg, depth=depth, deg_reduce=DEGREES_PER_STEP)


class MatFolder:
    """Finds the `.mat` file of an image or label by its name, in a folder and its subfolders.

    A name may contain folders and an extension. The file with the same folders and name is
    preferred. Otherwise the only file with that name is taken; endings of Cityscapes
    (`_leftImg8bit`, `_gtFine_labelIds`, `_pred`) are ignored.
    Raises DataError for a folder without `.mat` files.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError("no such folder of offset files", shown(folder),
                            "give the folder with one .mat file per image")
        self._paths: dict[str, list[Path]] = {}
        for path in picture_files(self.folder, (SUFFIX,)):
            self._paths.setdefault(plain_name(path.name), []).append(path)
        if not self._paths:
            raise DataError("contains no .mat file", shown(folder),
                            "give the folder with one .mat file per image")

    def find(self, name: str) -> Path:
        """Returns the file of an image. Raises DataError if there is none, or more than one."""
        exact = self.folder / PurePath(name).parent / f"{_without_suffix(name)}{SUFFIX}"
        candidates = self._paths.get(plain_name(name), [])
        if exact in candidates:
            return exact
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise DataError(f"{len(candidates)} offset files may belong to {shown(name)}: "
                            f"{listed(candidates, 3, text=shown)}",
                            shown(self.folder), "give a folder that contains only one of them")
        raise UnreadableFile(f"no offset file for {shown(name)}", shown(exact))


def part_of_split(folder: str | os.PathLike, split: str | None, kind: str | None = None) -> Path:
    """Returns the subfolder of a split in the published layout, or the folder itself.

    FOLDER/SPLIT or FOLDER/SPLIT_offset, then offset_pred/, then the folder `kind` ("semantic",
    "instance"). Levels that do not exist are skipped.
    """
    folder = Path(folder)
    steps = [(split, f"{split}_offset")] if split else []
    for names in (*steps, ("offset_pred",), *([(kind,)] if kind else [])):
        folder = next((folder / name for name in names if (folder / name).is_dir()), folder)
    return folder


def plain_name(name: str) -> str:
    """Returns a file name without folders, image or .mat extension, and Cityscapes' endings."""
    name = _without_suffix(name)
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def _without_suffix(name):
    """Returns the last part of a path without its extension.

    Only known extensions are removed: the name of a sample may contain a dot.
    """
    name = PurePath(name).name
    return name.rpartition(".")[0] if name.lower().endswith(_SUFFIXES) else name


def _variables(path, required, optional=()):
    """Returns the variables of a MATLAB file by name. Raises DataError if one is missing."""
    import scipy.io
    data = io.BytesIO(read_bytes(path))     # in memory, because scipy leaves a damaged file open
    try:
        found = scipy.io.loadmat(data, variable_names=(*required, *optional))
    except MemoryError:                     # says nothing about the file
        raise
    except Exception as error:                  # scipy's parser raises many types on bad bytes
        size = data.getbuffer().nbytes
        raise UnreadableFile(f"damaged, or not a MATLAB file ({size} bytes): {first_line(error)}",
                             shown(path)) from None
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"contains no variable {missing[0]!r}", shown(path),
                        "give offset files of SegFix" if required == ("mat",)
                        else "give distance maps, as python -m tools.segfix_targets writes them")
    return found


def _write(path, **variables):
    import scipy.io
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=True)
    write_bytes(path, buffer.getbuffer())


def _require_size(found, size, path):
    if size is not None and tuple(found) != tuple(size):
        raise DataError(f"is {size_text(found)}, the image is {size_text(size)} (height x width)",
                        shown(path), "give offsets that were made for images of this size")
