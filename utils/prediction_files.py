"""The files that the prediction for one image becomes.

Each is written whole or not at all, so that a file that is there is finished.
"""
import io
import os
import re

import numpy as np

from utils.image_io import make_folder, write_bytes, write_image, write_label
from utils.png_strips import PngStrips
from utils.visualize import overlay, side_by_side

LABELS, OVERLAY, SIDE_BY_SIDE = ".png", "_overlay.png", "_side_by_side.png"
PROBABILITIES, MASKS = "_probabilities.npz", "_masks"


def write_prediction(paths: dict[str, str], image: np.ndarray, labels: np.ndarray,
                     class_names: list[str], palette: list,
                     probabilities: np.ndarray | None = None, masks: np.ndarray | None = None):
    """Write every product that `paths` (suffix -> path) asks for.

    image: uint8 (H, W, 3). labels: (H, W) class ids.
    LABELS        palette PNG: class ids and colours in one file
    OVERLAY       the colours over the image
    SIDE_BY_SIDE  the image beside that
    PROBABILITIES npz: "probabilities" uint8 (C, H, W), 255 means 1; "class_names"
    MASKS         a folder with a 1-bit PNG per class (see `mask_names`); masks, bool
                  (C, H, W), may overlap and may leave a pixel to no class
    Raises DataError naming the file that cannot be written.
    """
    make_folders(paths)
    # The label map comes last: where it is, the rest is too.
    if OVERLAY in paths or SIDE_BY_SIDE in paths:
        mixed = overlay(image, labels, palette)
        if OVERLAY in paths:
            write_image(paths[OVERLAY], mixed)
        if SIDE_BY_SIDE in paths:
            write_image(paths[SIDE_BY_SIDE], side_by_side(image, mixed))
    if PROBABILITIES in paths:
        _write_npz(paths[PROBABILITIES], probabilities=probabilities, class_names=class_names)
    if MASKS in paths:
        for name, mask in zip(mask_names(class_names), masks, strict=True):
            with PngStrips(os.path.join(paths[MASKS], name), *mask.shape, "mask") as file:
                file.write(mask)
    if LABELS in paths:
        write_label(paths[LABELS], labels, palette)


def make_folders(paths: dict[str, str]):
    """Make the folders that the results lie in, and the one that the masks are."""
    folders = {os.path.dirname(path) for path in paths.values()}
    for folder in sorted(folders | ({paths[MASKS]} if MASKS in paths else set())):
        make_folder(folder)


def mask_names(class_names: list[str]) -> list[str]:
    """The file of each class's mask: its id and its name, e.g. "07_traffic_light.png"."""
    digits = max(2, len(str(len(class_names) - 1)))
    return [f"{k:0{digits}d}_{re.sub(r'[^0-9A-Za-z-]+', '_', name).strip('_')[:60]}.png"
            for k, name in enumerate(class_names)]


def _write_npz(path, class_names, **arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, class_names=np.array(class_names, dtype=np.str_), **arrays)
    write_bytes(path, buffer.getbuffer())
