"""Where the Dice score is lost: a stacked bar for the mean and one for every class."""
import math
from typing import Any

from utils.evaluation.regret import PARTS, values_of
from utils.images.class_names import drawable
from utils.images.sheet import FAINT, GRID, INK, PAPER, Color, Sheet, png_bytes, text_width

PANEL, BOTTOM, VALUE, LINE = 560, 46, 78, 16       # pixels; VALUE: room for the Dice of a row
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
# Colors that color-blind people can tell apart (Okabe & Ito), and what can be read on them.
_COLORS: dict[str, tuple[Color, Color]] = {
    "solver": ((0, 114, 178), PAPER), "independence": ((230, 159, 0), INK),
    "calibration": ((0, 158, 115), PAPER), "network": ((190, 190, 190), INK)}


def regret_picture(scores: dict[str, Any], class_names: list[str], title: str) -> bytes:
    """A PNG of one rule. scores: an entry of `Regret.compute`. title: what was scored, and how.

    Parts above 0 are stacked to the right of 0, parts below 0 to the left.
    """
    row = 22 if len(class_names) <= 60 else 15
    text = min(13, row - 3)
    rows = [("all classes", scores), *((f"{name}  {k}", one) for k, (name, one) in enumerate(
        zip(drawable(class_names), scores["classes"], strict=True)))]
    left = math.ceil(max(text_width(name, text) for name, _ in rows)) + 18
    about = _wrapped(title, left + PANEL + VALUE - 20)
    legend = 38 + LINE * len(about)
    top = legend + 34
    bottom = top + row * len(rows) + 8
    sheet = Sheet(left + PANEL + VALUE, bottom + BOTTOM)
    sheet.text(10, 16, "Where the Dice score is lost", 14)
    for number, words in enumerate(about):
        sheet.text(10, 36 + LINE * number, words, 11, FAINT)
    _draw_legend(sheet, scores, legend)
    low, high, step = _range([one for _, one in rows])

    def place(value):
        return left + PANEL * (value - low) / (high - low)

    for tick in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1):
        x = place(tick * step)
        sheet.line([(x, top - 6), (x, bottom)], FAINT if tick == 0 else GRID)
        sheet.text(x, bottom + 12, f"{100 * tick * step:g}", 10, FAINT, "mm")
    sheet.text(left + PANEL / 2, bottom + 30, "Dice lost, percent of the score", 11, FAINT, "mm")
    for number, (name, one) in enumerate(rows):
        y = top + row * number + (8 if number else 0)
        sheet.text(left - 8, y + row / 2, name, text, anchor="rm")
        end = _draw_bar(sheet, values_of(one), place, y + 2, y + row - 3)
        words = "in no image" if not one["images"] else f"Dice {100 * one['Dice']:.1f}"
        sheet.text(end + 6, y + row / 2, words, 10, FAINT)
    return png_bytes(sheet.image())


def _wrapped(text, width):
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _draw_legend(sheet, scores, y):
    x = 10
    for part in PARTS:
        sheet.box(x, y - 6, x + 12, y + 6, _COLORS[part][0])
        value = values_of(scores).get(part)
        words = part if value is None else f"{part} {100 * value:+.2f}"
        sheet.text(x + 18, y, words, 12)
        x += 18 + math.ceil(text_width(words, 12)) + 22


def _range(rows):
    """(lowest, highest value, step between ticks) of the axis, which contains every bar and 0."""
    of_rows = [values_of(one).values() for one in rows]
    highest = max(0.01, *(sum(v for v in values if v > 0) for values in of_rows))
    lowest = min(0.0, *(sum(v for v in values if v < 0) for values in of_rows))
    step = next((s for s in _TICKS if (highest - lowest) / s <= 10), 0.5)
    return lowest - 0.02 * (highest - lowest) * (lowest < 0), highest, step


def _draw_bar(sheet, values, place, top, bottom):
    """Returns the right end of the bar in pixels."""
    ends = {True: 0.0, False: 0.0}          # above 0, below
    for part, value in values.items():      # from 0 outwards, in the order of PARTS
        start = ends[value > 0]
        ends[value > 0] = start + value
        x0, x1 = sorted((place(start), place(start + value)))
        if x1 - x0 < 0.25:
            continue
        color, ink = _COLORS[part]
        sheet.box(x0, top, x1 - 0.5, bottom, color)
        words = f"{100 * value:.1f}"
        if text_width(words, 10) + 6 < x1 - x0:
            sheet.text((x0 + x1) / 2, (top + bottom) / 2, words, 10, ink, "mm")
    return place(ends[True])
