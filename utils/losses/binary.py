"""Losses of C independent sigmoids against one-hot labels, as in the RankDice fork.

Focal: Lin et al., ICCV 2017, arXiv:1708.02002. Dice: Milletari et al., 3DV 2016.

Differs from the fork's code: ignored pixels are left out (the fork trains them as "no class"),
the focal factor multiplies every element (in the fork the mean), and BDiceLoss takes label maps
like every other loss.
"""
from typing import Literal

import torch
from torch import nn

from utils.losses.class_weights import class_weights
from utils.losses.inverse import OF_REGIONS, Inverse, NoInverse
from utils.losses.pixels import check_reduction, labeled
from utils.losses.warning import warn_once
from utils.machine.precision import full_dtype, full_precision
from utils.machine.tensors import LabelBatch, Logits


class BCEWithLogitsLoss2d(nn.Module):
    """Binary cross-entropy, the mean over the labeled pixels and the C classes.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. weight: one factor per class
    (a list, "table", or a rule over class_pixels). reduction: "mean" or "sum".
    Without a labeled pixel: 0.
    """

    activation = "sigmoid"
    weight: torch.Tensor | None

    def __init__(self, weight: list | str | None = None, class_pixels: list | str | None = None,
                 reduction: Literal["mean", "sum"] = "mean", ignore_index: int = 255):
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.register_buffer("weight", class_weights(weight, class_pixels), persistent=False)
        warn_sigmoid(self)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        total = binary_cross_entropy_sums(logits, index, valid)
        if self.weight is not None:
            total = total * self.weight.to(total)
        return _reduce(total.sum(), valid, logits.shape[1], self.reduction)

    def inverse(self) -> Inverse:
        """Nothing is to undo: a weight scales both sides of the odds of its class."""
        return Inverse(activation="sigmoid")


class BCEWithLogitsFocalLoss2d(nn.Module):
    """(1 - e^-b)^gamma · b, where b is the binary cross-entropy of an element.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar: the mean over the labeled
    pixels and the C classes, or the sum. alpha: one factor per class.
    Without a labeled pixel: 0.
    """

    activation = "sigmoid"
    weight: torch.Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: list | None = None,
                 reduction: Literal["mean", "sum"] = "mean", ignore_index: int = 255):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, found {gamma}")
        check_reduction(reduction)
        self.gamma, self.reduction, self.ignore_index = gamma, reduction, ignore_index
        self.register_buffer("weight", class_weights(alpha), persistent=False)
        warn_sigmoid(self)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        total = _BinarySums.apply(logits, index, valid, self.gamma, None).sum(0)
        if self.weight is not None:
            total = total * self.weight.to(total)
        return _reduce(total.sum(), valid, logits.shape[1], self.reduction)

    def inverse(self) -> Inverse:
        """Undoes gamma; alpha scales both sides of the odds of its class."""
        return Inverse(self.gamma, activation="sigmoid")


class BDiceLoss(nn.Module):
    """1 - (2 sum s y + smooth) / (sum s + sum y + smooth); s: sigmoids, y: one-hot labels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. One ratio over all classes and
    labeled pixels of the batch. Without a labeled pixel: 0.
    """

    activation = "sigmoid"

    def __init__(self, smooth: float = 1.0, ignore_index: int = 255):
        super().__init__()
        if smooth < 0:
            raise ValueError(f"smooth must not be negative, found {smooth}")
        self.smooth, self.ignore_index = smooth, ignore_index
        warn_sigmoid(self)

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        hit, predicted = _SigmoidTerms.apply(logits, index, valid)
        # The numerator sum s + sum y - 2 sum s y is exact near 0; 1 - ratio is not.
        count = valid.sum()
        hit, predicted = hit.sum(), predicted.sum()
        whole = predicted + count + self.smooth
        return (predicted + count - 2 * hit) / whole.clamp_min(torch.finfo(whole.dtype).tiny)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS


def binary_cross_entropy_sums(logits: Logits, index: torch.Tensor, valid: torch.Tensor,
                              at_label: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy against one-hot labels, summed over the labeled pixels: (C,) float.

    logits (N, C, H, W) of any float dtype; index, valid (N, H, W): from `labeled`.
    at_label (N, H, W) float: a factor on the element of the label (pos_weight of its class).
    """
    return _BinarySums.apply(logits, index, valid, 0.0, at_label).sum(0)


def warn_sigmoid(loss: nn.Module):
    """Warns once per run that the logits of this loss are sigmoid logits, not softmax logits."""
    warn_once(f"{type(loss).__name__} trains one sigmoid per class: the argmax over the logits "
              "stays meaningful, a softmax over them is not calibrated. Decisions on "
              'probabilities use the activation "sigmoid" that the checkpoint stores.')


def _reduce(total, valid, num_classes, reduction):
    if reduction == "sum":
        return total
    return total / (valid.sum() * num_classes).clamp_min(1)


class _BinarySums(torch.autograd.Function):
    """Sums (N, C) of q^gamma · b over the labeled pixels; b is the BCE and q = 1 - e^-b.

    Let z be the logit of the wrong answer: -x at the label and x elsewhere. Then b = softplus(z)
    and q = sigmoid(z), so no one-hot tensor is needed.
    """

    @staticmethod
    def forward(ctx, logits, index, valid, gamma, at_label):
        ctx.gamma, ctx.dtype = gamma, logits.dtype
        ctx.save_for_backward(logits, index, valid, at_label)
        z = _wrong_logits(logits, index)
        value = _softplus(z)
        if gamma:
            value.mul_(z.sigmoid_().pow_(gamma))
        if at_label is not None:
            _scale_label(value, index, at_label)
        return value.mul_(valid[:, None]).sum((2, 3))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sums):
        logits, index, valid, at_label = ctx.saved_tensors
        z = _wrong_logits(logits, index)
        if ctx.gamma:
            # d(q^g b)/dz = q^g (g (1 - q) b + q)
            value = _softplus(z)
            q = z.sigmoid_()
            value.mul_(ctx.gamma)
            grad = value.addcmul_(value, q, value=-1).add_(q).mul_(q.pow_(ctx.gamma))
        else:
            grad = z.sigmoid_()
        grad.mul_(grad_sums[:, :, None, None]).mul_(valid[:, None])
        _scale_label(grad, index, -1 if at_label is None else -at_label)
        return grad.to(ctx.dtype), None, None, None, None


class _SigmoidTerms(torch.autograd.Function):
    """The sigmoid s at the label and the sum of s over the classes: (N, H, W) each.

    Both are 0 at unlabeled pixels.
    """

    @staticmethod
    def forward(ctx, logits, index, valid):
        s = torch.sigmoid(full_precision(logits))
        ctx.dtype = logits.dtype
        ctx.save_for_backward(s, index, valid)
        return s.gather(1, index[:, None])[:, 0] * valid, s.sum(1) * valid

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hit, grad_predicted):
        s, index, valid = ctx.saved_tensors
        slope = (1 - s).mul_(s)
        at_label = slope.gather(1, index[:, None]) * (grad_hit * valid)[:, None]
        grad = slope.mul_((grad_predicted * valid)[:, None])
        grad.scatter_add_(1, index[:, None], at_label)
        return grad.to(ctx.dtype), None, None


def _wrong_logits(logits, index):
    """A copy of the logits, in float32 or float64, with the sign changed at the label."""
    return _scale_label(logits.to(full_dtype(logits), copy=True), index, -1)


def _scale_label(values, index, factor):
    """Multiplies the entry of every pixel's label in place by a number or a map (N, H, W)."""
    if isinstance(factor, torch.Tensor):
        factor = factor[:, None]
    return values.scatter_(1, index[:, None], values.gather(1, index[:, None]) * factor)


def _softplus(z):
    """ln(1 + e^z) as ln(e^z + e^0), because torch's softplus loses digits beyond z = 20."""
    return torch.logaddexp(z, z.new_zeros(()))
