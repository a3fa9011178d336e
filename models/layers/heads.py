"""Parts that several networks use: a classifier, pyramid pooling, ASPP."""
import torch
from torch import nn

from models.layers.conv_norm_act import atrous_branches, conv_norm_act
from models.layers.norm import pooled_norm
from models.layers.resize import resize_to


def fcn_head(in_channels: int, channels: int, num_classes: int, *,
             dropout_maps: bool = False, norm: str = "batch") -> nn.Sequential:
    """3x3 convolution, norm, ReLU, dropout, 1x1 classifier; keys "0", "1" and "4".

    float (N, in_channels, H, W) -> logits (N, num_classes, H, W). dropout_maps: drop
    whole maps instead of single values.
    """
    drop = nn.Dropout2d(0.1) if dropout_maps else nn.Dropout(0.1)
    return nn.Sequential(*conv_norm_act(in_channels, channels, 3, norm=norm), drop,
                         nn.Conv2d(channels, num_classes, 1))


class PyramidPooling(nn.Module):
    """Joins the features with their means over a grid of 1x1, 2x2, 3x3 and 6x6 regions (`bins`).

    float (N, in_channels, H, W) -> (N, out_channels, H, W). Zhao et al., CVPR 2017,
    arXiv:1612.01105. The defaults are those of yassouali/pytorch-segmentation.

    pooled_channels: of each pooled map; None: in_channels / number of bins. align_corners: how
    pooled maps are resized. dropout: share of whole maps of the result.
    """

    def __init__(self, in_channels: int, out_channels: int, bins: tuple = (1, 2, 3, 6), *,
                 pooled_channels: int | None = None, align_corners: bool = True,
                 dropout: float = 0.1, norm: str = "batch"):
        super().__init__()
        channels = pooled_channels or in_channels // len(bins)
        self.align_corners = align_corners
        self.stages = nn.ModuleList(
            nn.Sequential(RegionMeans(size),
                          *conv_norm_act(in_channels, channels, 1,
                                         norm=pooled_norm(norm) if size == 1 else norm))
            for size in bins)
        self.bottleneck = nn.Sequential(
            *conv_norm_act(in_channels + len(bins) * channels, out_channels, 3, norm=norm),
            nn.Dropout2d(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = [resize_to(stage(x), x, self.align_corners) for stage in self.stages]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class RegionMeans(nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d that can be exported to a graph for any input size.

    float (N, C, H, W) -> (N, C, bins, bins). Graph formats have no pooling with windows that
    depend on the input size, and exporters write the windows of their one example instead.
    The mean over regions is therefore computed as two matrix products during an export, and on a
    GPU with `deterministic`: the gradient of torch's pooling has no deterministic form there.
    """

    output_size: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.compiler.is_exporting()
                or x.is_cuda and torch.are_deterministic_algorithms_enabled()):
            return super().forward(x)
        rows, columns = (_region_weights(length, self.output_size, x) for length in x.shape[2:])
        return rows @ x @ columns.transpose(0, 1)


def _region_weights(length: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """Weight of each position in the mean of each region: (bins, length), dtype of `like`."""
    number = torch.arange(bins, device=like.device).unsqueeze(1)
    first, last = number * length // bins, -(-(number + 1) * length // bins)
    position = torch.arange(length, device=like.device)
    inside = ((position >= first) & (position < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, one 3x3 per rate, and the mean of the image.

    float (N, in_channels, H, W) -> (N, channels, H, W). Chen et al., Rethinking
    Atrous Convolution, 2017, arXiv:1706.05587. The norm of the mean receives one pixel
    per image, so batch norm raises an error for a training batch of one image.
    """

    def __init__(self, in_channels: int, channels: int = 256, rates: tuple = (12, 24, 36), *,
                 norm: str = "batch"):
        super().__init__()
        self.branches = atrous_branches(in_channels, channels, rates, norm=norm)
        self.image = conv_norm_act(in_channels, channels, 1, norm=pooled_norm(norm))
        self.project = nn.Sequential(
            *conv_norm_act((len(rates) + 2) * channels, channels, 1, norm=norm),
            nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [branch(x) for branch in self.branches]
        image = self.image(x.mean((2, 3), keepdim=True))
        parts.append(image.expand(-1, -1, *x.shape[2:]))     # equal to a resize of one pixel
        return self.project(torch.cat(parts, dim=1))
