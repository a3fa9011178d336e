"""The training criterion: one loss per named output of the network, summed with weights."""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import registry
from utils.errors import ConfigError, unknown
from utils.losses import build_loss
from utils.losses.inverse import Inverse, NoInverse, inverse_of
from utils.losses.scores import log_shares

RESIZE = ("logits", "logits_align_corners", "target")
_KEYS = ("type", "args", "weight", "target", "resize")


class Criterion(nn.Module):
    """Sums the losses of a network's named outputs.

    loss_section, in one of four forms:
      "NAME"                         this loss on every output, weighted by output_weights
      {"type", "args"}               the same, with arguments
      {"out": {"type", "args", "weight", "target"}, "aux": ...}
                                     one loss per output; the names are exactly those of
                                     output_weights; weight defaults to the one there, target (a
                                     name in the batch) to "label"
      ["wRMI", {"type": "CE"}, ...]  in the order of output_weights, with loss_weights
    A loss that reads several outputs at once lists them in `inputs` (and their
    targets in `targets`); in the long form its name is "mask+direction". An output may have one
    loss of its own and be read by others of this kind. Outputs that are not maps of classes need
    such a loss. It has `resize` None, gets them as the network gave them, of any shape, and says in
    a method `num_classes` for how many classes they are made.

    The key "resize", next to "type", selects what to do if an output has another size
    than its target: "logits": resize the logits to the target, bilinear (default);
    "logits_align_corners": the same with align_corners, as HRNet does; "target": resize
    the target to the output, nearest, as openseg does.

    output_weights: {name: weight} of the model. num_classes: when given, class
    weights of another length are a ConfigError here rather than in the first step, and
    outputs of another number of channels one in the first step. activation: what the model states
    of its output in eval mode, if it does (BaseModel.activation).

    `weights` is {name: weight}; `activation` is what the model states, or that of the loss of
    "out", or of the first output.

    Averaging: every loss is a mean over the labelled pixels of its batch. To make k
    micro-batches equal to one batch, multiply each total by valid_pixels(batch) and divide
    by their sum over the k batches (and over the ranks). That is exact for plain means
    (CE, focal, BCE). For a ratio of sums (Dice, DC), a ranking (Lovász, OHEM, top-k) and
    weighted CE, whose mean divides by the summed class weights, the result is the
    pixel-weighted average of the micro-batches' values, as with smaller batches.
    """

    activation: str

    def __init__(self, loss_section: str | dict | list, output_weights: dict[str, float],
                 ignore_index: int = 255, loss_weights: list | None = None,
                 num_classes: int | None = None, activation: str | None = None):
        super().__init__()
        self.ignore_index, self.num_classes = ignore_index, num_classes
        sections = _sections(loss_section, dict(output_weights), loss_weights)
        self.losses = nn.ModuleList()       # a ModuleDict refuses names such as "half" or "a.b"
        self.weights, self._plans = {}, {}
        for name, (section, weight, where) in sections.items():
            loss = build_loss({key: section[key] for key in ("type", "args") if key in section},
                              ignore_index, where)
            if num_classes is not None:
                _check_num_classes(loss, num_classes, where)
            self.losses.append(loss)
            self.weights[name] = float(section.get("weight", weight))
            self._plans[name] = _plan(name, section, loss, where)
        if not any(self.weights.values()):
            raise ConfigError("every loss has the weight 0: the network would learn nothing",
                              "loss", "give one of them a weight above 0")
        first: Any = self._loss("out") or self.losses[0]
        self.activation = activation or first.activation

    def forward(self, outputs: dict[str, torch.Tensor], batch: dict) \
            -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(total, parts): the weighted sum, and every loss unweighted and detached.

        outputs: name -> logits (N, C, h, w); batch: "label" and further named
        targets, (N, H, W) each. The parts of a loss (its `last_parts`) are added as "name.part".
        """
        total: Any = 0.0        # a tensor after the first loss
        parts = {}
        plans = zip(self.losses, self._plans.items(), strict=True)
        for loss, (name, (inputs, targets, resize)) in plans:
            missing = [key for key in inputs if key not in outputs]
            if missing:
                raise ConfigError(f"the loss {name!r} needs the output {missing[0]!r}; the model "
                                  f"gave {', '.join(outputs)}", "loss")
            absent = [key for key in targets if key not in batch]
            if absent:
                raise ConfigError(f"the loss {name!r} needs the target {absent[0]!r}; the dataset "
                                  f"gives {', '.join(batch)}", "loss")
            logits, labels = [outputs[key] for key in inputs], [batch[key] for key in targets]
            if targets == ("label",):
                count: Any = getattr(loss, "num_classes", None)
                channels = [count(*logits)] if count else [one.shape[1] for one in logits]
                self._check_channels(loss, name, channels)
            if resize is not None:
                logits, labels = _same_size(logits, labels, resize)
            value = loss(*logits, *labels)
            total = total + self.weights[name] * value
            parts[name] = value.detach()
            for part, amount in getattr(loss, "last_parts", {}).items():
                parts[f"{name}.{part}"] = amount
        return total, parts

    @property
    def main_loss(self) -> nn.Module | None:
        """The loss of "out", for a validation without `val_loss`.

        None if "out" has no loss, or one that also reads other outputs or targets.
        """
        inputs, targets, _ = self._plans.get("out", (None, None, None))
        return self._loss("out") if (inputs, targets) == (("out",), ("label",)) else None

    @property
    def inverse(self) -> Inverse | NoInverse:
        """What turns the logits of "out" into those of the posterior (utils.losses.inverse)."""
        loss = self.main_loss
        if len(self.losses) == 1 and hasattr(self.losses[0], "inputs"):
            return inverse_of(self.losses[0])
        if loss is None:
            return NoInverse('the output "out" has no loss on the labels alone')
        if self.activation == "scores":
            return NoInverse("the network gives scores, and what its loss does to logits does not "
                             "hold for them")
        if not self.weights["out"]:
            return NoInverse('the loss of the output "out" has the weight 0')
        if any(self.weights[name] and "out" in inputs
               for name, (inputs, _, _) in self._plans.items() if name != "out"):
            return NoInverse('the output "out" has several losses')
        return inverse_of(loss)

    def require_average(self, average: str, processes: int):
        """Raise ConfigError if trainer.average would weight the processes once more than a loss.

        A loss that itself divides by a count over all processes states `over_processes` = True.
        """
        own = [type(loss).__name__ for loss in self.losses
               if getattr(loss, "over_processes", False)]
        if own and processes > 1 and average != "ranks":
            raise ConfigError(f"{own[0]} divides by what it counts on all {processes} processes, "
                              f'and "{average}" would weight them again', "trainer.average",
                              'set it to "ranks"')

    def valid_pixels(self, batch: dict) -> torch.Tensor:
        """The number of labelled pixels of `batch["label"]`, a scalar on its device."""
        return (batch["label"] != self.ignore_index).sum()

    def _check_channels(self, loss, name, channels):
        """Raise ConfigError unless an output that is compared with the labels has its channels."""
        needed = getattr(loss, "channels", self.num_classes)
        if needed in (None, *channels):
            return
        what = f"{type(loss).__name__} needs {needed}" if hasattr(loss, "channels") else \
            f"the labels have {needed} classes"
        raise ConfigError(f"the output {name!r} has {channels[0]} channel"
                          f"{'s' * (channels[0] != 1)}, {what}", "loss",
                          "give each output its own loss (docs/losses.md), and use the data of "
                          "the network")

    def _loss(self, name):
        return dict(zip(self._plans, self.losses, strict=True)).get(name)


def validation_loss(config: dict, criterion: Callable[[], Criterion | None],
                    activation: str = "softmax") -> nn.Module | None:
    """The loss that a validation reports, (logits, labels) -> scalar, or None.

    That is `val_loss`, or the loss of "out" in the training criterion. criterion: returns the
    training criterion; called only if the config has no val_loss. activation: "scores" if the loss
    gets scores in place of logits; it is then computed on the logarithms of their shares.
    """
    if config.get("val_loss"):
        loss = build_loss(config["val_loss"], config["ignore_index"])
    else:
        training = criterion()
        loss = training and training.main_loss
    return _LossOfScores(loss) if loss is not None and activation == "scores" else loss


class _LossOfScores(nn.Module):
    """A loss of logits, computed for scores (N, C, H, W)."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(log_shares(scores), labels)


def _sections(section, output_weights, loss_weights):
    """name -> (section, default weight, place in the config)."""
    names = list(output_weights)
    if isinstance(section, list):
        return _listed(section, output_weights, loss_weights)
    if loss_weights is not None:
        raise ConfigError("loss_weights has an effect only when loss is a list", "loss_weights")
    if isinstance(section, str) or (isinstance(section, dict) and "type" in section):
        section = _section(section, "loss")
        loss = registry.lookup(section["type"], registry.components("losses"), "loss.type")
        inputs = getattr(loss, "inputs", None)
        if inputs is None:
            return {name: (section, weight, "loss") for name, weight in output_weights.items()}
        if sorted(inputs) != sorted(names):
            raise ConfigError(f"{section['type']} reads the outputs {', '.join(inputs)}; the model "
                              f"has {', '.join(names)}", "loss")
        return {"+".join(inputs): (section, 1.0, "loss")}
    if not isinstance(section, dict) or not section:
        raise ConfigError(f"expected a name, a section or a list, found {section!r}", "loss")
    claimed = dict.fromkeys(name for key in section for name in key.split("+"))
    for name in claimed:
        if name not in output_weights:
            raise ConfigError(unknown("output", name, names), f"loss.{name}",
                              fix="name the outputs of the model, or switch its auxiliary head on")
    left = [name for name in names if name not in claimed]
    if left:
        raise ConfigError(f"no loss for the output{'s' if len(left) > 1 else ''} "
                          f"{', '.join(left)}", "loss",
                          fix='give each a loss ("weight": 0 switches it off)')
    return {name: (_section(entry, f"loss.{name}"), output_weights.get(name, 1.0), f"loss.{name}")
            for name, entry in section.items()}


def _listed(section, output_weights, loss_weights):
    names = list(output_weights)
    if len(section) != len(names):
        raise ConfigError(f"{len(section)} losses for {len(names)} outputs ({', '.join(names)})",
                          "loss", fix="list one loss per output, in this order")
    weights = list(output_weights.values()) if loss_weights is None else loss_weights
    if len(weights) != len(names):
        raise ConfigError(f"{len(weights)} weights for {len(names)} outputs ({', '.join(names)})",
                          "loss_weights")
    return {name: (_section(entry, f"loss[{i}]"), weight, f"loss[{i}]")
            for i, (name, entry, weight) in enumerate(zip(names, section, weights, strict=True))}


def _section(section, where):
    if isinstance(section, str):
        return {"type": section}
    if not isinstance(section, dict) or "type" not in section:
        raise ConfigError(f'expected a name or {{"type": ..., "args": ...}}, found {section!r}',
                          where)
    for key in section:
        if key not in _KEYS:
            raise ConfigError(unknown("key", key, _KEYS), where)
    return section


def _plan(name, section, loss, where):
    """(output names, target names, resize) of one loss."""
    inputs = getattr(loss, "inputs", None)
    named = tuple(name.split("+"))
    if inputs is None and len(named) > 1:
        raise ConfigError(f"{section['type']} reads one output, found {name!r}", where)
    if inputs is not None and sorted(inputs) != sorted(named):
        raise ConfigError(f"{section['type']} reads the outputs {'+'.join(inputs)}, found {name!r}",
                          where)
    targets = getattr(loss, "targets", None)
    if targets is not None and "target" in section:
        raise ConfigError(f"{section['type']} reads the targets {', '.join(targets)}: "
                          '"target" has no effect', where)
    own = getattr(loss, "resize", "logits")
    if own is None and "resize" in section:
        raise ConfigError(f"{section['type']} reads outputs that are not maps: \"resize\" has no "
                          "effect", f"{where}.resize", "leave it out")
    resize = section.get("resize", own)
    if resize is not None and resize not in RESIZE:
        raise ConfigError(unknown("way to resize", resize, RESIZE), f"{where}.resize")
    return inputs or named, targets or (section.get("target", "label"),), resize


def _check_num_classes(loss, num_classes, where):
    for module in loss.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.numel() != num_classes:
            raise ConfigError(f"{weight.numel()} class weights for {num_classes} classes",
                              f"{where}.args.weight")


def _same_size(logits, targets, resize):
    size = targets[0].shape[-2:]
    if all(x.shape[-2:] == size for x in logits):
        return logits, targets
    if resize == "target":
        return logits, [_nearest(target, logits[0].shape[-2:]) for target in targets]
    aligned = resize == "logits_align_corners"
    return [x if x.shape[-2:] == size
            else F.interpolate(x, size, mode="bilinear", align_corners=aligned)
            for x in logits], targets


def _nearest(target, size):
    """Resize label maps (N, H, W) of any integer dtype to `size`, nearest, as torch does."""
    (height, width), (h, w) = target.shape[-2:], size
    rows = torch.arange(h, device=target.device) * height // h
    columns = torch.arange(w, device=target.device) * width // w
    return target[:, rows[:, None], columns[None, :]]
