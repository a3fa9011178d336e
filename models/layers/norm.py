"""Norms by name, for every network.

`norm_layer(name)(channels)` is the norm and `activation(name)` the activation
that follows it. EvoNorm includes an activation, so `activation` returns the
identity for it. Where no activation follows (the last norm of a residual branch, the
projection of a shortcut), `norm_layer(name)(channels, linear=True)` returns a
norm that includes none.

batch     BatchNorm2d
sync      batch norm over the batches of all ranks
inplace_abn   batch norm with the factors |weight| + 1e-5: the in-place activated batch norm of
          Rota Bulò et al., 2018, arXiv:1712.02616, with which openseg trains
instance  one mean and variance per map, no parameters (torch's default)
group     GroupNorm, gcd(32, channels) groups. Wu and He, 2018, arXiv:1803.08494
evo_s0    EvoNorm-S0, batch-independent. Liu et al., 2020, arXiv:2004.02967
evo_b0    EvoNorm-B0 of the same paper, with running variances

Two more names exist only for the checkpoints of
hoya012/semantic-segmentation-tutorial-pytorch. instance_hoya012 also normalizes 1x1 maps
(to zero). evo_s0_hoya012 uses the unbiased group variance, replaces every norm (also
those without an activation after them) and removes every ReLU, also after the residual sum.
"""
import math
from collections.abc import Callable

import torch
from torch import nn

from utils.errors import ConfigError, unknown
from utils.machine.precision import full_precision
from utils.machine.sync_batchnorm import InPlaceBatchNorm, SyncBatchNorm


def norm_layer(name: str) -> Callable[..., nn.Module]:
    """Return the constructor of the norm called `name`: (channels, linear=False) -> Module.

    Raises ConfigError for an unknown name.
    """
    if name not in _NORMS:
        raise ConfigError(unknown("norm", name, NORMS), where="arch.args.norm")
    return _NORMS[name]


def norm_names() -> list[str]:
    """Return all names that `norm_layer` accepts, also those for checkpoints of one program."""
    return list(_NORMS)


def activation(norm: str, after_sum: bool = False,
               make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Return the activation after the norm called `norm`, or after a residual sum (after_sum).

    make: builds the activation of the network, ReLU by default. It is not used after a norm
    that includes an activation.
    """
    if norm == "evo_s0_hoya012" or norm.startswith("evo_") and not after_sum:
        return nn.Identity()
    return make() if make else nn.ReLU(inplace=True)


def pooled_norm(name: str) -> str:
    """Return the name of the norm to use in place of `name` for maps pooled to 1x1.

    A map of one pixel has no variance: instance norm would set it to zero, and
    EvoNorm-B0 would divide by almost zero. Group norm is used there.
    """
    return {"instance": "group", "evo_b0": "group"}.get(name, name)


class InstanceNorm(nn.InstanceNorm2d):
    """torch's InstanceNorm2d, but 1x1 maps are allowed and become zero; (N, C, H, W) float."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.instance_norm(x, None, None, None, None, True, 0.0, self.eps,
                                   torch.backends.cudnn.enabled)


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, but groups of one value are allowed and become the bias.

    Such groups come from one channel of a 1x1 map of a single image. x: float (N, C, H, W).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Affine(nn.Module):
    """gamma * x + beta per channel; replaces EvoNorm where no activation follows.

    x: float (N, C, H, W); the result has its dtype.
    """

    is_norm = True      # for optimizer.no_decay, although its name does not say it

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.beta, self.gamma, x).to(x.dtype)


class EvoNormS0(Affine):
    """x * sigmoid(v * x) / sqrt(var + eps) * gamma + beta, the same in train and eval mode.

    x: float (N, C, H, W); the result has its dtype. var: biased variance over the channels
    of a group and all pixels of one image, always in float32. v starts at 1.
    `unbiased=True` divides by n - 1, as the checkpoints of hoya012's tutorial need it.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5, unbiased: bool = False):
        super().__init__(channels)
        self.v = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.groups, self.eps, self.unbiased = math.gcd(groups, channels), eps, unbiased

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grouped = full_precision(x).unflatten(1, (self.groups, -1))           # (N, G, C/G, H, W)
        var = grouped.var((2, 3, 4), correction=int(self.unbiased))   # (N, G)
        scale = torch.rsqrt(var + self.eps).repeat_interleave(self.gamma.shape[1] // self.groups, 1)
        return super().forward(x * torch.sigmoid(self.v * x) * scale[..., None, None]).to(x.dtype)


class EvoNormB0(Affine):
    """x / max(sqrt(var_batch + eps), v * x + sqrt(var_instance + eps)) * gamma + beta.

    x: float (N, C, H, W); the result has its dtype. var_batch: biased variance over batch and
    pixels; eval mode uses the running one (new = 0.9 old + 0.1 batch). var_instance: biased,
    per image.
    """

    running_var: torch.Tensor       # (1, C, 1, 1)

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels)
        self.v = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("running_var", torch.ones(1, channels, 1, 1))
        self.eps, self.momentum = eps, momentum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = full_precision(x)
        if self.training:
            var = wide.var((0, 2, 3), correction=0, keepdim=True)
            with torch.no_grad():
                self.running_var.lerp_(var, self.momentum)
        else:
            var = self.running_var
        std = torch.sqrt(wide.var((2, 3), correction=0, keepdim=True) + self.eps)
        return super().forward(
            wide / torch.maximum(torch.sqrt(var + self.eps), self.v * wide + std)).to(x.dtype)


def _group(channels: int, linear: bool = False) -> GroupNorm:
    return GroupNorm(math.gcd(32, channels), channels)


_NORMS = {
    "batch": lambda channels, linear=False: nn.BatchNorm2d(channels),
    "sync": lambda channels, linear=False: SyncBatchNorm(channels),
    "inplace_abn": lambda channels, linear=False: InPlaceBatchNorm(channels),
    "instance": lambda channels, linear=False: InstanceNorm(channels),
    "group": _group,
    "evo_s0": lambda channels, linear=False: (Affine if linear else EvoNormS0)(channels),
    "evo_b0": lambda channels, linear=False: (Affine if linear else EvoNormB0)(channels),
    "instance_hoya012": lambda channels, linear=False: InstanceNorm(channels),
    "evo_s0_hoya012": lambda channels, linear=False: EvoNormS0(channels, unbiased=True),
}
NORMS = tuple(name for name in _NORMS if not name.endswith("_hoya012"))
