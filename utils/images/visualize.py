"""Pictures of labels, predictions and confusion; all pictures are uint8 (H, W, 3) RGB."""
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utils.images.class_names import drawable
from utils.images.palette import colorize
from utils.images.text import shortened, text_width, write_text
from utils.images.types import Image, Labels

GAP = 4                     # pixels between the pictures of a grid
DOTS = 8                    # distance of the dots on pixels without a class
NARROW = 240                # pixels that the names of classes need beside each other
MOST_LISTED = 24            # classes of a legend that lists all, also those that do not occur
INK, PAPER, PLAIN = (20, 20, 20), (255, 255, 255), (128, 128, 128)
UNPAINTED = " (not painted)"
CAPTION = "rows: label; columns: prediction; percent of the row"


def overlay(image: Image, labels: Labels, palette: Sequence[Sequence[int]],
            opacity: float = 0.5) -> Image:
    """Mix the colors of the labels (H, W) into the image.

    Pixels without a class show the image, and so do those of a class whose color is black: a
    background does not darken the picture.
    opacity: the share of the colors, 0..1.
    """
    share = np.uint16(round(256 * opacity))
    colors = colorize(labels, palette)
    mixed = image.astype(np.uint16)
    mixed *= 256 - share
    mixed += colors * share
    mixed >>= 8
    mixed = mixed.astype(np.uint8)
    unpainted = ~colors.any(-1)
    mixed[unpainted] = image[unpainted]
    return mixed


def dotted(picture: Image, where: np.ndarray) -> Image:
    """A copy of the picture with white and black dots on the pixels `where`, bool (H, W)."""
    picture = picture.copy()
    rows, columns = np.indices(where.shape)
    step = max(DOTS, min(where.shape) // 40)
    radius = step // 4
    for shift, value in ((0, 255), (radius, 0)):
        dots = ((rows + shift) % step < radius) & ((columns + shift) % step < radius)
        picture[where & dots] = value
    return picture


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


def example_grid(samples: Sequence[dict[str, Any]], palette: Sequence[Sequence[int]],
                 class_names: list[str], predictions: Sequence[Any] | None = None) -> Image:
    """One row per sample: image, label, prediction; above them titles, below them a legend.

    samples: {"image": uint8 (3, H, W), "label": (H, W)}, tensors or arrays. Pixels without a class
    are gray with dots.
    predictions: class ids (H, W), tensors or arrays; None: there is no such column.
    """
    rows, seen, ignored, widest = [], set(), False, 0
    for number, sample in enumerate(samples):
        image, label = np.asarray(sample["image"]).transpose(1, 2, 0), np.asarray(sample["label"])
        widest = max(widest, label.shape[1])
        maps = [label] if predictions is None else [label, np.asarray(predictions[number])]
        outside = [(ids < 0) | (ids >= len(palette)) for ids in maps]
        ignored = ignored or bool(outside[0].any())
        seen.update(*(np.unique(ids).tolist() for ids in maps))
        rows.append(side_by_side(image, *(dotted(colorize(ids, palette, PLAIN), none)
                                          for ids, none in zip(maps, outside, strict=True))))
    titles = ["image", "label (dots: ignored)" if ignored else "label"]
    if predictions is not None:
        titles.append("prediction")
    heads = titled_columns(titles, widest, text_size(len(titles) * widest))
    return with_legend(stacked(heads, *rows), class_names, palette,
                       listed_classes(len(class_names), seen))


def titled_columns(titles: Sequence[str], width: int, size: int) -> Image:
    """A title for each column of pictures that are `width` pixels wide, side by side."""
    return side_by_side(*(caption(title, width, size) for title in titles))


def caption(words: str, width: int, size: int = 12, keep_end: bool = False) -> Image:
    """A white strip of this width with one line of text, shortened where it does not fit.

    size: of the letters, in pixels. keep_end: "…" stands for the beginning of a long text.
    """
    from PIL import Image, ImageDraw
    strip = Image.new("RGB", (width, round(1.7 * size)), PAPER)
    write_text(ImageDraw.Draw(strip), (2, strip.height // 2),
               shortened(words, size, width - 4, keep_end), size, INK)
    return np.asarray(strip)


def text_size(width: int) -> int:
    """The size of letters in pixels that can be read when a picture of this width is looked at."""
    return int(np.clip(width / 70, 13, 120))


def listed_classes(classes: int, present: Collection[int]) -> list[int]:
    """The classes of a legend: all of a few, so that pictures of a run have the same legend; of
    more than MOST_LISTED, those that are present.
    """
    return [k for k in range(classes) if classes <= MOST_LISTED or k in present]


def with_legend(picture: Image, class_names: list[str], palette: Sequence[Sequence[int]],
                classes: Sequence[int], over_photo: bool = False) -> Image:
    """The picture, unchanged, and below it a legend of `classes`, as in `legend_strip`."""
    return with_strip(picture, legend_strip(picture.shape[1], class_names, palette, classes,
                                            over_photo))


def legend_strip(width: int, class_names: list[str], palette: Sequence[Sequence[int]],
                 classes: Sequence[int], over_photo: bool = False,
                 lines: int | None = None) -> Image:
    """What `with_strip` puts below a picture of this width: a gap and the legend of `classes`.

    It is wider than the picture only if that is narrower than NARROW pixels. Without classes it has
    no height, unless `lines` are asked for. over_photo, lines: as in `legend`.
    """
    wide = max(width, NARROW)
    if not classes and lines is None:
        return np.full((0, width, 3), PAPER, np.uint8)
    drawn = legend(class_names, palette, classes, wide, text_size(width), over_photo, lines)
    return np.concatenate([np.full((GAP, wide, 3), PAPER, np.uint8), drawn])


def with_strip(picture: Image, strip: Image) -> Image:
    """The picture, and below it a strip that is as wide, or wider."""
    return np.concatenate([widened(picture, strip.shape[1]), strip])


def widened(picture: Image, width: int) -> Image:
    """The picture with white at its right up to a width of so many pixels."""
    missing = width - picture.shape[1]
    return np.pad(picture, ((0, 0), (0, missing), (0, 0)), constant_values=255) if missing \
        else picture


def legend(class_names: list[str], palette: Sequence[Sequence[int]],
           classes: Sequence[int] | None = None, width: int = 640, size: int = 14,
           over_photo: bool = False, lines: int | None = None) -> Image:
    """The color and name of every class, or of `classes`, in as many lines as are needed.

    width: of the picture, size: of the text, both in pixels. The height is even, for films.
    over_photo: the legend of an `overlay`, which does not paint black classes.
    lines: exactly so many; the classes that find no room are counted at the end.
    """
    from PIL import Image, ImageDraw
    listed = list(range(len(class_names)) if classes is None else classes)
    line, left, box = 2 * round(0.85 * size), size // 2, round(1.5 * size)
    unpainted = [over_photo and not any(palette[k]) for k in listed]
    names = drawable(class_names)
    words = [shortened(names[k] + (UNPAINTED if bare else ""), size, width - box - 2 * left)
             for k, bare in zip(listed, unpainted, strict=True)]
    entries, x, row = [], left, 0
    for text in words:
        long = math.ceil(box + text_width(text, size) + size)
        if x > left and x + long - size > width - left:
            x, row = left, row + 1
        entries.append((x, row, long))
        x += long
    rows = row + 1 if lines is None else lines
    entries, more = [entry for entry in entries if entry[1] < rows], ""
    while len(entries) < len(words):
        more = f"and {len(words) - len(entries)} more"
        if not entries or _end(entries, rows, left) + text_width(more, size) <= width:
            break
        entries.pop()
    picture = Image.new("RGB", (width, left + rows * line + (left + rows * line) % 2), PAPER)
    draw = ImageDraw.Draw(picture)
    for (x, row, _), k, text, bare in zip(entries, listed, words, unpainted, strict=False):
        y = left + row * line
        draw.rectangle((x, y, x + size, y + size), None if bare else tuple(map(int, palette[k])),
                       INK)
        write_text(draw, (x + box, y + size // 2), text, size, INK)
    if more:
        write_text(draw, (_end(entries, rows, left), left + (rows - 1) * line + size // 2), more,
                   size, INK)
    return np.asarray(picture)


def _end(entries, rows, left):
    """Where the last line of a legend ends."""
    return max((x + long for x, row, long in entries if row == rows - 1), default=left)


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
    size, small = min(cell - 2, 15), min(cell // 3 + 1, 14)
    margin = round(max(text_width(name, size) for name in columns)) + 12
    width = margin + max(cell * len(columns), math.ceil(text_width(CAPTION, 13))) + 8
    height = margin + cell * classes + 34
    picture = Image.new("RGB", (width, height), PAPER)
    heat = (255 + share[..., None] * (np.array((8.0, 48.0, 107.0)) - 255)).round().astype(np.uint8)
    heat = heat.repeat(cell, 0).repeat(cell, 1)
    picture.paste(Image.fromarray(heat), (margin, margin))
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(rows):
        write_text(draw, (margin - 6, margin + (i + 0.5) * cell), name, size, INK, "rm")
    for j, name in enumerate(columns):
        # Written on a separate strip that is then turned: Pillow writes only from left to right.
        strip = Image.new("RGB", (margin - 6, cell), PAPER)
        write_text(ImageDraw.Draw(strip), (0, cell / 2), name, size, INK)
        picture.paste(strip.rotate(90, expand=True), (margin + j * cell, 0))
    if cell >= 26:                  # else the numbers would be too small to read
        for i, j in np.argwhere(share >= 0.005):
            ink = PAPER if share[i, j] > 0.5 else INK
            write_text(draw, (margin + (j + 0.5) * cell, margin + (i + 0.5) * cell),
                       f"{100 * share[i, j]:.0f}", small, ink, "mm")
    right, below = margin + cell * len(columns), margin + cell * classes
    draw.rectangle((margin, margin, right, below), outline=INK)
    write_text(draw, (margin, below + 8), CAPTION, 13, INK, "la")
    return np.asarray(picture)
