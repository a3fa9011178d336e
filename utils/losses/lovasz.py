"""Lovász-Softmax. Berman, Rannen Triki & Blaschko, CVPR 2018, arXiv:1705.08790.

The errors of a class are sorted from large to small. Let G be the number of labeled pixels of the
class, and F and B the numbers of pixels of the class and of other pixels among the first k. Then
the k-th error has the weight
    1 / (G + B)                        for a pixel of the class,
    (G - F) / ((G + B) (G + B - 1))    for another pixel.
Every weight after the last pixel of the class is 0. So other pixels whose error is below the
smallest error of the class need not be sorted.

Differs from the published code: the gradient is computed together with the value (the
weights are constants), there is no loop over classes on a device, and a batch
with one labeled pixel or none is allowed.
"""
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import ConfigError
from utils.losses.inverse import OF_REGIONS, NoInverse
from utils.losses.pixels import labeled, planar, reads_are_free, small_labels
from utils.machine.precision import full_dtype
from utils.machine.tensors import LabelBatch, Logits

# The most errors sorted at once on a device; this bounds the memory needed besides the logits.
_SORTED_AT_ONCE = 1 << 23


class LovaszSoftmax(nn.Module):
    """The Lovász extension of the Jaccard loss, per class over the labeled pixels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. classes: the mean over the
    classes "present" among the labels, over "all" classes (an absent class contributes its
    largest p_c), or over a list of class ids. per_image: compute the loss of each image, then
    the mean over the images; an image without a labeled pixel counts as 0.
    Without a labeled pixel: 0.
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

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        wrong = [c for c in self.classes if not isinstance(self.classes, str)
                 and not (type(c) is int and 0 <= c < logits.shape[1])]
        if wrong:
            raise ConfigError(f"expected classes from 0 to {logits.shape[1] - 1}, found {wrong[0]}",
                              "loss.args.classes")
        return _Lovasz.apply(logits, index, valid, self.classes, self.per_image)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS


class _Lovasz(torch.autograd.Function):
    """Computes the gradient together with the value, and keeps only that logit-sized tensor."""

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
            # The derivative through the softmax: p (m - sum of p m), with m = d/dp.
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
    """The loss of one part of the batch, divided by `divisor`; writes its d/dp to `slope`.

    p, slope (n, C, H, W) float; labels (n, H, W) integer, -1 for an unlabeled pixel.
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
        of_class = by_class[ends[c] - counts[c]:ends[c]]
        weights = np.zeros_like(pc)
        if len(of_class):
            total += _weigh_errors(pc, labels, c, of_class, weights)
        else:
            top = pixels[pc[pixels].argmax()]
            weights[top] = 1
            total += float(pc[top])
        weights *= scale
        slope[:, c] = torch.from_numpy(weights).view_as(slope[:, c])
    return total * scale


def _weigh_errors(pc, labels, c, of_class, weights):
    """The loss of class `c`, whose pixels are `of_class`; writes its d/dp to `weights`."""
    error = np.abs(1 - pc[of_class])     # rounding can make p larger than 1
    others = np.flatnonzero((pc >= error.min()) & (labels != c) & (labels >= 0))
    pixels = np.concatenate((of_class, others))
    errors = np.concatenate((error, pc[others]))
    order = _descending(errors)
    errors, pixels, in_class = errors[order], pixels[order], order < len(of_class)
    hits = np.cumsum(in_class)
    union = np.arange(1 + len(of_class), 1 + len(of_class) + len(order)) - hits
    m = np.where(in_class, 1.0, (len(of_class) - hits) / np.maximum(union - 1, 1)) / union
    weights[pixels] = np.where(in_class, -m, m)
    return float(np.dot(m, errors))


def _descending(errors):
    """Indices that sort non-negative `errors` from large to small; equal ones keep their order."""
    if errors.dtype != np.float32:
        return np.argsort(-errors, kind="stable")
    # The bits of non-negative floats have the order of the floats. Sorting 64-bit numbers that
    # contain key and index is several times faster than argsort.
    keys = (np.int64(0x7FFFFFFF) - errors.view(np.int32)) << 32
    keys |= np.arange(len(errors))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _add_on_device(p, labels, chosen, only_present, slope, divisor):
    """Like `_add_on_cpu`, without reading a value back: absent classes are sorted, then masked."""
    num_classes = p.shape[1]
    labels = labels.reshape(-1)
    valid = labels >= 0
    present = torch.zeros(num_classes + 1, dtype=torch.bool, device=p.device)
    present.scatter_(0, torch.where(valid, labels, num_classes).long(), True)
    all_chosen = chosen == list(range(num_classes))
    selected = torch.full((num_classes,), all_chosen, device=p.device)
    for c in () if all_chosen else chosen:  # indexing with a list would wait for the device
        selected[c] = True
    counted = selected & (present[:-1] if only_present else valid.any())
    scale = counted.double() / (counted.sum().clamp_min(1) * divisor)
    total = p.new_zeros((), dtype=torch.float64)
    step = max(1, _SORTED_AT_ONCE // max(1, len(labels)))
    for start in range(0, num_classes, step):
        part = slice(start, min(start + step, num_classes))
        in_class = labels == torch.arange(part.start, part.stop, device=p.device)[:, None]
        pc = p[:, part].transpose(0, 1).reshape(len(in_class), -1)
        errors, order = torch.where(valid, (in_class.to(pc.dtype) - pc).abs(), -1).sort(
            1, descending=True)
        sorted_in_class = in_class.gather(1, order)
        size = in_class.sum(1, keepdim=True)
        hits = sorted_in_class.cumsum(1)
        union = torch.arange(1, 1 + len(labels), device=p.device) + size - hits
        remaining = (size - hits).to(pc.dtype)      # pixels of the class that are still to come
        m = torch.where(sorted_in_class, 1, remaining / (union - 1).clamp_min(1)) / union
        # Only the largest error of an absent class has a weight.
        m[:, :1] = torch.where(size == 0, 1, m[:, :1])
        m = torch.where(errors >= 0, m, 0)
        total = total + ((m * errors).sum(1).double() * scale[part]).sum()
        weights = torch.zeros_like(pc).scatter_(1, order, torch.where(sorted_in_class, -m, m))
        weights *= scale[part, None].to(pc.dtype)
        slope[:, part] = weights.view(len(in_class), len(p), *p.shape[2:]).transpose(0, 1)
    return total
