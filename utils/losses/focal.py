"""Focal loss of the softmax. Lin et al., ICCV 2017, arXiv:1708.02002."""
from typing import Literal

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.inverse import Inverse
from utils.losses.pixels import (
    check_reduction,
    class_weight_map,
    cross_entropy_map,
    labeled,
    mean_over,
)
from utils.machine.tensors import LabelBatch, Logits


class FocalLoss(nn.Module):
    """alpha_t (1 - p_t)^gamma · cross-entropy over the labeled pixels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. alpha: one factor per class
    (a list, "table", or a rule over class_pixels as in CrossEntropyLoss2d). It scales the loss and
    does not change p_t. The mean divides by the number of labeled pixels, also if alpha is given.
    detach: the factor (1 - p_t)^gamma has no gradient, as in hoya012's tutorial: the gradient of a
    pixel is that of cross-entropy times the factor. Without a labeled pixel: 0.
    """

    activation = "softmax"
    weight: torch.Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: list | str | None = None,
                 class_pixels: list | str | None = None, detach: bool = False,
                 reduction: Literal["mean", "sum"] = "mean", ignore_index: int = 255):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, found {gamma}")
        check_reduction(reduction)
        if detach and gamma == 0:
            raise ValueError("detach has no effect with gamma 0, which makes the factor 1")
        self.gamma, self.detach = gamma, detach
        self.reduction, self.ignore_index = reduction, ignore_index
        self.register_buffer("weight", class_weights(alpha, class_pixels, 2), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        loss = cross_entropy_map(logits, index, valid)
        # 1 - p_t is computed as -expm1(-loss), which is exact for confident pixels. The bound
        # keeps the derivative of the power finite at p_t = 1 when gamma < 1.
        missed = (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)
        factor = missed ** self.gamma
        loss = (factor.detach() if self.detach else factor) * loss
        if self.weight is not None:
            loss = loss * class_weight_map(self.weight, index, valid, logits)
        return loss.sum() if self.reduction == "sum" else mean_over(loss, valid.sum())

    def inverse(self) -> Inverse:
        """Undoes gamma and alpha (utils.losses.inverse)."""
        return Inverse(self.gamma, None if self.weight is None else self.weight.tolist(),
                       detached=self.detach)
