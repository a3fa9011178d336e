"""Encoders: an image in, feature maps from high to low resolution out.

A backbone is a public subclass of `Backbone` in a module of this package. Its
`aliases` are the names a config may give as `backbone`; where one class has
several (ResNet-18 … 152), the constructor's first argument, `name`, is told
which. Adding a backbone is adding a file.
"""
import inspect
from collections.abc import Mapping

import torch
from torch import nn

from utils.errors import ConfigError
from utils.registry import components, unknown

# What an option is when it asks for nothing.
NEUTRAL = {"pretrained": False, "norm": "batch"}


class Backbone(nn.Module):
    """x (N, 3, H, W) normalised RGB -> list of maps (N, channels[i], ~H/strides[i], ~W/strides[i]).

    The maps go from high to low resolution. `channels` and `strides` are lists
    of equal length, set by the constructor. `aux_level` is the index of the map
    that an auxiliary head sits on.
    """

    aliases: tuple = ()
    aux_level: int = -2
    unused: frozenset = frozenset()
    channels: list[int]
    strides: list[int]

    def keep(self, *levels: int):
        """Say which maps will be used: the others may come as None, which frees memory early."""
        count = len(self.channels)
        self.unused = frozenset(range(count)) - {level % count for level in levels}

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError


def build_backbone(name: str, levels: int = 1, if_known: Mapping[str, object] | None = None,
                   **options) -> Backbone:
    """The encoder called `name`, e.g. build_backbone("resnet50", output_stride=16).

    levels: how many feature maps the caller needs. if_known: options that go only to
    an encoder that has them. Other options that ask for nothing
    (pretrained=False, norm="batch", the output stride it has anyway) may be
    given for any encoder too. Raises ConfigError for an unknown name, for other
    options that this encoder has not, and for values it cannot take.
    """
    if name.startswith("timm/"):
        from models.backbones.timm_adapter import TimmBackbone as cls
    else:
        cls = _lookup(name)
    known = inspect.signature(cls).parameters
    stride = options.get("output_stride")
    options = {option: value for option, value in options.items()
               if option in known or option != "output_stride" and NEUTRAL.get(option) != value}
    options |= {option: value for option, value in (if_known or {}).items() if option in known}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"backbone {name} has no option {option}, got {value!r}",
                              where=f"arch.args.{option}",
                              fix="leave it out or choose another backbone")
    if "name" in known:
        options["name"] = name
    backbone = cls(**options)
    if stride not in (None, backbone.strides[-1]):
        raise ConfigError(f"backbone {name} has output stride {backbone.strides[-1]}, not {stride}",
                          where="arch.args.output_stride")
    if len(backbone.channels) < levels:
        raise ConfigError(f"this architecture needs {levels} feature maps, backbone {name} has "
                          f"{len(backbone.channels)}", where="arch.args.backbone",
                          fix="take a resnet")
    return backbone


def backbone_names() -> list[str]:
    """Every name `build_backbone` knows, in alphabetical order ("timm/NAME" aside)."""
    return sorted(_by_name())


def _lookup(name):
    choices = _by_name()
    if name not in choices:
        raise ConfigError(unknown("backbone", name, choices), where="arch.args.backbone",
                          fix="any encoder of timm serves as timm/NAME where timm is installed")
    return choices[name]


def _by_name():
    return {name: cls for cls in components("backbones").values() for name in cls.aliases}
