"""Resizing feature maps and logits."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from utils.predict import last_resize


def resize_to(x: torch.Tensor, like_or_size: torch.Tensor | Sequence[int],
              align_corners: bool = False) -> torch.Tensor:
    """Resize `x`, float (N, C, h, w), bilinearly to (N, C, H, W).

    like_or_size: (H, W), or a tensor whose last two sizes are H and W. Returns `x` if
    it has this size already. `align_corners` must be that of the published network: the
    other value moves the logits.
    """
    size = like_or_size.shape[-2:] if isinstance(like_or_size, torch.Tensor) else like_or_size
    # During an export, the comparison would fix the sizes of the graph.
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x
    if last_resize.is_watched():
        return last_resize.watched(x, like_or_size, align_corners,
                                   lambda: _bilinear(x, size, align_corners))
    return _bilinear(x, size, align_corners)


def max_unpool(x: torch.Tensor, positions: torch.Tensor,
               size: Sequence[int] | None = None) -> torch.Tensor:
    """Put each value of `x`, float (N, C, h, w), at the position its maximum had before pooling.

    positions: int64 (N, C, h, w), of F.max_pool2d with windows of 2x2. size: (H, W) of the result;
    None: twice that of `x`. The other values are 0. torch's unpooling has no deterministic form,
    so with `deterministic` the same is computed as a scatter.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.max_unpool2d(x, positions, [2, 2], output_size=None if size is None else [*size])
    height, width = size or (2 * x.shape[2], 2 * x.shape[3])
    flat = x.new_zeros(*x.shape[:2], height * width)
    return flat.scatter(2, positions.flatten(2), x.flatten(2)).view(*x.shape[:2], height, width)


def _bilinear(x: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
