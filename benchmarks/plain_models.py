"""Four networks in plain torch with torchvision's ResNet-50, without any of our code.

They have the same weights as our networks, in the order of the state dict.
segmentation_models_pytorch has different networks under these names. Used by benchmarks.models.

All take images (N, 3, H, W) float and return logits (N, C, H, W); in train mode they return a dict
of outputs, "out" and, for PSPNet, "aux".
"""
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter

WIDTHS = (256, 512, 1024, 2048)      # channels of the four stages of ResNet-50


class PSPNet(nn.Module):
    """PSPNet of output stride 8, with the auxiliary head."""

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = _encoder(dilated=(False, True, True))
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(bins), *_conv(2048, 512, 1))
                                   for bins in (1, 2, 3, 6))
        self.fuse = nn.Sequential(*_conv(4096, 512, 3), nn.Dropout2d(0.1))
        self.classifier = nn.Conv2d(512, classes, 1)
        self.aux = nn.Sequential(*_conv(1024, 512, 3), nn.Dropout2d(0.1),
                                 nn.Conv2d(512, classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        *_, c3, c4 = self.encoder(x).values()
        pooled = [_resize(pool(c4), c4, True) for pool in self.pools]
        out = _resize(self.classifier(self.fuse(torch.cat([c4, *pooled], 1))), x)
        return {"out": out, "aux": _resize(self.aux(c3), x)} if self.training else out


class UperNet(nn.Module):
    """UPerNet of output stride 16."""

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = _encoder(dilated=(False, False, True), first_block=True)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(bins), *_conv(2048, 512, 1))
                                   for bins in (1, 2, 4, 6))
        self.bottleneck = nn.Sequential(*_conv(4096, 2048, 3), nn.Dropout2d(0.1))
        self.laterals = nn.ModuleList(nn.Conv2d(width, 256, 1) for width in WIDTHS[1:])
        self.smooth = nn.Conv2d(256, 256, 3, padding=1)
        self.fuse = nn.Sequential(*_conv(1024, 256, 3))
        self.classifier = nn.Conv2d(256, classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        c1, c2, c3, c4 = self.encoder(x).values()
        pooled = [_resize(pool(c4), c4, True) for pool in self.pools]
        c4 = self.bottleneck(torch.cat([c4, *pooled], 1))
        levels = [c1] + [lateral(c)
                         for lateral, c in zip(self.laterals, (c2, c3, c4), strict=True)]
        levels[:3] = [self.smooth(fine + _resize(coarse, fine, True))
                      for fine, coarse in pairwise(levels)]
        levels = [levels[0]] + [_resize(level, levels[0], True) for level in levels[1:]]
        out = _resize(self.classifier(self.fuse(torch.cat(levels, 1))), x)
        return {"out": out} if self.training else out


class DeepLab(nn.Module):
    """DeepLabV3+ of output stride 16."""

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = _encoder(dilated=(False, False, True), first_block=True)
        self.branches = nn.ModuleList(
            [nn.Sequential(*_conv(2048, 256, 1))]
            + [nn.Sequential(*_conv(2048, 256, 3, dilation)) for dilation in (6, 12, 18)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv(2048, 256, 1))
        self.project = nn.Sequential(*_conv(1280, 256, 1), nn.Dropout(0.5))
        self.low = nn.Sequential(*_conv(256, 48, 1))
        self.decoder = nn.Sequential(*_conv(304, 256, 3), *_conv(256, 256, 3), nn.Dropout(0.1),
                                     nn.Conv2d(256, classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        c1, *_, c4 = self.encoder(x).values()
        parts = [branch(c4) for branch in self.branches] + [_resize(self.image(c4), c4, True)]
        high, low = self.project(torch.cat(parts, 1)), self.low(c1)
        out = _resize(self.decoder(torch.cat([low, _resize(high, low, True)], 1)), x, True)
        return {"out": out} if self.training else out


class UNet(nn.Module):
    """U-Net; H and W must be divisible by 16."""

    def __init__(self, classes: int):
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.start = nn.Sequential(*_conv(3, 32, 3), *_conv(32, 64, 3))
        self.down = nn.ModuleList(_pair(i, o) for i, o in pairwise(widths))
        self.middle = _pair(1024, 1024)
        self.up = nn.ModuleList()
        for width in widths[:0:-1]:
            self.up += [nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                        _pair(width, width // 2)]
        self.classifier = nn.Conv2d(64, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        skips = [self.start(x)]
        for convs in self.down:
            skips.append(F.max_pool2d(convs(skips[-1]), 2))
        x = self.middle(skips.pop())
        for upsample, convs in zip(self.up[::2], self.up[1::2], strict=True):
            x = convs(torch.cat([skips.pop(), upsample(x)], 1))
        out = self.classifier(x)
        return {"out": out} if self.training else out


def _encoder(dilated, first_block=False):
    """The four stages of ResNet-50. first_block: also dilate the first block of the last stage."""
    network = resnet50(replace_stride_with_dilation=dilated)
    if first_block:
        conv = network.layer4[0].conv2
        assert isinstance(conv, nn.Conv2d)
        conv.dilation = conv.padding = (2, 2)
    return IntermediateLayerGetter(network, {f"layer{i}": str(i) for i in (1, 2, 3, 4)})


def _conv(inputs, outputs, kernel, dilation=1):
    return (nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation,
                      bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _pair(inputs, outputs):
    return nn.Sequential(*_conv(inputs, outputs // 2, 3), *_conv(outputs // 2, outputs, 3))


def _resize(x, like, align_corners=False):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)
