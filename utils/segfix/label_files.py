"""Refines label files of any program: gray, palette or color images, which keep their kind."""
import os

import numpy as np

from utils.errors import DataError, shown
from utils.files.whole_file import make_folder
from utils.images.headers import pillow_open
from utils.images.image_io import (
    read_image,
    read_label_and_palette,
    write_image,
    write_label,
)
from utils.images.image_list import find_images, plan_outputs
from utils.images.picture_files import LABEL_SUFFIXES
from utils.metrics.cityscapes_metrics import EVALUATED_IDS
from utils.segfix.mat_files import MatFolder, read_offsets
from utils.segfix.offsets import Refinement

KNOWN_IDS = {"cityscapes": EVALUATED_IDS, "ade20k": tuple(range(1, 151))}


def label_jobs(folder: str | os.PathLike, out: str) -> list[tuple[str, str, str]]:
    """Returns (label file, its path relative to the folder, refined file) of every label file.

    Raises DataError if there is none.
    """
    sources = find_images([str(folder)], LABEL_SUFFIXES, leave_out=out)
    planned = plan_outputs(sources, out, [".png"])
    return [(source.path, source.relative, paths[".png"])
            for source, paths in zip(sources, planned, strict=True)]


def refine_label_file(job: tuple[str, str, str], files: MatFolder, scale: float = 2.0,
                      ids: str = "keep") -> tuple[int, int]:
    """Write one refined label file. Returns (changed pixels, pixels).

    ids: "keep", or a benchmark ("cityscapes" or "ade20k"): other values than its class ids
        become 255.
    Raises DataError if the label or its offset file is missing, damaged, or of another size.
    """
    path, name, out = job
    with pillow_open(path, path) as image:
        color = image.mode in ("RGB", "RGBA", "CMYK", "YCbCr")
    labels, palette = (read_image(path), None) if color else read_label_and_palette(path)
    if ids != "keep":
        if color:
            raise DataError("is a color image without class ids", shown(path), "use --ids keep")
        labels = with_known_ids(labels, ids)
    offset = read_offsets(files.find(name), labels.shape[:2])
    refined = Refinement(offset, scale)(labels)
    make_folder(os.path.dirname(out))
    if palette is not None:
        write_label(out, refined, palette)
    else:
        write_image(out, refined)
    changed = refined != labels
    changed = changed.any(axis=2) if changed.ndim == 3 else changed
    return int(np.count_nonzero(changed)), changed.size


def with_known_ids(labels: np.ndarray, benchmark: str) -> np.ndarray:
    """Returns the labels as uint8 (H, W), with 255 for ids that the benchmark does not evaluate.

    labels: integers (H, W).
    """
    import cv2
    table = np.full(256, 255, np.uint8)
    table[list(KNOWN_IDS[benchmark])] = KNOWN_IDS[benchmark]
    if labels.dtype != np.uint8:
        labels = np.minimum(labels, 255).astype(np.uint8)
    return cv2.LUT(labels, table)
