"""Higher-HRNet: an HRNet whose finest branch has half the resolution of the input.

The encoder of openseg's SegFix (`hrnet2x20` there, `hrnext20` in file names):
Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269. Published weights:
`hr_rnet_bt_w20_imagenet_pretrained.pth` and the three `..._hrnext20_...` SegFix
checkpoints.
"""
from typing import Any

import torch
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download
from models.backbones.hrnet import FusingModule, Transition
from models.backbones.resnet import BasicBlock, Bottleneck, conv3x3
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from utils.machine.tensors import ImageBatch


class HigherHRNetBackbone(Backbone):
    """Five feature maps at strides 2, 4, 8, 16, 32, with 20, 40, 80, 160 and 320 channels.

    x: float (N, 3, H, W), normalized. align_corners: how a coarse branch is resized to a
    finer one.
    """

    aliases = ("hrnext20",)
    transition1: Transition
    transition2: Transition
    transition3: Transition
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, align_corners: bool = True, norm: str = "batch", pretrained: bool = False):
        super().__init__()
        if pretrained:
            raise no_download("hrnext20")
        fuse: dict[str, Any] = dict(align_corners=align_corners, upsample="bilinear", norm=norm)
        self.conv1, self.bn1, self.relu = conv3x3(3, 64, 2), norm_layer(norm)(64), activation(norm)
        self.transition0 = Transition([64], [128, 256], norm)
        self.stage1 = nn.Sequential(FusingModule(Bottleneck, [128, 256], [32, 64], 4, **fuse))
        channels = [128, 256]
        for stage, modules in enumerate((1, 4, 3), start=2):
            widths = [20 * 2 ** i for i in range(stage + 1)]
            setattr(self, f"transition{stage - 1}", Transition(channels, widths, norm))
            setattr(self, f"stage{stage}", nn.Sequential(
                *[FusingModule(BasicBlock, widths, widths, 4, **fuse) for _ in range(modules)]))
            channels = widths
        self.channels, self.strides = channels, [2, 4, 8, 16, 32]
        he_init(self, mode="fan_out")

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = self.transition0([self.relu(self.bn1(self.conv1(x)))])
        maps = self.transition1(self.stage1(maps))
        maps = self.transition2(self.stage2(maps))
        maps = self.transition3(self.stage3(maps))
        return self.stage4(maps)
