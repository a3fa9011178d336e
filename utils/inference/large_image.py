"""Segments images whose logits do not fit into memory.

The network runs window by window, and the labels go to a temporary file. The memory holds the
decoded image (3 bytes per pixel, less if it can be mapped from its file), a block of logits, and a
strip of the result.
"""
import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Collection
from typing import TypeAlias

import numpy as np
import torch

from utils.decision.ensemble import Ensemble
from utils.decision.rules import Decision
from utils.decision.stored_scores import write_probabilities
from utils.errors import DataError, shown
from utils.files.whole_file import UNFINISHED
from utils.images.georeference import Georeference, write_label_tiff
from utils.images.png_strips import PngStrips
from utils.images.types import Image
from utils.images.visualize import GAP, MOST_LISTED, overlay, side_by_side, widened
from utils.inference.prediction_files import (
    CONFIDENCE,
    ENTROPY,
    GEOTIFF,
    LABELS,
    MASKS,
    OVERLAY,
    PROBABILITIES,
    SIDE_BY_SIDE,
    as_stored,
    class_counts,
    class_shares,
    gray_text,
    legend_below,
    make_folders,
    mask_names,
)
from utils.machine.tensors import Logits
from utils.predict.open_model import OpenModel
from utils.predict.predictor import Predictor

MapsOf: TypeAlias = Callable[[Logits, Collection[str]], dict[str, np.ndarray]]
LARGE_PIXELS = 1 << 25      # images of at least this size are streamed, if the mode allows it
STRIP_PIXELS = 1 << 22      # pixels of the result that are colored and written at a time


def is_streamed(height: int, width: int, predictor: Predictor | Ensemble,
                possible: bool = True) -> bool:
    """Returns whether an image of this size is segmented by `segment_large`.

    possible: whether the outputs can be made from parts of the logits (`unstreamable`). Otherwise
        an image that the network sees at another size is not streamed: its logits may fit into
        memory.
    """
    if isinstance(predictor, Ensemble):
        return (all(is_streamed(height, width, member.predictor, possible)
                    for member in predictor.members) and predictor.cuts_alike(height, width))
    if height * width < LARGE_PIXELS or predictor.seen_at is not None:
        return False
    if predictor.view(height, width) is not None:
        return possible
    return (predictor.mode == "sliding" and predictor.scales == (1.0,)
            and predictor.crop_size is not None and not predictor.mirrors_views)


def segment_large(image: Image, paths: dict[str, str], opened: OpenModel,
                  predictor: Predictor | Ensemble, decision: Decision,
                  check_stop: Callable[[], None] = lambda: None,
                  maps_of: MapsOf = lambda logits, wanted: {},
                  stored_as: tuple[str, str] = ("softmax", ""),
                  legend: bool = True, georeference: Georeference | None = None) \
        -> dict[str, float]:
    """Segment an image (H, W, C) window by window and write the outputs in `paths`.

    The image is as the network takes it. The labels equal those of the whole image at once.
    paths: suffix -> path, as in `write_prediction`.
    check_stop: called between windows and strips; if it raises, no file is left.
    maps_of: (logits (1, C, h, w), suffixes) -> {suffix: array (1, ..., h, w)} of further outputs.
    stored_as, legend, georeference: as in `write_prediction`.
    Returns class name -> share of the pixels. Raises DataError for outputs and rules that need all
    logits at once, and for a file that cannot be written, NumericalError for logits that are not
    finite.
    """
    reason = unstreamable(paths, decision)
    if reason:
        raise DataError(reason)
    make_folders(paths)
    height, width = image.shape[:2]
    # One more than the classes is compared with, and `void` is stored.
    dtype = np.uint8 if max(len(opened.class_names), decision.void or 0) < 256 else np.uint16
    folder = os.path.dirname(next(iter(paths.values())))
    try:
        with contextlib.ExitStack() as files:
            def mapped(dtype, *shape):
                return _mapped(files, folder, dtype, shape)
            labels, maps = mapped(dtype, height, width), {}

            def store(rows, columns, logits):
                check_stop()
                with torch.inference_mode():
                    labels[rows, columns] = decision.label_map(logits)[0].cpu().numpy()
                    for suffix, part in maps_of(logits, paths).items():
                        if suffix not in maps:
                            maps[suffix] = mapped(part.dtype, *part.shape[1:-2], height, width)
                        maps[suffix][..., rows, columns] = part[0]
            predictor.in_blocks(image, opened.device, store)
            predictor.require_finite([folder])
            if PROBABILITIES in paths:
                write_probabilities(paths[PROBABILITIES], maps[PROBABILITIES], opened.class_names,
                                    opened.palette, *stored_as)
            for suffix in {CONFIDENCE, ENTROPY} & paths.keys():
                with PngStrips(paths[suffix], height, width, "gray",
                               description=gray_text(suffix, stored_as[0])) as png:
                    step = max(1, STRIP_PIXELS // width)
                    for top in range(0, height, step):
                        check_stop()
                        png.write(maps[suffix][top:top + step])
            if GEOTIFF in paths:
                write_label_tiff(paths[GEOTIFF], labels, opened.palette, georeference,
                                 opened.label_ids)
            return _write(paths, image, labels, opened, check_stop, legend)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror or error}", shown(folder or "."),
                        "check that the folder is writable and has room") from None


def unstreamable(paths: Collection[str], decision: Decision) -> str | None:
    """Returns why outputs or the rule need all logits of an image at once, or None."""
    if decision.name not in ("max", "T"):
        return (f"the rule {decision.name} needs all logits of an image at once, but this "
                "image is streamed: use -p max")
    if MASKS in paths and decision.masks:
        return (f"--masks of rule {decision.name} of a streamed image would not fit into memory: "
                "leave it out, or cut the image into parts")
    return None


def _mapped(files, folder, dtype, shape):
    """An array in a temporary file that `files`, an ExitStack, closes. Raises OSError if the disk
    has no room: writing into a mapped file that cannot grow would end the program.
    """
    file = files.enter_context(tempfile.TemporaryFile(prefix=UNFINISHED, dir=folder or "."))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.memmap(file, dtype, "w+", shape=shape)


def _write(paths, image, labels, opened, check_stop, legend):
    """Write all output files strip by strip. Returns class name -> share of the pixels."""
    height, width = labels.shape
    names, palette = opened.class_names, opened.palette
    masks = [os.path.join(paths[MASKS], name) for name in mask_names(names)] \
        if MASKS in paths else []
    step = max(1, STRIP_PIXELS // width)
    counts = np.zeros(len(names) + 1, np.int64)
    pictures = {suffix: wide for suffix, wide in ((OVERLAY, width), (SIDE_BY_SIDE, 2 * width + GAP))
                if suffix in paths}
    if pictures and legend and len(names) > MOST_LISTED:    # it lists the classes that occur
        for top in range(0, height, step):
            check_stop()
            counts += class_counts(np.array(labels[top:top + step]), len(names))
    # The legend of each picture, which is as wide; without a legend it has no height.
    legends = {suffix: legend_below(wide, names, palette, counts) if legend else
               np.zeros((0, wide, 3), np.uint8) for suffix, wide in pictures.items()}
    counts[:] = 0
    files = [PngStrips(path, height, width, "mask") for path in masks]
    try:
        for suffix, strip in legends.items():
            files.append(PngStrips(paths[suffix], height + len(strip), strip.shape[1], "rgb"))
        first, stored_palette = as_stored(labels[:1], palette, opened.label_ids)
        files.append(PngStrips(paths[LABELS], height, width,
                               "palette" if first.dtype == np.uint8 else "gray16", stored_palette))
        for top in range(0, height, step):
            check_stop()
            strip = np.array(labels[top:top + step])
            counts += class_counts(strip, len(names))
            parts = [strip == k for k in range(len(masks))]
            if pictures:
                original = opened.normalize.picture(np.asarray(image[top:top + step]))
                mixed = overlay(original, strip, palette)
                colored = {OVERLAY: mixed}
                if SIDE_BY_SIDE in pictures:
                    colored[SIDE_BY_SIDE] = side_by_side(original, mixed)
                parts += [widened(colored[suffix], below.shape[1])
                          for suffix, below in legends.items()]
            strip, _ = as_stored(strip, palette, opened.label_ids)
            for file, part in zip(files, [*parts, strip], strict=True):
                file.write(part)
        for file, below in zip(files[len(masks):], legends.values(), strict=False):
            if len(below):
                file.write(below)
        for file in files:      # the label map last: where it exists, the other files do too
            file.finish()
    finally:
        for file in files:
            file.discard()      # does nothing after finish
    return class_shares(counts, names)
