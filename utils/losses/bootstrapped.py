"""Bootstrapped cross-entropy of PaddleSeg, after Wu et al., 2016, arXiv:1605.06885.

Differs from the published code: only labeled pixels are ranked, and an image may have fewer
labeled pixels than min_K.
"""
import torch
from torch import nn

from utils.losses.inverse import HARDEST, NoInverse
from utils.losses.pixels import cross_entropy_map, labeled, reads_are_free
from utils.machine.tensors import LabelBatch, Logits


class BootstrappedCrossEntropyLoss(nn.Module):
    """Per image, the mean of the losses above loss_th, but of at least the min_K largest ones.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar: the mean over the images. An
    image without a labeled pixel counts as 0.
    """

    activation = "softmax"

    def __init__(self, min_K: int = 100000, loss_th: float = 0.05, ignore_index: int = 255):
        super().__init__()
        if min_K < 1 or loss_th < 0:
            raise ValueError("min_K must be at least 1 and loss_th not negative, found "
                             f"{min_K} and {loss_th}")
        self.min_K, self.loss_th, self.ignore_index = min_K, loss_th, ignore_index

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        loss = cross_entropy_map(logits, index, valid).flatten(1)       # (N, H·W)
        above = loss > self.loss_th
        many = above.sum(1)
        enough = many > self.min_K                                      # (N,)
        hard = (loss * above).sum(1) / many.clamp_min(1)
        if reads_are_free(loss) and bool(enough.all()):
            return hard.sum() / max(1, len(hard))
        # Unlabeled pixels have loss 0, so they rank last and add nothing to the sum.
        kept = valid.flatten(1).sum(1).clamp(1, self.min_K)
        top = loss.topk(min(self.min_K, loss.shape[1]), sorted=False).values.sum(1) / kept
        return torch.where(enough, hard, top).sum() / max(1, len(hard))

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return HARDEST
