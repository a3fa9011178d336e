"""The contract of every network."""
from abc import ABC, abstractmethod

import torch
from torch import nn


class BaseModel(nn.Module, ABC):
    """A segmentation network.

    x: float (N, 3, H, W), normalised; any H and W.
    eval:  logits (N, C, H, W), at the size of the input.
    train: dict name -> logits; the names are those of `output_weights`.

    `output_weights` holds the loss weight of each named output as the paper
    has it; "out" is always among them. A network that is built without one of
    its auxiliary heads replaces the attribute on the instance.

    The encoder lives in `self.backbone` where there is one: its parameters are
    the ones `differential_lr` slows down and `freeze_backbone` fixes.
    """

    output_weights = {"out": 1.0}

    def __init__(self):
        super().__init__()
        self._freeze_bn = self._freeze_backbone = False

    @abstractmethod
    def forward(self, x: torch.Tensor):
        """Logits in eval mode, a dict of logits in train mode."""

    def backbone_modules(self) -> list[nn.Module]:
        """The modules that make up the encoder; empty for a network without one."""
        backbone = getattr(self, "backbone", None)
        return [backbone] if backbone is not None else []

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The encoder's parameters, each once."""
        found = {id(p): p for module in self.backbone_modules() for p in module.parameters()}
        return list(found.values())

    def head_parameters(self) -> list[nn.Parameter]:
        """Every parameter that is not the encoder's."""
        encoder = {id(p) for p in self.backbone_parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def rename_foreign(self, state: dict) -> dict:
        """A foreign state dict (ImageNet, another code base) in this network's keys.

        By default a plain backbone's keys (`conv1.weight`, …) become the
        encoder's; a network with published checkpoints of other forms extends this.
        """
        own = self.state_dict()
        if any(k in own for k in state) or not any(f"backbone.{k}" in own for k in state):
            return state
        return {f"backbone.{k}": v for k, v in state.items()}

    def freeze(self, freeze_bn: bool = False, freeze_backbone: bool = False):
        """Fix parts of the network for fine-tuning.

        freeze_bn: norms with running statistics (batch norm, EvoNorm-B0) keep and
        use them (scale and shift still train). freeze_backbone: the encoder keeps its
        weights and its running statistics.
        """
        self._freeze_bn, self._freeze_backbone = freeze_bn, freeze_backbone
        for parameter in self.backbone_parameters():
            parameter.requires_grad_(not freeze_backbone)
        return self.train(self.training)

    def two_classes(self, one_logit: bool = False):
        """Serve two classes from a head with a single channel.

        one_logit: the network is built with one output channel z, which reads as
        the two logits (-z/2, z/2). Their softmax is sigmoid(z), so cross-entropy
        is the binary cross-entropy of z, and losses, decisions, metrics and exported
        graphs work as with any two classes.
        """
        if one_logit:
            self.register_forward_hook(_two_logits)
        return self

    def train(self, mode: bool = True):
        super().train(mode)
        frozen = list(self.modules()) if self._freeze_bn else []
        if self._freeze_backbone:
            frozen += [m for module in self.backbone_modules() for m in module.modules()]
        for module in frozen:
            if getattr(module, "running_var", None) is not None:     # EvoNorm-B0 too
                module.eval()
        return self


def _two_logits(model, inputs, outputs):
    """One channel z as (-z/2, z/2), for every output of the network."""
    if isinstance(outputs, dict):
        return {name: torch.cat((z / -2, z / 2), dim=1) for name, z in outputs.items()}
    return torch.cat((outputs / -2, outputs / 2), dim=1)
