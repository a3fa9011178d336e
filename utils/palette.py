"""Colours of classes."""
import numpy as np


def voc_palette(num_classes: int) -> list[list[int]]:
    """The colour map of PASCAL VOC, [r, g, b] per class: the bits of the class id, spread.

    Class 0 is black and the first 256 colours are all different.
    """
    colours = []
    for value in range(num_classes):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (value >> channel & 1) << (7 - bit)
            value >>= 3
        colours.append(colour)
    return colours


def colorize(labels: np.ndarray, palette: list, other: tuple = (0, 0, 0)) -> np.ndarray:
    """Class ids (H, W) as a uint8 (H, W, 3) RGB picture; ids outside the palette get `other`."""
    table = np.array([*palette, other], np.uint8)
    index = labels.astype(np.int64)
    index[(index < 0) | (index >= len(palette))] = len(palette)
    return table[index]
