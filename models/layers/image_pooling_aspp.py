"""Atrous spatial pyramid pooling without a projection, image pooling first.

Chen et al., Rethinking Atrous Convolution, 2017, arXiv:1706.05587, in the form
that NVIDIA and MIC-DKFZ put in front of the OCR head.
"""
import torch
from torch import nn

from models.layers.conv_norm_act import atrous_branches, conv_norm_act
from models.layers.norm import pooled_norm

# NVIDIA's and MIC-DKFZ's names -> ours, for the pyramid before and the one inside the OCR head.
ASPP_KEYS = (
    (r"(^|\.)aspp\.img_conv\.", r"\1aspp.image."),
    (r"(^|\.)aspp\.features\.", r"\1aspp.branches."),
    (r"^head\.ocr\.aspp\.", "head.ocr.extra."),
)


class ImagePoolingASPP(nn.Module):
    """(N, in_channels, H, W) -> (N, channels * (2 + len(rates)), H, W).

    Order of the result: image mean, 1x1, then one 3x3 per rate.
    """

    def __init__(self, in_channels: int, channels: int = 256, rates: tuple = (12, 24, 36), *,
                 norm: str = "batch"):
        super().__init__()
        self.image = conv_norm_act(in_channels, channels, 1, norm=pooled_norm(norm))
        self.branches = atrous_branches(in_channels, channels, rates, norm=norm)
        self.channels = channels * (2 + len(rates))

    def forward(self, x):
        image = self.image(x.mean(dim=(2, 3), keepdim=True))
        parts = [image.expand(-1, -1, *x.shape[2:])]        # what resizing 1x1 would give
        return torch.cat(parts + [branch(x) for branch in self.branches], dim=1)
