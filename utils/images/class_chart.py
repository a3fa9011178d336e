"""A bar for every class: its share of the labeled pixels, and of the images that contain it."""
import math

import numpy as np

from utils.images.class_names import drawable
from utils.images.sheet import FAINT, GRID, Sheet, text_width
from utils.images.types import Image

PANEL, GAP, TOP, BOTTOM, VALUE = 420, 96, 46, 26, 70       # pixels; VALUE: room for a bar's number


def class_chart(class_names: list[str], palette: list, pixels: list[int], images_with: list[int],
                images: int) -> Image:
    """Returns uint8 (H, W, 3): on the left shares of pixels, logarithmic, on the right of images.

    pixels, images_with: counts per class. Bars have the colors of the classes and are in the order
    of their ids.
    """
    row = 20 if len(class_names) <= 60 else 14
    text = min(13, row - 3)
    names = [f"{name}  {k}" for k, name in enumerate(drawable(class_names))]
    left = math.ceil(max(text_width(name, text) for name in names)) + 18
    sheet = Sheet(left + 2 * PANEL + GAP + VALUE, TOP + row * len(names) + BOTTOM)
    total = sum(pixels)
    shares = [n / total if total else 0.0 for n in pixels]
    lowest = math.floor(math.log10(min([s for s in shares if s], default=0.1) * 0.999))
    panels = (("share of the labeled pixels", shares, lambda s: 1 - math.log10(s) / lowest,
               [10.0 ** e for e in range(lowest, 1)], left),
              ("share of the images that show it", [n / max(images, 1) for n in images_with],
               lambda s: s, [0.0, 0.25, 0.5, 0.75, 1.0], left + PANEL + GAP))
    below = TOP + row * len(names)
    for title, values, place, ticks, x in panels:
        sheet.text(x, 14, title, 14)
        for tick in ticks:
            at = x + PANEL * place(tick)
            sheet.box(at, TOP - 6, at, below, GRID)
            sheet.text(at, below + 12, f"{100 * tick:g}%", 10, FAINT, "mm")
        for k, value in enumerate(values):
            y = TOP + row * k
            end = x + PANEL * place(value) if value else x
            if value:
                red, green, blue = map(int, palette[k])
                sheet.box(x, y + 2, end, y + row - 3, (red, green, blue), FAINT)
            sheet.text(end + 5, y + row / 2, _percent(value), 10, FAINT)
    for k, name in enumerate(names):
        sheet.text(left - 8, TOP + row * (k + 0.5), name, text, anchor="rm")
    return np.asarray(sheet.image())


def _percent(share):
    if not share:
        return "none"
    return f"{100 * share:.1f}%" if share >= 0.01 else f"{100 * share:.2g}%"
