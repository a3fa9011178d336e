"""Dice loss per class, as in MIC-DKFZ's code (DC) and in PaddleSeg (ClassDiceLoss).

Milletari et al., V-Net, 3DV 2016, arXiv:1606.04797.
"""
from typing import Literal

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.dice import log_cosh
from utils.losses.inverse import OF_REGIONS, NoInverse
from utils.losses.pixels import class_sums, labeled
from utils.machine.tensors import LabelBatch, Logits


class DC(nn.Module):
    """Mean over the classes of 1 - Dice_c, with sums over the whole batch.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    Dice_c = (2 I + smooth) / max(P + Y + smooth, eps): I is the sum of p_c over the pixels labeled
    c, P the sum of p_c over all labeled pixels, Y the number of pixels labeled c. A class without
    a labeled pixel counts as 0. average: "all" divides by C, as published, so the scale depends
    on the number of classes in a batch; "present" divides by the number of classes in the batch.
    log_loss: ln cosh of the loss of each class.
    """

    activation = "softmax"

    def __init__(self, smooth: float = 0.0, eps: float = 1e-7,
                 average: Literal["all", "present"] = "all", log_loss: bool = False,
                 ignore_index: int = 255):
        super().__init__()
        if average not in ("all", "present"):
            raise ValueError(f'average must be "all" or "present", found {average!r}')
        self.smooth, self.eps, self.average = smooth, eps, average
        self.log_loss, self.ignore_index = log_loss, ignore_index

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        cross_entropy, *sums = class_sums(logits, index, valid)
        hit, predicted, labels = (term.sum(0) for term in sums)
        loss = 1 - dice_ratio(hit, predicted, labels, self.smooth, self.eps)
        if self.log_loss:
            loss = log_cosh(loss)
        present = labels > 0
        count = present.sum().clamp_min(1) if self.average == "present" else len(labels)
        return ((loss * present).sum() / count).to(cross_entropy.dtype)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS


class ClassDiceLoss(nn.Module):
    """Mean over images and classes of 1 - Dice, as in PaddleSeg's DiceLoss.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. For each image and class, also
    absent ones, 1 - (2 I + smooth) / (P + Y + smooth + eps); the mean over the images times
    weight_c; then the mean over the C classes. batch: sums over the whole batch instead (with
    smooth 0 and eps 1e-5 this is the loss of PaddleSeg's Cityscapes recipe, except that ignored
    pixels are not in the denominator).
    """

    activation = "softmax"
    weight: torch.Tensor | None

    def __init__(self, smooth: float = 1.0, eps: float = 1e-8, weight: list | None = None,
                 batch: bool = False, ignore_index: int = 255):
        super().__init__()
        if smooth < 0 or eps <= 0:
            raise ValueError(f"smooth must not be negative and eps positive, found {smooth}, {eps}")
        self.smooth, self.eps, self.batch = smooth, eps, batch
        self.ignore_index = ignore_index
        self.register_buffer("weight", class_weights(weight), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        cross_entropy, *sums = class_sums(logits, index, valid)
        if self.batch:
            sums = [term.sum(0, keepdim=True) for term in sums]
        hit, predicted, labels = sums
        loss = 1 - (2 * hit + self.smooth) / (predicted + labels + self.smooth + self.eps)
        loss = loss.sum(0) / max(1, len(loss))
        if self.weight is not None:
            loss = loss * self.weight.to(loss)
        return loss.mean().to(cross_entropy.dtype)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS


def dice_ratio(hit: torch.Tensor, predicted: torch.Tensor, labels: torch.Tensor, smooth: float,
               eps: float) -> torch.Tensor:
    """(2 I + smooth) / max(P + Y + smooth, eps), elementwise.

    hit (I), predicted (P), labels (Y): sums of one shape, (C,) or (N, C), float64.
    """
    return (2 * hit + smooth) / (predicted + labels + smooth).clamp_min(eps)
