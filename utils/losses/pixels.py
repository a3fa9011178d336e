"""What the losses share: the labelled pixels and their cross-entropy."""
import torch
import torch.nn.functional as F


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """The logits in float32, or as they are where they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def labelled(target: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(valid, index) of a label map of any integer type.

    valid (N, H, W) bool: the pixel has a label; index (N, H, W) int64: its
    class, and 0 where it has none.
    """
    # uint8 cannot hold -1: compare after widening, so that 255 is never taken for it.
    index = target.long()
    valid = index != ignore_index
    return valid, index * valid


def cross_entropy_map(logits: torch.Tensor, target: torch.Tensor, ignore_index: int,
                      weight: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of every pixel (N, H, W), times the weight of its class; 0 where ignored."""
    if weight is not None:
        weight = weight.to(logits)
    return F.cross_entropy(logits, target.long(), weight, ignore_index=ignore_index,
                           reduction="none")


def mean_over(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The sum of `values` divided by `count`; 0 when the count is 0."""
    return values.sum() / count.clamp_min(torch.finfo(values.dtype).tiny)
