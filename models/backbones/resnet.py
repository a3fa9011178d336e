"""ResNet. He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385.

The stride is in the 3x3 convolution of a bottleneck, as in torchvision. There are three
stems, with the keys of their published files:

resnet18 … resnet152    7x7 convolution: conv1, bn1. torchvision's files.
resnet50s … resnet152s  three 3x3 convolutions (64, 64, 128): conv1.{0,1,3,4,6},
                        bn1. `resnet50s-a75c83cf.pth`, `resnet101s-03a0f310.pth`,
                        `resnet152s-36670e8b.pth` (PyTorch-Encoding, used by
                        yassouali/pytorch-segmentation).
deepbase_resnet50 …     the same three convolutions as resinit.{conv,bn}{1,2,3},
                        and a max pooling that rounds up: maps are one pixel
                        larger if ceil(H/2) is even. openseg's
                        `resnet101-imagenet.pth`.
"""
import itertools
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download, torchvision_state
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.weights.published import Published
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}


class ResNet(Backbone):
    """Four feature maps at strides 4, 8, 16, 32, or less with dilation.

    x: float (N, 3, H, W), normalized.
    output_stride: 8 or 16 replace the last strides by dilation.
    dilate_first: whether the first block of a dilated stage has the new rate
    (False, as in torchvision: it keeps the rate of the stage before).
    multi_grid: factors on the rates of layer4's blocks (Chen et al. 2017).
    rates3, rates4: explicit rates for the blocks of layer3 and layer4, repeated or cut to their
    number, for hybrid dilated convolution (Wang et al. 2018, arXiv:1702.08502).
    pretrained: torchvision's ImageNet weights (IMAGENET1K_V1).
    """

    aliases = tuple(form.format(depth) for form in ("resnet{}", "resnet{}s", "deepbase_resnet{}")
                    for depth in LAYERS)
    resinit: nn.Sequential | None   # the stem of deepbase_; the others have conv1, bn1 and relu
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, name: str = "resnet50", output_stride: int = 32, norm: str = "batch",
                 pretrained: bool = False, dilate_first: bool = False, multi_grid: tuple = (),
                 rates3: tuple = (), rates4: tuple = ()):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, got {output_stride}",
                              where="arch.args.output_stride")
        depth = int(name.removeprefix("deepbase_").removeprefix("resnet").removesuffix("s"))
        block, layers = BasicBlock if depth < 50 else Bottleneck, LAYERS[depth]
        self.resinit, width = None, 64
        if name.startswith("deepbase_"):
            self.resinit, width = _openseg_stem(norm), 128
        else:
            if name.endswith("s"):
                self.conv1, width = _deep_stem(norm), 128
            else:
                self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.bn1, self.relu = norm_layer(norm)(width), activation(norm)
        self.ceil_pool = self.resinit is not None

        self.channels, self.strides, rate = [], [], 1
        for stage, blocks in enumerate(layers, start=1):
            stride, before = 1 if stage == 1 else 2, rate
            if stride == 2 and self.strides[-1] >= output_stride:
                stride, rate = 1, rate * 2
            rates = [rate if dilate_first else before] + [rate] * (blocks - 1)
            if stage == 4 and multi_grid:
                rates = [r * factor for r, factor in zip(rates, itertools.cycle(multi_grid),
                                                           strict=False)]
            explicit = {3: rates3, 4: rates4}.get(stage)
            if explicit:
                rates = list(itertools.islice(itertools.cycle(explicit), blocks))
            planes = 64 * 2 ** (stage - 1)
            setattr(self, f"layer{stage}",
                    _stage(block, width, planes, stride, rates, rate, norm))
            width = planes * block.expansion
            self.channels.append(width)
            self.strides.append(4 if stage == 1 else self.strides[-1] * stride)
        he_init(self, mode="fan_out")
        if pretrained:
            self._load_pretrained(name)

    def stem(self, x: ImageBatch) -> torch.Tensor:
        """float (N, 3, H, W) -> (N, 64 or 128, ceil(H/2), ceil(W/2)), before the pooling."""
        if self.resinit is not None:
            return self.resinit(x)
        return self.relu(self.bn1(self.conv1(x)))

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The pooled stem, float (N, 64 or 128, H/4, W/4) -> the four feature maps."""
        maps: list[Any] = []        # None for the maps in `unused`
        for i, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = layer(x)
            maps.append(None if i in self.unused else x)
        return maps

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        return self.stages(F.max_pool2d(self.stem(x), 3, 2, 1, ceil_mode=self.ceil_pool))

    def _load_pretrained(self, name: str) -> None:
        if self.resinit is not None or isinstance(self.conv1, nn.Sequential):
            raise no_download(name)
        state = torchvision_state(name)
        self.load_imagenet({k: v for k, v in state.items() if not k.startswith("fc.")}, name)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    float (N, in_channels, H, W) -> (N, planes, H/stride, W/stride), rounded up.
    dilation: of the first convolution; stage_dilation: of the second one. end_act: whether an
    activation follows the sum.
    """

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int,
                 stage_dilation: int, norm: str, end_act: bool = True):
        super().__init__()
        make = norm_layer(norm)
        self.conv1 = conv3x3(in_channels, planes, stride, dilation)
        self.bn1, self.relu = make(planes), activation(norm)
        self.conv2 = conv3x3(planes, planes, 1, stage_dilation)
        self.bn2 = make(planes, linear=True)
        self.downsample = _shortcut(in_channels, planes, stride, norm)
        self.relu_out = activation(norm, after_sum=True) if end_act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(x)             # one call a line: a nested call would keep its input alive
        out = self.relu(self.bn1(out))
        out = self.conv2(out)
        out = self.bn2(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu_out(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut.

    float (N, in_channels, H, W) -> (N, expansion * planes, H/stride, W/stride), rounded up.
    dilation: of the 3x3 convolution; stage_dilation is not used here. end_act: whether an
    activation follows the sum.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int,
                 stage_dilation: int, norm: str, end_act: bool = True):
        super().__init__()
        make, out_channels = norm_layer(norm), self.expansion * planes
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = make(planes)
        self.conv2 = conv3x3(planes, planes, stride, dilation)
        self.bn2 = make(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = make(out_channels, linear=True)
        self.relu = activation(norm)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)
        self.relu_out = activation(norm, after_sum=True) if end_act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(x)             # one call a line: a nested call would keep its input alive
        out = self.relu(self.bn1(out))
        out = self.conv2(out)
        out = self.relu(self.bn2(out))
        out = self.conv3(out)
        out = self.bn3(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu_out(out)


def conv3x3(in_channels: int, channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias.

    float (N, in_channels, H, W) -> (N, channels, H/stride, W/stride), rounded up.
    """
    return nn.Conv2d(in_channels, channels, 3, stride, dilation, dilation, bias=False)


def _stage(block: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int,
           stride: int, rates: list[int], stage_rate: int, norm: str) -> nn.Sequential:
    blocks = []
    for rate in rates:
        blocks.append(block(in_channels, planes, stride, rate, stage_rate, norm))
        in_channels, stride = planes * block.expansion, 1
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, channels: int, stride: int, norm: str) -> nn.Sequential | None:
    """A 1x1 convolution with norm if the shape changes, else None."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                         norm_layer(norm)(channels, linear=True))


def _deep_stem(norm: str) -> nn.Sequential:
    make = norm_layer(norm)
    return nn.Sequential(conv3x3(3, 64, 2), make(64), activation(norm),
                         conv3x3(64, 64), make(64), activation(norm), conv3x3(64, 128))


def _openseg_stem(norm: str) -> nn.Sequential:
    parts = OrderedDict()
    for i, (fan_in, width, stride) in enumerate(((3, 64, 2), (64, 64, 1), (64, 128, 1)), start=1):
        parts[f"conv{i}"] = conv3x3(fan_in, width, stride)
        parts[f"bn{i}"], parts[f"relu{i}"] = norm_layer(norm)(width), activation(norm)
    return nn.Sequential(parts)


# Keys of the encoders of yassouali/pytorch-segmentation -> ours.
YASSOUALI_KEYS = (
    (r"^(?:backbone\.)?(?:initial|layer0)\.0\.", "backbone.conv1."),
    (r"^(?:backbone\.)?(?:initial|layer0)\.1\.", "backbone.bn1."),
    (r"^layer(\d)\.", r"backbone.layer\1."),
)

PUBLISHED = {
    f"yassouali_resnet{depth}s_imagenet": Published(
        network=ResNet, args={"name": f"resnet{depth}s", "output_stride": 8},
        drop=(r"^fc\.",), files=(file,), imagenet=True)
    for depth, file in ((50, "resnet50s-a75c83cf.pth"), (101, "resnet101s-03a0f310.pth"),
                        (152, "resnet152s-36670e8b.pth"))
}
