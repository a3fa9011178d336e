"""Names for the arrays that pass between modules; the tensors are in utils.machine.tensors."""
from typing import TypeAlias

import numpy as np

Image: TypeAlias = np.ndarray       # uint8 (H, W, 3), RGB
Labels: TypeAlias = np.ndarray      # (H, W): class ids or ignore_index; see train_id_type
MOST_CLASSES = 2 ** 15 - 1          # predictions are int16
PADDING_16_BITS = 65535             # in stored labels of 16 bits: pixels that are ignored
IGNORE_INDICES = range(-2 ** 31, 2 ** 31)


def train_id_type(num_classes: int, ignore_index: int) -> type[np.integer]:
    """The smallest of uint8, int16 and int32 for the classes, ignore_index and one more value."""
    if num_classes < 255 and 0 <= ignore_index <= 255:
        return np.uint8
    return np.int16 if -2 ** 15 <= ignore_index < 2 ** 15 else np.int32
