"""Names for the arrays that pass between modules; the tensors are in utils.machine.tensors."""
from typing import TypeAlias

import numpy as np

Image: TypeAlias = np.ndarray       # uint8 (H, W, 3), RGB
Labels: TypeAlias = np.ndarray      # (H, W): class ids or ignore_index; uint8, int16 or uint16
