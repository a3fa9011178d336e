"""Top-k cross-entropy: the hardest k percent of the labeled pixels (nnU-Net).

Wu, Shen & van den Hengel, 2016, arXiv:1605.06885; Isensee et al., nnU-Net, Nature
Methods 2021.

Differs from the published code: k percent of the labeled pixels; that code takes k percent of all
pixels, among them ignored ones (loss 0).
"""
import torch
from torch import nn

from utils.losses.inverse import HARDEST, NoInverse
from utils.losses.pixels import cross_entropy_map, labeled, mean_over, reads_are_free
from utils.machine.tensors import LabelBatch, Logits


class TOPK(nn.Module):
    """Mean cross-entropy of the hardest k percent of the labeled pixels (at least one).

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. Without a labeled pixel: 0.
    """

    activation = "softmax"

    def __init__(self, k: float = 10, ignore_index: int = 255):
        super().__init__()
        if not 0 < k <= 100:
            raise ValueError(f"k is a percentage in (0, 100], found {k}")
        self.k, self.ignore_index = k, ignore_index

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        return top_percent(cross_entropy_map(logits, index, valid), valid, self.k)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return HARDEST


def top_percent(loss: torch.Tensor, valid: torch.Tensor, k: float) -> torch.Tensor:
    """Mean of the largest entries of `loss`: k percent of the labeled pixels, at least one.

    loss (N, H, W) float, not negative, and 0 at unlabeled pixels, so that these rank last and add
    nothing. valid (N, H, W) bool: the pixel is labeled. The number of entries is rounded down.
    """
    labeled_pixels = valid.sum()
    count = (labeled_pixels.double() * k / 100).floor().clamp_min(1)
    if reads_are_free(loss):
        values = loss.flatten().topk(min(int(count), loss.numel()), sorted=False).values
        return mean_over(values, count)
    # `count` stays on the device: sort all entries and select by rank.
    ranked = loss.flatten().sort(descending=True).values
    kept = torch.arange(len(ranked), device=loss.device) < count
    return mean_over(ranked * kept, count)
