"""Initial values of weights."""
from typing import Literal

from torch import nn


def he_init(*modules: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in",
            norm_bias: float = 0.0) -> None:
    """Initialize every Conv2d in `modules` by He's normal distribution, batch norms as identity.

    Transposed convolutions keep torch's initialization. mode: "fan_out" keeps the variance of
    gradients, as in torchvision's encoders; "fan_in" keeps that of activations. norm_bias: 1e-4
    in the heads of yassouali/pytorch-segmentation. He et al., 2015, arXiv:1502.01852.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
            elif isinstance(part, nn.modules.batchnorm._NormBase) and part.affine:
                nn.init.ones_(part.weight)
                nn.init.constant_(part.bias, norm_bias)
