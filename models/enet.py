"""ENet. Paszke et al., ENet: A Deep Neural Network Architecture for Real-Time
Semantic Segmentation, 2016, arXiv:1606.02147.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_enet`, with the same keys. No weights are published.

Differs from the paper: one PReLU weight per activation instead of one per
channel, except in the first block; channels missing in a residual sum are appended as zeros.
Differs from the source: any input size. There, a size that is not a multiple of
8 raises an error or mixes up the unpooled maps; here the maps of the first block are
padded by repeating their border, and the logits are cropped. Sizes that work there give
equal numbers.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from models.layers.norm import activation, norm_layer
from models.layers.resize import max_unpool
from models.weights.published import Published
from utils.machine.tensors import ImageBatch, Logits

# Stages 2 and 3: dilation of the 3x3 convolution, or "5" for a 1x5 and a 5x1 convolution.
CONTEXT = (1, 2, "5", 4, 1, 8, "5", 16)


class ENet(BaseModel):
    """A small encoder at stride 8 and a decoder that unpools by stored positions.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, norm: str = "batch"):
        super().__init__()
        self.initial = _Initial(norm)
        self.bottleneck10 = _Down(16, 64, 0.01, norm)
        for i in range(1, 5):
            self.add_module(f"bottleneck1{i}", _Bottleneck(64, 1, 0.01, "prelu", norm))
        self.bottleneck20 = _Down(64, 128, 0.1, norm)
        for stage in (2, 3):
            for i, kind in enumerate(CONTEXT, start=1):
                self.add_module(f"bottleneck{stage}{i}",
                                _Bottleneck(128, kind, 0.1, "prelu", norm))
        self.bottleneck40 = _Up(128, 64, 0.1, norm)
        self.bottleneck41 = _Bottleneck(64, 1, 0.1, "relu", norm)
        self.bottleneck42 = _Bottleneck(64, 1, 0.1, "relu", norm)
        self.bottleneck50 = _Up(64, 16, 0.1, norm)
        self.bottleneck51 = _Bottleneck(16, 1, 0.1, "relu", norm)
        self.fullconv = nn.ConvTranspose2d(16, num_classes, 3, stride=2, padding=1,
                                           output_padding=1, bias=False)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        height, width = x.shape[-2:]
        x = self.initial(x)                                          # (N, 16, H/2, W/2)
        rest = -x.shape[-1] % 4, -x.shape[-2] % 4
        # An exported graph has no branches: it always pads, by 0 if nothing is missing.
        if torch.compiler.is_exporting() or any(rest):
            x = F.pad(x, (0, rest[0], 0, rest[1]), mode="replicate")
        x, fine = self.bottleneck10(x)                               # (N, 64, H/4, W/4)
        for i in range(1, 5):
            x = self.get_submodule(f"bottleneck1{i}")(x)
        x, coarse = self.bottleneck20(x)                             # (N, 128, H/8, W/8)
        for stage in (2, 3):
            for i in range(1, len(CONTEXT) + 1):
                x = self.get_submodule(f"bottleneck{stage}{i}")(x)
        x = self.bottleneck42(self.bottleneck41(self.bottleneck40(x, coarse)))
        x = self.bottleneck51(self.bottleneck50(x, fine))
        out = self.fullconv(x)[..., :height, :width]
        return {"out": out} if self.training else out


class _Initial(nn.Module):
    """Max pooling joined with a strided convolution: 3 + 13 channels at half size, rounded up."""

    def __init__(self, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(3, 13, 3, stride=2, padding=1)
        self.bn = norm_layer(norm)(16)
        self.prelu = _activation("prelu", norm, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Of other images than RGB three bands are passed on, in turn if there are fewer.
        passed = x if x.shape[1] == 3 else x[:, [band % x.shape[1] for band in range(3)]]
        pooled = F.max_pool2d(passed, 2, ceil_mode=True)
        return self.prelu(self.bn(torch.cat([pooled, self.conv(x)], dim=1)))


class _Branch(nn.Module):
    """1x1 (or 2x2, stride 2), `conv2`, 1x1, each with norm and activation, then dropout."""

    def __init__(self, in_channels: int, channels: int, first: int,
                 middle: Callable[[int], nn.Module], dropout: float, act: str, norm: str):
        super().__init__()
        make, inner = norm_layer(norm), in_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, first, stride=first, bias=False)
        self.bn1, self.prelu1 = make(inner), _activation(act, norm)
        self.conv2 = middle(inner)
        self.bn2, self.prelu2 = make(inner), _activation(act, norm)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3, self.prelu3 = make(channels), _activation(act, norm)
        self.regularizer = nn.Dropout2d(dropout)
        self.prelu_out = _activation(act, norm, after_sum=True)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu1(self.bn1(self.conv1(x)))
        x = self.prelu2(self.bn2(self.conv2(x)))
        return self.regularizer(self.prelu3(self.bn3(self.conv3(x))))


class _Bottleneck(_Branch):
    """(N, C, H, W) -> the same shape."""

    def __init__(self, channels: int, kind: int | str, dropout: float, act: str, norm: str):
        def middle(inner: int) -> nn.Module:
            if isinstance(kind, str):
                return nn.Sequential(nn.Conv2d(inner, inner, (1, 5), padding=(0, 2)),
                                     norm_layer(norm)(inner), _activation(act, norm),
                                     nn.Conv2d(inner, inner, (5, 1), padding=(2, 0)))
            return nn.Conv2d(inner, inner, 3, padding=kind, dilation=kind, bias=False)

        super().__init__(channels, channels, 1, middle, dropout, act, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prelu_out(self.branch(x) + x)


class _Down(_Branch):
    """(N, in, H, W) -> (N, out, H/2, W/2) and the positions of the pooled maxima."""

    def __init__(self, in_channels: int, channels: int, dropout: float, norm: str):
        super().__init__(in_channels, channels, 2,
                         lambda inner: nn.Conv2d(inner, inner, 3, padding=1, bias=False),
                         dropout, "prelu", norm)
        self.extra = channels - in_channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, positions = F.max_pool2d(x, 2, return_indices=True)
        pooled = F.pad(pooled, (0, 0, 0, 0, 0, self.extra))
        return self.prelu_out(self.branch(x) + pooled), positions


class _Up(_Branch):
    """(N, in, H, W) and positions of the maxima -> (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, channels: int, dropout: float, norm: str):
        super().__init__(in_channels, channels, 1,
                         lambda inner: nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1,
                                                          output_padding=1, bias=False),
                         dropout, "relu", norm)
        self.spatil_conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn_up = norm_layer(norm)(channels, linear=True)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        main = max_unpool(self.bn_up(self.spatil_conv(x)), positions)
        return self.prelu_out(self.branch(x) + main)


def _activation(kind: str, norm: str, channels: int = 1, after_sum: bool = False) -> nn.Module:
    """PReLU or ReLU; the identity after a norm that includes an activation."""
    make = (lambda: nn.PReLU(channels)) if kind == "prelu" else None
    return activation(norm, after_sum, make)


PUBLISHED = {
    "yassouali_enet": Published(network=ENet, classes="fullconv.weight", classes_dim=1),
}
