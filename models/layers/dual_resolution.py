"""Parts of networks with a detailed branch at stride 8 beside a deep one: DDRNet and PIDNet.

Pan et al., Deep Dual-Resolution Networks for Real-Time and Accurate Semantic Segmentation of
Traffic Scenes, IEEE T-ITS 2023, arXiv:2101.06085; Xu et al., PIDNet: A Real-time Semantic
Segmentation Network Inspired by PID Controllers, CVPR 2023, arXiv:2206.02066.

A residual stage ends without an activation: it follows outside, because in DDRNet both branches
exchange the sums before it.
"""
import torch
from torch import nn

from models.backbones.resnet import BasicBlock, Bottleneck
from models.layers.conv_norm_act import conv_norm_act
from models.layers.norm import activation, norm_layer, pooled_norm
from models.layers.resize import resize_to
from models.weights.rename_keys import Rule

_HEAD_PARTS = {"bn1": 0, "conv1": 2, "bn2": 3, "conv2": 5}

# Keys of both authors -> ours, for all of their networks.
DUAL_RESOLUTION_KEYS: tuple[Rule, ...] = (
    (r"^conv1\.", "stem."),
    (r"^layer5_\.0\.", "detail5."),
    (r"^layer([34])_\.", r"detail\1."),
    (r"^spp\.scale(\d)\.", r"pyramid.scales.\1."),
    (r"^spp\.process(\d)\.", lambda m: f"pyramid.process.{int(m[1]) - 1}."),
    (r"^spp\.scale_process\.", "pyramid.process."),
    (r"^spp\.", "pyramid."),
    (r"^(final_layer|seghead_\w+)\.(bn1|conv1|bn2|conv2)\.",
     lambda m: f"{m[1]}.{_HEAD_PARTS[m[2]]}."),
    (r"^final_layer\.", "head."),
)

# Average pooling of the pyramid: window and stride. The padding, half the window, counts as zeros.
_POOLS = ((5, 2), (9, 4), (17, 8))


class NarrowBottleneck(Bottleneck):
    """A bottleneck whose output is twice as wide as its middle, without an activation at its end.

    float (N, in_channels, H, W) -> (N, 2 planes, H/stride, W/stride), rounded up.
    """

    expansion = 2

    def __init__(self, in_channels: int, planes: int, stride: int, norm: str):
        super().__init__(in_channels, planes, stride, 1, 1, norm, end_act=False)


def basic_stage(in_channels: int, channels: int, blocks: int, norm: str,
                stride: int = 1) -> nn.Sequential:
    """Residual blocks of two 3x3 convolutions; the last one ends without an activation.

    float (N, in_channels, H, W) -> (N, channels, H/stride, W/stride), rounded up.
    """
    return nn.Sequential(*(
        BasicBlock(channels if i else in_channels, channels, 1 if i else stride, 1, 1, norm,
                   end_act=i < blocks - 1)
        for i in range(blocks)))


def basic_block(in_channels: int, channels: int, norm: str) -> BasicBlock:
    """The last block of such a stage alone: (N, in_channels, H, W) -> (N, channels, H, W)."""
    return BasicBlock(in_channels, channels, 1, 1, 1, norm, end_act=False)


def half_stem(channels: int, norm: str) -> nn.Sequential:
    """Two 3x3 convolutions with stride 2: float (N, 3, H, W) -> (N, channels, H/4, W/4)."""
    return nn.Sequential(*conv_norm_act(3, channels, 3, stride=2, bias=True, norm=norm),
                         *conv_norm_act(channels, channels, 3, stride=2, bias=True, norm=norm))


def conv_norm(in_channels: int, channels: int, kernel_size: int, norm: str,
              stride: int = 1) -> nn.Sequential:
    """Convolution and norm, no activation: (N, in_channels, H, W) -> (N, channels, H', W')."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False),
        norm_layer(norm)(channels, linear=True))


def norm_act_conv(in_channels: int, channels: int, kernel_size: int, norm: str, *,
                  groups: int = 1, bias: bool = False) -> nn.Sequential:
    """Norm, activation, convolution: float (N, in_channels, H, W) -> (N, channels, H, W)."""
    return nn.Sequential(
        norm_layer(norm)(in_channels), activation(norm),
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, groups=groups,
                  bias=bias))


def pre_norm_head(in_channels: int, channels: int, outputs: int, norm: str) -> nn.Sequential:
    """3x3 and 1x1 convolution, each after norm and activation; only the last one has a bias.

    float (N, in_channels, H, W) -> (N, outputs, H, W).
    """
    return nn.Sequential(*norm_act_conv(in_channels, channels, 3, norm),
                         *norm_act_conv(channels, outputs, 1, norm, bias=True))


class _Pyramid(nn.Module):
    """The features at five scales: as they are, three average poolings, and the mean of the image.

    float (N, in_channels, H, W) -> (N, out_channels, H, W). channels: of each scale.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, norm: str):
        super().__init__()
        self.scales = nn.ModuleList([norm_act_conv(in_channels, channels, 1, norm)])
        for window, stride in _POOLS:
            self.scales.append(nn.Sequential(nn.AvgPool2d(window, stride, window // 2),
                                             *norm_act_conv(in_channels, channels, 1, norm)))
        self.scales.append(nn.Sequential(
            _ImageMean(), *norm_act_conv(in_channels, channels, 1, pooled_norm(norm))))
        self.compression = norm_act_conv(len(self.scales) * channels, out_channels, 1, norm)
        self.shortcut = norm_act_conv(in_channels, out_channels, 1, norm)

    def at_scales(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Five maps (N, channels, H, W), finest first; the last is (N, channels, 1, 1).

        Adding that one to another map broadcasts it, which equals a resize of one pixel.
        """
        full, *pooled, mean = self.scales
        return [full(x), *(resize_to(scale(x), x) for scale in pooled), mean(x)]


class SequentialPyramid(_Pyramid):
    """DAPPM: every scale is added to the result of the finer one and mixed by a 3x3 convolution.

    float (N, in_channels, H, W) -> (N, out_channels, H, W). Pan et al.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, channels, out_channels, norm)
        self.process = nn.ModuleList(norm_act_conv(channels, channels, 3, norm)
                                     for _ in self.scales[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full, *coarse = self.at_scales(x)
        parts = [full]
        for scale, process in zip(coarse, self.process, strict=True):
            parts.append(process(parts[-1] + scale))
        return self.compression(torch.cat(parts, dim=1)) + self.shortcut(x)


class ParallelPyramid(_Pyramid):
    """PAPPM: every scale is added to the full one; one grouped 3x3 convolution mixes them.

    float (N, in_channels, H, W) -> (N, out_channels, H, W). Xu et al.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, channels, out_channels, norm)
        coarse = len(self.scales) - 1
        self.process = norm_act_conv(coarse * channels, coarse * channels, 3, norm, groups=coarse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full, *coarse = self.at_scales(x)
        mixed = self.process(torch.cat([full + scale for scale in coarse], dim=1))
        return self.compression(torch.cat([full, mixed], dim=1)) + self.shortcut(x)


class _ImageMean(nn.Module):
    """float (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)
