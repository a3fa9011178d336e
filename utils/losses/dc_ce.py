"""Cross-entropy or top-k cross-entropy minus class-wise Dice, as in nnU-Net.

Isensee et al., nnU-Net, Nature Methods 2021; the variants of MIC-DKFZ's code for Cityscapes.

Differs from that code: ignored pixels are left out of both parts, where it
writes class 0 over them, in place.
"""
import torch
import torch.distributed as dist
from torch import nn

from utils.losses.class_dice import dice_ratio
from utils.losses.pixels import class_sums, labelled, mean_over
from utils.losses.topk import top_percent
from utils.losses.warning import warn_once


class DC_CE(nn.Module):  # noqa: N801 (the name that the published configs use)
    """weight_ce · CE - weight_dice · mean Dice: between -weight_dice and infinity.

    logits (N, C, H, W), target (N, H, W) -> scalar. Dice_c = (2 I + smooth) /
    max(P + Y + smooth, 1e-8), over the batch, or per image and then averaged with
    batch_dice false. do_bg: class 0 counts as well; as published it does not,
    which is right where class 0 is background and leaves out road on
    Cityscapes. nnU-Net today: smooth 1e-5. sync: the Dice sums run over all ranks.
    """

    activation = "softmax"

    def __init__(self, smooth: float = 0.0, do_bg: bool = False, batch_dice: bool = True,
                 weight_ce: float = 1.0, weight_dice: float = 1.0, sync: bool = False,
                 ignore_index: int = 255):
        super().__init__()
        self.smooth, self.do_bg, self.batch_dice = smooth, do_bg, batch_dice
        self.weight_ce, self.weight_dice, self.sync = weight_ce, weight_dice, sync
        self.ignore_index = ignore_index
        if sync and not batch_dice:
            raise ValueError("sync adds up the batch over ranks: it needs batch_dice")
        if not do_bg:
            warn_once(f"{type(self).__name__} leaves class 0 out of the Dice part, as published. "
                      "Where class 0 is no background (road on Cityscapes), set do_bg to true.")

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        valid, index = labelled(target, self.ignore_index)
        cross_entropy, *sums = class_sums(logits, index, valid)
        if self.batch_dice:
            sums = [term.sum(0, keepdim=True) for term in sums]
        if self.sync:
            sums = _over_ranks(sums)
        dice = dice_ratio(*sums, self.smooth, 1e-8)
        if not self.do_bg:
            if dice.shape[1] < 2:
                raise ValueError("without class 0 a Dice over one class is empty: set do_bg")
            dice = dice[:, 1:]
        dice = dice.sum() / max(1, dice.numel())
        pixels = self._pixels(cross_entropy, valid)
        return self.weight_ce * pixels - (self.weight_dice * dice).to(pixels.dtype)

    def _pixels(self, cross_entropy, valid):
        return mean_over(cross_entropy, valid.sum())


class DC_TOPK(DC_CE):  # noqa: N801 (the name that the published configs use)
    """The top-k cross-entropy of TOPK instead of the plain one in DC_CE.

    logits (N, C, H, W), target (N, H, W) -> scalar. k: percent of the labelled pixels.
    """

    def __init__(self, k: float = 10, smooth: float = 0.0, do_bg: bool = False,
                 batch_dice: bool = True, weight_ce: float = 1.0, weight_dice: float = 1.0,
                 sync: bool = False, ignore_index: int = 255):
        super().__init__(smooth, do_bg, batch_dice, weight_ce, weight_dice, sync, ignore_index)
        if not 0 < k <= 100:
            raise ValueError(f"k is a percentage in (0, 100], found {k}")
        self.k = k

    def _pixels(self, cross_entropy, valid):
        return top_percent(cross_entropy, valid, self.k)


def _over_ranks(sums):
    """The sums of all ranks together, with gradient; each rank's gradient is its own share."""
    if not (dist.is_available() and dist.is_initialized()):
        return sums
    from torch.distributed.nn.functional import all_reduce
    # The backward of all_reduce adds the ranks' gradients up and
    # DistributedDataParallel averages them: together the gradient of one big batch.
    return list(all_reduce(torch.stack(sums)))
