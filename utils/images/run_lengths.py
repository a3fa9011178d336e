"""Masks as run lengths in the text form of COCO (Lin et al., ECCV 2014, arXiv:1405.0312).

The pixels of a mask are read column by column, as lengths of runs of zeros and ones in turn; the
first run, of zeros, may be empty. From the fourth on, the difference to the second last run before
is stored. Each number is written in groups of 5 bits, the lowest first, as characters from "0" on;
bit 5 of a character says that more follow, and bit 4 of the last one is the sign.
"""
import numpy as np

_GROUPS = 13            # of 5 bits, for 64 bits
_MOST_GROUPS = 7        # of a number that is read: 35 bits


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """The runs of a bool mask (H, W), int64: zeros, ones, zeros, ... in column order."""
    pixels = mask.T.ravel()
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0] if pixels.size and pixels[0] else []
    return np.concatenate((first, np.diff(np.concatenate(([0], borders, [pixels.size]))))) \
        .astype(np.int64)


def compressed_runs(mask: np.ndarray) -> str:
    """The text that stands under "counts" in COCO's results, of a bool mask (H, W)."""
    numbers = run_lengths(mask)
    numbers[3:] -= numbers[1:-2].copy()
    characters = np.zeros((len(numbers), _GROUPS), np.uint8)
    more = np.ones(len(numbers), bool)
    written = np.zeros(characters.shape, bool)
    for place in range(_GROUPS):
        written[:, place] = more
        group = numbers & 31
        numbers = numbers >> 5
        more = more & (numbers != np.where(group & 16, -1, 0))
        characters[:, place] = group + 32 * more + 48
        if not more.any():
            break
    return characters[written].tobytes().decode("ascii")


def runs_of_text(text: str) -> np.ndarray:
    """The runs, int64, that `compressed_runs` has written, each at most 2^31.

    Raises ValueError if the text is damaged.
    """
    data = text.encode("utf-8", "surrogatepass")
    characters = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(characters):
        return characters
    if characters.min() < 0 or characters.max() > 63:
        raise ValueError("a character is not one of run lengths")
    last = characters & 32 == 0
    if not last[-1]:
        raise ValueError("the text ends within a number")
    ends = np.flatnonzero(last)
    begins = np.concatenate(([0], ends[:-1] + 1))
    groups = ends - begins + 1
    if groups.max() > _MOST_GROUPS:
        raise ValueError("a number is too large")
    place = np.arange(len(characters)) - np.repeat(begins, groups)
    numbers = np.add.reduceat((characters & 31) << 5 * place, begins)
    numbers -= np.where(characters[ends] & 16, np.int64(1) << 5 * groups, 0)
    for first in (1, 2):        # each of these begins a row of differences
        numbers[first::2] = np.cumsum(numbers[first::2])
    if numbers.min() < 0 or numbers.max() > 1 << 31:
        raise ValueError("a run is negative or too large")
    return numbers
