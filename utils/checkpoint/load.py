"""Loads the tensors of a checkpoint into a network and its optimizer."""
import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.checkpoint.limits import network_within
from utils.checkpoint.read import read_weights
from utils.config.registry import STEP_IMPLEMENTATION
from utils.errors import CheckpointError, ConfigError, listed

# Starting from a file is refused if more than this share of the network's tensors is not in it.
MAX_DROPPED = 0.5
ENCODER = "encoder."


def model_from_checkpoint(checkpoint: Mapping[str, Any], device: torch.device | str = "cpu",
                          where: str = "checkpoint") -> nn.Module:
    """Build the network of a checkpoint on `device`, in eval mode, with its weights.

    The weights are the averaged ones if the run kept an average. where: names the file in errors.
    Raises CheckpointError if the weights do not fit the network.
    """
    from utils.config.build import build
    arch, weights = checkpoint["config"]["arch"], checkpoint.get("ema") or checkpoint["model"]
    with network_within(weights, where):
        model = build("models", without_download(arch), num_classes=len(checkpoint["class_names"]),
                      in_channels=len(checkpoint["normalization"]["mean"]))
    load_exact(model, weights, arch["type"], where)
    return model.to(device).eval()


def without_download(arch: dict) -> dict:
    """An `arch` section without pretrained weights, for a network that a checkpoint will fill."""
    args = {key: value for key, value in (arch.get("args") or {}).items() if key != "pretrained"}
    return {**arch, "args": args}


def load_exact(model: nn.Module, state: Mapping[str, torch.Tensor], saved_arch: str, where: str):
    """Load a state dict of the same network into `model`.

    Raises CheckpointError if a tensor is missing, superfluous, of another shape or not finite.
    """
    report = match_tensors(model, state)
    if not report.exact:
        arch = type(model).__name__
        likely = (f"checkpoint was saved by arch {saved_arch}, the config says {arch}; "
                  if saved_arch != arch else "")
        raise CheckpointError(f"{likely}{len(report.loaded)} of {report.total} tensors match\n"
                              f"{report}", where,
                              "use the checkpoint's own config, or start from its weights "
                              "with trainer.finetune_from")
    _refuse_nonfinite(state, where)
    model.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], where: str,
                   order: Sequence[nn.Parameter] | None = None):
    """Load what an optimizer of the same class has kept for the same parameters.

    order: the parameters in the order of `state`; None: that of `optimizer`.
    The settings of its groups (rates, momentum, ...) stay those of `optimizer`. What it keeps for a
    parameter is compared with what `optimizer` would keep before anything is copied: a file of a
    kilobyte can contain a view that would fill the memory. Raises CheckpointError if the state
    does not fit.
    """
    try:
        keys = [key for group in state["param_groups"] for key in group["params"]]
        parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        if len(keys) != len(parameters):
            raise ValueError(f"it has {len(keys)} parameters, the network trains "
                             f"{len(parameters)}")
        own, known = optimizer.state_dict(), {}
        key_of = dict(zip(map(id, order), keys, strict=True)) if order is not None else {}
        for number, (key, (parameter, group)) in enumerate(zip(keys, parameters, strict=True)):
            key = key_of.get(id(parameter), key)
            saved = state["state"].get(key, {})
            if all(value is None for value in saved.values()):
                continue        # no step has used this parameter
            shape = (id(group), parameter.shape)
            if shape not in known:
                known[shape] = _kept_for(parameter, group, type(optimizer))
            own["state"][number] = {
                name: _checked(saved, name, example, f"{name} of parameter {key}")
                for name, example in known[shape].items()}
        optimizer.load_state_dict(own)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the optimizer's state does not fit: {error}", where,
                              "use the checkpoint's own config, or start from its weights with "
                              "trainer.finetune_from") from None


def _kept_for(parameter, group, cls):
    """What an optimizer of this class and settings keeps for such a parameter, after one step.

    Its tensors have no values. The step is taken with a parameter of the same shape, but with
    sides of 2 at most, which takes no memory: each side of a tensor that an optimizer keeps is the
    parameter's, or 1.
    """
    declared = inspect.signature(cls).parameters.keys() - {"params", *STEP_IMPLEMENTATION}
    sides = [min(side, 2) for side in parameter.shape]
    weight = nn.Parameter(torch.zeros(sides, dtype=parameter.dtype))
    weight.grad = torch.zeros_like(weight)
    scratch = cls([weight], **{name: value for name, value in group.items() if name in declared})
    scratch.step()

    def full(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.new_empty([side if kept > 1 else kept for kept, side in
                                zip(value.shape, parameter.shape, strict=False)], device="meta")
    return {name: full(value) for name, value in scratch.state[weight].items()}


def _checked(saved, name, example, what):
    """saved[name] if it is of the same kind and shape as the example, else ValueError."""
    value = saved.get(name)
    if isinstance(value, torch.Tensor) and isinstance(example, torch.Tensor):
        if value.shape != example.shape:
            raise ValueError(f"{what} is {tuple(value.shape)}, expected {tuple(example.shape)}")
        if value.is_complex() or value.layout is not torch.strided:
            raise ValueError(f"{what} is {value.dtype} {value.layout}")
    elif type(value) is not type(example):
        raise ValueError(f"{what} is missing" if name not in saved else f"{what} is {value!r:.60}")
    return value


def load_foreign(model: Any, path: str | Path, exclude: Sequence[str] = ()) -> "LoadReport":
    """Start `model`, a BaseModel, from a checkpoint of any origin (`trainer.finetune_from`).

    exclude: patterns of names of the network that keep their start values (finetune_exclude).

    If the file has tensors of an encoder below "encoder.", as those of
    segmentation_models_pytorch, and more of the network is filled that way, they are taken as the
    file of a bare encoder is. The report lists the rest of the file as not in the network.
    """
    content = read_weights(path)
    state = unwrap(content, str(path))
    forms = [model.rename_foreign(state)]
    inner = {key.removeprefix(ENCODER): value for key, value in state.items()
             if key.startswith(ENCODER)}
    if inner:
        rest = {key: value for key, value in state.items() if not key.startswith(ENCODER)}
        forms.append({**rest, **model.rename_foreign(inner)})
    state = max(forms, key=lambda form: len(match_tensors(model, form).loaded))
    state, adapted = _adapted_to_bands(model, state)
    report = load_partial(model, state, str(path), exclude)
    report.adapted = adapted
    if isinstance(content, dict) and isinstance(content.get("normalization"), dict):
        report.normalization = content["normalization"]
    return report


def _adapted_to_bands(model, state):
    """(`state` with the first convolution of RGB for the bands of the network, its key or None)."""
    found = model.first_convolution()
    key = f"{found[0]}.weight" if found else ""
    weight = state.get(key)
    if found is None or weight is None or weight.dim() != 4 or weight.shape[1] != 3 \
            or found[1].in_channels == 3:
        return state, None
    return {**state, key: model.adapted_weight(weight, found[1].in_channels)}, key


def load_partial(model: nn.Module, state: Mapping[str, torch.Tensor], where: str,
                 exclude: Sequence[str] = ()) -> "LoadReport":
    """Load the tensors of `state` that fit `model`; the report lists the others.

    state: a bare state dict with the keys of this network (see `unwrap` and
        BaseModel.rename_foreign).
    exclude: regular expressions, searched in the names of tensors that are not loaded.
    Where the file has a batch norm and the network another norm, or the other way round, nothing is
    taken, although names and shapes may fit: these factors belong to other statistics.
    Raises CheckpointError if more than half of the network's other tensors would keep their start
    values, or if a tensor is not finite; ConfigError if a pattern fits no tensor of `state`.
    """
    excluded = _excluded(state, exclude, where)
    others = _other_norms(model, state)
    left_out = {k for k in state if k.rpartition(".")[0] in others} - excluded
    report = match_tensors(model, {k: v for k, v in state.items() if k not in excluded | left_out})
    report.excluded = sorted(excluded)
    report.other_norms, report.norm_tensors = others, len(left_out)
    report.missing = [k for k in report.missing
                      if k not in excluded and k.rpartition(".")[0] not in others]
    keys = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")
            and k.rpartition(".")[0] not in others} - excluded
    missing = 1 - len(keys & set(report.loaded)) / max(1, len(keys))
    if missing > MAX_DROPPED:
        raise CheckpointError(f"only {len(report.loaded)} of {report.total} tensors of "
                              f"{type(model).__name__} are in the file\n{report}", where,
                              "give a checkpoint of the same network or of its backbone's family")
    fitting = {k: state[k] for k in report.loaded}
    _refuse_nonfinite(fitting, where)
    model.load_state_dict(fitting, strict=False)
    return report


def _other_norms(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """place -> class of the network's norms at whose places the file has norms of another kind.

    A batch norm is known by its running statistics, a file's by their names. Other classes with
    such statistics, as InstanceNorm2d may have, hold the same tensors.
    """
    others = {}
    for place, module in model.named_modules():
        in_file = f"{place}.running_mean" in state and f"{place}.running_var" in state
        if not isinstance(module, _BatchNorm):
            differs = in_file and getattr(module, "running_mean", None) is None
        else:
            differs = module.track_running_stats and not in_file and f"{place}.weight" in state
        if differs:
            others[place] = type(module).__name__
    return others


def _excluded(state, patterns, where):
    """The keys of `state` that a pattern fits."""
    found = set()
    for number, pattern in enumerate(patterns):
        fitting = {key for key in state if re.search(pattern, key)}
        if not fitting:
            raise ConfigError(f"{pattern!r} fits no tensor of {where}, which are called "
                              f"{listed(list(state), 5)}", f"trainer.finetune_exclude[{number}]",
                              "correct or remove it")
        found |= fitting
    return found


def unwrap(state: Any, where: str = "checkpoint") -> dict[str, torch.Tensor]:
    """The bare state dict inside any usual wrapper.

    Removes {"state_dict": ...}, {"model_state_dict": ...}, {"model": ...} and the prefixes
    `module.` (DataParallel), `_orig_mod.` (compile) and `model.` (Lightning). Raises
    CheckpointError if there is no tensor.
    """
    for key in ("ema", "state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}, not a state dict", where)
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise CheckpointError("holds no tensors", where)
    stripped = True
    while stripped:
        stripped = False
        for prefix in ("module.", "_orig_mod.", "model."):
            # Lightning saves some buffers or loss weights next to the prefixed network.
            prefixed = [k for k in state if k.startswith(prefix)]
            if len(prefixed) > 0.9 * len(state):
                state = {k[len(prefix):]: state[k] for k in prefixed}
                stripped = True
    return state


@dataclass
class LoadReport:
    """Which tensors of a network are in a checkpoint, and which are not."""

    total: int                                          # tensors of the network
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, str, str]] = field(default_factory=list)
    # mismatched: (key, shape and dtype in the file, the same in the network)
    other_norms: dict[str, str] = field(default_factory=dict)       # see `_other_norms`
    norm_tensors: int = 0                               # tensors of the file at these places
    adapted: str | None = None                          # a convolution of RGB, used for other bands
    normalization: dict[str, Any] | None = None         # of the file's training, if it states one

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self):
        lines = [f"  loaded {len(self.loaded)} of {self.total} tensors"]
        for title, keys in (("missing in the file", self.missing),
                            ("not in the network", self.unexpected),
                            ("left out by trainer.finetune_exclude", self.excluded)):
            if keys:
                groups = Counter(k.split(".")[0] for k in keys)
                counts = ", ".join(f"{name} {n}" for name, n in groups.most_common(5))
                lines.append(f"  {title}: {len(keys)} ({counts}): {listed(keys, 5)}")
        if self.adapted:
            lines.append(f"  adapted from RGB to other bands: {self.adapted}")
        if self.other_norms:
            names = listed(Counter(self.other_norms.values()), 3)
            kind = "norms without running statistics" if "BatchNorm" in names else "batch norms"
            lines.append(f"  left out: {self.norm_tensors} tensors of {len(self.other_norms)} "
                         f"{kind}, because the norms here are {names}; these keep their start "
                         "values")
        if self.mismatched:
            prefix = "\n  other shape: "
            lines.append(prefix.lstrip("\n") + listed(self.mismatched, 5, prefix, lambda entry: (
                "{} is {} in the file, {} in the network".format(*entry))))
        return "\n".join(lines)


def match_tensors(model: nn.Module, state: Mapping[str, torch.Tensor]) -> LoadReport:
    """Compare `state` with `model`: a tensor fits if key, shape and kind (float or int) match."""
    network = model.state_dict()
    report = LoadReport(total=len(network))
    for key, tensor in network.items():
        if key not in state:
            report.missing.append(key)
        elif (tuple(state[key].shape) != tuple(tensor.shape)
              or state[key].is_floating_point() != tensor.is_floating_point()
              or state[key].is_complex()):
            report.mismatched.append((key, f"{tuple(state[key].shape)} {state[key].dtype}",
                                      f"{tuple(tensor.shape)} {tensor.dtype}"))
        else:
            report.loaded.append(key)
    report.unexpected = [k for k in state if k not in network]
    return report


def _refuse_nonfinite(state, where):
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(f"{len(bad)} tensors hold NaN or Inf: {listed(bad, 5)}", where,
                              "use an earlier checkpoint of the run")
