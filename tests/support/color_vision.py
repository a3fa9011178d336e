"""Colors as color-blind people see them, and how different two of them look.

Machado, Oliveira & Fernandes, A Physiologically-based Model for Simulation of Color Vision
Deficiency, IEEE TVCG 2009: the matrices of severity 1 for linear RGB. Sharma, Wu & Dalal, The
CIEDE2000 Color-Difference Formula, Color Research and Application 2005.
"""
import numpy as np

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]])         # sRGB, white D65


def seen(colors: np.ndarray, vision: str) -> np.ndarray:
    """The sRGB colors (..., 3), 0 to 255, that show what such an eye sees of sRGB colors."""
    share = np.clip(_linear(colors) @ VISION[vision].T, 0, 1)
    return 255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)


def lab(colors: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (..., 3) of sRGB colors (..., 3), 0 to 255."""
    ratio = _linear(colors) @ _TO_XYZ.T / _TO_XYZ.sum(1)
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]),
                     200 * (root[..., 1] - root[..., 2])], -1)


def further_colors(palette, count: int) -> list[tuple[int, int, int]]:
    """`count` colors of multiples of 17, each as far as possible from all before it for every eye.

    Neither darker than L* 20, which is black over a photo, nor as light as paper.
    """
    levels = np.arange(0, 256, 17)
    choice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = lab(choice)[:, 0]
    choice = choice[(lightness >= 20) & (lightness <= 95)]
    views = {vision: lab(seen(choice, vision)) for vision in VISION}
    nearest, chosen = np.full(len(choice), np.inf), []

    def add(color):
        for vision, view in views.items():
            np.minimum(nearest, difference(view, lab(seen(color, vision))), out=nearest)

    for color in palette:
        add(np.array(color))
    for _ in range(count):
        best = int(nearest.round(6).argmax())
        chosen.append(tuple(choice[best].tolist()))
        add(choice[best])
    return chosen


def _linear(colors):
    share = np.asarray(colors, np.float64) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 of two arrays of L*a*b*, (..., 3) each, which are broadcast. 1 is just visible."""
    light, a, b = np.moveaxis(one, -1, 0)
    light_2, a_2, b_2 = np.moveaxis(other, -1, 0)

    def share_7(value):         # 25 is where the correction for blue and for gray is half
        return np.sqrt(value ** 7 / (value ** 7 + 25.0 ** 7))

    gray = 1.5 - 0.5 * share_7((np.hypot(a, b) + np.hypot(a_2, b_2)) / 2)
    a, a_2 = a * gray, a_2 * gray
    chroma, chroma_2 = np.hypot(a, b), np.hypot(a_2, b_2)
    hue, hue_2 = np.arctan2(b, a) % (2 * np.pi), np.arctan2(b_2, a_2) % (2 * np.pi)
    turn = (hue_2 - hue + np.pi) % (2 * np.pi) - np.pi
    mean_light, mean_chroma = (light + light_2) / 2, (chroma + chroma_2) / 2
    # A gray has no hue: then that of the other color counts.
    mean_hue = np.where(chroma * chroma_2 > 0, hue + turn / 2, hue + hue_2) % (2 * np.pi)
    weight = (1 - 0.17 * np.cos(mean_hue - np.radians(30)) + 0.24 * np.cos(2 * mean_hue)
              + 0.32 * np.cos(3 * mean_hue + np.radians(6))
              - 0.20 * np.cos(4 * mean_hue - np.radians(63)))
    from_middle = (mean_light - 50) ** 2
    d_light = (light_2 - light) / (1 + 0.015 * from_middle / np.sqrt(20 + from_middle))
    d_chroma = (chroma_2 - chroma) / (1 + 0.045 * mean_chroma)
    d_hue = 2 * np.sqrt(chroma * chroma_2) * np.sin(turn / 2) / (1 + 0.015 * mean_chroma * weight)
    blue = np.exp(-((np.degrees(mean_hue) - 275) / 25) ** 2)
    mixed = -2 * share_7(mean_chroma) * np.sin(np.radians(60) * blue) * d_chroma * d_hue
    return np.sqrt(d_light ** 2 + d_chroma ** 2 + d_hue ** 2 + mixed)


def smallest_difference(palette, vision: str) -> float:
    """The CIEDE2000 of the two colors of a palette that look most alike."""
    colors = lab(seen(np.asarray(palette), vision))
    rows, columns = np.triu_indices(len(colors), 1)
    return float(difference(colors[rows], colors[columns]).min())
