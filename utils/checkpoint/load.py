"""Loads the tensors of a checkpoint into a network and its optimizer."""
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoint.limits import network_within
from utils.checkpoint.read import read_weights
from utils.config.registry import STEP_IMPLEMENTATION
from utils.errors import CheckpointError, listed

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
        model = build("models", without_download(arch), num_classes=len(checkpoint["class_names"]))
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


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], where: str):
    """Load the state of an optimizer over the same parameters.

    Shapes are compared before anything is copied: a file of a kilobyte can contain a view that
    would fill the memory. Raises CheckpointError if the state does not fit.
    """
    try:
        _check_parameters(optimizer, state)
        _check_groups(optimizer, state)
        # This machine and version of torch decide how a step is computed, not the checkpoint.
        implementations = [{key: group[key] for key in STEP_IMPLEMENTATION if key in group}
                           for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, implementation in zip(optimizer.param_groups, implementations, strict=True):
            group.update(implementation)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the optimizer's state does not fit: {error}", where,
                              "use the checkpoint's own config, or start from its weights with "
                              "trainer.finetune_from") from None


def _check_parameters(optimizer, state):
    """ValueError unless a saved optimizer state has the shapes of the optimizer's parameters."""
    if not all(isinstance(group, dict) for group in state["param_groups"]):
        raise ValueError("param_groups contains an entry that is not a group")
    saved = [key for group in state["param_groups"] for key in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if len(saved) != len(parameters):
        raise ValueError(f"it has {len(saved)} parameters, the network trains {len(parameters)}")
    for key, parameter in zip(saved, parameters, strict=True):
        for name, value in state["state"].get(key, {}).items():
            if isinstance(value, torch.Tensor) and value.numel() > 1 \
                    and value.shape != parameter.shape:
                raise ValueError(f"{name} of parameter {key} is {tuple(value.shape)}, the "
                                 f"parameter {tuple(parameter.shape)}")


def _check_groups(optimizer, state):
    """ValueError unless the values in a saved optimizer state have the right kinds."""
    # A key of a group that only this version of torch has keeps its default. torch itself
    # compares the numbers of groups.
    expected = [{key: value for key, value in group.items() if key in saved or key == "lr"}
                for saved, group in zip(state["param_groups"], optimizer.param_groups,
                                        strict=False)]
    _check_kinds(state["param_groups"], expected)
    entries = list(state["state"].values())
    _check_kinds(entries, [entries[0]] * len(entries) if entries else [])


def _check_kinds(dicts, expected):
    """ValueError unless the dicts contain tensors and numbers where the expected ones do."""
    for values, wanted in zip(dicts, expected, strict=False):
        for key, value in wanted.items():
            for kind in (torch.Tensor, (bool, int, float)):
                if key not in values or isinstance(value, kind) != isinstance(values[key], kind):
                    raise ValueError(f"{key} is {values.get(key)!r:.60}")


def load_foreign(model: Any, path: str | Path) -> "LoadReport":
    """Start `model`, a BaseModel, from a checkpoint of any origin (`trainer.finetune_from`).

    If the file has tensors of an encoder below "encoder.", as those of
    segmentation_models_pytorch, and more of the network is filled that way, they are taken as the
    file of a bare encoder is. The report lists the rest of the file as not in the network.
    """
    state = unwrap(read_weights(path), str(path))
    forms = [model.rename_foreign(state)]
    inner = {key.removeprefix(ENCODER): value for key, value in state.items()
             if key.startswith(ENCODER)}
    if inner:
        rest = {key: value for key, value in state.items() if not key.startswith(ENCODER)}
        forms.append({**rest, **model.rename_foreign(inner)})
    state = max(forms, key=lambda form: len(match_tensors(model, form).loaded))
    return load_partial(model, state, str(path))


def load_partial(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> "LoadReport":
    """Load the tensors of `state` that fit `model`; the report lists the others.

    state: a bare state dict with the keys of this network (see `unwrap` and
        BaseModel.rename_foreign).
    Raises CheckpointError if more than half of the network's tensors would keep their start
    values, or if a tensor is not finite.
    """
    report = match_tensors(model, state)
    keys = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    missing = 1 - len(keys & set(report.loaded)) / max(1, len(keys))
    if missing > MAX_DROPPED:
        raise CheckpointError(f"only {len(report.loaded)} of {report.total} tensors of "
                              f"{type(model).__name__} are in the file\n{report}", where,
                              "give a checkpoint of the same network or of its backbone's family")
    fitting = {k: state[k] for k in report.loaded}
    _refuse_nonfinite(fitting, where)
    model.load_state_dict(fitting, strict=False)
    return report


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
    mismatched: list[tuple[str, str, str]] = field(default_factory=list)
    # mismatched: (key, shape and dtype in the file, the same in the network)

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self):
        lines = [f"  loaded {len(self.loaded)} of {self.total} tensors"]
        for title, keys in (("missing in the file", self.missing),
                            ("not in the network", self.unexpected)):
            if keys:
                groups = Counter(k.split(".")[0] for k in keys)
                counts = ", ".join(f"{name} {n}" for name, n in groups.most_common(5))
                lines.append(f"  {title}: {len(keys)} ({counts}): {listed(keys, 5)}")
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
