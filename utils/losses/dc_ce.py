"""Cross-entropy or top-k cross-entropy minus class-wise Dice, as in nnU-Net.

Isensee et al., nnU-Net, Nature Methods 2021; the variants of MIC-DKFZ's code for Cityscapes.

Differs from that code: ignored pixels are left out of both parts; that code overwrites them with
class 0, in place.
"""
import torch
from torch import nn

from utils.errors import ConfigError
from utils.losses.class_dice import dice_ratio
from utils.losses.inverse import OF_REGIONS, NoInverse
from utils.losses.pixels import class_sums, labeled, mean_over
from utils.losses.topk import top_percent
from utils.losses.warning import warn_once
from utils.machine.distributed import world_size
from utils.machine.tensors import LabelBatch, Logits


class DC_CE(nn.Module):  # noqa: N801 (the name that the published configs use)
    """weight_ce · CE - weight_dice · mean Dice: between -weight_dice and infinity.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    Dice_c = (2 I + smooth) / max(P + Y + smooth, 1e-8), with sums over the batch; if batch_dice is
    false, with sums over each image, and averaged over the images. do_bg: include class 0 in the
    Dice part. The published code does not, which is right if class 0 is background; on Cityscapes
    it leaves out road. nnU-Net today: smooth 1e-5. sync: the Dice sums run over all ranks.
    """

    activation = "softmax"

    def __init__(self, smooth: float = 0.0, do_bg: bool = False, batch_dice: bool = True,
                 weight_ce: float = 1.0, weight_dice: float = 1.0, sync: bool = False,
                 ignore_index: int = 255):
        super().__init__()
        self.smooth, self.do_bg, self.batch_dice = smooth, do_bg, batch_dice
        self.weight_ce, self.weight_dice, self.sync = weight_ce, weight_dice, sync
        self.ignore_index = ignore_index
        if not (weight_ce or weight_dice):
            raise ValueError("weight_ce and weight_dice are both 0: the network would learn "
                             "nothing")
        if sync and not batch_dice:
            raise ValueError("sync adds up the batch over ranks: it needs batch_dice")
        if not do_bg:
            warn_once(f"{type(self).__name__} leaves class 0 out of the Dice part, as published. "
                      "If class 0 is not background (road on Cityscapes), set do_bg to true.")

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        valid, index = labeled(target, self.ignore_index)
        cross_entropy, *sums = class_sums(logits, index, valid)
        if self.batch_dice:
            sums = [term.sum(0, keepdim=True) for term in sums]
        if self.sync:
            sums = _over_ranks(sums)
        hit, predicted, labels = sums
        dice = dice_ratio(hit, predicted, labels, self.smooth, 1e-8)
        if not self.do_bg:
            if dice.shape[1] < 2:
                raise ConfigError("without class 0 a Dice over one class is empty",
                                  "loss.args.do_bg", "set it to true")
            dice = dice[:, 1:]
        dice = dice.sum() / max(1, dice.numel())
        pixels = self._mean_cross_entropy(cross_entropy, valid)
        return self.weight_ce * pixels - (self.weight_dice * dice).to(pixels.dtype)

    def inverse(self) -> NoInverse:
        """None is known; the reason says why."""
        return OF_REGIONS

    def _mean_cross_entropy(self, cross_entropy, valid):
        return mean_over(cross_entropy, valid.sum())


class DC_TOPK(DC_CE):  # noqa: N801 (the name that the published configs use)
    """DC_CE with the top-k cross-entropy of TOPK instead of the cross-entropy of all pixels.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar. k: percent of the labeled pixels.
    """

    def __init__(self, k: float = 10, smooth: float = 0.0, do_bg: bool = False,
                 batch_dice: bool = True, weight_ce: float = 1.0, weight_dice: float = 1.0,
                 sync: bool = False, ignore_index: int = 255):
        super().__init__(smooth, do_bg, batch_dice, weight_ce, weight_dice, sync, ignore_index)
        if not 0 < k <= 100:
            raise ValueError(f"k is a percentage in (0, 100], found {k}")
        self.k = k

    def _mean_cross_entropy(self, cross_entropy, valid):
        return top_percent(cross_entropy, valid, self.k)


def _over_ranks(sums):
    """Adds up the sums of all ranks. The gradient on a rank is that of its images only."""
    if world_size() == 1:
        return sums
    from torch.distributed.nn.functional import all_reduce
    # The backward pass of all_reduce adds up the gradients of the ranks, and
    # DistributedDataParallel averages them: together this is the gradient of one large batch.
    return list(all_reduce(torch.stack(sums)))
