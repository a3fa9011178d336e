"""Published checkpoints: a description of each, and a function that loads them.

Each file of models/ and models/backbones/ describes the checkpoints that its network can
load in a table at module level:

    PUBLISHED = {NAME: Published(network=..., rename=..., ...)}

`published()` collects these tables, so a new network adds its entry in its own file.
`load_published` loads a file whose every tensor must fit. For fine-tuning, where parts may
differ, see start_weights.py.
"""
import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.weights.rename_keys import (
    Rule,
    State,
    fold_in_place_norm,
    rename,
    uses_in_place_norm,
)
from utils.checkpoint.load import LoadReport, load_partial, match_tensors, unwrap
from utils.checkpoint.read import read_state
from utils.cli.console import notice
from utils.errors import CheckpointError, unknown


@dataclass(frozen=True)
class Published:
    """Describes the published files of one network and how they become ours.

    network:  our class; args: arguments of its constructor, without the number of classes.
    rename:   (pattern, replacement) rules for re.sub on every key, applied in order.
    drop:     patterns of keys to leave out; they are matched before renaming.
    convert:  a function from the state dict with published keys to a changed one, e.g. with
              folded norms or transposed weights; None: no change.
    classes:  the published key whose first dimension (or dimension classes_dim) is the
              number of classes; None: the network has no classes. A tuple if files of several
              sources are read: the first key that is in the file.
    no_object: whether one more class than there are stands for "no object", the last one.
    files:    names of the published files that have these keys.
    encoder:  name of the file of the encoder, if `files` contain heads alone. Its keys are those
              after "backbone." in a file of the whole network.
    score:    the published score of these files.
    imagenet: True for an ImageNet classifier; the network is then an encoder.
    mean, std, order, scale: the input normalization that the weights need:
              (image / scale - mean) / std, with the channels in this order.
    read:     a function from a path to the content of the file; None: a file of torch.
    forms:    further descriptions of files of this network: with other keys, or that need other
              arguments. `form_of` chooses by the keys of the file.
    """

    network: type[nn.Module]
    args: Mapping = field(default_factory=dict)
    rename: tuple[Rule, ...] = ()
    drop: tuple[str, ...] = ()
    convert: Callable[[State], State] | None = None
    classes: str | tuple[str, ...] | None = None
    classes_dim: int = 0
    no_object: bool = False
    files: tuple[str, ...] = ()
    encoder: str = ""
    score: str = ""
    imagenet: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    order: str = "RGB"
    scale: float = 255.0
    read: Callable[[str | os.PathLike], object] | None = None
    forms: tuple["Published", ...] = ()

    def class_key(self, state: Mapping[str, torch.Tensor]) -> str | None:
        """Return the key of `classes` that is in a state dict with published keys, or None."""
        keys = (self.classes,) if isinstance(self.classes, str) else self.classes or ()
        return next((key for key in keys if key in state), None)

    def build(self, num_classes: int | None) -> nn.Module:
        """Build the network with random weights; num_classes is not used if it has no classes."""
        classes = {} if self.classes is None else {"num_classes": num_classes}
        return self.network(**classes, **self.args)


@functools.cache
def published() -> dict[str, Published]:
    """Return all entries of the PUBLISHED tables in models/ and models/backbones/, by name."""
    entries = {}
    for package in ("models", "models.backbones"):
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            module = importlib.import_module(f"{package}.{info.name}")
            for name, entry in getattr(module, "PUBLISHED", {}).items():
                if name in entries:
                    raise RuntimeError(f"two published networks are called {name!r}")
                entries[name] = entry
    return entries


def load_published(name: str, source: str | os.PathLike | Mapping, num_classes: int | None = None,
                   encoder: str | os.PathLike | Mapping | None = None) -> nn.Module:
    """Return our network in eval mode with the published weights; see `open_published`."""
    return open_published(name, source, num_classes, encoder)[0]


def open_published(name: str, source: str | os.PathLike | Mapping, num_classes: int | None = None,
                   encoder: str | os.PathLike | Mapping | None = None
                   ) -> tuple[nn.Module, Published]:
    """Return our network in eval mode with the published weights, and the form of their file.

    name: an entry of `published()`. source: the path of a file, or a state dict, also
    inside any usual wrapper. num_classes: None for the number in the file. With
    another number, the classifiers start from random weights and stderr lists them.
    It has no effect on encoders and SegFix, which have no classes. encoder: like source, the
    weights of the encoder, if source contains those of the head alone.
    Raises CheckpointError if the name is unknown, the file is unreadable or refused, or
    a tensor is missing, left over, of another shape or not finite.
    """
    entries = published()
    if name not in entries:
        raise CheckpointError(unknown("published network", name, entries))
    entry = entries[name]
    if isinstance(source, (str, os.PathLike)):
        where = f"{name}, {os.fspath(source)}"
        content = (entry.read or read_state)(source)
    else:
        where, content = name, source
    state = _with_encoder(unwrap(content, where), encoder, entry, where)
    form = form_of(entry, state)
    classes = _count_classes(form, state, num_classes, where)
    network = form.build(classes)
    load_strictly(network, translate(state, form), where)
    if num_classes not in (None, classes):
        complete, network = network, form.build(num_classes)
        report = load_partial(network, complete.state_dict(), where)
        notice(f"{where}: {classes} classes in the file, {num_classes} requested: "
               f"{len(report.mismatched)} tensors start from random values\n{report}")
    return network.eval(), form


def all_forms(entry: Published) -> tuple[Published, ...]:
    """Return the entry and its further forms."""
    return entry, *entry.forms


def form_of(entry: Published, state: State) -> Published:
    """Return the form of `entry` that fits a file with the tensors `state` best."""
    forms = [form for form in all_forms(entry) if form.classes is None or form.class_key(state)]
    if len(forms) < 2:
        return forms[0] if forms else entry
    return min(forms, key=lambda form: _left_over(form, state))


def identify(state: State) -> list[str]:
    """Return the names of the published networks that have exactly the tensors of `state`.

    state: with the keys of the file, without a wrapper (`unwrap`). Only names, shapes and kinds
    (float or int) of the tensors are compared, so several names can fit.
    """
    return [name for name, entry in published().items()
            if any(_left_over(form, state) == 0 for form in all_forms(entry)
                   if form.classes is None or form.class_key(state))]


def _left_over(form: Published, state: State) -> int:
    """How many tensors have no counterpart: of the file in the network, and the other way round."""
    if uses_in_place_norm(state) != (form.convert is fold_in_place_norm):
        return len(state)           # names and shapes would fit, but the norms mean another factor
    with torch.device("meta"), _NoStartValues():
        shapes = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in state.items()}
        network = form.build(_count_classes(form, state, None, "checkpoint"))
    try:
        report = _strict_report(network, translate(shapes, form))
    except CheckpointError:         # two tensors become the same one
        return len(state)
    return len(report.missing) + len(report.unexpected) + len(report.mismatched)


class _NoStartValues(TorchFunctionMode):
    """In the block tensors are not filled with start values, which takes most of the time."""

    filling = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_,
               torch.Tensor.zero_, torch.Tensor.erfinv_, torch.Tensor.clamp_}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.filling or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def translate(state: Mapping[str, torch.Tensor], entry: Published) -> State:
    """Turn a state dict with the published keys of `entry` into one with our keys."""
    state = {k: v for k, v in state.items() if not any(re.search(p, k) for p in entry.drop)}
    if entry.convert is not None:
        state = entry.convert(state)
    return rename(state, entry.rename)


def load_strictly(network: nn.Module, state: State, where: str = "checkpoint") -> None:
    """Load `state` into `network` if every tensor fits; otherwise raise CheckpointError.

    The error lists all tensors that do not fit, and nothing is copied in that case.
    num_batches_tracked of batch norm may be missing, because old files do not have it.
    """
    report = _strict_report(network, state)
    if not report.exact:
        raise CheckpointError(
            f"the checkpoint does not fit {type(network).__name__}\n{report}", where=where,
            fix="check the network's name, its backbone and the number of classes")
    load_partial(network, state, where)


def _strict_report(network: nn.Module, state: State) -> LoadReport:
    report = match_tensors(network, state)
    report.missing = [k for k in report.missing if not k.endswith("num_batches_tracked")]
    return report


def _with_encoder(state: State, encoder: str | os.PathLike | Mapping | None, entry: Published,
                  where: str) -> State:
    """Return the state dict of the whole network: that of a file, and of one with its encoder."""
    whole = any(key.startswith("backbone.") for key in state)
    if encoder is None:
        if entry.encoder and not whole:
            raise CheckpointError("this is the head alone", where, "give the file of its encoder "
                                  f"too, {entry.encoder}: --encoder FILE")
        return state
    if whole or not entry.encoder:
        raise CheckpointError("the file contains the whole network", where, "leave --encoder out")
    content, place = encoder, "the encoder"
    if isinstance(encoder, (str, os.PathLike)):
        content, place = read_state(encoder), os.fspath(encoder)
    return state | {f"backbone.{key}": value for key, value in unwrap(content, place).items()}


def _count_classes(entry: Published, state: State, requested: int | None,
                   where: str) -> int | None:
    """Return the number of classes in the file, or `requested` if the file does not tell it."""
    if entry.classes is None:
        return requested
    key = entry.class_key(state)
    if key and state[key].ndim > entry.classes_dim:
        return state[key].shape[entry.classes_dim] - entry.no_object
    if requested is None:
        keys = entry.classes if isinstance(entry.classes, str) else " and no ".join(entry.classes)
        raise CheckpointError(f"the checkpoint has no {keys}", where=where,
                              fix="check that the file belongs to this network")
    return requested
