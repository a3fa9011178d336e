"""A picture of text, boxes and lines. It is drawn at twice its size and reduced: smooth edges."""
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from utils.images import text
from utils.images.text import Color

PAPER: Color = (255, 255, 255)
INK: Color = (40, 40, 40)
FAINT: Color = (110, 110, 110)
GRID: Color = (226, 226, 226)
_SCALE = 2


def png_bytes(picture: Image.Image) -> bytes:
    """A drawing as a small PNG file of at most 64 colors."""
    data = io.BytesIO()
    picture.quantize(64).save(data, "PNG", optimize=True)
    return data.getvalue()


class Sheet:
    """A white sheet of width x height pixels. All coordinates and sizes are in these pixels."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self._picture = Image.new("RGB", (_SCALE * width, _SCALE * height), PAPER)
        self._pen = ImageDraw.Draw(self._picture)

    def text(self, x: float, y: float, words: str, size: int = 11, color: Color = INK,
             anchor: str = "lm"):
        """Write `words`. anchor: what (x, y) is of the text, as in Pillow (lm: left, middle)."""
        text.write_text(self._pen, (_SCALE * x, _SCALE * y), words, _SCALE * size, color, anchor)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color,
            outline: Color | None = None):
        """Fill the box between two corners; it is at least a line if x1 < x0 or y1 < y0."""
        self._pen.rectangle((_SCALE * x0, _SCALE * y0, _SCALE * max(x0, x1), _SCALE * max(y0, y1)),
                            fill, outline)

    def dot(self, x: float, y: float, radius: float, fill: Color, outline: Color | None = None):
        """Fill the circle around (x, y)."""
        self._pen.ellipse([_SCALE * value for value in
                           (x - radius, y - radius, x + radius, y + radius)], fill, outline, _SCALE)

    def line(self, points: Sequence[tuple[float, float]], color: Color = INK, width: int = 1):
        """Draw a line through the points (x, y)."""
        self._pen.line([(_SCALE * x, _SCALE * y) for x, y in points], color, _SCALE * width,
                       joint="curve")

    def image(self) -> Image.Image:
        """The sheet in its final size, mode RGB."""
        return self._picture.resize((self.width, self.height), Image.Resampling.LANCZOS)


def text_width(words: str, size: int = 11) -> float:
    """The width of a text on a sheet in pixels."""
    return text.text_width(words, _SCALE * size) / _SCALE
