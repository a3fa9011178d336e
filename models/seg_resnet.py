"""SegNet's idea (Badrinarayanan et al., 2017, arXiv:1511.00561) on ResNet-50: a
mirrored residual decoder and one unpooling.

The form of yassouali/pytorch-segmentation, whose trainer's checkpoints load as
`yassouali_segresnet`. No weights are published.

Differs from the source: any size, with the logits where their pixels are. There
both axes must have pooled maps of one parity, some sizes come out one row
short, and where ceil(W/2) is odd the unpooling counts its positions in rows
that are one pixel too long, so that the picture is sheared. Multiples of 4 give
equal numbers. A network from the source's checkpoints (`source_unpooling`)
keeps the shear, which it may have been trained with.
"""
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import Bottleneck
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.published import Published
from models.start_weights import StartsFromFiles
from utils.errors import ConfigError


class SegResNet(StartsFromFiles):
    """ResNet down to stride 32, its blocks in reverse up to stride 4, unpooling to stride 2.

    x: (N, 3, H, W) normalised RGB, any H and W. backbone: resnet50, 101, 152.
    source_unpooling: positions as the source counts them, see above.
    eval: logits (N, C, H, W); train: {"out": logits}.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 source_unpooling: bool = False, norm: str = "batch"):
        super().__init__()
        if backbone not in ("resnet50", "resnet101", "resnet152"):
            raise ConfigError(f"SegResNet needs a resnet of bottlenecks, got {backbone!r}",
                              where="arch.args.backbone", fix="take resnet50, 101 or 152")
        self.source_unpooling = source_unpooling
        self.backbone = build_backbone(backbone, pretrained=pretrained, norm=norm)
        self.backbone.keep(-1)
        stages = []
        for i in (4, 3, 2, 1):
            layer = self.backbone.get_submodule(f"layer{i}")
            width = self.backbone.channels[i - 1]
            parts = [Bottleneck(width, width // 4, 1, 1, 1, norm) for _ in range(len(layer) - 1)]
            parts.append(_Widen(width, norm) if i > 1 else _Last(width, norm))
            stages.append(nn.Sequential(*parts))
        self.decoder = nn.Sequential(*stages)
        self.last_conv = nn.Sequential(nn.ConvTranspose2d(64, 64, 2, stride=2, bias=False),
                                       nn.Conv2d(64, num_classes, 3, padding=1))
        he_init(self.decoder, mode="fan_out")
        he_init(self.last_conv)

    def forward(self, x):
        height, width = x.shape[-2:]
        x = self.backbone.stem(x)                             # (N, 64, ceil(H/2), ceil(W/2))
        size = x.shape[-2:]
        x, positions = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        x = self.decoder(self.backbone.stages(x)[-1])         # stride 4, rounded up to 8
        rows, columns = positions.shape[-2:]
        top, left = (x.shape[-2] - rows + 1) // 2, (x.shape[-1] - columns + 1) // 2
        x = x[..., top:top + rows, left:left + columns].contiguous()
        if self.source_unpooling:
            size = 2 * rows, 2 * columns
        x = self.last_conv(F.max_unpool2d(x, positions, 2, output_size=size))
        top, left = 0, 0
        if self.source_unpooling:
            top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
        out = x[..., top:top + height, left:left + width]
        return {"out": out} if self.training else out


class _Widen(nn.Module):
    """A bottleneck that doubles the map: (N, C, H, W) -> (N, C/2, 2H, 2W)."""

    def __init__(self, channels, norm):
        super().__init__()
        make, inner = norm_layer(norm), channels // 4
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), make(inner)
        self.conv2 = nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False)
        self.bn2 = make(inner)
        self.conv3 = nn.Conv2d(inner, channels // 2, 1, bias=False)
        self.bn3 = make(channels // 2, linear=True)
        self.downsample = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2, bias=False),
            make(channels // 2, linear=True))
        self.relu, self.relu_out = activation(norm), activation(norm, after_sum=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu_out(self.bn3(self.conv3(out)) + self.downsample(x))


class _Last(_Widen):
    """The last bottleneck: (N, C, H, W) -> (N, C/4, H, W)."""

    def __init__(self, channels, norm):
        super().__init__(channels, norm)
        make, inner = norm_layer(norm), channels // 4
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.conv3, self.bn3 = nn.Conv2d(inner, inner, 1, bias=False), make(inner, linear=True)
        self.downsample = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False),
                                        make(inner, linear=True))


PUBLISHED = {
    "yassouali_segresnet": Published(
        network=SegResNet, args={"source_unpooling": True},
        classes="last_conv.1.weight",
        rename=((r"^first_conv\.0\.", "backbone.conv1."), (r"^first_conv\.1\.", "backbone.bn1."),
                *((rf"^encoder\.{i}\.", f"backbone.layer{i + 1}.") for i in range(4)))),
}
