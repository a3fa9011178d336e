"""Functions that the losses share: labeled pixels, their cross-entropy, sums per class.

Nothing here synchronizes with the device: no value is read back, and no shape depends on the
labels. A loss that is cheaper if the host knows a count checks `reads_are_free` first.
"""
import torch
import torch.nn.functional as F

from utils.errors import ConfigError
from utils.machine.precision import full_dtype, no_autocast
from utils.machine.tensors import LabelBatch, Logits

# Up to this number of classes, two more reductions over them cost less than one more exponential.
_FEW_CLASSES = 32


def check_reduction(reduction: str):
    """Raises ValueError for a reduction other than "mean" and "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", found {reduction!r}')


def labeled(target: LabelBatch, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(valid, index) of a label map (N, H, W) of any integer dtype, both (N, H, W).

    valid, bool: the pixel has a label. index, int64: its class, and 0 for an unlabeled pixel.
    """
    index = target.long()
    valid = index != ignore_index
    return valid, index * valid


def small_labels(index: torch.Tensor, valid: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The class (N, H, W) of every pixel, -1 for an unlabeled one, in int16 if that is enough.

    index, valid (N, H, W): from `labeled`. The dtype is int64 for 2^15 or more classes.
    """
    small = torch.int16 if num_classes < 2 ** 15 else torch.int64
    return index.masked_fill(~valid, -1).to(small)


def cross_entropy_map(logits: Logits, index: torch.Tensor, valid: torch.Tensor) \
        -> torch.Tensor:
    """Cross-entropy (N, H, W) of every pixel, in float32 or float64; 0 for an unlabeled pixel.

    logits (N, C, H, W) of any float dtype; index, valid: from `labeled`.
    Needs one logit-sized tensor and a fifth of the time less than torch's cross-entropy.
    """
    return _SoftmaxTerms.apply(logits, index, valid, False)[0]


def check_label_smoothing(label_smoothing: float):
    """Raises ValueError for a share outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), found {label_smoothing}")


def cross_entropy_of_all(cross_entropy: torch.Tensor, logits: Logits, index: torch.Tensor,
                         valid: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over the classes c of -w_c ln p_c (N, H, W); 0 for an unlabeled pixel.

    Label smoothing by e makes the loss of a pixel (1 - e) times the one of its class plus e times
    this, as in torch: Szegedy et al., CVPR 2016, arXiv:1512.00567.
    cross_entropy (N, H, W): from `cross_entropy_map`; logits (N, C, H, W) of any float dtype;
    index, valid: from `labeled`. weight (C,): w, else 1.
    """
    weight = logits.new_ones(logits.shape[1]) if weight is None else weight
    weight = weight.to(logits.device, full_dtype(logits))
    # -ln p_c = -ln p_label + (logit of the label - logit of c)
    return (weight.sum() * cross_entropy
            + _LogitDifferences.apply(logits, index, valid, weight)) / len(weight)


def weighed(cross_entropy: torch.Tensor, logits: Logits, index: torch.Tensor, valid: torch.Tensor,
            weight: torch.Tensor | None, label_smoothing: float) \
        -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mass), each (N, H, W): a cross-entropy with class weights and label smoothing.

    mass: what the mean of the loss divides by. cross_entropy (N, H, W): from `cross_entropy_map`;
    the other arguments are those of `cross_entropy_of_all`.
    """
    loss, mass = cross_entropy, valid
    if weight is not None:
        mass = class_weight_map(weight, index, valid, logits)
        loss = loss * mass
    if label_smoothing:
        of_all = cross_entropy_of_all(cross_entropy, logits, index, valid, weight)
        loss = (1 - label_smoothing) * loss + label_smoothing * of_all
    return loss, mass


def class_sums(logits: Logits, index: torch.Tensor, valid: torch.Tensor) \
        -> tuple[torch.Tensor, ...]:
    """(loss, hit, predicted, labels): the terms of every class-wise Dice, from one softmax p.

    logits (N, C, H, W) of any float dtype; index, valid: from `labeled`.
    loss (N, H, W): the cross-entropy as in `cross_entropy_map`. The others are sums per image and
    class over the labeled pixels, (N, C) float64: hit, of p_c over the pixels labeled c;
    predicted, of p_c over all; labels, the number of pixels labeled c.
    """
    loss, predicted = _SoftmaxTerms.apply(logits, index, valid, True)
    hit = sum_by_class(torch.exp(-loss), index, valid, logits.shape[1])
    labels = sum_by_class(torch.ones_like(loss), index, valid, logits.shape[1])
    return loss, hit, predicted.double(), labels


def sum_by_class(values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor,
                 num_classes: int) -> torch.Tensor:
    """Sum of `values` per image and class over the labeled pixels: (N, C) float64.

    values (N, H, W) float; index, valid (N, H, W): from `labeled`.
    """
    images = len(index)
    slot = index + torch.arange(images, device=index.device)[:, None, None] * num_classes
    # In float32 a sum over half a million pixels would lose its last digits.
    sums = values.new_zeros(images * num_classes, dtype=torch.float64)
    sums = sums.scatter_add(0, slot.flatten(), (values * valid).double().flatten())
    return sums.view(images, num_classes)


def mean_over(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The sum of `values` divided by `count`, a scalar; 0 if both are 0.

    values: float, any shape. count: a scalar tensor, not negative, of any dtype.
    """
    return values.sum() / count.to(values.dtype).clamp_min(torch.finfo(values.dtype).tiny)


def class_weight_map(weight: torch.Tensor, index: torch.Tensor, valid: torch.Tensor,
                     logits: Logits) -> torch.Tensor:
    """The weight (N, H, W) of every pixel's class, in float32 or float64; 0 for an unlabeled pixel.

    weight (C,) float; index, valid (N, H, W): from `labeled`; logits (N, C, H, W) of any float
    dtype give C, the device and the dtype. Raises ConfigError unless there are C weights.
    """
    if len(weight) != logits.shape[1]:
        raise ConfigError(f"{len(weight)} class weights for {logits.shape[1]} classes")
    return weight.to(logits.device, full_dtype(logits))[index] * valid


def reads_are_free(tensor: torch.Tensor) -> bool:
    """Whether reading a value of this tensor does not wait for a device, so branching is cheap."""
    return tensor.device.type == "cpu"


def planar(logits: Logits) -> Logits:
    """The logits (N, C, H, W), of any float dtype, with contiguous planes per class on a CPU.

    There softmax and maximum over interleaved channels (channels_last) cost more than the copy.
    On a device the logits are returned unchanged.
    """
    return logits.contiguous() if logits.device.type == "cpu" else logits


class _LogitDifferences(torch.autograd.Function):
    """The sum over the classes c of w_c (logit of the label - logit of c), (N, H, W).

    It is linear in the logits, so nothing of their size is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, logits, index, valid, weight):
        ctx.save_for_backward(index, valid, weight)
        ctx.dtype = logits.dtype
        # The largest logit as the origin keeps the digits of logits with a large common part.
        logits = logits.to(full_dtype(logits))
        logits = logits - logits.amax(1, keepdim=True)
        own = logits.gather(1, index[:, None])[:, 0]
        total = logits.mul_(weight[:, None, None]).sum(1)
        return (weight.sum() * own).sub_(total).masked_fill_(~valid, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        index, valid, weight = ctx.saved_tensors
        grad_output = (grad_output * valid)[:, None]
        grad = -weight[:, None, None] * grad_output
        grad.scatter_add_(1, index[:, None], weight.sum() * grad_output)
        return grad.to(ctx.dtype), None, None, None


class _SoftmaxTerms(torch.autograd.Function):
    """The loss (N, H, W), and the sums of p over the labeled pixels (N, C) or None; p: softmax.

    Keeps one logit-sized tensor (p) for the backward pass, which allocates one for the gradient.
    """

    @staticmethod
    def forward(ctx, logits, index, valid, with_sums):
        dtype, logits = full_dtype(logits), planar(logits)
        if logits.shape[1] <= _FEW_CLASSES:
            p = F.softmax(logits, 1, dtype=dtype)
            # -ln p of the label as (largest logit - its logit) - ln(largest p): exact for a
            # vanishing p, and without a second exponential over all classes.
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
