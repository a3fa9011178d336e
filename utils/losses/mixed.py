"""A weighted sum of losses on the same logits (PaddleSeg's MixedLoss)."""
import torch
from torch import nn

from utils.losses.inverse import Inverse, NoInverse, inverse_of
from utils.losses.warning import warn_once
from utils.machine.tensors import LabelBatch, Logits


class MixedLoss(nn.Module):
    """The sum of weight · loss over `losses`.

    logits (N, C, H, W) float, target (N, H, W) integer -> scalar.
    losses: [{"type", "args", "weight" (default 1)}, ...]. After a call, `last_parts` contains the
    unweighted value of each loss, and the parts of that loss as "name.part".
    """

    def __init__(self, losses: list, ignore_index: int = 255):
        super().__init__()
        from utils.losses import build_loss  # at the top of the file this would be a cycle
        if not losses:
            raise ValueError("losses is empty")
        self.losses, self.weights, self.names = nn.ModuleList(), [], []
        self.last_parts: dict[str, torch.Tensor] = {}
        for number, section in enumerate(losses):
            section = {"type": section} if isinstance(section, str) else dict(section)
            self.weights.append(float(section.pop("weight", 1.0)))
            self.losses.append(build_loss(section, ignore_index, f"loss.args.losses[{number}]"))
            repeated = sum(name.split("#")[0] == section["type"] for name in self.names)
            self.names.append(section["type"] + (f"#{repeated + 1}" if repeated else ""))
        if not any(self.weights):
            raise ValueError("every loss has the weight 0: the network would learn nothing")
        activations = {loss.activation for loss in self.losses}
        self.activation = "softmax" if "softmax" in activations else "sigmoid"
        if len(activations) > 1:
            warn_once(f"{' + '.join(self.names)} mixes softmax and sigmoid losses on the same "
                      "logits: predictions use the softmax, which then is not calibrated")

    def forward(self, logits: Logits, target: LabelBatch) -> torch.Tensor:
        values = [loss(logits, target) for loss in self.losses]
        self.last_parts = {}
        for name, loss, value in zip(self.names, self.losses, values, strict=True):
            self.last_parts[name] = value.detach()
            for part, amount in getattr(loss, "last_parts", {}).items():
                self.last_parts[f"{name}.{part}"] = amount
        first, *rest = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return sum(rest, first)

    def inverse(self) -> Inverse | NoInverse:
        """That of its losses, if it is the same of all that have a weight."""
        first, *others = [inverse_of(loss) for loss, weight
                          in zip(self.losses, self.weights, strict=True) if weight]
        return first if all(one == first for one in others) else NoInverse(
            "it is a sum of losses that ask for different outputs")
