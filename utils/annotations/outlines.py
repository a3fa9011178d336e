"""Outlines as rings of points: of rectangles and ellipses, which may be turned; where one lies."""
import math

import numpy as np

_MOST_POINTS = 720      # of an ellipse


def lies_outside(points: np.ndarray, width: float, height: float) -> bool:
    """Whether the box of an outline, (K, 2), x then y, does not overlap an image of this size."""
    return bool((points.max(0) <= 0).any() or (points.min(0) >= (width, height)).any())


def rectangle(left: float, top: float, width: float, height: float, degrees: float = 0,
              about: tuple[float, float] | None = None) -> np.ndarray:
    """The corners of a rectangle, float64 (4, 2), x then y.

    degrees: how far it is turned, clockwise as seen, about the point `about`, (x, y); None is its
    center.
    """
    corners = np.array([[left, top], [left + width, top], [left + width, top + height],
                        [left, top + height]], np.float64)
    return _turned(corners, degrees, about or (left + width / 2, top + height / 2))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> np.ndarray:
    """Points of an ellipse around (x, y), float64 (K, 2), about one for each pixel of its outline.

    degrees: how far it is turned, clockwise as seen.
    """
    longest = max(abs(radius_x), abs(radius_y))
    count = int(min(max(16, math.ceil(2 * math.pi * longest)), _MOST_POINTS))
    angles = np.arange(count) * (2 * math.pi / count)
    points = np.stack((x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)), 1)
    return _turned(points, degrees, (x, y))


def _turned(points, degrees, about):
    if not degrees:
        return points
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (points - about).T
    return np.stack((about[0] + cos * x - sin * y, about[1] + sin * x + cos * y), 1)
