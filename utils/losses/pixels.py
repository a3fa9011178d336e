"""What the losses share: labelled pixels, their cross-entropy, sums per class.

Everything here is free of host synchronisation: no value travels from the
device, no shape depends on the labels. A loss that is cheaper where the host
knows a count asks `reads_are_free` first.
"""
import torch
import torch.nn.functional as F

from utils.errors import ConfigError
from utils.precision import full_dtype, no_autocast

# Up to here two more reductions over the classes cost less than one more exponential.
_FEW_CLASSES = 32


def check_reduction(reduction: str):
    """Raises ValueError for a reduction other than "mean" and "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", found {reduction!r}')


def labelled(target: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(valid, index) of a label map (N, H, W) of any integer type.

    valid, bool: the pixel has a label. index, int64: its class, and 0 where it has none.
    """
    index = target.long()
    valid = index != ignore_index
    return valid, index * valid


def small_labels(index: torch.Tensor, valid: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The class (N, H, W) of every pixel, -1 where it has none; int16 if that holds the classes."""
    small = torch.int16 if num_classes < 2 ** 15 else torch.int64
    return index.masked_fill(~valid, -1).to(small)


def cross_entropy_map(logits: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) \
        -> torch.Tensor:
    """Cross-entropy (N, H, W) of every pixel, 0 where it is not labelled.

    logits (N, C, H, W) of any float type; index, valid: from `labelled`.
    Cheaper than torch's own by one logit-sized tensor and a fifth of the time.
    """
    return _SoftmaxTerms.apply(logits, index, valid, False)[0]


def class_sums(logits: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) \
        -> tuple[torch.Tensor, ...]:
    """(l, hit, predicted, labels): the terms of every class-wise Dice, from one softmax p.

    l (N, H, W): cross-entropy, 0 where not labelled. Per image and class, (N, C)
    float64, over the labelled pixels: hit, the sum of p_c where the label is c;
    predicted, the sum of p_c; labels, the number of pixels labelled c.
    """
    loss, predicted = _SoftmaxTerms.apply(logits, index, valid, True)
    hit = sum_by_class(torch.exp(-loss), index, valid, logits.shape[1])
    labels = sum_by_class(torch.ones_like(loss), index, valid, logits.shape[1])
    return loss, hit, predicted.double(), labels


def sum_by_class(values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor,
                 num_classes: int) -> torch.Tensor:
    """Sum of `values` (N, H, W) per image and label, over the labelled pixels: (N, C) float64."""
    images = len(index)
    slot = index + torch.arange(images, device=index.device)[:, None, None] * num_classes
    # float32 would lose the last digits of a sum over half a million pixels.
    sums = values.new_zeros(images * num_classes, dtype=torch.float64)
    sums = sums.scatter_add(0, slot.flatten(), (values * valid).double().flatten())
    return sums.view(images, num_classes)


def mean_over(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The sum of `values` divided by `count`; 0 when the count is 0."""
    return values.sum() / count.to(values.dtype).clamp_min(torch.finfo(values.dtype).tiny)


def class_weight_map(weight: torch.Tensor, index: torch.Tensor, valid: torch.Tensor,
                     logits: torch.Tensor) -> torch.Tensor:
    """The weight (N, H, W) of every pixel's class, 0 where it is not labelled."""
    if len(weight) != logits.shape[1]:
        raise ConfigError(f"{len(weight)} class weights for {logits.shape[1]} classes")
    return weight.to(logits.device, full_dtype(logits))[index] * valid


def reads_are_free(tensor: torch.Tensor) -> bool:
    """Whether reading a value of this tensor waits for no device: the host may then branch on it.
    """
    return tensor.device.type == "cpu"


def planar(logits: torch.Tensor) -> torch.Tensor:
    """The logits class by class in memory, where that pays: on a CPU, softmax and maximum over
    channels that lie side by side cost more than the copy."""
    return logits.contiguous() if logits.device.type == "cpu" else logits


class _SoftmaxTerms(torch.autograd.Function):
    """(l (N, H, W), sum of p over the labelled pixels (N, C) or None) from one softmax p.

    One logit-sized tensor (p) is kept, one more holds the gradient.
    """

    @staticmethod
    def forward(ctx, logits, index, valid, with_sums):
        dtype, logits = full_dtype(logits), planar(logits)
        if logits.shape[1] <= _FEW_CLASSES:
            p = F.softmax(logits, 1, dtype=dtype)
            # -ln p of the label as (largest logit - its logit) - ln(largest p): exact where p
            # vanishes, and without a second exponential over all classes.
            loss = logits.amax(1).to(dtype) - logits.gather(1, index[:, None])[:, 0]
            loss.sub_(p.amax(1).log_())
        else:
            p = F.log_softmax(logits, 1, dtype=dtype)
            loss = p.gather(1, index[:, None])[:, 0].neg_()
            p.exp_()
        loss.masked_fill_(~valid, 0)
        ctx.with_sums, ctx.dtype = with_sums, logits.dtype
        sums = None
        if with_sums:
            p.mul_(valid[:, None])
            sums = p.sum((2, 3))
        ctx.save_for_backward(p, index, valid)
        return loss, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, grad_sums):
        p, index, valid = ctx.saved_tensors
        grad_loss = grad_loss * valid
        if ctx.with_sums:
            with no_autocast(p):
                inner = torch.bmm(grad_sums[:, None], p.flatten(2)).view_as(grad_loss)
            grad = grad_sums[:, :, None, None] + (grad_loss - inner)[:, None]
            grad.mul_(p)
        else:
            grad = p * grad_loss[:, None]
        grad.scatter_add_(1, index[:, None], -grad_loss[:, None])
        return grad.to(ctx.dtype), None, None, None
