"""Atrous spatial pyramid pooling without a projection; its image pooling comes first.

Chen et al., Rethinking Atrous Convolution, 2017, arXiv:1706.05587, in the form that NVIDIA and
MIC-DKFZ use before the OCR head.
"""
import torch
from torch import nn

from models.layers.conv_norm_act import atrous_branches, conv_norm_act
from models.layers.norm import pooled_norm

# Keys of NVIDIA and MIC-DKFZ -> ours, for the pyramid before the OCR head and the one inside.
ASPP_KEYS = (
    (r"(^|\.)aspp\.img_conv\.", r"\1aspp.image."),
    (r"(^|\.)aspp\.features\.", r"\1aspp.branches."),
    (r"^head\.ocr\.aspp\.", "head.ocr.extra."),
)


class ImagePoolingASPP(nn.Module):
    """float (N, in_channels, H, W) -> (N, channels * (2 + len(rates)), H, W).

    Order of the output channels: image mean, 1x1, then one 3x3 per rate. `self.channels` is the
    number of output channels.
    """

    def __init__(self, in_channels: int, channels: int = 256, rates: tuple = (12, 24, 36), *,
                 norm: str = "batch"):
        super().__init__()
        self.image = conv_norm_act(in_channels, channels, 1, norm=pooled_norm(norm))
        self.branches = atrous_branches(in_channels, channels, rates, norm=norm)
        self.channels = channels * (2 + len(rates))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.image(x.mean(dim=(2, 3), keepdim=True))
        parts = [image.expand(-1, -1, *x.shape[2:])]        # equal to a resize of one pixel
        return torch.cat(parts + [branch(x) for branch in self.branches], dim=1)
