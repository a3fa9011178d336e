"""Resizing feature maps and logits."""
import torch
import torch.nn.functional as F

from utils import last_resize


def resize_to(x: torch.Tensor, like_or_size, align_corners: bool = False) -> torch.Tensor:
    """`x` (N, C, h, w) resized bilinearly to (N, C, H, W).

    like_or_size: a tensor whose last two sizes are taken, or (H, W). Returns
    `x` itself when it has that size already. `align_corners` is a property of
    the published network, not of taste: a wrong choice moves the logits.
    """
    size = like_or_size.shape[-2:] if isinstance(like_or_size, torch.Tensor) else like_or_size
    # An exporter would take the comparison for a promise about the sizes.
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x
    if last_resize.is_watched():
        return last_resize.watched(x, like_or_size, align_corners,
                                   lambda: _bilinear(x, size, align_corners))
    return _bilinear(x, size, align_corners)


def _bilinear(x, size, align_corners):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
