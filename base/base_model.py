"""The base class of every network and the rules that all networks follow."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from utils.cli.console import notice, warn
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class BaseModel(nn.Module, ABC):
    """A segmentation network.

    x: float (N, 3, H, W), normalized; any H and W. After `take_channels` another number than 3.
    eval:  logits (N, C, H, W), at the size of the input; with activation "scores" scores
    train: dict name -> logits (N, C, H, W); the names are those of `output_weights`

    `output_weights` holds the loss weight of each named output, as in the paper.
    "out" is the main output. `output_channels` holds the number of channels of each output that
    does not have one per class, such as a map of boundaries; it needs a loss of its own. A
    network that is built without one of its auxiliary heads replaces the attributes on the
    instance.

    `loss` is the type of the loss that reads the outputs, if they are made for one loss only; the
    outputs are then what it reads, of any shape. `activation` is "scores" if the network gives
    scores that are not logits (utils.losses.scores); None leaves it to the loss.

    If the network has an encoder, it is `self.backbone`. `differential_lr` lowers the
    learning rate of the encoder's parameters and `freeze_backbone` fixes them.
    """

    output_weights: dict[str, float] = {"out": 1.0}
    output_channels: dict[str, int] = {}
    loss: str | None = None
    activation: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self._freeze_bn = self._freeze_backbone = False

    def at_progress(self, progress: float):
        """Adapt the network to a part of the training; called before each of its steps.

        progress: the share of all steps that are done, 0 <= progress < 1. By default nothing
        depends on it. What does must follow from it alone, so that a resumed run is the same.
        """

    @abstractmethod
    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        """Return logits in eval mode, a dict of logits in train mode."""

    def backbone_modules(self) -> list[nn.Module]:
        """The modules that make up the encoder; empty for a network without one."""
        backbone = getattr(self, "backbone", None)
        if backbone is None:
            return []
        # Only some parts of an encoder may be pretrained.
        return getattr(backbone, "encoder_modules", lambda: [backbone])()

    def input_of_weights(self) -> Mapping[str, Any] | None:
        """The normalization that the encoder's pretrained weights need, if it is stated."""
        needed = (getattr(module, "normalization", None) for module in self.backbone_modules())
        return next(filter(None, needed), None)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters of the encoder, each once."""
        by_id = {id(p): p for module in self.backbone_modules() for p in module.parameters()}
        return list(by_id.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that do not belong to the encoder."""
        encoder = {id(p) for p in self.backbone_parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def rename_foreign(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the keys of a state dict of another source to the keys of this network.

        Other sources are ImageNet weights and other repositories. By default the keys of
        a plain backbone (`conv1.weight`, ...) become those of the encoder. A network whose
        published checkpoints have other keys extends this method. Keys that no rule
        covers stay as they are.
        """
        keys = self.state_dict().keys()
        if any(k in keys for k in state):
            return state
        for prefix in ("backbone.", "backbone.encoder."):
            if any(prefix + key in keys for key in state):
                return {prefix + key: value for key, value in state.items()}
        return state

    def first_convolution(self) -> tuple[str, nn.Conv2d] | None:
        """(name, module) of the convolution that sees the image; None if there is none."""
        encoder = {id(module) for part in self.backbone_modules() for module in part.modules()}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and (not encoder or id(module) in encoder):
                return name, module
        return None

    @staticmethod
    def adapted_weight(weight: torch.Tensor, channels: int) -> torch.Tensor:
        """The weight of a convolution of RGB, (O, 3, h, w), for bands: (O, channels, h, w).

        The rule of timm (Wightman, PyTorch Image Models, 2019): for one band the sum over R, G and
        B; for more, R, G, B, R, … in turn, times 3 / channels.
        """
        if channels == 1:
            return weight.sum(1, keepdim=True)
        repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
        return repeated.mul(3 / channels).contiguous()

    def take_channels(self, channels: int, pretrained: bool = False) -> "BaseModel":
        """Let a network that is made for RGB take images of `channels` bands; return the network.

        Its first convolution is replaced (see `adapted_weight`). pretrained: whether its weights
        are to be kept; random ones are drawn again, with the variance that keeps that of its
        output. Raises ConfigError if the network does not begin with a convolution of RGB.
        """
        if channels == 3:
            return self
        found = self.first_convolution()
        if found is None or found[1].in_channels != 3 or found[1].groups != 1:
            raise ConfigError(f"{type(self).__name__} takes RGB only; the images have {channels} "
                              "bands", "arch.type", "choose another network")
        convolution = found[1]
        with torch.no_grad():
            old = convolution.weight
            backwards = (self.input_of_weights() or {}).get("order") == "BGR"
            weight = self.adapted_weight(old.flip(1) if backwards else old, channels)
            if not pretrained and not weight.is_meta:
                weight.normal_(0, float(old.std()) * (3 / channels) ** 0.5)
        convolution.weight, convolution.in_channels = nn.Parameter(weight), channels
        return self

    def freeze(self, freeze_bn: bool = False, freeze_backbone: bool = False) -> "BaseModel":
        """Fix parts of the network for fine-tuning and return the network.

        freeze_bn: norms with running statistics (batch norm, EvoNorm-B0) keep and
        use them; their scale and shift are still trained. freeze_backbone: the encoder
        keeps its weights and its running statistics.
        """
        self._freeze_bn, self._freeze_backbone = freeze_bn, freeze_backbone
        for parameter in self.backbone_parameters():
            parameter.requires_grad_(not freeze_backbone)
        return self.train(self.training)

    def check_frozen(self, random_weights: bool):
        """Raise ConfigError, or warn, if what `freeze` fixed makes no sense for a training.

        random_weights: whether the weights were neither loaded nor pretrained.
        """
        if self._freeze_backbone and not self.backbone_modules():
            raise ConfigError("freeze_backbone is true, but the network has no backbone",
                              "arch.args.freeze_backbone", "set it to false")
        if self._freeze_backbone and random_weights:
            warn("freeze_backbone fixes random weights: set arch.args.pretrained to true, or load "
                 "weights with trainer.finetune_from")
        if self._freeze_bn and not any(map(_has_statistics, self.modules())):
            notice("arch.args.freeze_bn has no effect: no norm of the network has running "
                   "statistics")

    def two_classes(self, one_logit: bool = False) -> "BaseModel":
        """Let a head with one output channel predict two classes; return the network.

        one_logit: the network is built with one output channel z, which becomes
        the two logits (-z/2, z/2). Their softmax is sigmoid(z), so cross-entropy
        is the binary cross-entropy of z, and losses, decisions, metrics and exported
        graphs work as with any two classes.
        """
        if one_logit:
            self.register_forward_hook(_two_logits)
        return self

    def set_norms(self, norm_momentum: float | None = None) -> "BaseModel":
        """Change all norms with running statistics; return the network.

        norm_momentum: the share of a batch in each update of these statistics, in (0, 1]. null:
        that of the network, mostly 0.1. HRNet's authors train with 0.01.
        """
        if norm_momentum is None:
            return self
        if not 0 < norm_momentum <= 1:
            raise ConfigError(f"expected a number in (0, 1], found {norm_momentum}",
                              "arch.args.norm_momentum")
        norms: list[Any] = [module for module in self.modules() if _has_statistics(module)]
        for norm in norms:
            norm.momentum = norm_momentum
        if not norms:
            raise ConfigError("no norm of the network has running statistics",
                              "arch.args.norm_momentum", "set it to null")
        return self

    def train(self, mode: bool = True) -> "BaseModel":
        """Set train or eval mode; frozen norms stay in eval mode. Returns the network."""
        super().train(mode)
        frozen = list(self.modules()) if self._freeze_bn else []
        if self._freeze_backbone:
            frozen += [m for module in self.backbone_modules() for m in module.modules()]
        for module in frozen:
            if _has_statistics(module):
                module.eval()
        return self


def _has_statistics(module):
    return getattr(module, "running_var", None) is not None     # EvoNorm-B0 has one too


def _two_logits(model: BaseModel, inputs: tuple, outputs: Logits | dict[str, Logits]
                ) -> Logits | dict[str, Logits]:
    """Replace the one channel z of every output by (-z/2, z/2): (N, 1, H, W) -> (N, 2, H, W).

    Outputs whose channels are not classes stay as they are.
    """
    if isinstance(outputs, dict):
        return {name: z if name in model.output_channels else torch.cat((z / -2, z / 2), dim=1)
                for name, z in outputs.items()}
    return torch.cat((outputs / -2, outputs / 2), dim=1)
