"""Colors of classes.

The first eight of `class_palette` are those of Okabe & Ito, Color Universal Design, 2008. Each
later one is the color that looks least like all before it, for the eye that sees the smallest
difference: normal, protanopic, deuteranopic or tritanopic. tests/support/color_vision.py computes
them, and has the sources of its measures.
"""
import functools
from collections.abc import Sequence

import numpy as np

from utils.images.types import Image, Labels

MOST = 256                  # different colors of `class_palette`
# Names of a class that is all the rest, in lower case. Pictures leave its pixels as they are.
# Those that say it most surely come first: "other" may be a class of its own beside a background.
_BACKGROUNDS = (("background", "_background_", "bg"),
                ("void", "unlabeled", "unlabelled", "none", "nothing"),
                ("rest", "other", "others"))
_OKABE_ITO = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
              (0, 114, 178), (213, 94, 0), (204, 121, 167))
# One hexadecimal digit for each channel, in steps of 17.
_FURTHER = """
    ded 720 555 035 20c aef 954 9c8 caa 87f 333 677 457 b30 bbc eeb 543 70f c0a a95 618 e78 a75
    cd7 768 cee 9ce a7c 85e a25 dcb c8c 5c5 f8b 521 434 79f 782 998 776 cf9 661 742 978 829 856
    c2c 444 346 cc3 859 e59 fcd 72c 587 0aa 163 7e9 50a ab9 d81 142 454 c08 830 3cf 963 865 889
    b56 ee7 667 846 613 a87 7bb 8b7 30e 465 dbb df0 9a9 b74 8dc b59 927 896 605 b6a 635 507 ada
    83f f34 943 e4c bc7 dad e18 92d c9c 802 806 886 899 9a4 4fe adf c35 a8d d8a 68b 9b3 309 aca
    bcd 702 8d5 9ec 7af c5e b9d 389 3b8 daf b64 8ab a42 52b 8a6 59b 078 fc9 edb 9cb 754 16a b16
    888 719 bde 8fc 727 95c e97 914 7ed bfa 67b e63 7f5 2ca c51 939 87d 733 e8e da5 656 076 c04
    ce8 bc9 ebc c99 b97 a52 c63 bea 9ff bd0 658 eef fae 606 28e bab 167 e6a cdd 295 9d8 d98 0d6
    b17 7b6 acc bcf 73b 448 a8e 617 345 408 0cd ea4 a01 4a0 c15 f1b 913 72a d1a 33d 10b cac db0
    a31 c75 a3b f6f 86d 086 519 0da 83c 818 826 34e 610 32c 45d b86 757 24a 815 678 d55 d3d 523
    b4b 0e6 688 fb6 0f3 624 664 a67 da9 b80 331 573 aa5 afe aeb f88 e73 a72 27f
"""


def class_palette(class_names: Sequence[str]) -> list[list[int]]:
    """Colors that color-blind people can tell apart, [r, g, b] per class.

    The background (`background_of`) is black, which overlays leave unpainted. The first 256 other
    colors are all different; further classes begin again. A palette of more classes begins with
    that of fewer. The smallest difference (CIEDE2000) of two colors, for the worst of the four
    kinds of eyes: 10.8 for up to 16 classes, 7.8 for 32, 5.1 for 64, 3.4 for 128, 2.1 for 256.
    """
    black, *others = _distinct_colors()
    background, colors, used = background_of(class_names), [], 0
    for number in range(len(class_names)):
        if number == background:
            colors.append(list(black))
        else:
            colors.append(list(others[used % MOST]))
            used += 1
    return colors


def one_per_class(palette: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[list[int]]:
    """The colors of a palette, [r, g, b] per class: where some are missing, those of
    `class_palette`; what it has beyond the classes is left out."""
    own = [list(color) for color in palette][:len(class_names)]
    return own if len(own) == len(class_names) else own + class_palette(class_names)[len(own):]


def background_of(class_names: Sequence[str]) -> int | None:
    """The class that is the rest of the picture by its name, or a first class without a name
    ("class 0"); None if there is none.
    """
    named = named_background(class_names)
    return 0 if named is None and list(class_names[:1]) == ["class 0"] else named


def named_background(class_names: Sequence[str]) -> int | None:
    """The class that is the rest of the picture by its name; None if there is none."""
    names = [name.strip().lower() for name in class_names]
    for group in _BACKGROUNDS:
        for number, name in enumerate(names):
            if name in group:
                return number
    return None


@functools.cache
def _distinct_colors() -> tuple[tuple[int, ...], ...]:
    """Black, then MOST colors."""
    return (*_OKABE_ITO, *(tuple(17 * int(digit, 16) for digit in word)
                           for word in _FURTHER.split()))


def voc_palette(num_classes: int) -> list[list[int]]:
    """The color map of PASCAL VOC, [r, g, b] per class, from the bits of the class id.

    Class 0 is black and the first 256 colors are all different.
    """
    colors = []
    for value in range(num_classes):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (value >> channel & 1) << (7 - bit)
            value >>= 3
        colors.append(color)
    return colors


def palette_table(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """The first 256 colors, uint8 (256, 3); black where there are fewer."""
    table = np.zeros((256, 3), np.uint8)
    table[:min(len(palette), 256)] = np.reshape(np.asarray(palette, np.uint8), (-1, 3))[:256]
    return table


def colorize(labels: Labels, palette: Sequence[Sequence[int]],
             other: tuple[int, int, int] = (0, 0, 0)) -> Image:
    """Class ids (H, W) as uint8 (H, W, 3) RGB; ids outside the palette get the color `other`."""
    table = np.array([*palette, other], np.uint8)
    index = labels.astype(np.int64)
    index[(index < 0) | (index >= len(palette))] = len(palette)
    return table[index]
