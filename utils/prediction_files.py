"""The files that the prediction for one image becomes.

Each is written whole or not at all, so that a file that is there is finished.
"""
import io
import os

import numpy as np

from utils.errors import DataError
from utils.image_io import shown, write_bytes, write_image, write_label
from utils.visualize import overlay, side_by_side

LABELS, OVERLAY, SIDE_BY_SIDE = ".png", "_overlay.png", "_side_by_side.png"
PROBABILITIES, MASKS = "_probabilities.npz", "_masks.npz"


def write_prediction(paths: dict[str, str], image: np.ndarray, labels: np.ndarray,
                     class_names: list[str], palette: list,
                     probabilities: np.ndarray | None = None, masks: np.ndarray | None = None):
    """Write every product that `paths` (suffix -> path) asks for.

    image: uint8 (H, W, 3). labels: (H, W) class ids.
    LABELS        palette PNG: class ids and colours in one file
    OVERLAY       the colours over the image
    SIDE_BY_SIDE  the image beside that
    PROBABILITIES npz: "probabilities" uint8 (C, H, W), 255 means 1; "class_names"
    MASKS         npz: "masks" bool (C, H, W), which may overlap; "class_names"
    Raises DataError naming the file that cannot be written.
    """
    for folder in {os.path.dirname(path) for path in paths.values()}:
        try:
            os.makedirs(folder or ".", exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make the folder: {error.strerror}", shown(folder),
                            "choose another output folder with -o") from None
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
        _write_npz(paths[MASKS], masks=masks, class_names=class_names)
    if LABELS in paths:
        write_label(paths[LABELS], labels, palette)


def _write_npz(path, class_names, **arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, class_names=np.array(class_names, dtype=np.str_), **arrays)
    write_bytes(path, buffer.getbuffer())
