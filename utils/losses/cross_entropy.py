"""Cross-entropy of the softmax, with optional class weights."""
from typing import Literal

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.pixels import (
    check_reduction,
    class_weight_map,
    cross_entropy_map,
    labeled,
    mean_over,
)
from utils.machine.tensors import LabelBatch, Logits


class CrossEntropyLoss2d(nn.Module):
    """Cross-entropy over the labeled pixels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    weight: one number per class, "table" (the 19 of Cityscapes), or the rule
    "log", "enet" or "median" over `class_pixels` (see utils.losses.class_weights).
    reduction: "mean" divides the sum by the summed weights of the labeled pixels (without weights,
    by their number), "sum" returns the sum. Without a labeled pixel: 0.
    """

    activation = "softmax"
    aliases = ("CE",)
    weight: torch.Tensor | None

    def __init__(self, weight: list | str | None = None, class_pixels: list | str | None = None,
                 reduction: Literal["mean", "sum"] = "mean", ignore_index: int = 255):
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.register_buffer("weight", class_weights(weight, class_pixels, 2), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        loss = cross_entropy_map(logits, index, valid)
        mass = valid
        if self.weight is not None:
            mass = class_weight_map(self.weight, index, valid, logits)
            loss = loss * mass
        return loss.sum() if self.reduction == "sum" else mean_over(loss, mass.sum())


class wCE(CrossEntropyLoss2d):  # noqa: N801 (the name that the published configs use)
    """CrossEntropyLoss2d with the Cityscapes table as its default weights."""

    aliases = ("weighted_ce",)

    def __init__(self, weight: list | str = "table", class_pixels: list | str | None = None,
                 reduction: Literal["mean", "sum"] = "mean", ignore_index: int = 255):
        super().__init__(weight, class_pixels, reduction, ignore_index)
