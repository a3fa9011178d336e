"""MobileNetV3. Howard et al., Searching for MobileNetV3, ICCV 2019, arXiv:1905.02244.

The keys are those of torchvision's files without `features.`. The classifier is not
built. Norms have eps 0.001 and momentum 0.01, as in torchvision.
"""
import torch
from torch import nn

from models.backbones import Backbone
from models.backbones.download import torchvision_state
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch

# One row per block: kernel, channels inside, channels out, squeeze-excitation, activation, stride.
BLOCKS = {
    "mobilenet_v3_large": (
        (3, 16, 16, False, "relu", 1), (3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1),
        (5, 72, 40, True, "relu", 2), (5, 120, 40, True, "relu", 1), (5, 120, 40, True, "relu", 1),
        (3, 240, 80, False, "hard", 2), (3, 200, 80, False, "hard", 1),
        (3, 184, 80, False, "hard", 1), (3, 184, 80, False, "hard", 1),
        (3, 480, 112, True, "hard", 1), (3, 672, 112, True, "hard", 1),
        (5, 672, 160, True, "hard", 2), (5, 960, 160, True, "hard", 1),
        (5, 960, 160, True, "hard", 1)),
    "mobilenet_v3_small": (
        (3, 16, 16, True, "relu", 2), (3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1),
        (5, 96, 40, True, "hard", 2), (5, 240, 40, True, "hard", 1), (5, 240, 40, True, "hard", 1),
        (5, 120, 48, True, "hard", 1), (5, 144, 48, True, "hard", 1),
        (5, 288, 96, True, "hard", 2), (5, 576, 96, True, "hard", 1),
        (5, 576, 96, True, "hard", 1)),
}


class MobileNetV3(Backbone):
    """Four feature maps: the first ones at strides 4, 8 and 16, and the last one.

    x: float (N, 3, H, W), normalized.
    output_stride: 32, or 16 with dilation in the last three blocks.
    pretrained: torchvision's ImageNet weights (IMAGENET1K_V1).
    """

    aliases = tuple(BLOCKS)
    aux_level = -3      # torchvision's auxiliary heads are at stride 8

    def __init__(self, name: str = "mobilenet_v3_large", output_stride: int = 32,
                 norm: str = "batch", pretrained: bool = False):
        super().__init__()
        if output_stride not in (16, 32):
            raise ConfigError(f"output_stride of {name} must be 16 or 32, got {output_stride}",
                              where="arch.args.output_stride")
        parts: list[nn.Module] = [_conv(3, 16, 3, 2, norm=norm, act="hard")]
        in_channels, stride, dilation = 16, 2, 1
        self.channels, self.strides = [], []
        self.taps = []      # indices of the layers whose outputs are the feature maps
        for kernel, inner, channels, squeeze, act, step in BLOCKS[name]:
            change = step == 2
            if change and stride >= output_stride:
                step, dilation = 1, 2
            parts.append(_InvertedResidual(in_channels, kernel, inner, channels, squeeze, act, step,
                                           dilation, norm))
            stride, in_channels = stride * step, channels
            if change and 4 <= stride <= 16 and stride not in self.strides:
                self.taps.append(len(parts) - 1)
                self.channels.append(channels)
                self.strides.append(stride)
        parts.append(_conv(in_channels, 6 * in_channels, 1, norm=norm, act="hard"))
        self.taps.append(len(parts) - 1)
        self.channels.append(6 * in_channels)
        self.strides.append(stride)
        self.layers = nn.ModuleList(parts)
        he_init(self, mode="fan_out")
        if pretrained:
            state = torchvision_state(name)
            self.load_imagenet({k.replace("features.", "layers.", 1): v
                                for k, v in state.items() if k.startswith("features.")}, name)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


class _InvertedResidual(nn.Module):
    """1x1 up, depthwise, squeeze-excitation, 1x1 down; a shortcut if the shapes are equal.

    (N, in_channels, H, W) -> (N, channels, H/stride, W/stride).
    """

    def __init__(self, in_channels: int, kernel: int, inner: int, channels: int, squeeze: bool,
                 act: str, stride: int, dilation: int, norm: str):
        super().__init__()
        parts: list[nn.Module] = []
        if inner != in_channels:
            parts.append(_conv(in_channels, inner, 1, norm=norm, act=act))
        parts.append(_conv(inner, inner, kernel, stride, dilation, inner, norm=norm, act=act))
        if squeeze:
            parts.append(_SqueezeExcitation(inner))
        parts.append(_conv(inner, channels, 1, norm=norm, act=None))
        self.block = nn.Sequential(*parts)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.block(x)
        return out + x if self.shortcut else out


class _SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channel means. Hu et al., CVPR 2018."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)      # to the nearest multiple of 8 …
        if squeezed < 0.9 * (channels // 4):                 # … but not more than 10 % below
            squeezed += 8
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.relu, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc1(x.mean((2, 3), keepdim=True))
        return x * self.gate(self.fc2(self.relu(gate)))


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1, dilation: int = 1,
          groups: int = 1, *, norm: str, act: str | None) -> nn.Sequential:
    layer = norm_layer(norm)(channels, linear=act is None)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.eps, layer.momentum = 0.001, 0.01
    parts = [nn.Conv2d(in_channels, channels, kernel, stride, dilation * (kernel // 2), dilation,
                       groups, bias=False), layer]
    if act is not None:
        make = {"relu": nn.ReLU, "hard": nn.Hardswish}[act]
        parts.append(activation(norm, make=lambda: make(inplace=True)))
    return nn.Sequential(*parts)
