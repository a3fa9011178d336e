"""The MATLAB files of SegFix: offsets, and the distance maps of the ground truth.

One `.mat` per image under the name of the image (openseg-group/openseg.pytorch):

    offsets         mat      (H, W, 2) integers or floats, (dy, dx)
    distance maps   depth, dir_deg (H, W) uint8 and the scalar deg_reduce: the angle
                    is deg_reduce · dir_deg - 180 degrees
"""
import io
import os
from pathlib import Path, PurePath

import numpy as np

from utils.errors import DataError, first_line
from utils.image_io import IMAGE_SUFFIXES, UnreadableFile, picture_files, shown, write_bytes
from utils.segfix import DEGREES_PER_STEP, stored_angle

SUFFIX = ".mat"
_SUFFIXES = (SUFFIX, ".txt", *IMAGE_SUFFIXES)
_ENDINGS = ("_pred", "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds",
            "_gtFine_instanceIds")


def read_offsets(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """The offsets (H, W, 2), (dy, dx), of a file, in the dtype they are stored in.

    size: the (H, W) they must have. Raises DataError naming the file that is
    missing, damaged, no offset file or of another size.
    """
    offset = _variables(path, ("mat",))["mat"]
    if offset.ndim != 3 or offset.shape[2] != 2 or offset.dtype.kind not in "iuf":
        raise DataError(f"holds {offset.dtype} of shape {offset.shape}, not the (H, W, 2) numbers "
                        "of an offset map", shown(path))
    if offset.dtype.kind == "f" and not np.isfinite(offset).all():
        raise DataError("holds offsets that are not finite", shown(path))
    _require_size(offset.shape[:2], size, path)
    return offset


def write_offsets(path: str | os.PathLike, offset: np.ndarray):
    """Write offsets (H, W, 2) as int32, as the published files have them, whole or not at all."""
    _write(path, mat=np.ascontiguousarray(offset, np.int32))


def read_distance_maps(path: str | os.PathLike, size: tuple[int, int] | None = None) \
        -> tuple[np.ndarray, np.ndarray]:
    """(depth uint8 (H, W), angle float32 (H, W) in degrees) of a ground-truth file."""
    found = _variables(path, ("depth", "dir_deg"), ("deg_reduce",))
    depth, dir_deg = found["depth"], found["dir_deg"]
    if depth.ndim != 2 or depth.shape != dir_deg.shape:
        raise DataError(f"depth is {depth.shape} and dir_deg {dir_deg.shape}; expected (H, W) "
                        "twice", shown(path))
    _require_size(depth.shape, size, path)
    step = float(found["deg_reduce"].ravel()[0]) if "deg_reduce" in found else DEGREES_PER_STEP
    return depth, stored_angle(dir_deg, step)


def write_distance_maps(path: str | os.PathLike, depth: np.ndarray, dir_deg: np.ndarray):
    """Write what utils.segfix.distance_maps gave, whole or not at all."""
    _write(path, dir_deg=dir_deg, depth=depth, deg_reduce=DEGREES_PER_STEP)


class MatFolder:
    """The `.mat` files below a folder, found by the name of an image or a label.

    A name may have folders and an extension. The file is the one at this very
    place, or else the only one of this name, Cityscapes' endings aside
    (`_leftImg8bit`, `_gtFine_labelIds`, `_pred`).
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError("no such folder of offset files", shown(folder),
                            "give the folder that holds one .mat per image")
        self._paths = {}
        for path in picture_files(self.folder, (SUFFIX,)):
            self._paths.setdefault(plain_name(path.name), []).append(path)
        if not self._paths:
            raise DataError("holds no .mat file", shown(folder),
                            "give the folder that holds one .mat per image")

    def find(self, name: str) -> Path:
        """The file of an image. Raises DataError where there is none, or two would do."""
        exact = self.folder / PurePath(name).parent / f"{_without_suffix(name)}{SUFFIX}"
        candidates = self._paths.get(plain_name(name), [])
        if exact in candidates:
            return exact
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise DataError(f"{len(candidates)} offset files could belong to {shown(name)}: "
                            f"{', '.join(shown(path) for path in candidates[:3])}",
                            shown(self.folder), "give a folder that holds one of them")
        raise UnreadableFile(f"no offset file for {shown(name)}", shown(exact))


def part_of_split(folder: str | os.PathLike, split: str | None, kind: str | None = None) -> Path:
    """The part of a folder that belongs to a split, by the published trees; else the folder.

    FOLDER/SPLIT or FOLDER/SPLIT_offset, with offset_pred/ below it, and with kind
    ("semantic", "instance") that folder below, each where it is there.
    """
    folder = Path(folder)
    steps = [(split, f"{split}_offset")] if split else []
    for names in (*steps, ("offset_pred",), *([(kind,)] if kind else [])):
        folder = next((folder / name for name in names if (folder / name).is_dir()), folder)
    return folder


def plain_name(name: str) -> str:
    """A file's name without folders, a picture's or .mat extension and Cityscapes' endings."""
    name = _without_suffix(name)
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def _without_suffix(name):
    """The last part of a path; another dot may belong to the name of a sample without extension."""
    name = PurePath(name).name
    return name.rpartition(".")[0] if name.lower().endswith(_SUFFIXES) else name


def _variables(path, required, optional=()):
    import scipy.io
    try:
        with open(path, "rb") as file:
            # Read at once: scipy closes files of its own late when a file is damaged.
            data = io.BytesIO(file.read())
    except OSError as error:
        raise UnreadableFile(f"cannot be opened: {error.strerror or error}", shown(path)) from None
    try:
        found = scipy.io.loadmat(data, variable_names=(*required, *optional))
    except Exception as error:                  # its parser raises many types on bad bytes
        size = data.getbuffer().nbytes
        raise UnreadableFile(f"damaged, or no MATLAB file ({size} bytes): {first_line(error)}",
                             shown(path)) from None
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"holds no variable {missing[0]!r}", shown(path),
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
        raise DataError(f"is {found[1]}x{found[0]}, the image is {size[1]}x{size[0]}",
                        shown(path), "offsets serve images of their own size only")
