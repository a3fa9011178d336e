"""The loss of SegFix: Yuan et al., ECCV 2020, arXiv:2007.04269 (openseg's segfix_loss).

Differs from that code: if no pixel is predicted as boundary, the direction loss is 0 (the weights
of that code are then 0/0); it runs on every device.
"""
import torch
import torch.nn.functional as F
from torch import nn

from utils.losses.inverse import NoInverse
from utils.losses.pixels import (
    class_weight_map,
    cross_entropy_map,
    labeled,
    mean_over,
    sum_by_class,
)
from utils.machine.precision import full_precision
from utils.machine.tensors import LabelBatch, Logits


class SegFixLoss(nn.Module):
    """Cross-entropy of the boundary mask plus that of the direction, each with balanced weights.

    mask_logits (N, 2, h, w) and direction_logits (N, D, h, w), float: upsampled bilinearly
    (align_corners) to the size of the targets. boundary (N, H, W), 0 or 1, and direction
    (N, H, W), 0..D-1: integers, or ignore_index for an unlabeled pixel. Returns a scalar.
    The direction loss uses the pixels that are predicted as boundary (p > 0.5 after softmax).
    The weight of class k in either loss is 1 - n_k / sum n, with n_k the number of pixels of class
    k that the loss uses in this batch; the means divide by the summed weights. `last_parts`
    contains both losses. Without a pixel to use: 0.
    """

    activation = "softmax"
    inputs = ("mask", "direction")
    targets = ("boundary", "direction")
    resize = "logits_align_corners"

    def __init__(self, mask_weight: float = 1.0, direction_weight: float = 1.0,
                 ignore_index: int = 255):
        super().__init__()
        if not (mask_weight or direction_weight):
            raise ValueError("mask_weight and direction_weight are both 0: the network would "
                             "learn nothing")
        self.mask_weight, self.direction_weight = mask_weight, direction_weight
        self.ignore_index = ignore_index
        self.last_parts: dict[str, torch.Tensor] = {}

    def forward(self, mask_logits: Logits, direction_logits: Logits, boundary: LabelBatch,
                direction: LabelBatch) -> torch.Tensor:
        mask_logits = _to_size(full_precision(mask_logits), boundary)
        direction_logits = _to_size(full_precision(direction_logits), direction)
        valid, index = labeled(boundary, self.ignore_index)
        mask_loss = _balanced(mask_logits, index, valid)
        predicted = mask_logits.detach().diff(dim=1)[:, 0] > 0      # p of class 1 above 0.5
        valid, index = labeled(direction, self.ignore_index)
        valid = valid & predicted
        direction_loss = _balanced(direction_logits, index * valid, valid)
        self.last_parts = {"mask": mask_loss.detach(), "direction": direction_loss.detach()}
        return self.mask_weight * mask_loss + self.direction_weight * direction_loss

    def inverse(self) -> NoInverse:
        """None: the outputs are directions."""
        return NoInverse("its outputs are no probabilities of classes")


def _balanced(logits, index, valid):
    """The mean cross-entropy with the weight 1 - n_k / sum n of each class k."""
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
