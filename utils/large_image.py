"""Images too large for a map of logits: windows come and go, labels go to a file.

What is in memory at a time is the decoded image (3 bytes per pixel, less where
it can be mapped from its file), a block of logits, and a strip of the result.
"""
import os
import tempfile
from collections.abc import Callable

import numpy as np
import torch

from utils.decision import Decision
from utils.errors import DataError
from utils.image_io import shown
from utils.open_model import OpenModel
from utils.png_strips import PngStrips
from utils.prediction_files import (LABELS, MASKS, OVERLAY, PROBABILITIES, SIDE_BY_SIDE,
                                    make_folders, mask_names)
from utils.predictor import Predictor
from utils.visualize import GAP, overlay, side_by_side

LARGE_PIXELS = 1 << 25      # from here on an image is streamed, where its mode allows it
STRIP_PIXELS = 1 << 22      # of the result that are coloured and written at a time


def is_streamed(height: int, width: int, predictor: Predictor) -> bool:
    """Whether an image of this size is segmented by `segment_large`."""
    return (height * width >= LARGE_PIXELS and predictor.mode == "sliding"
            and predictor.scales == (1.0,) and predictor.crop_size is not None)


def segment_large(image: np.ndarray, paths: dict[str, str], opened: OpenModel,
                  predictor: Predictor, decision: Decision,
                  heed: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Segment an image (H, W, 3) by streamed windows and write what `paths` asks for.

    heed: called between windows; what it raises ends the work, and no file is left.
    returns: class name -> share of the pixels. The labels are those that the whole
    image at once gives.
    Raises DataError for products and rules that need all logits at once.
    """
    _refuse_what_needs_everything(paths, decision)
    make_folders(paths)
    height, width = image.shape[:2]
    classes = len(opened.class_names)
    kind = np.uint8 if classes <= 256 else np.uint16
    folder = os.path.dirname(next(iter(paths.values())))
    try:
        with tempfile.TemporaryFile(prefix=".part-", dir=folder or ".") as file:
            labels = np.memmap(file, kind, "w+", shape=(height, width))

            def keep(rows, columns, logits):
                heed()
                with torch.inference_mode():
                    labels[rows, columns] = decision.labels(logits)[0].cpu().numpy()
            predictor.in_blocks(image, opened.device, keep)
            return _write(paths, image, labels, opened, heed)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror or error}", shown(folder or "."),
                        "check that the folder is writable and has room") from None


def _write(paths, image, labels, opened, heed):
    height, width = labels.shape
    names, palette = opened.class_names, opened.palette
    masks = [os.path.join(paths[MASKS], name) for name in mask_names(names)] \
        if MASKS in paths else []
    files = [PngStrips(path, height, width, "mask") for path in masks]
    try:
        if OVERLAY in paths:
            files.append(PngStrips(paths[OVERLAY], height, width, "rgb"))
        if SIDE_BY_SIDE in paths:
            files.append(PngStrips(paths[SIDE_BY_SIDE], height, 2 * width + GAP, "rgb"))
        files.append(PngStrips(paths[LABELS], height, width,
                               "palette" if labels.dtype == np.uint8 else "grey16", palette))
        counts = np.zeros(len(names), np.int64)
        step = max(1, STRIP_PIXELS // width)
        for top in range(0, height, step):
            heed()
            strip = np.array(labels[top:top + step])
            counts += np.bincount(strip.ravel(), minlength=len(names))
            parts = [strip == k for k in range(len(masks))]
            if OVERLAY in paths or SIDE_BY_SIDE in paths:
                colours = np.asarray(image[top:top + step])
                mixed = overlay(colours, strip, palette)
                parts += [mixed] if OVERLAY in paths else []
                parts += [side_by_side(colours, mixed)] if SIDE_BY_SIDE in paths else []
            for file, part in zip(files, [*parts, strip], strict=True):
                file.write(part)
        for file in files:      # the label map last: where it is, the rest is too
            file.close()
    finally:
        for file in files:
            file.discard()      # nothing, where it was closed
    return {name: count / labels.size
            for name, count in zip(names, counts.tolist(), strict=True) if count}


def _refuse_what_needs_everything(paths, decision):
    if decision.name not in ("max", "T"):
        raise DataError(f"the rule {decision.name} needs all logits of an image at once, and this "
                        "one is streamed: use -p max")
    if PROBABILITIES in paths or (MASKS in paths and decision.masks):
        what = "--probabilities" if PROBABILITIES in paths else f"--masks of rule {decision.name}"
        raise DataError(f"{what} of a streamed image would not fit into memory: leave it out, or "
                        "cut the image up")
