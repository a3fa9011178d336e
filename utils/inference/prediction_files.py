"""Writes the files that contain the prediction for one image.

Each file is written completely or not at all, so a file that exists is finished.
"""
import argparse
import io
import os
import re

import numpy as np

from utils.decision.stored_scores import write_probabilities
from utils.files.whole_file import make_folder, write_bytes
from utils.images.georeference import Georeference, write_label_tiff
from utils.images.image_io import write_image, write_label
from utils.images.png_strips import PngStrips
from utils.images.types import Image, Labels
from utils.images.visualize import (
    legend_strip,
    listed_classes,
    overlay,
    side_by_side,
    with_strip,
)

LABELS, OVERLAY, SIDE_BY_SIDE = ".png", "_overlay.png", "_side_by_side.png"
PROBABILITIES, MASKS = "_probabilities.npz", "_masks"
VOLUME, VOLUME_MASKS = ".npy", "_masks.npy"
CONFIDENCE, ENTROPY = "_confidence.png", "_entropy.png"
GEOTIFF = ".tif"
OF_PROBABILITIES = (PROBABILITIES, CONFIDENCE, ENTROPY)

# The text in a file of utils.decision.confidence.
CONFIDENCE_TEXT = "confidence: the largest probability of the pixel is the value / 255"
ENTROPY_TEXT = {
    "softmax": "entropy: sum of -p ln p over the C classes, divided by ln C, is the value / 255",
    "sigmoid": "entropy: mean over the classes of -(p ln p + (1 - p) ln(1 - p)) / ln 2 is the "
               "value / 255"}


def wanted_outputs(args: argparse.Namespace) -> list[str]:
    """The suffixes of the output files that the arguments of inference.py ask for."""
    return [LABELS] + [suffix for suffix, wanted in (
        (GEOTIFF, args.geotiff),
        (OVERLAY, args.overlay), (SIDE_BY_SIDE, args.side_by_side),
        (PROBABILITIES, args.probabilities), (CONFIDENCE, args.confidence),
        (ENTROPY, args.entropy), (MASKS, args.masks)) if wanted]


def write_prediction(paths: dict[str, str], image: Image | None, labels: Labels,
                     class_names: list[str], palette: list[list[int]],
                     maps: dict[str, np.ndarray] | None = None,
                     label_ids: list[int] | None = None,
                     stored_as: tuple[str, str] = ("softmax", ""), legend: bool = True,
                     georeference: Georeference | None = None):
    """Write every output that `paths` (suffix -> path) contains.

    image: uint8 (H, W, 3), RGB; None without OVERLAY and SIDE_BY_SIDE. labels: class ids (H, W), of
    a volume (D, H, W), whose outputs are only the last two.
    LABELS        palette PNG: class ids and colors in one file
    OVERLAY       the colors of the labels over the image
    SIDE_BY_SIDE  the image to the left of that; legend: both have a legend below the picture
    PROBABILITIES npz, see utils.decision.stored_scores; maps: float16 or uint8 (C, H, W)
    MASKS         a folder with a 1-bit PNG per class (see `mask_names`); maps: bool
                  (C, H, W), may overlap and may leave pixels without a class
    CONFIDENCE    gray PNG (utils.decision.confidence); maps: uint8 (H, W). ENTROPY: the same
    GEOTIFF       TIFF of the labels, see utils.images.georeference
    VOLUME        npy: class ids (D, H, W). VOLUME_MASKS: npy; maps: bool (C, D, H, W)
    maps: suffix -> array; required of PROBABILITIES and the rest if `paths` contains them.
    label_ids: what LABELS holds for each class; None: class ids. stored_as: activation and
    posterior of PROBABILITIES. georeference: of GEOTIFF, if there is one.
    Raises DataError naming the file that cannot be written.
    """
    make_folders(paths)
    maps = maps or {}
    if OVERLAY in paths or SIDE_BY_SIDE in paths:
        assert image is not None
        mixed = overlay(image, labels, palette)
        pictures = {OVERLAY: mixed}
        if SIDE_BY_SIDE in paths:
            pictures[SIDE_BY_SIDE] = side_by_side(image, mixed)
        counts = class_counts(labels, len(class_names))
        for suffix in pictures.keys() & paths.keys():
            picture = pictures[suffix]
            if legend:
                picture = with_strip(picture, legend_below(picture.shape[1], class_names, palette,
                                                           counts))
            write_image(paths[suffix], picture)
    if PROBABILITIES in paths:
        write_probabilities(paths[PROBABILITIES], maps[PROBABILITIES], class_names, palette,
                            *stored_as)
    for suffix in {CONFIDENCE, ENTROPY} & paths.keys():
        height, width = maps[suffix].shape
        with PngStrips(paths[suffix], height, width, "gray",
                       description=gray_text(suffix, stored_as[0])) as file:
            file.write(maps[suffix])
    if MASKS in paths:
        for name, mask in zip(mask_names(class_names), maps[MASKS], strict=True):
            height, width = mask.shape
            with PngStrips(os.path.join(paths[MASKS], name), height, width, "mask") as file:
                file.write(mask)
    if GEOTIFF in paths:
        write_label_tiff(paths[GEOTIFF], labels, palette, georeference, label_ids)
    if VOLUME_MASKS in paths:
        _write_array(paths[VOLUME_MASKS], maps[VOLUME_MASKS])
    if VOLUME in paths:
        _write_array(paths[VOLUME], labels)
    if LABELS in paths:         # last: where the label map exists, the other files do too
        write_label(paths[LABELS], *as_stored(labels, palette, label_ids))


def _write_array(path, array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getbuffer())


def legend_below(width: int, class_names: list[str], palette: list[list[int]],
                 counts: np.ndarray, lines: int | None = None) -> Image:
    """The legend of an overlay of this width. counts: of its labels, as of `class_counts`.

    lines: of the legend if it cannot list all classes; None: as many as are needed.
    """
    classes = listed_classes(len(class_names), np.flatnonzero(counts[:-1]).tolist())
    return legend_strip(width, class_names, palette, classes, over_photo=True, lines=lines)


def gray_text(suffix: str, activation: str) -> str:
    """What the gray values of the output `suffix`, CONFIDENCE or ENTROPY, mean."""
    return CONFIDENCE_TEXT if suffix == CONFIDENCE else ENTROPY_TEXT[activation]


def as_stored(labels: Labels, palette: list[list[int]], label_ids: list[int] | None) \
        -> tuple[Labels, list[list[int]]]:
    """(labels, palette) of a label map that holds label_ids[k] for class k; None changes nothing.

    Other values of the palette are black.
    """
    if label_ids is None:
        return labels, palette
    wide = np.uint8 if max(label_ids) < 256 else np.uint16
    colors = [[0, 0, 0] for _ in range(max(label_ids) + 1)]
    for value, color in zip(label_ids, palette, strict=True):
        colors[value] = list(color)
    return np.array(label_ids, wide)[labels], colors


def make_folders(paths: dict[str, str]):
    """Create the folders of the output files, and the folder for the masks."""
    folders = {os.path.dirname(path) for path in paths.values()}
    for folder in sorted(folders | ({paths[MASKS]} if MASKS in paths else set())):
        make_folder(folder)


def mask_names(class_names: list[str]) -> list[str]:
    """Returns the file name of each class's mask: its id and name, e.g. "07_traffic_light.png"."""
    digits = max(2, len(str(len(class_names) - 1)))
    words = [re.sub(r"[^\w-]+", "_", name).strip("_")[:45] for name in class_names]
    return [f"{k:0{digits}d}_{word}.png" for k, word in enumerate(words)]


def class_shares(counts: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """Returns class name -> share of the pixels, for the classes that have pixels.

    counts: integers (C + 1,) of `class_counts`.
    """
    total = int(counts.sum())
    return {name: count / total
            for name, count in zip(class_names, counts[:-1].tolist(), strict=True) if count}


def class_counts(labels: Labels, classes: int) -> np.ndarray:
    """The pixels of each class, int64 (C + 1,); the last number is of those without a class."""
    return np.bincount(np.minimum(labels.ravel(), classes), minlength=classes + 1)

