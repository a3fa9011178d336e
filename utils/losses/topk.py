"""Top-k cross-entropy: the hardest k percent of the labelled pixels (nnU-Net).

Wu, Shen & van den Hengel, 2016, arXiv:1605.06885; Isensee et al., nnU-Net, Nature
Methods 2021.

Differs from the published code: k percent of the labelled pixels, where that
takes k percent of all and lets ignored pixels (loss 0) fill them.
"""
import torch
from torch import nn

from utils.losses.pixels import cross_entropy_map, labelled, mean_over, reads_are_free


class TOPK(nn.Module):
    """Mean cross-entropy of the hardest k percent of the labelled pixels (at least one).

    logits (N, C, H, W), target (N, H, W) -> scalar. Without a labelled pixel: 0.
    """

    activation = "softmax"

    def __init__(self, k: float = 10, ignore_index: int = 255):
        super().__init__()
        if not 0 < k <= 100:
            raise ValueError(f"k is a percentage in (0, 100], found {k}")
        self.k, self.ignore_index = k, ignore_index

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        valid, index = labelled(target, self.ignore_index)
        return top_percent(cross_entropy_map(logits, index, valid), valid, self.k)


def top_percent(loss: torch.Tensor, valid: torch.Tensor, k: float) -> torch.Tensor:
    """Mean of the largest int(k % of the labelled) entries of `loss`, at least one.

    loss (N, H, W), not negative and 0 where not valid, so that pixels without a
    label come last and change no sum.
    """
    labelled_pixels = valid.sum()
    count = (labelled_pixels.double() * k / 100).floor().clamp_min(1)
    if reads_are_free(loss):
        values = loss.flatten().topk(min(int(count), loss.numel()), sorted=False).values
        return mean_over(values, count)
    # On a device the number stays there: sort all, and keep by rank.
    ranked = loss.flatten().sort(descending=True).values
    kept = torch.arange(len(ranked), device=loss.device) < count
    return mean_over(ranked * kept, count)
