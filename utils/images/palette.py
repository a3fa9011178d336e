"""Colors of classes."""
from collections.abc import Sequence

import numpy as np

from utils.images.types import Image, Labels


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
