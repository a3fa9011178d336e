"""Refining label files of any program: grey, palette or colour in, the same kind out."""
import io
import os

import numpy as np

from utils.errors import DataError
from utils.image_io import (FORMATS, LABEL_SUFFIXES, make_folder, read_image, read_label, shown,
                            write_image, write_label)
from utils.image_list import find_images, plan_outputs
from utils.segfix import CITYSCAPES_IDS, Refinement
from utils.segfix_files import MatFolder, read_offsets

KNOWN_IDS = {"cityscapes": CITYSCAPES_IDS, "ade20k": tuple(range(1, 151))}


def label_jobs(folder: str, out: str) -> list[tuple[str, str, str]]:
    """(label file, its name below the folder, refined file) of every label file."""
    sources = find_images([str(folder)], LABEL_SUFFIXES, leave_out=out)
    planned = plan_outputs(sources, out, [".png"])
    return [(source.path, source.relative, paths[".png"])
            for source, paths in zip(sources, planned, strict=True)]


def refine_label_file(job: tuple[str, str, str], files: MatFolder, scale: float = 2.0,
                      ids: str = "keep") -> tuple[int, int]:
    """Write one refined file; (changed pixels, pixels). DataError: it cannot be done.

    ids: "cityscapes" or "ade20k": values that are no class of the benchmark become 255.
    """
    path, name, out = job
    kind, palette = _kind(path)
    labels = read_image(path) if kind == "colour" else read_label(path)
    if ids != "keep":
        if kind == "colour":
            raise DataError("is a colour picture: it holds no ids", shown(path), "use --ids keep")
        labels = with_known_ids(labels, ids)
    offset = read_offsets(files.find(name), labels.shape[:2])
    refined = Refinement(offset, scale)(labels)
    make_folder(os.path.dirname(out))
    if kind == "palette":
        write_label(out, refined, palette)
    else:
        write_image(out, refined)
    changed = refined != labels
    return int(np.count_nonzero(changed.any(axis=2) if changed.ndim == 3 else changed)), \
        refined.shape[0] * refined.shape[1]


def with_known_ids(labels: np.ndarray, benchmark: str) -> np.ndarray:
    """uint8 (H, W): the label ids that a benchmark evaluates, 255 in place of all others."""
    import cv2
    table = np.full(256, 255, np.uint8)
    table[list(KNOWN_IDS[benchmark])] = KNOWN_IDS[benchmark]
    if labels.dtype != np.uint8:
        labels = np.minimum(labels, 255).astype(np.uint8)
    return cv2.LUT(labels, table)


def _kind(path):
    """("grey" | "palette" | "colour", the colours of a palette) by the header of a picture."""
    from PIL import Image
    try:
        with open(path, "rb") as file:
            image = Image.open(io.BytesIO(file.read()), formats=FORMATS)
    except Exception:           # read_label says what is wrong with the file
        return "grey", []
    if image.mode == "P":
        return "palette", np.reshape(image.getpalette("RGB"), (-1, 3)).tolist()
    return ("colour" if image.mode in ("RGB", "RGBA", "CMYK", "YCbCr") else "grey"), []
