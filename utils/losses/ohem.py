"""Online hard example mining, pixel-wise.

Shrivastava et al., CVPR 2016, arXiv:1604.03540; the form for pixels follows OCNet, HRNet-Semantic-
Segmentation and openseg (fs_ohemce). If a batch has at most min_kept labeled pixels, all of them
are kept, as in OCNet; HRNet and openseg drop the easiest one.
"""
import math

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.inverse import HARDEST, NoInverse
from utils.losses.pixels import (
    class_weight_map,
    cross_entropy_map,
    labeled,
    mean_over,
    reads_are_free,
)
from utils.machine.tensors import LabelBatch, Logits


class OhemCrossEntropy(nn.Module):
    """Mean cross-entropy of the labeled pixels whose true class has a probability p < thresh.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. If fewer than min_kept pixels
    have p < thresh, the threshold is raised to the (min_kept + 1)-th smallest p of the batch; each
    rank counts its own batch. HRNet: 0.9 and 131072, openseg: 0.7 or 0.9 and 100000.
    weight, class_pixels: class weights, or a rule and its pixel counts (see class_weights.py).
    They multiply the kept losses; the mean divides by the number of kept pixels, not by their
    weights. Without a labeled pixel: 0.
    """

    activation = "softmax"
    aliases = ("fs_ohemce",)
    weight: torch.Tensor | None

    def __init__(self, thresh: float = 0.7, min_kept: int = 100000,
                 weight: list | str | None = None, class_pixels: list | str | None = None,
                 ignore_index: int = 255):
        super().__init__()
        if not 0 < thresh <= 1 or min_kept < 0:
            raise ValueError("thresh must be in (0, 1] and min_kept not negative, found "
                             f"{thresh} and {min_kept}")
        self.thresh, self.min_kept, self.ignore_index = thresh, min_kept, ignore_index
        self.register_buffer("weight", class_weights(weight, class_pixels, 2), persistent=False)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        loss = cross_entropy_map(logits, index, valid)
        hard = self._hard(loss.detach(), valid)
        if self.weight is not None:
            loss = loss * class_weight_map(self.weight, index, valid, logits)
        return mean_over(loss * hard, hard.sum())

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return HARDEST

    def _hard(self, loss, valid):
        """The pixels to keep, (N, H, W) bool. p < t is loss > -ln t: a lower bound of the loss."""
        floor = -math.log(self.thresh)
        if loss.numel() <= self.min_kept:
            return valid
        hard = (loss > floor) & valid
        if reads_are_free(loss) and int(hard.sum()) > self.min_kept:
            return hard
        # Unlabeled pixels rank below all others. If the bound is one of them, every labeled
        # pixel is kept.
        ranked = torch.where(valid, loss, -1.0).flatten()
        bound = ranked.topk(self.min_kept + 1, sorted=False).values.min()
        return (loss > bound.clamp_max(floor)) & valid
