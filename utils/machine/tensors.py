"""Names for the tensors that pass between modules; the arrays are in utils.images.types."""
from typing import TypeAlias

import torch

ImageBatch: TypeAlias = torch.Tensor    # (N, 3, H, W): uint8 RGB, or float after Normalize
LabelBatch: TypeAlias = torch.Tensor    # (N, H, W): class ids or ignore_index; an integer dtype
Logits: TypeAlias = torch.Tensor        # (N, C, H, W): scores before softmax or sigmoid, float
Masks: TypeAlias = torch.Tensor         # (N, C, H, W): one mask per class, bool


def label_dtype(num_classes: int) -> torch.dtype:
    """The dtype of predicted labels: uint8 up to 255 classes, int16 above."""
    return torch.uint8 if num_classes <= 255 else torch.int16
