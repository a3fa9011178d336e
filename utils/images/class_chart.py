"""For every class its share of the labeled pixels, as a dot, and of the images, as a bar."""
import math

import numpy as np

from utils.images.class_names import drawable
from utils.images.sheet import FAINT, GRID, INK, Sheet, text_width
from utils.images.types import Image

PANEL, GAP, TOP, BOTTOM, VALUE = 420, 96, 46, 26, 70       # pixels; VALUE: room for a number


def class_chart(class_names: list[str], palette: list, pixels: list[int], images_with: list[int],
                images: int) -> Image:
    """Returns uint8 (H, W, 3): on the left shares of pixels, on the right shares of images.

    pixels, images_with: counts per class. The classes have their colors and the order of their ids.
    Shares of pixels differ by factors, so their axis is logarithmic. It has no 0 from which a bar
    could begin: a dot marks each share.
    """
    row = 20 if len(class_names) <= 60 else 14
    text = min(13, row - 3)
    # Without a name of its own a class is called by its id.
    names = [name if name == f"class {k}" else f"{k}: {name}"
             for k, name in enumerate(drawable(class_names))]
    left = math.ceil(max(text_width(name, text) for name in names)) + 18
    sheet = Sheet(left + 2 * PANEL + GAP + VALUE, TOP + row * len(names) + BOTTOM)
    total = sum(pixels)
    shares = [n / total if total else 0.0 for n in pixels]
    lowest = math.floor(math.log10(min([s for s in shares if s], default=0.1) * 0.999))
    below = TOP + row * len(names)

    def draw_panel(x, title, values, place, ticks, mark):
        sheet.text(x, 14, title, 14)
        for tick in ticks:
            at = x + PANEL * place(tick)
            sheet.box(at, TOP - 6, at, below, GRID)
            sheet.text(at, below + 12, f"{100 * tick:g}%", 10, FAINT, "mm")
        for k, value in enumerate(values):
            y = TOP + row * (k + 0.5)
            end = x + PANEL * place(value) if value else x
            red, green, blue = map(int, palette[k])
            if value:
                mark(x, end, y, (red, green, blue))
            sheet.text(end + (11 if value else 5), y, _percent(value), 10, FAINT)

    def draw_dot(x, end, y, color):
        sheet.line([(x, y), (x + PANEL, y)], GRID)
        sheet.dot(end, y, row / 2 - 3, color, INK)

    def draw_bar(x, end, y, color):
        sheet.box(x, y - row / 2 + 2, end, y + row / 2 - 3, color, FAINT)

    draw_panel(left, "share of the labeled pixels (logarithmic axis)", shares,
               lambda share: 1 - math.log10(share) / lowest,
               [10.0 ** e for e in range(lowest, 1)], draw_dot)
    draw_panel(left + PANEL + GAP, "share of the images that show it",
               [n / max(images, 1) for n in images_with], lambda share: share,
               [0.0, 0.25, 0.5, 0.75, 1.0], draw_bar)
    for k, name in enumerate(names):
        sheet.text(left - 8, TOP + row * (k + 0.5), name, text, anchor="rm")
    return np.asarray(sheet.image())


def _percent(share):
    if not share:
        return "none"
    return f"{100 * share:.1f}%" if share >= 0.01 else f"{100 * share:.2g}%"
