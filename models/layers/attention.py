"""Self-attention over the pixels of a feature map: over all of them, or interlaced.

Yuan and Wang, OCNet: Object Context Network for Scene Parsing, IJCV 2021, arXiv:1809.00916;
Huang et al., Interlaced Sparse Self-Attention for Semantic Segmentation, 2019,
arXiv:1907.12273.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.layers.conv_norm_act import conv_norm_act, two_1x1
from models.weights.rename_keys import ROW, Rule

# Keys of openseg -> ours.
ATTENTION_KEYS: tuple[Rule, ...] = (
    (r"\.f_(key|query)" + ROW, lambda m: f".{m[1]}.{int(m[2]) // 2}.{int(m[2]) % 2}."),
    (r"\.f_value\.", ".value."),
    (r"\.W\.(?=weight$|bias$)", ".project."),
    (r"\.W" + ROW, r".project.\1."),
)


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel; float (N, C, H, W) -> (N, C, H, W).

    Keys and queries each come from two 1x1 convolutions with norm, values from one without
    norm. project_norm: the last 1x1 convolution has norm and activation. Otherwise its
    weights start with a standard deviation of 1e-3, so that the block adds almost nothing at
    first. (The published code starts them at zero, so that in the first step the layers before
    get no gradient.)
    """

    def __init__(self, channels: int, key_channels: int, value_channels: int, *,
                 bias: bool = True, project_norm: bool = False, norm: str = "batch",
                 act: str = "relu"):
        super().__init__()
        options: dict[str, Any] = dict(bias=bias, norm=norm, act=act)
        self.key = two_1x1(channels, key_channels, **options)
        self.query = two_1x1(channels, key_channels, **options)
        self.value = nn.Conv2d(channels, value_channels, 1, bias=bias)
        if project_norm:
            self.project = conv_norm_act(value_channels, channels, 1, **options)
        else:
            self.project = nn.Conv2d(value_channels, channels, 1, bias=bias)
            nn.init.normal_(self.project.weight, std=1e-3)
            if self.project.bias is not None:
                nn.init.zeros_(self.project.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.value(x)                                        # (N, V, H, W)
        context = attend(self.query(x), self.key(x), value)
        return self.project(context.reshape(value.shape))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax of query · key / sqrt(D) over the P positions of the keys, times the values.

    query: float (N, D, ...) with Q positions; key: (N, D, ...) and value: (N, V, ...), both with
    P positions -> (N, V, Q). torch's fused kernel does not store the Q x P map.
    """
    # The axis of the single head is explicit because torch's ONNX exporter does not add it.
    query, key, value = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2)


class InterlacedAttention(nn.Module):
    """Attention among pixels that are `step` apart, then within blocks of `step` x `step`.

    float (N, C, H, W) -> (N, C, H, W). The map is padded with zeros to multiples of
    `step`, half before and half after (the smaller half first). The padding
    takes part in the attention, as in the published network.
    """

    def __init__(self, channels: int, key_channels: int, value_channels: int, step: int = 8, *,
                 norm: str = "batch", act: str = "relu"):
        super().__init__()
        options: dict[str, Any] = dict(bias=False, project_norm=True, norm=norm, act=act)
        self.long_range = SelfAttention(channels, key_channels, value_channels, **options)
        self.short_range = SelfAttention(channels, key_channels, value_channels, **options)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (n, c, height, width), s = x.shape, self.step
        rows, columns = -(-height // s), -(-width // s)             # blocks per axis
        down, right = rows * s - height, columns * s - width
        top, left = down // 2, right // 2
        x = F.pad(x, (left, right - left, top, down - top))
        x = x.view(n, c, rows, s, columns, s)
        x = x.permute(0, 3, 5, 1, 2, 4).reshape(n * s * s, c, rows, columns)
        x = self.long_range(x).view(n, s, s, c, rows, columns)
        x = x.permute(0, 4, 5, 3, 1, 2).reshape(n * rows * columns, c, s, s)
        x = self.short_range(x).view(n, rows, columns, c, s, s)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(n, c, rows * s, columns * s)
        return x[:, :, top:top + height, left:left + width]
