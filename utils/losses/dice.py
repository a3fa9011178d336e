"""Flat Dice, one ratio over all classes and pixels of the batch, and two losses built on it.

Milletari et al., V-Net, 3DV 2016, arXiv:1606.04797; smoothing as in the published
code of yassouali's segmentation trainer and the RankDice fork. Log-cosh:
Jadon, A survey of loss functions for semantic segmentation, 2020, arXiv:2006.14822.

Differs from that code: ignored pixels are left out; that code relabels them in place as the
lowest class of the batch and trains on them.
"""
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.inverse import OF_REGIONS, NoInverse
from utils.losses.pixels import (
    check_label_smoothing,
    check_reduction,
    cross_entropy_map,
    labeled,
    mean_over,
    weighed,
)
from utils.losses.warning import warn_once
from utils.machine.tensors import LabelBatch, Logits


class DiceLoss(nn.Module):
    """1 - (2 S + smooth) / (2 |V| + smooth); S sums p of the true class over the labeled pixels V.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. The Dice ratio over one-hot
    labels reduces to this, because p sums to 1 over the classes: the loss is linear in p and does
    not balance the classes. To balance them, use DC. Without a labeled pixel: 0.
    """

    activation = "softmax"

    def __init__(self, smooth: float = 1.0, ignore_index: int = 255):
        super().__init__()
        if smooth < 0:
            raise ValueError(f"smooth must not be negative, found {smooth}")
        self.smooth, self.ignore_index = smooth, ignore_index
        warn_once(f"{type(self).__name__} computes one Dice ratio over all classes together: it "
                  "does not balance classes. DC and ClassDiceLoss do.")

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        return self._dice(cross_entropy_map(logits, index, valid), valid)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS

    def _dice(self, loss, valid):
        """The Dice loss from the cross-entropy map, which is 0 at unlabeled pixels."""
        # 1 - ratio, written as the sum of 1 - p, because that is exact when every pixel is right.
        missed = -2 * torch.expm1(-loss).sum()
        count = 2 * valid.sum().to(loss.dtype) + self.smooth
        return missed / count.clamp_min(torch.finfo(loss.dtype).tiny)


class CE_DiceLoss(DiceLoss):  # noqa: N801 (the name that the published configs use)
    """Cross-entropy plus DiceLoss, from one softmax.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. weight: class weights of the
    cross-entropy, one number per class. reduction: of the cross-entropy, "mean" or "sum".
    label_smoothing: of the cross-entropy, as in CrossEntropyLoss2d.
    """

    weight: torch.Tensor | None

    def __init__(self, smooth: float = 1.0, weight: list | None = None,
                 reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
                 ignore_index: int = 255):
        super().__init__(smooth, ignore_index)
        check_reduction(reduction)
        check_label_smoothing(label_smoothing)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.register_buffer("weight", class_weights(weight), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        cross_entropy = cross_entropy_map(logits, index, valid)
        dice = self._dice(cross_entropy, valid)
        loss, mass = weighed(cross_entropy, logits, index, valid, self.weight,
                             self.label_smoothing)
        return dice + (loss.sum() if self.reduction == "sum" else mean_over(loss, mass.sum()))


class LogCoshDiceLoss(DiceLoss):
    """ln cosh of DiceLoss, which is close to d²/2 for a small Dice loss d.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    """

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        return log_cosh(super().forward(logits, target))


def log_cosh(value: torch.Tensor) -> torch.Tensor:
    """ln cosh(value), elementwise and without overflow; value: float, any shape, >= 0."""
    return value + F.softplus(-2 * value) - math.log(2)
