"""Lovász-Softmax. Berman, Rannen Triki & Blaschko, CVPR 2018, arXiv:1705.08790.

With the errors of a class sorted from large to small, F labelled pixels of the
class and B others among the first k, and G of the class in all, the k-th error
has the weight
    1 / (G + B)                        for a pixel of the class,
    (G - F) / ((G + B) (G + B - 1))    for another.
Nothing after the last pixel of the class has a weight: other pixels whose error is
below the smallest error of the class need not be sorted at all.

Differs from the published code: the gradient is written down with the value (the
weights are constants), there is no loop over classes on a device, and a batch
with one labelled pixel or none is allowed.
"""
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.losses.pixels import labelled, planar, reads_are_free, small_labels
from utils.precision import full_dtype

# Errors that are sorted at once on a device: bounds the memory beside the logits.
_SORTED_AT_ONCE = 1 << 23


class LovaszSoftmax(nn.Module):
    """The Lovász extension of the Jaccard loss, per class over the labelled pixels.

    logits (N, C, H, W), target (N, H, W) -> scalar. classes: the mean over the
    classes "present" among the labels, over "all" (an absent class contributes its
    largest p_c), or over a list of class ids. per_image: image by image, then the
    mean over the images; one without a labelled pixel counts 0.
    Without a labelled pixel: 0.
    """

    activation = "softmax"

    def __init__(self, classes: Literal["present", "all"] | list = "present",
                 per_image: bool = False, ignore_index: int = 255):
        super().__init__()
        if isinstance(classes, str) and classes not in ("present", "all"):
            raise ValueError(f'classes must be "present", "all" or a list, found {classes!r}')
        if not classes:
            raise ValueError("classes is empty")
        self.classes, self.per_image, self.ignore_index = classes, per_image, ignore_index

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        valid, index = labelled(target, self.ignore_index)
        return _Lovasz.apply(logits, index, valid, self.classes, self.per_image)


class _Lovasz(torch.autograd.Function):
    """Computes the gradient with the value, and keeps that one logit-sized tensor."""

    @staticmethod
    def forward(ctx, logits, index, valid, classes, per_image):
        p = F.softmax(planar(logits), 1, dtype=full_dtype(logits))
        images, num_classes = p.shape[:2]
        chosen = list(range(num_classes)) if isinstance(classes, str) else list(classes)
        slope = torch.zeros_like(p, memory_format=torch.contiguous_format)
        add = _add_on_cpu if reads_are_free(p) else _add_on_device
        parts = [slice(i, i + 1) for i in range(images)] if per_image else [slice(None)]
        labels = small_labels(index, valid, num_classes)
        total = p.new_zeros((), dtype=torch.float64)
        for part in parts:
            total = total + add(p[part], labels[part], chosen, classes == "present", slope[part],
                                len(parts))
        if ctx.needs_input_grad[0]:
            # Back through the softmax: p (m - sum of p m).
            slope.mul_(p)
            slope.addcmul_(p, slope.sum(1, keepdim=True), value=-1)
            ctx.dtype = logits.dtype
            ctx.save_for_backward(slope)
        return total.to(p.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        slope, = ctx.saved_tensors
        return (slope * grad_output).to(ctx.dtype), None, None, None, None


def _add_on_cpu(p, labels, chosen, only_present, slope, divisor):
    """The loss of one part of the batch; its d/dp, over `divisor`, is written to slope.

    p, slope (n, C, H, W); labels (n, H, W), -1 where there is none.
    """
    labels = labels.reshape(-1).numpy()
    pixels = np.flatnonzero(labels >= 0)
    if not len(pixels):
        return 0.0
    by_class = pixels[np.argsort(labels[pixels], kind="stable")]
    counts = np.bincount(labels[pixels], minlength=p.shape[1])
    ends = np.cumsum(counts)
    if only_present:
        chosen = [c for c in chosen if counts[c]]
    total, scale = 0.0, 1 / (len(chosen) * divisor)
    for c in chosen:
        pc = p[:, c].reshape(-1).numpy()
        own = by_class[ends[c] - counts[c]:ends[c]]
        weights = np.zeros_like(pc)
        if len(own):
            total += _weigh_errors(pc, labels, c, own, weights)
        else:
            top = pixels[pc[pixels].argmax()]
            weights[top] = 1
            total += float(pc[top])
        weights *= scale
        slope[:, c] = torch.from_numpy(weights).view_as(slope[:, c])
    return total * scale


def _weigh_errors(pc, labels, c, own, weights):
    """The loss of one class with pixels `own`; d/dp goes to `weights`."""
    error = np.abs(1 - pc[own])     # p may exceed 1 by a rounding
    others = np.flatnonzero((pc >= error.min()) & (labels != c) & (labels >= 0))
    pixels = np.concatenate((own, others))
    errors = np.concatenate((error, pc[others]))
    order = _descending(errors)
    errors, pixels, is_own = errors[order], pixels[order], order < len(own)
    found = np.cumsum(is_own)
    union = np.arange(1 + len(own), 1 + len(own) + len(order)) - found
    m = np.where(is_own, 1.0, (len(own) - found) / np.maximum(union - 1, 1)) / union
    weights[pixels] = np.where(is_own, -m, m)
    return float(np.dot(m, errors))


def _descending(errors):
    """The order of non-negative `errors` from large to small, ties in place."""
    if errors.dtype != np.float32:
        return np.argsort(-errors, kind="stable")
    # The bits of non-negative floats sort like the floats. Key and index in one
    # 64-bit number sort several times faster than an index array does.
    keys = (np.int64(0x7FFFFFFF) - errors.view(np.int32)) << 32
    keys |= np.arange(len(errors))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _add_on_device(p, labels, chosen, only_present, slope, divisor):
    """As `_add_on_cpu`, without reading anything back: absent classes are sorted, then masked."""
    num_classes = p.shape[1]
    labels = labels.reshape(-1)
    valid = labels >= 0
    seen = torch.zeros(num_classes + 1, dtype=torch.bool, device=p.device)
    seen.scatter_(0, torch.where(valid, labels, num_classes).long(), True)
    every = chosen == list(range(num_classes))
    picked = torch.full((num_classes,), every, device=p.device)
    for c in () if every else chosen:       # a list as index would wait for the device
        picked[c] = True
    counted = picked & (seen[:-1] if only_present else valid.any())
    scale = counted.double() / (counted.sum().clamp_min(1) * divisor)
    total = p.new_zeros((), dtype=torch.float64)
    step = max(1, _SORTED_AT_ONCE // max(1, len(labels)))
    for start in range(0, num_classes, step):
        part = slice(start, min(start + step, num_classes))
        own = labels == torch.arange(part.start, part.stop, device=p.device)[:, None]
        pc = p[:, part].transpose(0, 1).reshape(len(own), -1)
        errors, order = torch.where(valid, (own.to(pc.dtype) - pc).abs(), -1).sort(
            1, descending=True)
        is_own = own.gather(1, order)
        size = own.sum(1, keepdim=True)
        found = is_own.cumsum(1)
        union = torch.arange(1, 1 + len(labels), device=p.device) + size - found
        left = (size - found).to(pc.dtype)      # pixels of the class that are still to come
        m = torch.where(is_own, 1, left / (union - 1).clamp_min(1)) / union
        # An absent class weighs its largest error only.
        m[:, :1] = torch.where(size == 0, 1, m[:, :1])
        m = torch.where(errors >= 0, m, 0)
        total = total + ((m * errors).sum(1).double() * scale[part]).sum()
        weights = torch.zeros_like(pc).scatter_(1, order, torch.where(is_own, -m, m))
        weights *= scale[part, None].to(pc.dtype)
        slope[:, part] = weights.view(len(own), len(p), *p.shape[2:]).transpose(0, 1)
    return total
