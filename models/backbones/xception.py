"""Aligned Xception, 65 layers. Chollet, CVPR 2017, arXiv:1610.02357, in the form
of DeepLabV3+ (arXiv:1802.02611): pooling replaced by strided separable
convolutions, 16 middle blocks.

The keys are those of yassouali/pytorch-segmentation. As there, a depthwise
convolution has a norm before its 1x1, and each block except the first starts with
a ReLU that also applies to the shortcut. There are no ImageNet weights for this
network: the source adapted those of the plain Xception, which has other blocks.
"""
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch

MIDDLE = range(4, 20)      # the blocks of the middle flow


class Xception(Backbone):
    """Two feature maps: stride 4 (128 channels, without ReLU) and output_stride (2048 channels).

    x: float (N, 3, H, W), normalized. output_stride: 16 or 8.
    """

    aliases = ("xception",)
    conv3: "_Separable"
    conv4: "_Separable"
    conv5: "_Separable"
    bn3: nn.Module
    bn4: nn.Module
    bn5: nn.Module

    def __init__(self, output_stride: int = 16, norm: str = "batch", pretrained: bool = False):
        super().__init__()
        if output_stride not in (8, 16):
            raise ConfigError(f"output_stride of xception must be 8 or 16, got {output_stride}",
                              where="arch.args.output_stride")
        if pretrained:
            raise ConfigError("pretrained: aligned Xception has no published ImageNet weights",
                              where="arch.args.pretrained", fix="set pretrained to false")
        stride3, middle, exits = (2, 1, (1, 2)) if output_stride == 16 else (1, 2, (2, 4))
        make = norm_layer(norm)
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu = make(32), activation(norm)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = make(64, linear=True)
        self.block1 = _Block((64, 128, 128, 128), 2, 1, norm, relu_first=False)
        self.block2 = _Block((128, 256, 256, 256), 2, 1, norm)
        self.block3 = _Block((256, 728, 728, 728), stride3, 1, norm)
        for i in MIDDLE:
            self.add_module(f"block{i}", _Block((728, 728, 728, 728), 1, middle, norm))
        self.block20 = _Block((728, 728, 1024, 1024), 1, exits[0], norm)
        widths = (1024, 1536, 1536, 2048)
        for i, (fan_in, channels) in enumerate(pairwise(widths), start=3):
            self.add_module(f"conv{i}", _Separable(fan_in, channels, 1, exits[1], norm))
            self.add_module(f"bn{i}", make(channels))
        self.channels, self.strides = [128, 2048], [4, output_stride]
        he_init(self, norm_bias=1e-4)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        low = self.block1(self.bn2(self.conv2(x)))
        x = self.block3(self.block2(low))
        for i in MIDDLE:
            x = self.get_submodule(f"block{i}")(x)
        x = F.relu(self.block20(x))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.conv4(x)))
        return [low, self.relu(self.bn5(self.conv5(x)))]


class _Separable(nn.Module):
    """Depthwise 3x3, norm, 1x1; (N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation,
                               groups=in_channels, bias=False)
        self.bn = norm_layer(norm)(in_channels, linear=True)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.bn(self.conv1(x)))


class _Block(nn.Module):
    """Three separable convolutions, the last one with the stride, and a shortcut.

    widths: the channels of the input and of the three outputs.
    (N, widths[0], H, W) -> (N, widths[3], H/stride, W/stride).
    """

    def __init__(self, widths: tuple[int, int, int, int], stride: int, dilation: int, norm: str,
                 relu_first: bool = True):
        super().__init__()
        make = norm_layer(norm)
        self.relu_first = relu_first
        # The identity keeps the numbers in the published keys.
        parts: list[nn.Module] = [nn.Identity()] if relu_first else []
        for i, (fan_in, channels) in enumerate(pairwise(widths)):
            last = i == 2
            parts += [_Separable(fan_in, channels, stride if last else 1, dilation, norm),
                      make(channels, linear=last)]
            parts += [] if last else [activation(norm)]
        self.rep = nn.Sequential(*parts)
        self.skip = None
        if widths[0] != widths[-1] or stride != 1:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skipbn = make(widths[-1], linear=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.relu_first:
            x = F.relu(x)
        out = self.rep(x)
        out += x if self.skip is None else self.skipbn(self.skip(x))
        return out
