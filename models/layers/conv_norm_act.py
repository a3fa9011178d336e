"""Convolution, norm and activation in a row, and the classifier built of it."""
from torch import nn

from models.layers.heads import conv_norm_relu
from utils.errors import ConfigError


def conv_norm_act(in_channels: int, channels: int, kernel_size: int = 1, *, dilation: int = 1,
                  bias: bool = False, norm: str = "batch", act: str = "relu") -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, channels, H, W); keys: convolution "0", norm "1".

    act: "relu", or "leaky_relu" of slope 0.01, which openseg's in-place
    activated batch norm applies and its first released files depend on.
    """
    if act not in ("relu", "leaky_relu"):
        raise ConfigError(f"unknown activation {act!r}", "arch.args.activation",
                          "use relu or leaky_relu")
    block = conv_norm_relu(in_channels, channels, kernel_size, dilation=dilation, norm=norm,
                           bias=bias)
    if act == "leaky_relu" and isinstance(block[2], nn.ReLU):
        block[2] = nn.LeakyReLU(0.01, inplace=True)
    return block


def classifier_head(in_channels: int, channels: int, num_classes: int, kernel_size: int = 1, *,
                    bias: bool = True, classifier_bias: bool = True, dropout: float = 0.0,
                    norm: str = "batch", act: str = "relu") -> nn.Sequential:
    """conv-norm-act to `channels`, dropout of whole maps, 1x1 convolution to the classes.

    (N, in_channels, H, W) -> (N, num_classes, H, W); keys "0.0", "0.1" and "2".
    """
    return nn.Sequential(
        conv_norm_act(in_channels, channels, kernel_size, bias=bias, norm=norm, act=act),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, num_classes, 1, bias=classifier_bias))
