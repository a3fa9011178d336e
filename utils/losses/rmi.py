"""Region mutual information. Zhao et al., NeurIPS 2019, arXiv:1910.12037.

As in the paper's code, NVIDIA's hierarchical multi-scale attention (arXiv:2005.10821)
and MIC-DKFZ (wRMI). Differs from those: ignore_index decides which pixels are labeled, unlabeled
pixels are left out on every device, the covariances are float64, triangular solves replace
inverses, and only the classes that an image contains are computed, because the others contribute
a constant without a gradient.
"""
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import ConfigError
from utils.losses.binary import binary_cross_entropy_sums, warn_sigmoid
from utils.losses.class_weights import class_weights
from utils.losses.inverse import OF_REGIONS, Inverse, NoInverse
from utils.losses.pixels import class_weight_map, labeled, reads_are_free, small_labels
from utils.losses.warning import warn_once
from utils.machine.precision import full_precision, no_autocast
from utils.machine.tensors import LabelBatch, Logits

_STRIDES = {"max": 3, "avg": 4, "interp": 2, "none": 1}
# The most elements of stacked windows at once: on a CPU so few that they stay in the cache, on a
# device enough to keep it busy.
_STACKED_ON_CPU, _STACKED_ON_DEVICE = 1 << 20, 1 << 26


class RMI(nn.Module):
    """lambda · BCE + (1 - lambda) · the region mutual information bound.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar, often negative. BCE: the sum of
    the binary cross-entropy over classes and labeled pixels, divided by (labeled pixels + 1).
    Region term: half the log-determinant of the covariance of the labels given the predictions,
    divided by radius², for each class and image, over radius x radius windows after pooling.
    pool: "max", "avg", "interp" or "none"; default `stride` 3, 4, 2 and 1.
    weight: one number per class (a list, "table", or a rule over class_pixels): the
    pos_weight of the BCE, and a factor on the region term of each class.
    do_rmi false: the BCE alone, as for auxiliary outputs. lambda_way 0: BCE +
    lambda · region term instead. alpha: the ridge on the covariances.

    A class that an image does not contain contributes ln(sqrt(alpha) + 1e-8), so values of
    different batches cannot be compared; `last_parts` contains the two terms separately.
    Covariances are float64, because float32 fails for confident predictions.
    Memory: two to four logit-sized tensors, depending on the pooling, besides input and gradient.
    """

    activation = "sigmoid"
    weight: torch.Tensor | None

    def __init__(self, pool: Literal["max", "avg", "interp", "none"] = "max",
                 stride: int | None = None, radius: int = 3, loss_weight_lambda: float = 0.5,
                 lambda_way: Literal[0, 1] = 1, alpha: float = 5e-4, do_rmi: bool = True,
                 weight: list | str | None = None, class_pixels: list | str | None = None,
                 ignore_index: int = 255):
        super().__init__()
        if pool not in _STRIDES:
            raise ValueError(f"pool must be one of {', '.join(_STRIDES)}, found {pool!r}")
        if lambda_way not in (0, 1):
            raise ValueError(f"lambda_way must be 0 or 1, found {lambda_way}")
        self.stride = stride or _STRIDES[pool]
        if pool == "none" and self.stride != 1:
            raise ValueError(f'stride {stride} has no effect with pool "none"')
        if self.stride < 1 or radius < 1 or alpha <= 0:
            raise ValueError("stride and radius must be at least 1 and alpha positive, found "
                             f"{stride}, {radius} and {alpha}")
        self.pool, self.radius, self.alpha, self.do_rmi = pool, radius, alpha, do_rmi
        self.loss_weight_lambda, self.lambda_way = loss_weight_lambda, lambda_way
        self.ignore_index = ignore_index
        self.last_parts: dict[str, torch.Tensor] = {}
        self.register_buffer("weight", class_weights(weight, class_pixels), persistent=False)
        warn_sigmoid(self)
        if do_rmi:
            warn_once("RMI values depend on the number of classes in a batch: do not compare them "
                      "across batches or use them to choose a model; use the logged bce part.")

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        at_label = None
        if self.weight is not None:
            at_label = class_weight_map(self.weight, index, valid, logits)
        sums = binary_cross_entropy_sums(logits, index, valid, at_label)
        bce = sums.sum() / (valid.sum() + 1)
        if not self.do_rmi:
            return bce
        rmi = self._regions(logits, index, valid).to(bce.dtype)
        self.last_parts = {"bce": bce.detach(), "rmi": rmi.detach()}
        if self.lambda_way == 0:
            return bce + self.loss_weight_lambda * rmi
        return self.loss_weight_lambda * bce + (1 - self.loss_weight_lambda) * rmi

    def inverse(self) -> Inverse | NoInverse:
        """Undoes the positive weights of the BCE alone; the region term has no known inverse."""
        if self.do_rmi:
            return OF_REGIONS
        weight = None if self.weight is None else self.weight.tolist()
        return Inverse(weight=weight, activation="sigmoid")

    def _regions(self, logits, index, valid):
        """The region term: mean over the images, sum over the classes, float64."""
        images, num_classes = logits.shape[:2]
        image, label = _pairs(index, valid, num_classes)
        constant = math.log(math.sqrt(self.alpha) + 1e-8)
        weight = logits.new_ones(num_classes, dtype=torch.float64)
        if self.weight is not None:
            weight = self.weight.to(weight)
        if not len(image):
            return constant * weight.sum()
        labels = small_labels(index, valid, num_classes)    # gathered as often as the logits
        y = self._pool_labels(labels[image] == label.to(labels.dtype)[:, None, None])
        q = self._pool_predictions(logits, image, label, valid)
        covariance = _RegionCovariance.apply(q, y, self.radius)
        terms = _half_log_det(covariance, self.alpha) / self.radius ** 2
        # Every (image, class) that is not among the pairs adds the constant.
        return constant * weight.sum() + ((terms - constant) * weight[label]).sum() / images

    def _pool_labels(self, masks):
        """The pooled label masks: (M, H, W) bool -> (M, h, w) float32."""
        k, pad = self.stride, self.stride // 2
        y = masks.float()
        if self.pool == "max":
            return F.max_pool2d(y[:, None], k, k, pad)[:, 0]
        if self.pool == "avg":
            return F.avg_pool2d(y[:, None], k, k, pad)[:, 0]
        if self.pool == "interp":
            return F.interpolate(y[:, None], _reduced_size(y, k), mode="nearest")[:, 0]
        return y

    def _pool_predictions(self, logits, image, label, valid):
        """sigmoid + 1e-6, but 1e-6 at unlabeled pixels, pooled: (M, h, w) float."""
        k, pad = self.stride, self.stride // 2
        x = full_precision(logits[image, label])
        mask = valid[image]
        if self.pool == "max":
            # The sigmoid is monotone, so pool the logits and compute it for k² times fewer.
            x = F.max_pool2d(x.masked_fill(~mask, -math.inf)[:, None], k, k, pad)[:, 0]
            return x.sigmoid() + 1e-6
        q = x.sigmoid() * mask + 1e-6
        if self.pool == "avg":
            return F.avg_pool2d(q[:, None], k, k, pad)[:, 0]
        if self.pool == "interp":
            return F.interpolate(q[:, None], _reduced_size(q, k), mode="bilinear",
                                 align_corners=True)[:, 0]
        return q


class wRMI(RMI):  # noqa: N801 (the name that the published configs use)
    """RMI with the Cityscapes table as its default weights (MIC-DKFZ)."""

    def __init__(self, pool: Literal["max", "avg", "interp", "none"] = "max",
                 stride: int | None = None, radius: int = 3, loss_weight_lambda: float = 0.5,
                 lambda_way: Literal[0, 1] = 1, alpha: float = 5e-4, do_rmi: bool = True,
                 weight: list | str = "table", class_pixels: list | str | None = None,
                 ignore_index: int = 255):
        super().__init__(pool, stride, radius, loss_weight_lambda, lambda_way, alpha, do_rmi,
                         weight, class_pixels, ignore_index)


class _RegionCovariance(torch.autograd.Function):
    """Unnormalized covariance (M, 2 r², 2 r²), float64, of the r x r windows of y and q.

    q, y (M, h, w) float: predictions and labels; the rows of the labels come first. The windows of
    a few maps at a time are stacked, and stacked again in the backward pass, so that only q and y
    are kept.
    """

    @staticmethod
    def forward(ctx, q, y, radius):
        ctx.radius = radius
        ctx.save_for_backward(q, y)
        rows = 2 * radius ** 2
        covariance = q.new_empty(len(q), rows, rows, dtype=torch.float64)
        for part in _parts(q, rows):
            windows = _windows(q[part], y[part], radius)
            with no_autocast(q):
                torch.bmm(windows, windows.transpose(1, 2), out=covariance[part])
        return covariance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, y = ctx.saved_tensors
        radius = ctx.radius
        rows = 2 * radius ** 2
        height, width = q.shape[1] - radius + 1, q.shape[2] - radius + 1
        by_window = (grad + grad.transpose(1, 2))[:, rows // 2:]
        result = torch.zeros_like(q)
        for part in _parts(q, rows):
            with no_autocast(q):
                # The windows are centered, and so are their linear combinations: the
                # derivative of the centering changes nothing.
                slopes = torch.bmm(by_window[part], _windows(q[part], y[part], radius))
            slopes = slopes.view(-1, rows // 2, height, width).to(q.dtype)
            for k in range(rows // 2):
                i, j = divmod(k, radius)
                result[part, i:i + height, j:j + width] += slopes[:, k]
        return result, None, None


def _pairs(index, valid, num_classes):
    """The pairs (image, class) of classes that an image contains, as two int64 tensors (M,).

    On a device all N · C pairs, because reading how many there are would wait for it.
    """
    images = len(index)
    if not reads_are_free(index):
        pairs = torch.arange(images * num_classes, device=index.device)
        return pairs // num_classes, pairs % num_classes
    slot = index + torch.arange(images)[:, None, None] * num_classes
    pixels = torch.bincount(slot[valid], minlength=images * num_classes)
    pairs = pixels.nonzero()[:, 0]
    return pairs // num_classes, pairs % num_classes


def _parts(q, rows):
    """Slices of the maps (M, h, w) whose stacked windows fit the limit."""
    limit = _STACKED_ON_CPU if reads_are_free(q) else _STACKED_ON_DEVICE
    step = max(1, limit // max(1, rows * q.shape[1] * q.shape[2]))
    return [slice(start, start + step) for start in range(0, len(q), step)]


def _windows(q, y, radius):
    """The shifted windows of y, then of q, each with mean 0: (m, 2 r², points) float64."""
    height, width = q.shape[1] - radius + 1, q.shape[2] - radius + 1
    if height < 1 or width < 1:
        raise ConfigError(f"RMI needs at least {radius}x{radius} pixels after pooling, found "
                          f"{q.shape[1]}x{q.shape[2]}", "loss", "train on larger crops, or lower "
                          "stride or radius")
    stack = q.new_empty(len(q), 2, radius, radius, height, width, dtype=torch.float64)
    for i in range(radius):
        for j in range(radius):
            stack[:, 0, i, j] = y[:, i:i + height, j:j + width]
            stack[:, 1, i, j] = q[:, i:i + height, j:j + width]
    stack = stack.view(len(q), 2 * radius ** 2, -1)
    return stack.sub_(stack.mean(2, keepdim=True))


def _half_log_det(covariance, alpha):
    """Half the log-determinant of cov(y | q) + alpha I, (M,) float64."""
    rows = covariance.shape[1] // 2
    ridge = alpha * torch.eye(rows, dtype=covariance.dtype, device=covariance.device)
    yy, yq = covariance[:, :rows, :rows], covariance[:, :rows, rows:]
    qq = covariance[:, rows:, rows:]
    # cholesky_ex does not wait for the device to report failures; the loss is then not finite.
    lower, _ = torch.linalg.cholesky_ex(qq + ridge)
    explained = torch.linalg.solve_triangular(lower, yq.transpose(1, 2), upper=False)
    with no_autocast(covariance):
        left = yy - explained.transpose(1, 2) @ explained + ridge
    lower, _ = torch.linalg.cholesky_ex(left)
    return torch.log(lower.diagonal(dim1=1, dim2=2) + 1e-8).sum(1)


def _reduced_size(tensor, k):
    return tensor.shape[-2] // k, tensor.shape[-1] // k
