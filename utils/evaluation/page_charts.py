"""The charts of the page of a result: confusion, calibration, risk, scores of images.

All are HTML and SVG of `utils.evaluation.html_page`. A results file may hold anything: values that
do not fit a chart are not drawn, and the page says so.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.errors import counted
from utils.evaluation.html_page import (
    cell,
    chart_image,
    details,
    heat_cell,
    json_block,
    note,
    table,
    text,
)
from utils.images.visualize import confusion_picture
from utils.metrics.image_scores import ImageScores
from utils.metrics.table import percent

MATRIX, PICTURE = 40, 300       # the most classes of a confusion matrix as a table, as a picture
PAIRS = 20                      # classes that are confused most
DRAWN = 20_000                  # images of the strip
_COLUMNS = 1000                 # of the strip
_SIDE, _LEFT, _BELOW = 240, 44, 40      # of a plot


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if fits and abs(value) < 1e300 else None


def numbers(values: Any, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Finite numbers as float64 of a shape (None: any length), or None for anything else."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = array.ndim == len(shape) and np.isfinite(array).all() and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True))
    return array if fits else None


def confusion(counts: Any, names: list[str]) -> str:
    """A confusion matrix with the pairs that are confused most. counts: as in results.json."""
    matrix = numbers(counts, (len(names), None))
    if matrix is None or matrix.shape[1] not in (len(names), len(names) + 1) or (matrix < 0).any():
        return note("The confusion matrix does not fit the classes: it is not shown.")
    columns = list(names)
    if matrix.shape[1] > len(names):
        if matrix[:, -1].any():
            columns.append("no class")
        else:
            matrix = matrix[:, :-1]
    total = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    if len(names) <= MATRIX:
        drawn = _matrix(matrix, share, names, columns)
    elif len(names) <= PICTURE:
        from PIL import Image

        from utils.images.sheet import png_bytes
        drawn = chart_image(png_bytes(Image.fromarray(confusion_picture(counts, names))),
                            "confusion matrix: rows are labels, columns predictions", whole=False)
    else:
        drawn = note(f"The matrix of {len(names)} classes is too large to be drawn (at most "
                     f"{PICTURE}); results.json has it.")
    return drawn + _confused_most(matrix, share, names, columns)


def _matrix(counts, share, names, columns):
    rows = []
    for i, name in enumerate(names):
        cells = [cell(name, row_head=True)]
        for j, other in enumerate(columns):
            part = 100 * share[i, j]
            words = "" if part < 0.05 else f"{part:.0f}" if part >= 0.95 else f".{10 * part:.0f}"
            cells.append(heat_cell(words, share[i, j], f"{name} as {other}: {part:.2f} %, "
                                                       f"{counts[i, j]:,.0f} pixels"))
        rows.append(cells)
    return table(["label / prediction", *columns], rows, sortable=False, classes="matrix") + note(
        "Rows are labels, columns predictions, in % of the pixels of the row; the diagonal is the "
        "recall (Acc). Empty: below 0.05 %. Point at a number for its pixels.")


def _confused_most(counts, share, names, columns):
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    pairs = np.argwhere(wrong > 0)
    if not len(pairs):
        return ""
    order = np.argsort(-wrong[tuple(pairs.T)], kind="stable")[:PAIRS]
    rows = [[cell(names[i], names[i], row_head=True), cell(columns[j], columns[j], "words"),
             cell(f"{counts[i, j]:,.0f}", counts[i, j]),
             cell(percent(share[i, j]), share[i, j]),
             cell(percent(counts[i, j] / wrong.sum()), counts[i, j] / wrong.sum())]
            for i, j in pairs[order]]
    heads = ["label", "predicted as", "pixels", "% of the label", "% of all errors"]
    left_out = len(pairs) - len(rows)
    return details(f"the {counted(len(rows), 'pair')} of classes that are confused most",
                   table(heads, rows, classes="pairs")
                   + note(f"{counted(left_out, 'pair')} with fewer pixels are left out; "
                          "results.json has all." if left_out else ""), is_open=len(names) > MATRIX)


def reliability(one: Mapping[str, Any]) -> str:
    """A reliability diagram. one: an entry of "calibration" in results.json."""
    pixels = numbers(one.get("pixels"), (None,))
    if pixels is None or not 0 < len(pixels) <= 1000 or not pixels.sum() > 0:
        return note("The calibration in the file cannot be shown.")
    bins = len(pixels)
    found = [[number(value) for value in values] if isinstance(values, list) else []
             for values in (one.get("confidence"), one.get("accuracy"))]
    if any(len(values) != bins for values in found):
        return note("The calibration in the file cannot be shown.")
    shapes, rows = [], []
    for k, (count, confidence, accuracy) in enumerate(zip(pixels, *found, strict=True)):
        between = f"{100 * k / bins:.1f} to {100 * (k + 1) / bins:.1f}"
        rows.append([cell(between, k, row_head=True), cell(percent(count / pixels.sum()), count),
                     cell(percent(confidence), confidence), cell(percent(accuracy), accuracy)])
        if confidence is None or accuracy is None:
            continue
        x, wide = _LEFT + _SIDE * k / bins, _SIDE / bins
        high, expected = (_SIDE * min(max(value, 0.0), 1.0) for value in (accuracy, confidence))
        shapes.append(
            f'<rect class="fill" x="{x + .5:.1f}" y="{8 + _SIDE - high:.1f}" '
            f'width="{wide - 1:.1f}" height="{high:.1f}"/>'
            f'<line class="gap" x1="{x:.1f}" x2="{x + wide:.1f}" y1="{8 + _SIDE - expected:.1f}" '
            f'y2="{8 + _SIDE - expected:.1f}"/>'
            f'<rect class="fill" x="{x + .5:.1f}" width="{wide - 1:.1f}" '
            f'y="{8 + _SIDE + 50 - 24 * count / pixels.max():.1f}" '
            f'height="{24 * count / pixels.max():.1f}"/>')
    even = (f'<line class="even" x1="{_LEFT}" y1="{8 + _SIDE}" x2="{_LEFT + _SIDE}" y2="8"/>')
    drawn = _plot("".join(shapes) + even, 1.0, "confidence", "accuracy", more=26)
    title = text(one.get("of", "probabilities"))
    return (f"<div><h3>{title}: ECE {percent(number(one.get('ECE')))} %</h3>{drawn}"
            + details("the numbers", table(["confidence, %", "pixels, %", "mean confidence, %",
                                            "accuracy, %"], rows)) + "</div>")


def risk_curve(risk: Mapping[str, Any]) -> str:
    """The risk over the coverage. risk: "risk_coverage" of results.json."""
    coverage, curve = (numbers(risk.get(key), (None,)) for key in ("coverage", "curve"))
    if coverage is None or curve is None or len(coverage) != len(curve) or not len(curve) \
            or not ((0 <= coverage) & (coverage <= 1) & (0 <= curve) & (curve <= 1)).all():
        return note("The risk–coverage curve in the file cannot be shown.")
    high = next((top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if curve.max() <= top), 1.0)
    points = " ".join(f"{_LEFT + _SIDE * c:.1f},{8 + _SIDE * (1 - r / high):.1f}"
                      for c, r in zip(coverage, curve, strict=True))
    return "<div>" + _plot(f'<polyline class="curve" points="{points}"/>', high, "coverage",
                           "error rate") + "</div>"


def _plot(inside, high, below, left, more=0):
    """A square from 0 to 100 % below, and to `high` at the left. more: room below the axis."""
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = _LEFT + _SIDE * share, 8 + _SIDE * (1 - share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y}" y2="{y}"/>'
                     f'<line class="grid" y1="8" y2="{8 + _SIDE}" x1="{x}" x2="{x}"/>'
                     f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">'
                     f"{100 * high * share:.3g} %</text>"
                     f'<text x="{x}" y="{8 + _SIDE + 15}" text-anchor="middle">'
                     f"{100 * share:g} %</text>")
    bottom = 8 + _SIDE + _BELOW + more
    parts += [inside, f'<text x="{_LEFT + _SIDE / 2}" y="{bottom - 4}" text-anchor="middle">'
                      f"{text(below)}; left: {text(left)}</text>"]
    return (f'<svg viewBox="0 0 {_LEFT + _SIDE + 20} {bottom}" role="img" '
            f'aria-label="{text(left)} over {text(below)}">{"".join(parts)}</svg>')


def image_strip(titles: Sequence[str], tables: Sequence[ImageScores],
                pictures: Mapping[str, int]) -> str:
    """mIoU_I of every image as a strip that can be sorted; the arrow keys move through it.

    titles, tables: of the columns of the page; the images are those of the first. pictures: name of
    an image -> the number of its pictures on the page.
    """
    ids = tables[0].ids
    found = [dict(zip(one.ids, one.image[:, 0].tolist(), strict=True)) for one in tables]
    scores = [[_rounded(column.get(name)) for name in ids] for column in found]
    kept = list(range(len(ids)))
    if len(ids) > DRAWN:
        order = sorted(kept, key=lambda k: (scores[0][k] is None, scores[0][k] or 0.0))
        kept = sorted(order[k] for k in np.linspace(0, len(ids) - 1, DRAWN).round().astype(int))
    names = [ids[k] for k in kept]
    data = {"ids": names, "scores": [[column[k] for k in kept] for column in scores],
            "pictures": {k: pictures[name] for k, name in enumerate(names) if name in pictures}}
    first = sorted(value for value in data["scores"][0] if value is not None)
    low, high = _steps(first)
    rules = "".join(f'<option value="{k}">{text(title)}</option>'
                    for k, title in enumerate(titles))
    left_out = (f"{DRAWN:,} of {len(ids):,} images are drawn, evenly chosen by their score. "
                if len(ids) > DRAWN else "")
    columns = f"A column shows {len(first) / _COLUMNS:.1f} images: the lowest score dark, the " \
              "highest pale. " if len(first) > _COLUMNS else ""
    return f"""<div class="strip" data-source="strip-data">
<p><label>rule <select>{rules}</select></label>
<label>order <select><option value="score">worst first</option><option value="data">as in the data
</option><option value="name">by name</option></select></label></p>
<div class="plot"><div class="scale"><span>100 %</span><span>50 %</span><span>0 %</span></div>
<svg viewBox="0 0 {_COLUMNS} 100" preserveAspectRatio="none" role="img" aria-label="scores">
<path class="high" d="{high}"/><path class="low" d="{low}"/>
<line class="cursor" x1="0" x2="0" y1="0" y2="100"/></svg></div>
<label class="move">image
<input type="range" min="0" max="{max(len(first) - 1, 0)}" value="0"></label>
<p class="at" role="status"></p></div>
""" + note(left_out + columns + "Move through the images with the slider, the arrow keys or the "
                                "pointer.") + json_block("strip-data", data)


def _rounded(value):
    return None if value is None or value != value else round(value, 4)


def _steps(values):
    """The paths of the lowest and the highest of sorted values, as the script draws them."""
    count = min(len(values), _COLUMNS)
    bounds = [len(values) * k // count for k in range(count + 1)] if count else []
    pairs = list(zip(bounds, bounds[1:], strict=False))
    return tuple("M0,100" + "".join(
        f"V{100 - 100 * values[place]:.2f}H{_COLUMNS * (k + 1) / count:.2f}"
        for k, place in enumerate(places)) + "V100Z" if count else ""
        for places in ([a for a, _ in pairs], [b - 1 for _, b in pairs]))
