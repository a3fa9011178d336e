"""Cross-entropy of the softmax, with optional class weights."""
from typing import Literal

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.inverse import Inverse
from utils.losses.pixels import (
    check_label_smoothing,
    check_reduction,
    cross_entropy_map,
    labeled,
    mean_over,
    weighed,
)
from utils.machine.tensors import LabelBatch, Logits


class CrossEntropyLoss2d(nn.Module):
    """Cross-entropy over the labeled pixels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    weight: one number per class, "table" (the 19 of Cityscapes), or the rule
    "log", "enet" or "median" over `class_pixels` (see utils.losses.class_weights).
    label_smoothing: the share of each label that is spread evenly over all classes, as in torch.
    reduction: "mean" divides the sum by the summed weights of the labeled pixels (without weights,
    by their number), "sum" returns the sum. Without a labeled pixel: 0.
    """

    activation = "softmax"
    aliases = ("CE",)
    weight: torch.Tensor | None

    def __init__(self, weight: list | str | None = None, class_pixels: list | str | None = None,
                 reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
                 ignore_index: int = 255):
        super().__init__()
        check_reduction(reduction)
        check_label_smoothing(label_smoothing)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", class_weights(weight, class_pixels, 2), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        loss, mass = weighed(cross_entropy_map(logits, index, valid), logits, index, valid,
                             self.weight, self.label_smoothing)
        return loss.sum() if self.reduction == "sum" else mean_over(loss, mass.sum())

    def inverse(self) -> Inverse:
        """Undoes class weights and label smoothing (utils.losses.inverse)."""
        weight = None if self.weight is None else self.weight.tolist()
        return Inverse(weight=weight, label_smoothing=self.label_smoothing)


class wCE(CrossEntropyLoss2d):  # noqa: N801 (the name that the published configs use)
    """CrossEntropyLoss2d with the Cityscapes table as its default weights."""

    aliases = ("weighted_ce",)

    def __init__(self, weight: list | str = "table", class_pixels: list | str | None = None,
                 reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
                 ignore_index: int = 255):
        super().__init__(weight, class_pixels, reduction, label_smoothing, ignore_index)
