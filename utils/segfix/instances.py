"""Refines Cityscapes instance results: one text file per image, one mask per line.

NAME_pred.txt contains lines "MASK LABEL_ID SCORE". MASK is the path of an image, relative to the
folder of the text file; its pixels are not 0 inside the instance.
"""
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import DataError, shown, size_text
from utils.files.whole_file import make_folder, write_bytes
from utils.images.headers import read_bytes
from utils.images.image_io import read_label
from utils.segfix.mat_files import MatFolder, read_offsets
from utils.segfix.offsets import Refinement

ENDING = "_pred.txt"
GROUND_TRUTH = "gtInstances.json"


class InstanceLine(NamedTuple):
    """One line of a text file. mask: a path relative to the folder of the file. where: FILE:LINE"""

    mask: str
    label_id: str
    score: str
    where: str


def instance_lines(path: Path, text: bytes) -> list[InstanceLine]:
    """The lines of the text file `path` with the content `text`; empty ones are left out.

    Raises DataError if a line is not "MASK LABEL_ID SCORE", or its mask outside the folder.
    """
    lines = text.decode("utf-8", "surrogateescape").splitlines()
    return [_line(line, f"{shown(path)}:{number}") for number, line in enumerate(lines, 1)
            if line.strip()]


def instance_jobs(folder: str | os.PathLike, out: str | os.PathLike) -> list[tuple[str, str, Path]]:
    """Returns (text file, its path relative to the folder, refined text file) of every image.

    Raises DataError if there is no text file, or if `out` is the folder itself.
    """
    folder, results = Path(folder), os.path.realpath(out)
    if not folder.is_dir():
        raise DataError("no such folder of instance results", shown(folder))
    if os.path.realpath(folder) == results:
        raise DataError("the results would overwrite the input", shown(out),
                        "choose another folder with -o")
    paths = [path for path in sorted(folder.rglob(f"*{ENDING}"))
             if not os.path.realpath(path).startswith(results + os.sep)]
    if not paths:
        raise DataError(f"contains no *{ENDING}", shown(folder),
                        "give a folder of Cityscapes instance results")
    return [(str(path), str(path.relative_to(folder)), Path(out) / path.relative_to(folder))
            for path in paths]


def refine_instances(job: tuple[str, str, Path], files: MatFolder, scale: float = 1.0) \
        -> tuple[int, int]:
    """Refine the masks of one image and copy its text file. Returns (changed pixels, pixels).

    Raises DataError if a mask or the offset file is missing, damaged, or of another size; then
    nothing is written for this image.
    """
    import cv2
    path, name, out = Path(job[0]), job[1], job[2]
    text = read_bytes(path)
    masks, move = [], None
    for mask_name, *_ in instance_lines(path, text):
        mask = read_label(path.parent / mask_name) != 0
        if move is None:
            offset_path = files.find(name.removesuffix(ENDING))
            move = Refinement(read_offsets(offset_path, mask.shape), scale)
        elif mask.shape != move.size:
            raise DataError(f"is {size_text(mask.shape)}, the masks before it are "
                            f"{size_text(move.size)} (height x width)",
                            shown(path.parent / mask_name))
        masks.append((mask_name, mask, move(mask)))
    for mask_name, _, refined in masks:
        target = out.parent / mask_name
        make_folder(target.parent)
        # A PNG, even if the name of the mask has another extension.
        write_bytes(target, cv2.imencode(".png", refined.view(np.uint8) * np.uint8(255))[1].data)
    make_folder(out.parent)
    write_bytes(out, text)
    return (sum(int(np.count_nonzero(old != new)) for _, old, new in masks),
            sum(new.size for *_, new in masks))


def copy_ground_truth(folder: str | os.PathLike, out: str | os.PathLike):
    """Copy gtInstances.json, if it exists, with its paths changed to the output folder.

    Raises DataError if it is not JSON.
    """
    source = Path(folder) / GROUND_TRUTH
    if not source.is_file():
        return
    try:
        instances = json.loads(source.read_bytes())
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", shown(source)) from None
    old, new = os.path.abspath(folder), os.path.abspath(out)
    moved = json.dumps(_moved(instances, [str(folder), old], new))
    write_bytes(Path(out) / GROUND_TRUTH, moved.encode())


def _moved(value, old, new):
    """Returns a JSON value in which strings that begin with an old folder name the new folder."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str):
        for folder in old:
            folder = folder.rstrip("/")
            if value == folder or value.startswith(folder + "/"):
                return new + value[len(folder):]
    return value


def _line(line, where):
    words = line.rsplit(None, 2)
    if len(words) != 3:
        raise DataError(f"expected a mask file, a label id and a score, found {shown(line)!r}",
                        where)
    name = words[0].strip()
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise DataError(f"the mask {shown(name)} is outside the folder of the results", where,
                        "give paths relative to that folder")
    return InstanceLine(name, words[1], words[2], where)
