"""Pictures of labels, predictions and confusion; all pictures are uint8 (H, W, 3) RGB."""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utils.images.class_names import drawable
from utils.images.palette import colorize
from utils.images.types import Image, Labels

GAP = 4                     # pixels between the pictures of a grid
INK, PAPER = (20, 20, 20), (255, 255, 255)
CAPTION = "rows: label; columns: prediction; percent of the row"


def overlay(image: Image, labels: Labels, palette: Sequence[Sequence[int]],
            opacity: float = 0.5) -> Image:
    """Mix the colors of the labels (H, W) into the image; pixels without a class show the image.

    opacity: the share of the colors, 0..1.
    """
    share = np.uint16(round(256 * opacity))
    colors = colorize(labels, palette)
    mixed = image.astype(np.uint16)
    mixed *= 256 - share
    mixed += colors * share
    mixed >>= 8
    mixed = mixed.astype(np.uint8)
    outside = (labels < 0) | (labels >= len(palette))
    mixed[outside] = image[outside]
    return mixed


def side_by_side(*pictures: Image) -> Image:
    """Pictures next to each other, aligned at the top, on white."""
    height = max(picture.shape[0] for picture in pictures)
    row = []
    for picture in pictures:
        h, w = picture.shape[:2]
        column = np.full((height, w + GAP * bool(row), 3), 255, np.uint8)
        column[:h, -w:] = picture
        row.append(column)
    return np.concatenate(row, 1)


def stacked(*pictures: Image) -> Image:
    """Pictures below each other, aligned at the left, on white."""
    turned = side_by_side(*(picture.transpose(1, 0, 2) for picture in pictures))
    return np.ascontiguousarray(turned.transpose(1, 0, 2))


def prediction_grid(samples: Sequence[dict[str, Any]], predictions: Sequence[Any],
                    palette: Sequence[Sequence[int]]) -> Image:
    """One row per sample: image, label, prediction.

    samples: {"image": uint8 (3, H, W), "label": (H, W)}, tensors or arrays.
    predictions: class ids (H, W), tensors or arrays.
    """
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        image = np.asarray(sample["image"]).transpose(1, 2, 0)
        label, prediction = np.asarray(sample["label"]), np.asarray(prediction)
        rows.append(side_by_side(image, colorize(label, palette),
                                 colorize(prediction, palette)))
    return stacked(*rows)


def label_grid(samples: Sequence[dict[str, Any]], palette: Sequence[Sequence[int]]) -> Image:
    """One row per sample: image, label. samples: as for `prediction_grid`."""
    return stacked(*(side_by_side(np.asarray(sample["image"]).transpose(1, 2, 0),
                                  colorize(np.asarray(sample["label"]), palette))
                     for sample in samples))


def legend(class_names: list[str], palette: Sequence[Sequence[int]],
           classes: Sequence[int] | None = None, width: int = 640, size: int = 14) -> Image:
    """The color and name of every class, or of `classes`, in as many lines as are needed.

    width: of the picture, size: of the text, both in pixels.
    """
    from PIL import Image, ImageDraw
    font, names = _font(size), drawable(class_names)
    entries, x, y, line = [], size // 2, size // 2, round(1.7 * size)
    for k in range(len(class_names)) if classes is None else classes:
        long = round(size * 1.8 + font.getlength(names[k]) + size)
        if x > size and x + long > width:
            x, y = size // 2, y + line
        entries.append((k, x, y))
        x += long
    picture = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(picture)
    for k, x, y in entries:
        draw.rectangle((x, y, x + size, y + size), fill=tuple(map(int, palette[k])), outline=INK)
        draw.text((x + round(1.5 * size), y + size // 2), names[k], INK, font, anchor="lm")
    return np.asarray(picture)


def confusion_picture(confusion: ArrayLike, class_names: list[str]) -> Image:
    """A confusion matrix as a heat map: each row in percent of the pixels of its class.

    confusion: counts, rows are labels, (C, C) or (C, C + 1). The last column of the latter counts
        pixels without a predicted class; it is drawn if it is not empty.
    """
    from PIL import Image, ImageDraw
    counts = np.asarray(confusion, np.float64)
    classes = len(class_names)
    rows = drawable(class_names)
    columns = list(rows)
    if counts.shape[1] > classes:
        if counts[:, classes].any():
            columns.append("no class")
        else:
            counts = counts[:, :classes]
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    cell = int(np.clip(880 // classes, 13, 56))
    font, small = _font(min(cell - 2, 15)), _font(min(cell // 3 + 1, 14))
    margin = round(max(font.getlength(name) for name in columns)) + 12
    width = margin + max(cell * len(columns), math.ceil(_font(13).getlength(CAPTION))) + 8
    height = margin + cell * classes + 34
    picture = Image.new("RGB", (width, height), PAPER)
    heat = (255 + share[..., None] * (np.array((8.0, 48.0, 107.0)) - 255)).round().astype(np.uint8)
    heat = heat.repeat(cell, 0).repeat(cell, 1)
    picture.paste(Image.fromarray(heat), (margin, margin))
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(rows):
        draw.text((margin - 6, margin + (i + 0.5) * cell), name, INK, font, anchor="rm")
    for j, name in enumerate(columns):
        # Written on a separate strip that is then turned: Pillow writes only from left to right.
        strip = Image.new("RGB", (margin - 6, cell), PAPER)
        ImageDraw.Draw(strip).text((0, cell / 2), name, INK, font, anchor="lm")
        picture.paste(strip.rotate(90, expand=True), (margin + j * cell, 0))
    if cell >= 26:                  # else the numbers would be too small to read
        for i, j in np.argwhere(share >= 0.005):
            ink = PAPER if share[i, j] > 0.5 else INK
            draw.text((margin + (j + 0.5) * cell, margin + (i + 0.5) * cell),
                      f"{100 * share[i, j]:.0f}", ink, small, anchor="mm")
    right, below = margin + cell * len(columns), margin + cell * classes
    draw.rectangle((margin, margin, right, below), outline=INK)
    draw.text((margin, below + 8), CAPTION, INK, _font(13))
    return np.asarray(picture)


def _font(size):
    from PIL import ImageFont
    return ImageFont.load_default(max(size, 8))
