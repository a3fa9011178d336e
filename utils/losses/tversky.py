"""Tversky and soft-Jaccard losses: per class, wrong pixels weighed by their kind.

Tversky: Salehi et al., MLMI 2017, arXiv:1706.05721; focal form: Abraham & Khan, ISBI 2019,
arXiv:1810.07842. Jaccard: Rahman & Wang, ISVC 2016. With alpha = beta = 0.5 the Tversky index is
the Dice score, with alpha = beta = 1 the Jaccard index (IoU).

Abraham & Khan call the weight of missed pixels alpha; here it is beta, as in Salehi et al. Only
labeled pixels are counted.
"""
from typing import Literal

import torch
from torch import nn

from utils.losses.binary import warn_sigmoid
from utils.losses.class_weights import class_weights
from utils.losses.inverse import OF_REGIONS, NoInverse
from utils.losses.pixels import class_sums, labeled, sum_by_class
from utils.machine.precision import full_precision
from utils.machine.tensors import LabelBatch, Logits


class TverskyLoss(nn.Module):
    """Mean over the classes of (1 - T_c)^(1 / gamma), T_c the Tversky index of class c.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    1 - T_c = W / max(I + W + smooth, eps), W = alpha (P - I) + beta (Y - I): I is the sum of p_c
    over the pixels labeled c, P the sum of p_c over all labeled pixels, Y the number of pixels
    labeled c. alpha: weight of false positives (P - I); beta: of missed pixels (Y - I).
    gamma: 1, or above for the focal form (4/3 in the paper), which weighs bad classes more.
    batch: sums over the whole batch; false: over each image, then the mean over the images.
    average: "present": the mean over the classes with a labeled pixel; "all": over all C classes,
    where the index of an absent class is smooth / (alpha P + smooth).
    weight: a factor on the loss of each class. activation: of p, "softmax" or "sigmoid".
    Images (with batch: batches) without a labeled pixel count as 0.
    """

    weight: torch.Tensor | None

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, gamma: float = 1.0,
                 smooth: float = 0.0, eps: float = 1e-7, batch: bool = True,
                 average: Literal["present", "all"] = "present", weight: list | None = None,
                 activation: Literal["softmax", "sigmoid"] = "softmax", ignore_index: int = 255):
        super().__init__()
        if alpha < 0 or beta < 0 or not alpha + beta:
            raise ValueError(f"alpha and beta must not be negative or both 0, found {alpha} and "
                             f"{beta}")
        if gamma < 1 or smooth < 0 or eps <= 0:
            raise ValueError("gamma must be at least 1, smooth not negative and eps positive, "
                             f"found {gamma}, {smooth} and {eps}")
        if average not in ("present", "all") or activation not in ("softmax", "sigmoid"):
            raise ValueError('average must be "present" or "all" and activation "softmax" or '
                             f'"sigmoid", found {average!r} and {activation!r}')
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.smooth, self.eps, self.batch, self.average = smooth, eps, batch, average
        self.activation, self.ignore_index = activation, ignore_index
        self.register_buffer("weight", class_weights(weight), persistent=False)
        if activation == "sigmoid":
            warn_sigmoid(self)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        if self.activation == "softmax":
            cross_entropy, *sums = class_sums(logits, index, valid)
            dtype = cross_entropy.dtype
        else:
            sums, dtype = _sigmoid_sums(logits, index, valid), full_precision(logits).dtype
        if self.batch:
            sums = [term.sum(0, keepdim=True) for term in sums]
        return self._mean(*sums).to(dtype)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS

    def _mean(self, hit, predicted, labels):
        """The loss of the sums of each image or batch, (M, C) float64."""
        wrong = self.alpha * (predicted - hit) + self.beta * (labels - hit)
        loss = wrong / (hit + wrong + self.smooth).clamp_min(self.eps)
        counted = labels > 0
        if self.average == "all":
            counted = counted.any(1, keepdim=True).expand_as(labels)
        if self.gamma > 1:
            # The bound keeps the derivative of the root finite at 0.
            loss = loss.clamp_min(torch.finfo(torch.float32).tiny) ** (1 / self.gamma)
        loss = torch.where(counted, loss, 0)
        if self.weight is not None:
            loss = loss * self.weight.to(loss)
        return (loss.sum(1) / counted.sum(1).clamp_min(1)).sum() / max(1, len(loss))


class JaccardLoss(TverskyLoss):
    """Mean over the classes of 1 - J_c, the soft Jaccard index (IoU) of class c.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    1 - J_c = (P + Y - 2 I) / max(P + Y - I + smooth, eps), with the sums and the other arguments of
    TverskyLoss, which this is with alpha = beta = 1. LovaszSoftmax is another relaxation of the
    same index.
    """

    aliases = ("SoftJaccardLoss",)

    def __init__(self, smooth: float = 0.0, eps: float = 1e-7, batch: bool = True,
                 average: Literal["present", "all"] = "present", weight: list | None = None,
                 activation: Literal["softmax", "sigmoid"] = "softmax", ignore_index: int = 255):
        super().__init__(1.0, 1.0, 1.0, smooth, eps, batch, average, weight, activation,
                         ignore_index)


def _sigmoid_sums(logits, index, valid):
    """hit, predicted and labels as those of `class_sums`, of independent sigmoids."""
    p = torch.sigmoid(full_precision(logits))
    hit = sum_by_class(p.gather(1, index[:, None])[:, 0], index, valid, logits.shape[1])
    predicted = (p * valid[:, None]).sum((2, 3), dtype=torch.float64)
    labels = sum_by_class(torch.ones_like(valid, dtype=p.dtype), index, valid, logits.shape[1])
    return [hit, predicted, labels]
