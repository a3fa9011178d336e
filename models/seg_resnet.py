"""SegNet's idea (Badrinarayanan et al., 2017, arXiv:1511.00561) on ResNet-50: a
mirrored residual decoder and one unpooling.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_segresnet`. No weights are published.

Differs from the source: it works for any size, and the logits are aligned with the pixels.
In the source, the pooled maps must be even on both axes or odd on both; for some sizes a row
of the output is missing; and if ceil(W/2) is odd, the unpooling assumes rows that are one
pixel too long, which shears the output. Multiples of 4 give equal numbers. A network from the
source's checkpoints (`source_unpooling`) keeps the shear, because it may have been trained
with it.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import Bottleneck, ResNet
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.layers.resize import max_unpool
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class SegResNet(StartsFromFiles):
    """ResNet down to stride 32, its blocks in reverse up to stride 4, unpooling to stride 2.

    x: float (N, 3, H, W), normalized RGB; any H and W. backbone: resnet50, resnet101 or
    resnet152. source_unpooling: unpool with the source's row length, see the file's docstring.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 source_unpooling: bool = False, norm: str = "batch"):
        super().__init__()
        if backbone not in ("resnet50", "resnet101", "resnet152"):
            raise ConfigError(f"SegResNet needs a resnet with bottlenecks, got {backbone!r}",
                              where="arch.args.backbone",
                              fix="use resnet50, resnet101 or resnet152")
        self.source_unpooling = source_unpooling
        encoder = build_backbone(backbone, pretrained=pretrained, norm=norm)
        assert isinstance(encoder, ResNet)
        self.backbone = encoder
        self.backbone.keep(-1)
        stages = []
        for i, layer in ((4, encoder.layer4), (3, encoder.layer3), (2, encoder.layer2),
                         (1, encoder.layer1)):
            width = encoder.channels[i - 1]
            parts: list[nn.Module] = [Bottleneck(width, width // 4, 1, 1, 1, norm)
                                      for _ in range(len(layer) - 1)]
            parts.append(_Widen(width, norm) if i > 1 else _Last(width, norm))
            stages.append(nn.Sequential(*parts))
        self.decoder = nn.Sequential(*stages)
        self.last_conv = nn.Sequential(nn.ConvTranspose2d(64, 64, 2, stride=2, bias=False),
                                       nn.Conv2d(64, num_classes, 3, padding=1))
        he_init(self.decoder, mode="fan_out")
        he_init(self.last_conv)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        height, width = x.shape[-2:]
        x = self.backbone.stem(x)                             # (N, 64, ceil(H/2), ceil(W/2))
        size = x.shape[-2:]
        x, positions = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        # Stride 4; larger than the pooled map if that is not a multiple of 8.
        x = self.decoder(self.backbone.stages(x)[-1])
        rows, columns = positions.shape[-2:]
        top, left = (x.shape[-2] - rows + 1) // 2, (x.shape[-1] - columns + 1) // 2
        x = x[..., top:top + rows, left:left + columns].contiguous()
        if self.source_unpooling:
            size = 2 * rows, 2 * columns
        x = self.last_conv(max_unpool(x, positions, size))
        top, left = 0, 0
        if self.source_unpooling:
            top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
        out = x[..., top:top + height, left:left + width]
        return {"out": out} if self.training else out


class _Widen(nn.Module):
    """A bottleneck that doubles the map: (N, C, H, W) -> (N, C/2, 2H, 2W)."""

    def __init__(self, channels: int, norm: str):
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu_out(self.bn3(self.conv3(out)) + self.downsample(x))


class _Last(_Widen):
    """The last bottleneck: (N, C, H, W) -> (N, C/4, H, W)."""

    def __init__(self, channels: int, norm: str):
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
