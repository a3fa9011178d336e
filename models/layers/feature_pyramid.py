"""Simple feature pyramid. Li et al., Exploring Plain Vision Transformer Backbones for Object
Detection (ViTDet), ECCV 2022, arXiv:2203.16527.

Differs from the paper: the strides after `output_stride` are replaced by it, as in a dilated
encoder, and patches of other sizes than 16 get as many steps as are nearest to the strides.
"""
import math

import torch
from torch import nn

STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """Four maps at about strides 4, 8, 16 and 32, all made from one map.

    x: float (N, channels, h, w), the map of an encoder with patches of `stride` pixels ->
    [(N, width, h * f, w * f) for f in self.factors], where f < 1 rounds up.
    A finer map comes from transposed convolutions (2x2, stride 2), a coarser one from
    max pooling. Then come a 1x1 and a 3x3 convolution. Every convolution but the last
    transposed one is followed by a LayerNorm over the channels, as in the paper.

    output_stride: of the coarsest map, 8, 16 or 32.
    """

    def __init__(self, channels: int, stride: int, width: int = 256, output_stride: int = 32):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        own = round(math.log2(stride))
        steps = [own - round(math.log2(min(one, output_stride))) for one in STRIDES]
        self.factors = [2.0 ** step for step in steps]      # how much finer than x
        self.channels = [width] * len(steps)
        self._dropped: set[int] = set()
        self.branches = nn.ModuleList(_branch(channels, step, width) for step in steps)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        """The maps, finest first; None in place of those that were dropped."""
        return [None if level in self._dropped else branch(x)
                for level, branch in enumerate(self.branches)]

    def drop(self, level: int) -> None:
        """Remove the map `level` and its parameters; forward then returns None for it."""
        self.branches[level] = nn.Identity()
        self._dropped.add(level)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel. x: float (N, C, H, W) -> the same shape."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _branch(channels, step, width):
    """The layers of one map, 2 ** step times as fine as the input."""
    layers: list[nn.Module] = []
    for number in range(step):
        if number:
            layers += [LayerNorm2d(channels, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, max(channels // 2, 1), 2, stride=2))
        channels = max(channels // 2, 1)
    if step < 0:
        side = 2 ** -step
        layers.append(nn.MaxPool2d(side, ceil_mode=True))
    return nn.Sequential(*layers,
                         nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width, eps=1e-6),
                         nn.Conv2d(width, width, 3, padding=1, bias=False),
                         LayerNorm2d(width, eps=1e-6))
