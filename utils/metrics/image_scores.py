"""The table of the scores of each image: built, written as CSV, and read again.

One row per scored image: id, mIoU_I, mDice_I, Pixel_Accuracy (empty for masks, where it is not
defined), Binary_Accuracy, then for each class its IoU and Dice in that image (empty if the class
is in neither target nor prediction) and its numbers of pixels: hits (P & T), predicted (P),
labelled (T). Every dataset-level score, of any subset of the images, can be computed from them.
"""
import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import DataError, shown
from utils.files.whole_file import write_bytes
from utils.metrics.counts import checked_classes

OF_IMAGE = ("mIoU_I", "mDice_I", "Pixel_Accuracy", "Binary_Accuracy")
OF_CLASS = ("IoU", "Dice", "hits", "predicted", "labelled")
LONGEST_NAME = 200      # characters of a class name in the first line; readers refuse long fields


@dataclasses.dataclass
class ImageScores:
    """The scores of N images and C classes.

    ids: N names. image: (N, 4) float64, the columns OF_IMAGE; nan if undefined.
    pixels: (N, 3, C) int64, hits, predicted, labelled; None for scores of the published code,
        whose counts include ignored pixels.
    classes_of_interest: the classes that are averaged by dataset-level means.
    class_names: C names.
    """
    ids: list[str]
    image: np.ndarray
    pixels: np.ndarray | None
    classes_of_interest: list[int]
    class_names: list[str]


def image_scores(image: dict, ids: Sequence[str], class_names: Sequence[str],
                 classes_of_interest: Sequence[int] | str | None = None) -> ImageScores:
    """The table of one rule.

    image: the dict of `ImageMetrics.compute` (`Scores.image`).
    ids: of all images of the dataset, in its order.
    """
    pixels = np.array([image[f"img_{name}"] for name in ("hits", "predicted", "labelled")],
                      np.int64).reshape(3, -1, len(class_names)).swapaxes(0, 1)
    index: list[int] = image["img_index"]
    return ImageScores(
        [ids[i] for i in index],
        np.array(_of_image(image), np.float64).T,
        None if image["published"] else pixels,
        checked_classes(classes_of_interest, len(class_names)), list(class_names))


def write_image_scores(path: str | Path, image: dict, ids: Sequence[str],
                       class_names: Sequence[str]):
    """Writes the CSV of one rule to `path`; the other arguments are those of `image_scores`."""
    kept = OF_CLASS[:2] if image["published"] else OF_CLASS
    # Names on one line, of characters that every program can read: a class or a file may have any.
    ids = [shown(name) for name in ids]
    class_names = [shown(name)[:LONGEST_NAME] for name in class_names]
    columns = [np.array(image[f"img_{name.lower()}"]).reshape(-1, len(class_names))
               for name in kept]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *OF_IMAGE,
                     *(f"{name} {label}" for label in class_names for name in kept)])
    for row, (index, *of_image) in enumerate(zip(image["img_index"], *_of_image(image),
                                                 strict=True)):
        of_class = (column[row, k].item() for k in range(len(class_names)) for column in columns)
        writer.writerow([ids[index], *map(_cell, of_image), *map(_cell, of_class)])
    write_bytes(path, text.getvalue().encode())


def read_image_scores(path: str | Path) -> ImageScores:
    """Reads a CSV that `write_image_scores` has written. Raises DataError for another file."""
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        of_class = header[1 + len(OF_IMAGE):]
        kept = OF_CLASS if f"hits {of_class[0].partition(' ')[2]}" in of_class else OF_CLASS[:2]
        names = [column.partition(" ")[2] for column in of_class[::len(kept)]]
        if tuple(header[:1 + len(OF_IMAGE)]) != ("id", *OF_IMAGE) or \
                of_class != [f"{name} {label}" for label in names for name in kept]:
            raise ValueError(f"unexpected columns {header[:6]} ...")
        values = np.array([[float(cell) if cell else math.nan for cell in row[1:]]
                           for row in rows]).reshape(len(rows), len(header) - 1)
        by_class = values[:, len(OF_IMAGE):].reshape(len(rows), len(names), len(kept))
        pixels = by_class[:, :, 2:].astype(np.int64).transpose(0, 2, 1) \
            if kept == OF_CLASS else None
        if kept == OF_CLASS and not (by_class[:, :, 2:] >= 0).all():
            raise ValueError("a number of pixels is missing or negative")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", str(path)) from None
    except (ValueError, IndexError, csv.Error) as error:
        raise DataError(f"not a table of image scores: {error}", str(path),
                        "give a CSV or results.json that test.py has written") from None
    return ImageScores([row[0] for row in rows], values[:, :len(OF_IMAGE)], pixels,
                       list(range(len(names))), names)


def _of_image(image):
    """The columns OF_IMAGE, one list each."""
    accuracy = image["img_pixacc"]
    if image["masks"]:
        accuracy = [math.nan] * len(accuracy)
    return image["img_miou"], image["img_mdice"], accuracy, image["img_binacc"]


def _cell(value):
    if isinstance(value, float) and math.isnan(value):
        return ""
    return repr(value)
