"""Online hard example mining, pixel-wise.

Shrivastava et al., CVPR 2016, arXiv:1604.03540; for pixels as in OCNet, HRNet-Semantic-
Segmentation and openseg (fs_ohemce). With at most min_kept labelled pixels all
are kept, the rule of OCNet; HRNet and openseg drop the easiest one there.
"""
import math

import torch
from torch import nn

from utils.class_weights import class_weights
from utils.losses.pixels import (class_weight_map, cross_entropy_map, labelled, mean_over,
                                 reads_are_free)


class OhemCrossEntropy(nn.Module):
    """Mean cross-entropy of the labelled pixels whose true class has p < threshold.

    logits (N, C, H, W), target (N, H, W) -> scalar. The threshold is `thresh`, or
    higher where fewer than min_kept pixels were kept: then the (min_kept + 1)-th
    smallest p of the batch (of this rank). HRNet: 0.9 and 131072, openseg: 0.7 or 0.9
    and 100000. Class weights multiply the kept losses and are not divided out.
    Without a labelled pixel: 0.
    """

    activation = "softmax"
    aliases = ("fs_ohemce",)

    def __init__(self, thresh: float = 0.7, min_kept: int = 100000,
                 weight: list | str | None = None, class_pixels: list | str | None = None,
                 ignore_index: int = 255):
        super().__init__()
        if not 0 < thresh <= 1 or min_kept < 0:
            raise ValueError("thresh must be in (0, 1] and min_kept not negative, found "
                             f"{thresh} and {min_kept}")
        self.thresh, self.min_kept, self.ignore_index = thresh, min_kept, ignore_index
        self.register_buffer("weight", class_weights(weight, class_pixels), persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        valid, index = labelled(target, self.ignore_index)
        loss = cross_entropy_map(logits, index, valid)
        hard = self._hard(loss.detach(), valid)
        if self.weight is not None:
            loss = loss * class_weight_map(self.weight, index, valid, logits)
        return mean_over(loss * hard, hard.sum())

    def _hard(self, loss, valid):
        """Where the pixel is kept. p < t is l > -ln t: the loss itself is the rank."""
        floor = -math.log(self.thresh)
        if loss.numel() <= self.min_kept:
            return valid
        hard = (loss > floor) & valid
        if reads_are_free(loss) and int(hard.sum()) > self.min_kept:
            return hard
        # Unlabelled pixels rank below all others: when the bound falls among them,
        # every labelled pixel is kept.
        ranked = torch.where(valid, loss, -1.0).flatten()
        bound = ranked.topk(self.min_kept + 1, sorted=False).values.min()
        return (loss > bound.clamp_max(floor)) & valid
