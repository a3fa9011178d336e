"""The parts of a page in one file that a browser opens without a network: report.html.

Every text goes through `escape` here, the page permits no script and no style but its own
(Content-Security-Policy), and it loads nothing. So names of classes and files from a stranger stay
text.
"""
import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from utils.images.types import Image

_SKELETON = Path(__file__).with_name("html_page.html")
# Classes of the style sheet. Seven colors of Okabe and Ito (Color universal design, 2008), without
# their yellow, which is hard to see on white; lines beyond are dashed.
COLORS = 7
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_SHADES = 20                # of a heat map
_LONG = 40                  # rows of a table that is shown whole
_LONGEST = 300              # characters of a text in the page


def page(title: str, parts: Iterable[str]) -> str:
    """The page. parts: HTML, of the functions below; empty ones are left out."""
    words = {"TITLE": text(title), "BODY": "\n".join(filter(None, parts)),
             "SHADES": "".join(map(_shade, range(_SHADES + 1)))}
    skeleton = _SKELETON.read_text(encoding="utf-8").replace("@SHADES@", words["SHADES"])
    hashes = {tag: _hash(re.findall(rf"<{tag}>(.*?)</{tag}>", skeleton, re.DOTALL)[0])
              for tag in ("style", "script")}
    words["POLICY"] = (f"default-src 'none'; img-src data:; style-src {hashes['style']}; "
                       f"script-src {hashes['script']}; base-uri 'none'; form-action 'none'")
    # In one pass: a title may be called @BODY@.
    return re.sub("@(TITLE|BODY|POLICY)@", lambda match: words[match[1]], skeleton)


def _hash(content):
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _shade(level):
    ink = "color:var(--on-heat);" * (level > 0.55 * _SHADES)
    share = round(100 * level / _SHADES)
    return f".h{level}{{background:color-mix(in srgb,var(--heat) {share}%,var(--paper));{ink}}}"


def text(value: object) -> str:
    """Any value as text of the page: escaped, and at most 300 characters."""
    words = str(value).encode("utf-8", "backslashreplace").decode()
    return escape(words if len(words) <= _LONGEST else words[:_LONGEST - 3] + "...")


def heading(words: str, level: int = 2, mark: str = "") -> str:
    """A heading; mark: its name in links."""
    return f"<h{level}" + f' id="{mark}"' * bool(mark) + f">{text(words)}</h{level}>"


def note(words: str, classes: str = "note") -> str:
    """A paragraph, faint or of other classes (such as "failed"); empty without words."""
    return f'<p class="{classes}">{escape(words)}</p>' if words else ""


def cell(words: str, value: object = None, classes: str = "", inside: str = "", title: str = "",
         row_head: bool = False) -> str:
    """A cell of a table.

    value: what it is sorted by; None: unknown, which is sorted last. inside: HTML after the words.
    title: shown when one points at it. row_head: the cell names its row.
    """
    tag = 'th scope="row"' if row_head else "td"
    return (f'<{tag} data-value="{"" if value is None else text(value)}"'
            + f' class="{classes}"' * bool(classes) + f' title="{text(title)}"' * bool(title)
            + f">{text(words)}{inside}</{tag[:2]}>")


def heat_cell(words: str, share: float | None, title: str = "") -> str:
    """A cell whose background is the darker, the larger a share (0..1) is."""
    if share is None:
        return cell(words)
    level = round(_SHADES * min(max(share, 0.0), 1.0))
    return cell(words, share, f"h{level}", title=title)


def table(heads: Sequence[str | tuple[str, str]], rows: Sequence[Sequence[str]],
          sortable: bool = True, classes: str = "") -> str:
    """A table whose headings sort it; a long one scrolls in its place.

    heads: words, or (words, explanation). rows: of `cell`.
    """
    pairs = [(head, "") if isinstance(head, str) else head for head in heads]
    head = "".join('<th scope="col"' + f' title="{text(about)}"' * bool(about)
                   + f">{text(words)}</th>" for words, about in pairs)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    names = " ".join(filter(None, ["sortable" * sortable, classes]))
    place = "wide tall" if len(rows) > _LONG else "wide"
    return (f'<div class="{place}"><table class="{names}"><thead><tr>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>")


def details(summary: str, inside: str, is_open: bool = False) -> str:
    """Content that a click shows."""
    return f"<details{' open' * is_open}><summary>{text(summary)}</summary>\n{inside}</details>"


def bar(share: float) -> str:
    """A bar of a length in 0..1, below the words of a cell."""
    long = 100 * min(max(share, 0.0), 1.0)
    return ('<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{long:.2f}" height="4"/></svg>')


def swatch(color: Sequence[int]) -> str:
    """A small square of a color (r, g, b)."""
    red, green, blue = (int(value) & 255 for value in color)
    return (f'<svg class="swatch" viewBox="0 0 8 8" aria-hidden="true"><rect width="8" height="8" '
            f'fill="rgb({red},{green},{blue})"/></svg>')


def class_legend(classes: Iterable[tuple[str, Sequence[int]]], before: str = "") -> str:
    """What the colors of labels and predictions mean; black stands for no class."""
    return f'<p class="legend">{text(before)}' + "".join(
        f"<span>{swatch(color)} {text(name)}</span>"
        for name, color in (*classes, ("no class", (0, 0, 0)))) + "</p>"


def stroke(number: int) -> str:
    """The attributes of the line with this number in a chart: a color, then also dashes."""
    dash = _DASHES[number // COLORS % len(_DASHES)]
    return f'class="c{number % COLORS}"' + f' stroke-dasharray="{dash}"' * bool(dash)


def figure(picture: str | None, caption: str) -> str:
    """A picture, of `data_url`, with a caption."""
    drawn = f'<img alt="{text(caption)}" src="{picture}" loading="lazy">' if picture else \
        "<p>no picture</p>"
    return f"<figure>{drawn}<figcaption>{text(caption)}</figcaption></figure>"


def chart_image(png: bytes, alt: str, whole: bool = True) -> str:
    """A drawn chart; it keeps its white paper. whole: reduced to the page if it is wider."""
    return (f'<p class="wide"><img class="chart{"" if whole else " large"}" alt="{text(alt)}" '
            f'src="{data_url(png, "png")}"></p>')


def data_url(data: bytes, kind: str) -> str:
    """A picture as a URL that holds it. kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def json_block(name: str, value: Any) -> str:
    """Data for the script of the page. It cannot end its element: `<` is written as an escape."""
    words = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        words = words.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="{name}">{words}</script>'


def small_picture(picture: Image, width: int, photo: bool) -> bytes:
    """uint8 (H, W, 3) as JPEG (photo) or PNG, reduced to `width` pixels if it is wider.

    Pictures of labels keep their colors: they are reduced to the nearest pixels, a palette of
    256 colors. A picture is at most four times as high as wide.
    """
    from PIL import Image as Pillow
    drawn = Pillow.fromarray(np.ascontiguousarray(picture))
    share = min(1.0, width / drawn.width, 4 * width / drawn.height)
    if share < 1:
        size = max(1, round(drawn.width * share)), max(1, round(drawn.height * share))
        drawn = drawn.resize(size, Pillow.Resampling.LANCZOS if photo else
                             Pillow.Resampling.NEAREST)
    data = io.BytesIO()
    if photo:
        drawn.save(data, "JPEG", quality=85)
    else:
        drawn.quantize(256).save(data, "PNG", optimize=True)
    return data.getvalue()
