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


def _bilinear(x: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
