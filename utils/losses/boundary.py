"""Binary cross-entropy of a map of boundaries between classes, with balanced pixels.

Xu et al., PIDNet, CVPR 2023, arXiv:2206.02066. Its code finds the boundaries once per image, before
it is scaled and cropped: Canny's edges of the label map, one pixel wide on one side of a border,
widened by a window of 4 x 4. On a straight border these are the two pixels on either side, and
this is the rule here.

Differs from that code: the boundaries are found in the labels of the batch, so nothing has to be
stored, augmented or resumed with them, and they are 4 pixels wide at every scale of the image
(there 2 to 8). Unlabeled pixels are left out, and a border of a class with them is no boundary: a
padded crop has such borders too. The code trains these pixels, and counts the border as a boundary.
"""
import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import ConfigError
from utils.losses.inverse import NoInverse
from utils.losses.pixels import labeled, mean_over
from utils.machine.precision import full_dtype, full_precision
from utils.machine.tensors import LabelBatch, Logits


class BoundaryBCELoss(nn.Module):
    """Binary cross-entropy of "this pixel is near a boundary", the mean over the labeled pixels.

    logits (N, 1, H, W) float, target (N, H, W) integer: the labels of the classes -> scalar.
    Boundaries are `width` pixels wide, an even number: the labeled pixels with a pixel of another
    class in the window of width + 1 rows and columns around them. The weight of a boundary pixel is
    the share of the other pixels in the batch, and the other way round, so both have the same sum.
    The mean divides by the number of pixels, as published. Without a boundary: 0.
    """

    activation = "sigmoid"
    channels = 1

    def __init__(self, width: int = 4, ignore_index: int = 255):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and at least 2, found {width}")
        self.width, self.ignore_index = width, ignore_index

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        if logits.shape[1] != 1:
            raise ConfigError(f"BoundaryBCELoss needs an output of 1 channel, found "
                              f"{logits.shape[1]}", "loss", "give it the boundary output")
        valid, index = labeled(target, self.ignore_index)
        boundary = boundaries(index, valid, self.width)
        loss = F.binary_cross_entropy_with_logits(
            full_precision(logits)[:, 0], boundary.to(full_dtype(logits)), reduction="none")
        pixels = valid.sum()
        share = boundary.sum().to(loss.dtype) / pixels.clamp_min(1)
        weight = torch.where(boundary, 1 - share, share) * valid
        return mean_over(loss * weight, pixels)

    def inverse(self) -> NoInverse:
        """None: the output is a boundary."""
        return NoInverse("its output is no probability of a class")


def boundaries(index: torch.Tensor, valid: torch.Tensor, width: int) -> torch.Tensor:
    """The labeled pixels with a pixel of another class near them, (N, H, W) bool.

    index, valid (N, H, W): from `labeled`. width: of the boundary in pixels, even. A pixel is near
    if neither its row nor its column is more than width / 2 away.
    """
    # A window contains two classes if its largest and its smallest label differ. float32 holds
    # every label exactly; one pooling finds both, as the largest label and the largest of -label.
    labels = index.to(torch.float32)
    pair = torch.stack((labels, -labels), dim=1).masked_fill(~valid[:, None], -torch.inf)
    for window in ((1, width + 1), (width + 1, 1)):     # rows, then columns: cheaper than a square
        pair = F.max_pool2d(pair, window, 1, (window[0] // 2, window[1] // 2))
    return valid & (pair.sum(1) > 0)
