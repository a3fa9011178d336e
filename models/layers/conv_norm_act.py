"""Sequences of convolution, norm and activation, and a classifier head made of them."""
from torch import nn

from models.layers.norm import activation, norm_layer
from utils.errors import ConfigError

# The files of openseg's first branch need leaky_relu: its in-place activated batch norm uses it.
ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True),
               "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True)}


def conv_norm_act(in_channels: int, channels: int, kernel_size: int, *, stride: int = 1,
                  dilation: int = 1, bias: bool = False, norm: str = "batch",
                  act: str = "relu") -> nn.Sequential:
    """float (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).

    Keys: convolution "0", norm "1". kernel_size: odd. act: "relu", or "leaky_relu" with slope
    0.01; no activation is added after a norm that includes one (EvoNorm).
    """
    if act not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {act!r}", "arch.args.activation",
                          f"use {' or '.join(ACTIVATIONS)}")
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, dilation * (kernel_size // 2),
                  dilation, bias=bias),
        norm_layer(norm)(channels),
        activation(norm, make=ACTIVATIONS[act]))


def two_1x1(in_channels: int, channels: int, *, bias: bool = False, norm: str = "batch",
            act: str = "relu") -> nn.Sequential:
    """Two 1x1 conv-norm-act in sequence: (N, in_channels, H, W) -> (N, channels, H, W)."""
    return nn.Sequential(*(conv_norm_act(width, channels, 1, bias=bias, norm=norm, act=act)
                           for width in (in_channels, channels)))


def atrous_branches(in_channels: int, channels: int, rates: tuple, *, bias: bool = False,
                    norm: str = "batch", act: str = "relu") -> nn.ModuleList:
    """A 1x1 conv-norm-act, and a dilated 3x3 one per rate.

    Each: float (N, in_channels, H, W) -> (N, channels, H, W).
    """
    return nn.ModuleList(
        conv_norm_act(in_channels, channels, size, dilation=rate, bias=bias, norm=norm, act=act)
        for size, rate in ((1, 1), *((3, rate) for rate in rates)))


def classifier_head(in_channels: int, channels: int, num_classes: int, kernel_size: int = 1, *,
                    bias: bool = True, classifier_bias: bool = True, dropout: float = 0.0,
                    norm: str = "batch", act: str = "relu") -> nn.Sequential:
    """conv-norm-act to `channels`, dropout of whole maps, 1x1 convolution to the classes.

    float (N, in_channels, H, W) -> (N, num_classes, H, W); keys "0.0", "0.1" and "2".
    """
    return nn.Sequential(
        conv_norm_act(in_channels, channels, kernel_size, bias=bias, norm=norm, act=act),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, num_classes, 1, bias=classifier_bias))
