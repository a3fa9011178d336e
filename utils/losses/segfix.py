"""The loss of SegFix: Yuan et al., ECCV 2020, arXiv:2007.04269 (openseg's segfix_loss).

Differs from that code: where no pixel is predicted as boundary, whose weights it
takes as 0/0, the direction loss is 0; it runs on every device.
"""
import torch
import torch.nn.functional as F
from torch import nn

from utils.losses.pixels import (class_weight_map, cross_entropy_map, labelled, mean_over,
                                 sum_by_class)
from utils.precision import full_precision


class SegFixLoss(nn.Module):
    """Cross-entropy of the boundary mask plus that of the direction, each with balanced weights.

    mask_logits (N, 2, h, w), direction_logits (N, D, h, w), upsampled bilinearly
    (align_corners) to the targets; boundary (N, H, W) of 0 and 1, direction
    (N, H, W) of 0..D-1, both ignore_index where there is none -> scalar. The
    direction counts where the boundary is predicted (p > 0.5 after softmax). The
    weight of class k in either loss is 1 - n_k / sum n over the pixels of this
    batch that count; the means divide by the summed weights. `last_parts` has
    both. Without a pixel that counts: 0.
    """

    activation = "softmax"
    inputs = ("mask", "direction")
    targets = ("boundary", "direction")
    resize = "logits_align_corners"

    def __init__(self, mask_weight: float = 1.0, direction_weight: float = 1.0,
                 ignore_index: int = 255):
        super().__init__()
        self.mask_weight, self.direction_weight = mask_weight, direction_weight
        self.ignore_index, self.last_parts = ignore_index, {}

    def forward(self, mask_logits: torch.Tensor, direction_logits: torch.Tensor,
                boundary: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        mask_logits = _to_size(full_precision(mask_logits), boundary)
        direction_logits = _to_size(full_precision(direction_logits), direction)
        valid, index = labelled(boundary, self.ignore_index)
        mask = _balanced(mask_logits, index, valid)
        predicted = mask_logits.detach().diff(dim=1)[:, 0] > 0      # p of class 1 above 0.5
        valid, index = labelled(direction, self.ignore_index)
        counts = valid & predicted
        way = _balanced(direction_logits, index * counts, counts)
        self.last_parts = {"mask": mask.detach(), "direction": way.detach()}
        return self.mask_weight * mask + self.direction_weight * way


def _balanced(logits, index, valid):
    loss = cross_entropy_map(logits, index, valid)
    counts = sum_by_class(valid.to(loss.dtype), index, valid, logits.shape[1]).sum(0)
    weight = 1 - counts / counts.sum().clamp_min(1)
    weight = class_weight_map(weight, index, valid, logits)
    return mean_over(loss * weight, weight.sum())


def _to_size(logits, target):
    size = target.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)
