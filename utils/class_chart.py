"""A bar for every class: its share of the labelled pixels, and of the images that show it."""
import math

import numpy as np

INK, FAINT, PAPER, GRID = (30, 30, 30), (110, 110, 110), (255, 255, 255), (224, 224, 224)
PANEL, GAP, TOP, BOTTOM, VALUE = 420, 96, 46, 26, 70       # pixels; VALUE: room beside a bar
SHARPNESS = 2       # drawn this many times larger, then reduced


def class_chart(class_names: list[str], palette: list, pixels: list[int], images_with: list[int],
                images: int) -> np.ndarray:
    """uint8 (H, W, 3): left the share of pixels on a logarithmic axis, right that of images.

    Bars have the colours of the classes, in the order of their ids.
    """
    from PIL import Image, ImageDraw, ImageFont
    row = 20 if len(class_names) <= 60 else 14
    large, small, text = (ImageFont.load_default(SHARPNESS * size)
                          for size in (14, 10, min(13, row - 3)))
    names = [f"{name}  {k}" for k, name in enumerate(class_names)]
    left = math.ceil(max(text.getlength(name) for name in names) / SHARPNESS) + 18
    size = (left + 2 * PANEL + GAP + VALUE, TOP + row * len(names) + BOTTOM)
    picture = Image.new("RGB", tuple(SHARPNESS * side for side in size), PAPER)
    pen = ImageDraw.Draw(picture)

    def put(x, y, words, font, colour=INK, anchor="lm"):
        pen.text((SHARPNESS * x, SHARPNESS * y), words, colour, font, anchor=anchor)

    def box(x0, y0, x1, y1, **paint):
        pen.rectangle(tuple(SHARPNESS * v for v in (x0, y0, max(x0, x1), y1)), **paint)

    total = sum(pixels)
    shares = [n / total if total else 0.0 for n in pixels]
    lowest = math.floor(math.log10(min([s for s in shares if s], default=0.1) * 0.999))
    panels = (("share of the labelled pixels", shares, lambda s: 1 - math.log10(s) / lowest,
               [10.0 ** e for e in range(lowest, 1)], left),
              ("share of the images that show it", [n / max(images, 1) for n in images_with],
               lambda s: s, [0.0, 0.25, 0.5, 0.75, 1.0], left + PANEL + GAP))
    below = TOP + row * len(names)
    for title, values, place, ticks, x in panels:
        put(x, 14, title, large)
        for tick in ticks:
            at = x + PANEL * place(tick)
            box(at, TOP - 6, at, below, fill=GRID)
            put(at, below + 12, f"{100 * tick:g}%", small, FAINT, "mm")
        for k, value in enumerate(values):
            y = TOP + row * k
            end = x + PANEL * place(value) if value else x
            if value:
                box(x, y + 2, end, y + row - 3, fill=tuple(map(int, palette[k])), outline=FAINT)
            put(end + 5, y + row / 2, _percent(value), small, FAINT)
    for k, name in enumerate(names):
        put(left - 8, TOP + row * (k + 0.5), name, text, anchor="rm")
    return np.asarray(picture.resize(size, Image.LANCZOS))


def _percent(share):
    if not share:
        return "none"
    return f"{100 * share:.1f}%" if share >= 0.01 else f"{100 * share:.2g}%"
