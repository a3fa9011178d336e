"""Label maps and offsets for the tests of SegFix."""
import numpy as np
import pytest
from numpy.lib.npyio import NpzFile
from numpy.typing import DTypeLike

from tests.support.places import SHARED
from utils.images.types import Labels

GOLDEN = SHARED / "parity/segfix"
RNG = np.random.default_rng(0)


def golden(name: str) -> NpzFile:
    """Returns the arrays of a golden file; skips the test if the file does not exist."""
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    return np.load(path)


def blocks(height: int = 40, width: int = 60, classes: int = 5) -> Labels:
    """Returns a label map uint8 (H, W) of random blocks of 10 x 10 pixels."""
    values = RNG.integers(0, classes, (-(-height // 10), -(-width // 10)))
    return np.kron(values, np.ones((10, 10)))[:height, :width].astype(np.uint8)


def random_offsets(height: int, width: int, dtype: DTypeLike = np.int8) -> np.ndarray:
    """Returns offsets (H, W, 2), (dy, dx) of -1, 0 or 1, in the given dtype."""
    return RNG.integers(-1, 2, (height, width, 2)).astype(dtype)
