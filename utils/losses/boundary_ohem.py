"""Hard examples among the pixels that the network itself predicts as boundaries.

Xu et al., PIDNet, CVPR 2023, arXiv:2206.02066.
"""
import math

import torch
from torch import nn

from utils.losses.inverse import NoInverse
from utils.losses.ohem import OhemCrossEntropy
from utils.machine.tensors import LabelBatch, Logits


class BoundaryOhemCrossEntropy(nn.Module):
    """OhemCrossEntropy of "out", on the pixels where the sigmoid of "d" is above `boundary`.

    logits (N, C, H, W) and boundary_logits (N, 1, H, W), float, target (N, H, W) integer -> scalar.
    The other arguments are those of OhemCrossEntropy; the defaults are PIDNet's. The boundary
    output only selects pixels and gets a gradient of zero: it needs a loss of its own, such as
    BoundaryBCELoss. Without a labeled pixel on a predicted boundary: 0.
    """

    activation = "softmax"
    inputs = ("out", "d")

    def __init__(self, boundary: float = 0.8, thresh: float = 0.9, min_kept: int = 131072,
                 weight: list | str | None = None, class_pixels: list | str | None = None,
                 ignore_index: int = 255):
        super().__init__()
        if not 0 < boundary < 1:
            raise ValueError(f"boundary must be between 0 and 1, found {boundary}")
        self.above = math.log(boundary / (1 - boundary))    # the logit of this probability
        self.ohem = OhemCrossEntropy(thresh, min_kept, weight, class_pixels, ignore_index)

    def forward(self, logits: Logits, boundary_logits: Logits, target: LabelBatch) -> torch.Tensor:
        elsewhere = boundary_logits.detach()[:, 0] <= self.above
        loss = self.ohem(logits, target.long().masked_fill(elsewhere, self.ohem.ignore_index))
        # A sum of nothing: with several processes every parameter needs a gradient.
        return loss + boundary_logits[:, :0].sum()

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return self.ohem.inverse()
