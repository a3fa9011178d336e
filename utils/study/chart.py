"""Draws the table of a study: every run is a point, the mean of a row a bar, the published score a
diamond.

The three colors (Okabe and Ito, Color universal design, 2008) are told apart by color-blind people,
and the three marks have different shapes.
"""
from typing import TYPE_CHECKING

from utils.images.sheet import FAINT, GRID, INK, Sheet, text_width
from utils.study.summary import Summary
from utils.study.tables import PLAIN, number, score_title

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

BAR, POINT, PRINTED = (86, 180, 233), (0, 0, 0), (213, 94, 0)      # sky blue, black, vermilion
_LINE, _TOP, _PANEL, _VALUE, _LEGEND = 26, 44, 420, 60, 34


def draw(summary: Summary) -> "PillowImage":
    """The picture of the first score of a study."""
    score = summary["scores"][0]
    rows = [row for row in summary["rows"] if row["scores"][score]["values"]
            or row["scores"][score]["published"]]
    left = int(max((text_width(row["title"], 12) for row in rows), default=60)) + 24
    sheet = Sheet(left + _PANEL + _VALUE, _TOP + _LINE * len(rows) + 28 + _LEGEND)
    sheet.text(12, 16, f"{summary['name']}: {score_title(score)}"
                       + ("" if score in PLAIN else " in percent"), 13)
    low, high = _range(rows, score)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * _PANEL

    bottom = _TOP + _LINE * len(rows)
    for tick in _ticks(low, high):
        sheet.line([(place(tick), _TOP - 6), (place(tick), bottom)], GRID)
        sheet.text(place(tick), bottom + 12, _tick_text(tick, score), 11, FAINT, "mm")
    for i, row in enumerate(rows):
        _draw_row(sheet, row, score, left, _TOP + _LINE * (i + 0.5), place)
    printed = any(row["scores"][score]["published"] for row in rows)
    _draw_legend(sheet, left, bottom + 40, printed, low > 0)
    return sheet.image()


def _draw_row(sheet, row, score, left, y, place):
    one = row["scores"][score]
    sheet.text(left - 10, y, row["title"], 12, INK, "rm")
    if one["mean"] is not None:
        sheet.box(left, y - 6, place(one["mean"]), y + 6, BAR)
        sheet.text(left + _PANEL + 8, y, number(one["mean"], score), 12)
    if one["published"]:
        for value in one["published"]["runs"] or [one["published"]["mean"]]:
            _diamond(sheet, place(value), y)
    for value in one["values"]:
        _point(sheet, place(value), y)


def _draw_legend(sheet, left, y, printed, cut):
    sheet.box(left, y - 5, left + 22, y + 5, BAR)
    sheet.text(left + 28, y, "mean", 11, FAINT)
    _point(sheet, left + 84, y)
    sheet.text(left + 94, y, "one run", 11, FAINT)
    if printed:
        _diamond(sheet, left + 170, y)
        sheet.text(left + 182, y, "published", 11, FAINT)
    if cut:
        sheet.text(left + _PANEL, y, "the axis does not begin at 0", 11, FAINT, "rm")


def _point(sheet, x, y):
    sheet.box(x - 1.5, y - 5, x + 1.5, y + 5, POINT)


def _diamond(sheet, x, y):
    for half in range(-11, 12):
        width = 6 - abs(half) / 2
        sheet.box(x - width, y + half / 2, x + width, y + half / 2, PRINTED)


def _range(rows, score) -> tuple[float, float]:
    """The axis: it begins at 0 unless all values are close together, far above 0."""
    values = [value for row in rows for value in (
        *row["scores"][score]["values"],
        *((row["scores"][score]["published"] or {}).get("runs") or []),
        *([row["scores"][score]["published"]["mean"]] if row["scores"][score]["published"]
          else []))]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = max(high - low, 0.02 * abs(high), 1e-6) * 0.15
    return (0.0 if 0 <= low < 2 * (high - low) else low - margin), high + margin


def _ticks(low, high):
    """About five round numbers within the range."""
    step = 10.0 ** -6
    while (high - low) / step > 7:
        step *= 2 if f"{step:e}"[0] in "15" else 2.5
    first = int(low / step) + (low > 0)
    return [k * step for k in range(first, int(high / step) + 1) if k * step >= low]


def _tick_text(value, score):
    return f"{value if score in PLAIN else 100 * value:.4g}"
