"""DenseNet. Huang et al., Densely Connected Convolutional Networks, CVPR 2017,
arXiv:1608.06993.

The keys are those of torchvision's files without `features.`. The last norm and the
classifier are not built.
"""
import re

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import torchvision_state
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch

# name -> growth rate, layers of each block, channels of the stem
VARIANTS = {"densenet121": (32, (6, 12, 24, 16), 64), "densenet161": (48, (6, 12, 36, 24), 96),
            "densenet169": (32, (6, 12, 32, 32), 64), "densenet201": (32, (6, 12, 48, 32), 64)}


class DenseNet(Backbone):
    """Four feature maps: the three transitions before their pooling, and the last block.

    x: float (N, 3, H, W), normalized; strides 4, 8, 16, 32 at most.
    output_stride: 8 or 16 replace the last poolings by dilation 2 and 4 in the
    blocks that follow. pretrained: torchvision's ImageNet weights.
    """

    aliases = tuple(VARIANTS)

    def __init__(self, name: str = "densenet121", output_stride: int = 32, norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, got {output_stride}",
                              where="arch.args.output_stride")
        growth, blocks, width = VARIANTS[name]
        make = norm_layer(norm)
        self.conv0 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm0, self.relu = make(width), activation(norm)
        self.channels, self.strides, rate = [], [4], 1
        self.pools = []     # for each transition: whether a pooling follows it
        for i, layers in enumerate(blocks, start=1):
            block = nn.Module()
            for j in range(1, layers + 1):
                block.add_module(f"denselayer{j}", _DenseLayer(width, growth, rate, norm))
                width += growth
            self.add_module(f"denseblock{i}", block)
            if i == len(blocks):
                break
            self.add_module(f"transition{i}", _Transition(width, norm))
            width //= 2
            self.channels.append(width)
            self.pools.append(self.strides[-1] < output_stride)
            rate = rate if self.pools[-1] else rate * 2
            self.strides.append(self.strides[-1] * (2 if self.pools[-1] else 1))
        self.channels.append(width)
        he_init(self)
        if pretrained:
            self.load_imagenet(_encoder_keys(torchvision_state(name)), name)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        x = F.max_pool2d(self.relu(self.norm0(self.conv0(x))), 3, 2, 1)
        maps = []
        for i in range(1, 5):
            parts = [x]
            for layer in self.get_submodule(f"denseblock{i}").children():
                parts.append(layer(torch.cat(parts, dim=1)))
            x = torch.cat(parts, dim=1)
            if i < 4:
                x = self.get_submodule(f"transition{i}")(x)
            maps.append(x)
            if i < 4 and self.pools[i - 1]:
                x = F.avg_pool2d(x, 2)
        return maps


class _DenseLayer(nn.Module):
    """(N, in, H, W) -> (N, growth, H, W): norm, ReLU, 1x1, norm, ReLU, 3x3."""

    def __init__(self, in_channels: int, growth: int, dilation: int, norm: str):
        super().__init__()
        make = norm_layer(norm)
        self.norm1, self.relu = make(in_channels), activation(norm)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = make(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=dilation, dilation=dilation,
                               bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(self.relu(self.norm1(x)))
        return self.conv2(self.relu(self.norm2(x)))


class _Transition(nn.Module):
    """(N, in, H, W) -> (N, in / 2, H, W): norm, ReLU, 1x1."""

    def __init__(self, in_channels: int, norm: str):
        super().__init__()
        self.norm, self.relu = norm_layer(norm)(in_channels), activation(norm)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.relu(self.norm(x)))


def _encoder_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn torchvision's keys into ours; its files contain norm.1 for the module norm1."""
    encoder = {}
    for key, value in state.items():
        if key.startswith("features.") and not key.startswith("features.norm5."):
            key = key.removeprefix("features.")
            encoder[re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key)] = value
    return encoder
