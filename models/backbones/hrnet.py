"""HRNet: parallel branches from high to low resolution that exchange features.

Wang et al., Deep High-Resolution Representation Learning for Visual
Recognition, TPAMI 2020, arXiv:1908.07919.

Published weights: ImageNet (`hrnetv2_w48_imagenet_pretrained.pth`,
`HRNet_W48_C_ssld_pretrained.pth`, `hrnet_w18_small_model_v2.pth`). The keys here are theirs
without those of the classifier. `pretrained=True` downloads the same weights from timm.

Differs from the authors' code: convolutions start from He's initialization instead of a
normal distribution with a standard deviation of 0.001, because with the latter a
batch-normalized network changes far too fast when it is trained from scratch. The authors'
ImageNet network fails for sizes that are not a multiple of 32; here a coarse map is resized to
the actual size of the finer one.
"""
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import state_from
from models.backbones.resnet import BasicBlock, Bottleneck, conv3x3
from models.layers.conv_norm_act import conv_norm_act
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.rename_keys import Rule
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch

# name -> (number of bottlenecks in stage 1, their width), blocks per branch, number of modules in
# stages 2, 3 and 4, width of the finest branch
VARIANTS = {
    "hrnet_w18_small_v1": ((1, 32), 2, (1, 1, 1), 16),    # 16, not 18 as in its name
    "hrnet_w18_small_v2": ((2, 64), 2, (1, 3, 2), 18),
    "hrnet_w18": ((4, 64), 4, (1, 4, 3), 18),
    "hrnet_w32": ((4, 64), 4, (1, 4, 3), 32),
    "hrnet_w48": ((4, 64), 4, (1, 4, 3), 48),
}
# The parts after stage 4 in the ImageNet network.
CLASSIFIER_PARTS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")

# Keys of an HRNet at the top level of a file (official names), and Paddle's keys -> those of a
# network's `backbone`. Paddle counts from 1; a branch that a transition adds has one level more.
BACKBONE_KEYS: tuple[Rule, ...] = (
    (r"^(conv[12]|bn[12]|resinit|layer\d|transition\d|stage\d)\.", r"backbone.\1."),)
PADDLE_KEYS: tuple[Rule, ...] = (
    (r"^(ocrnet\.backbone\.)?(?=(conv_layer1|la1|tr\d|st\d)(_|\.))", "backbone."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
    (r"\.conv_layer1_(\d)\._conv\.", r".conv\1."),
    (r"\.conv_layer1_(\d)\._batch_norm\.", r".bn\1."),
    (r"\.la1\.bb_layer2_(\d)\.", lambda m: f".layer1.{int(m[1]) - 1}."),
    (r"\.conv_down\.", ".downsample."),
    (r"\.conv(\d)\._conv\.", r".conv\1."),
    (r"\.conv(\d)\._batch_norm\.", r".bn\1."),
    (r"\.tr(\d)\.transition_tr\d_layer_(\d)\.",
     lambda m: f".transition{m[1]}.{int(m[2]) - 1}." + ("0." if m[2] > m[1] else "")),
    (r"\.st(\d)\.stage_st\d_(\d)\.", lambda m: f".stage{m[1]}.{int(m[2]) - 1}."),
    (r"\.branches_func\.bb_st\d_\d_branch_layer_(\d)_(\d)\.",
     lambda m: f".branches.{int(m[1]) - 1}.{int(m[2]) - 1}."),
    (r"\.fuse_func\.residual_st\d_\d_layer_(\d)_(\d)(?:_(\d))?\.",
     lambda m: ".fuse_layers." + "".join(f"{int(i) - 1}." for i in m.groups() if i)),
    (r"\._conv\.", ".0."),
    (r"\._batch_norm\.", ".1."),
)

_IMAGENET = {
    "hrnet_w18_small_v1": "hrnet_w18_small_v1-f460c6bc.pth",
    "hrnet_w18_small_v2": "hrnet_w18_small_v2-4c50a8cb.pth",
    "hrnet_w18": "hrnetv2_w18-8cb57bb9.pth",
    "hrnet_w32": "hrnetv2_w32-90d8c5fb.pth",
    "hrnet_w48": "hrnetv2_w48-abd2e6ab.pth",
}
_IMAGENET_URL = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-hrnet/"


class HRNetBackbone(Backbone):
    """Four feature maps at strides 4, 8, 16, 32, with C, 2C, 4C and 8C channels.

    x: float (N, 3, H, W), normalized. align_corners: how a coarse branch is resized to a
    finer one (False in plain HRNet, True in HRNet-OCR and openseg). upsample:
    "bilinear", or "nearest" as in the ImageNet classifier.
    """

    aliases = tuple(VARIANTS)
    transition1: "Transition"
    transition2: "Transition"
    transition3: "Transition"
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, name: str = "hrnet_w48", align_corners: bool = False,
                 upsample: str = "bilinear", norm: str = "batch", pretrained: bool = False):
        super().__init__()
        if upsample not in ("bilinear", "nearest"):
            raise ConfigError(f"upsample must be bilinear or nearest, got {upsample!r}")
        (blocks1, width1), blocks, modules, width = VARIANTS[name]
        options: dict[str, Any] = dict(align_corners=align_corners, upsample=upsample, norm=norm)
        self.conv1, self.bn1 = conv3x3(3, 64, 2), norm_layer(norm)(64)
        self.conv2, self.bn2 = conv3x3(64, 64, 2), norm_layer(norm)(64)
        self.relu = activation(norm)
        self.layer1 = residual_blocks(Bottleneck, 64, width1, blocks1, norm)
        channels = [4 * width1]
        for stage, count in enumerate(modules, start=2):
            widths = [width * 2 ** i for i in range(stage)]
            setattr(self, f"transition{stage - 1}", Transition(channels, widths, norm))
            setattr(self, f"stage{stage}", nn.Sequential(
                *[FusingModule(BasicBlock, widths, widths, blocks, **options)
                  for _ in range(count)]))
            channels = widths
        self.channels, self.strides = channels, [4, 8, 16, 32]
        he_init(self, mode="fan_out")
        if pretrained:
            state = state_from(_IMAGENET_URL + _IMAGENET[name], name)
            self.load_imagenet(drop_classifier(state), name)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        maps = self.transition1([self.layer1(x)])
        maps = self.transition2(self.stage2(maps))
        maps = self.transition3(self.stage3(maps))
        return self.stage4(maps)


class FusingModule(nn.Module):
    """Residual blocks in every branch; then every branch becomes the sum of all branches.

    maps: float (N, C_i, H_i, W_i) per branch -> as many maps of the same sizes. A map goes to
    a finer branch through a 1x1 convolution and a resize, and to a coarser one through
    3x3 convolutions with stride 2.

    in_channels: input channels of each branch; widths: widths of the blocks of each branch.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], in_channels: list[int],
                 widths: list[int], blocks: int, *, align_corners: bool, upsample: str, norm: str):
        super().__init__()
        channels = [width * block.expansion for width in widths]
        self.branches = nn.ModuleList(residual_blocks(block, c, width, blocks, norm)
                                      for c, width in zip(in_channels, widths, strict=True))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(channels, source, target, norm)
                          for source in range(len(channels)))
            for target in range(len(channels)))
        self.relu = activation(norm, after_sum=True)
        self.align_corners, self.upsample = align_corners, upsample

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._fuse(maps, target) for target in range(len(maps))]

    def _fuse(self, maps: list[torch.Tensor], target: int) -> torch.Tensor:
        layers = self.fuse_layers[target]
        assert isinstance(layers, nn.ModuleList)
        total = layers[0](maps[0])
        for source in range(1, len(maps)):
            term = layers[source](maps[source])
            if source > target:
                term = self._resize(term, maps[target])
            total = total + term
        return self.relu(total)

    def _resize(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if self.upsample == "nearest":
            return F.interpolate(x, like.shape[2:], mode="nearest")
        return resize_to(x, like, self.align_corners)


class Transition(nn.ModuleList):
    """Adapts the widths of the branches and adds new, coarser branches made from the coarsest.

    maps: float (N, channels[i], H_i, W_i) -> list of (N, widths[i], H_i, W_i).
    """

    def __init__(self, channels: list[int], widths: list[int], norm: str):
        super().__init__()
        for index, width in enumerate(widths):
            if index >= len(channels):
                inner = [channels[-1]] * (index - len(channels) + 1) + [width]
                self.append(nn.Sequential(*[conv_norm_act(a, b, 3, stride=2, norm=norm)
                                            for a, b in pairwise(inner)]))
            elif channels[index] == width:
                self.append(nn.Identity())
            else:
                self.append(conv_norm_act(channels[index], width, 3, norm=norm))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layer(maps[min(index, len(maps) - 1)]) for index, layer in enumerate(self)]


def residual_blocks(block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int,
                    count: int, norm: str) -> nn.Sequential:
    """`count` residual blocks with stride 1; the first one adapts the channels.

    float (N, in_channels, H, W) -> (N, width * block.expansion, H, W).
    """
    wide = width * block.expansion
    return nn.Sequential(*[block(in_channels if i == 0 else wide, width, 1, 1, 1, norm)
                           for i in range(count)])


def drop_classifier(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an ImageNet state dict without the parts after stage 4."""
    return {k: v for k, v in state.items() if not k.startswith(CLASSIFIER_PARTS)}


def _exchange(channels: list[int], source: int, target: int, norm: str) -> nn.Module:
    """The layers from branch `source` to branch `target`, without the resize."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(channels[source], channels[target], 1, bias=False),
                             norm_layer(norm)(channels[target], linear=True))
    width = channels[source]
    last = nn.Sequential(conv3x3(width, channels[target], 2),
                         norm_layer(norm)(channels[target], linear=True))
    return nn.Sequential(*[conv_norm_act(width, width, 3, stride=2, norm=norm)
                           for _ in range(target - source - 1)], last)


PUBLISHED = {
    f"hrnet_cls_{name.removeprefix('hrnet_')}": Published(
        network=HRNetBackbone, args={"name": name, "upsample": "nearest"},
        drop=tuple(f"^{part}" for part in CLASSIFIER_PARTS), files=files, imagenet=True)
    for name, files in (("hrnet_w48", ("hrnetv2_w48_imagenet_pretrained.pth",
                                       "HRNet_W48_C_ssld_pretrained.pth")),
                        ("hrnet_w18_small_v2", ("hrnet_w18_small_model_v2.pth",)))
}
