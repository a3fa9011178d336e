"""Encoders: they turn an image into feature maps from high to low resolution.

A backbone is a public subclass of `Backbone` in a module of this package; to add one, add a
file. Its `aliases` are the names that a config can give as `backbone`. If a class has several
(ResNet-18 to 152), its constructor gets the chosen one as its first argument, `name`.
"""
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.weights.rename_keys import State
from utils.cli.console import notice
from utils.config.build import construct
from utils.config.registry import components
from utils.errors import ConfigError, unknown
from utils.machine.tensors import ImageBatch
from utils.training.parameter_groups import is_norm

# Options that any encoder accepts with these values, because they change nothing.
NEUTRAL = {"pretrained": False, "norm": "batch", "drop_path": 0.0, "checkpointing": False}


class Backbone(nn.Module):
    """x, float (N, 3, H, W), normalized -> maps (N, channels[i], ~H/strides[i], ~W/strides[i]).

    The maps go from high to low resolution. `channels` and `strides` are lists
    of equal length, set by the constructor. `aux_level` is the index of the map
    that an auxiliary head uses. An encoder that needs sides divisible by a number pads the image
    with zeros at the right and the bottom, and crops the maps to the sizes above. An encoder with
    `layer_norms` has LayerNorms, as published; the option norm of a network is then for its head
    alone. `normalization` is set if pretrained weights were loaded that may need another
    input than ImageNet's: mean, std, order and scale, as in the section normalize of a config.
    """

    aliases: tuple[str, ...] = ()
    aux_level: int = -2
    unused: frozenset[int] = frozenset()
    layer_norms = False
    normalization: Mapping[str, Any] | None = None
    channels: list[int]
    strides: list[int]

    @property
    def equal_strides(self) -> bool:
        """Whether all maps have one stride, as those of a plain vision transformer."""
        return len(set(self.strides)) == 1

    def encoder_modules(self) -> list[nn.Module]:
        """The modules whose weights `pretrained` fills; all others count as parts of the head."""
        return [self]

    def keep(self, *levels: int) -> None:
        """Set which maps are used; forward may return None for the others to free memory early."""
        count = len(self.channels)
        self.unused = frozenset(range(count)) - {level % count for level in levels}

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        """Return the feature maps, finest first."""
        raise NotImplementedError

    def normed_map(self, level: int, x: torch.Tensor) -> torch.Tensor | None:
        """(N, H, W, C) -> map (N, C, H, W) after the norm "norm{level}"; None if it is not used."""
        if level in self.unused:
            return None
        # Contiguous, because the convolutions of a head would else compute channels-last, whose
        # backward pass takes a sixth longer on a CPU. Where the user chose it, the weights decide.
        return self.get_submodule(f"norm{level}")(x).permute(0, 3, 1, 2).contiguous()

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of this encoder in a file of another source to "backbone.KEY".

        The file may contain a classifier or a whole network; other keys stay. Values are adapted
        where the sources differ in more than names. By default nothing is changed.
        """
        return state

    def load_imagenet(self, state: Mapping[str, torch.Tensor], name: str):
        """Load the weights of an ImageNet classifier, without those that the encoder does not have.

        state: with the keys of the encoder. name: of the encoder. The classifier has batch norms.
        Where the encoder has others, these keep their start values; one notice gives the numbers.
        Every other tensor must fit.
        """
        others = {place: module for place, module in self.named_modules()
                  if is_norm(module) and not isinstance(module, nn.BatchNorm2d)}
        taken = {key: value for key, value in state.items() if key.rpartition(".")[0] not in others}
        own = {key: value for key, value in self.state_dict().items()
               if key.rpartition(".")[0] in others}
        self.load_state_dict({**own, **taken})
        if others:
            norms = ", ".join(dict.fromkeys(type(module).__name__ for module in others.values()))
            notice(f"pretrained {name}: {len(taken)} of {len(state)} tensors are taken, those of "
                   f"the convolutions; the {len(state) - len(taken)} of the batch norms are left "
                   f"out, because the {len(others)} norms here are {norms}")

    def load_classifier(self, state: Mapping[str, torch.Tensor]):
        """Load an ImageNet classifier into an encoder with a norm at each map, norm0, norm1, …

        state: with the keys of its source, which `rename_foreign` knows. A classifier has no such
        norms, so they keep their start values. Every other tensor of the encoder must be there.
        """
        renamed = self.rename_foreign(dict(state))
        taken = {key.removeprefix("backbone."): value for key, value in renamed.items()
                 if key.startswith("backbone.")}
        own = {key: value for key, value in self.state_dict().items() if re.match(r"norm\d", key)}
        self.load_state_dict({**own, **taken})


def build_backbone(name: str, levels: int = 1, if_known: Mapping[str, object] | None = None,
                   pyramid: bool = False, **options: Any) -> Backbone:
    """Build the encoder called `name`, e.g. build_backbone("resnet50", output_stride=16).

    levels: the number of feature maps that the caller needs. if_known: options that are
    used only if the encoder has them. options: arguments of the encoder; every
    encoder also accepts the values of NEUTRAL and the output stride that it has.
    Raises ConfigError for an unknown name, an option that the encoder does not have, a value
    that it does not accept, and too few feature maps.
    """
    if name.startswith("timm/"):
        from models.backbones.timm_adapter import TimmBackbone as cls
    else:
        cls = _lookup(name)
    known = inspect.signature(cls).parameters
    stride = options.get("output_stride")
    if cls.layer_norms:
        options.pop("norm", None)
    options = {option: value for option, value in options.items()
               if option in known or option != "output_stride" and NEUTRAL.get(option) != value}
    options |= {option: value for option, value in (if_known or {}).items() if option in known}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"backbone {name} has no option {option}, got {value!r}",
                              where=f"arch.args.{option}",
                              fix=(f"set it to {json.dumps(NEUTRAL[option])}" if option in NEUTRAL
                                   else "leave it out") + " or choose another backbone")
    backbone = construct(cls, options, "arch.args", {"name": name} if "name" in known else None)
    if backbone.equal_strides:
        backbone = _plain(backbone, name, stride, pyramid)
    elif stride not in (None, backbone.strides[-1]):
        raise ConfigError(f"backbone {name} has output stride {backbone.strides[-1]}, not {stride}",
                          where="arch.args.output_stride")
    if len(backbone.channels) < levels:
        raise ConfigError(f"this architecture needs {levels} feature maps, backbone {name} has "
                          f"{len(backbone.channels)}", where="arch.args.backbone",
                          fix="use a resnet")
    return backbone


def backbone_names() -> list[str]:
    """Return all names that `build_backbone` accepts, sorted, without those of timm."""
    return sorted(_by_name())


def _plain(backbone, name, stride, pyramid):
    """The backbone to use in place of one with maps of equal strides."""
    if pyramid:
        from models.backbones.plain_pyramid import PlainPyramid
        return PlainPyramid(backbone, stride or 32)
    if stride not in (None, backbone.strides[-1]):
        notice(f"all maps of {name} have stride {backbone.strides[-1]}; output_stride {stride} has "
               "no effect")
    return backbone


def _lookup(name: str) -> type[Backbone]:
    choices = _by_name()
    if name not in choices:
        raise ConfigError(unknown("backbone", name, choices), where="arch.args.backbone",
                          fix="if timm is installed, use any of its encoders as timm/NAME")
    return choices[name]


def _by_name() -> dict[str, type[Backbone]]:
    return {name: cls for cls in components("backbones").values() for name in cls.aliases}
