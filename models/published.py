"""Published checkpoints, loaded into our networks.

Every model file names the checkpoints it can take in a module-level table

    PUBLISHED = {NAME: Published(network=..., rename=..., ...)}

which is found here: a new network brings its own, and there is no list to edit.
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

from models.foreign_state import rename
from utils.checkpoint import compare, load_partial, read_state, unwrap
from utils.console import notice
from utils.errors import CheckpointError
from utils.registry import unknown


@dataclass(frozen=True)
class Published:
    """How the files of one published network become ours.

    network:  our class; args: what its constructor gets beside the number of classes.
    rename:   (pattern, replacement) pairs for re.sub on every key, in order.
    drop:     patterns of keys to leave out (checked before renaming).
    convert:  state dict with the published keys -> the same, changed: folded
              norms, transposed weights.
    classes:  published key whose first dimension is the number of classes
              (classes_dim where it is another one); None: the network has none.
    files:    names of published files with these keys.
    score:    what was published for them.
    imagenet: an ImageNet classifier: the network is an encoder.
    mean, std, order, scale: the input normalisation the weights expect:
              (image / scale - mean) / std, channels in that order.
    read:     path -> whatever the file holds, for formats other than torch's.
    """

    network: type[nn.Module]
    args: Mapping = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    convert: Callable[[dict], dict] | None = None
    classes: str | None = None
    classes_dim: int = 0
    files: tuple[str, ...] = ()
    score: str = ""
    imagenet: bool = False
    mean: tuple = (0.485, 0.456, 0.406)
    std: tuple = (0.229, 0.224, 0.225)
    order: str = "RGB"
    scale: float = 255.0
    read: Callable[[str], object] | None = None

    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights, for `num_classes` classes where it has such."""
        classes = {} if self.classes is None else {"num_classes": num_classes}
        return self.network(**classes, **self.args)


@functools.cache
def published() -> dict[str, Published]:
    """Every entry of every PUBLISHED table of models/ and models/backbones/, by name."""
    found = {}
    for package in ("models", "models.backbones"):
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            module = importlib.import_module(f"{package}.{info.name}")
            for name, entry in getattr(module, "PUBLISHED", {}).items():
                if name in found:
                    raise RuntimeError(f"two published networks are called {name!r}")
                found[name] = entry
    return found


def load_published(name: str, source, num_classes: int | None = None) -> nn.Module:
    """Our network in eval mode with the published weights.

    name: an entry of `published()`. source: a state dict, in any usual wrapper,
    or the path of a file. num_classes: that of the weights when None; with
    another number the classifiers start anew, and stderr names each of them. It
    means nothing to encoders and to SegFix, which have no classes.
    CheckpointError when the name is unknown, the file unreadable or refused, or
    one tensor is missing, left over, of another shape or not finite.
    """
    entries = published()
    if name not in entries:
        raise CheckpointError(unknown("published network", name, entries))
    entry = entries[name]
    where = name
    if isinstance(source, (str, os.PathLike)):
        where = f"{name}, {os.fspath(source)}"
        source = (entry.read or read_state)(source)
    state = unwrap(source, where)
    classes = _count_classes(entry, state, num_classes, where)
    network = entry.build(classes)
    load_strictly(network, translate(state, entry), where)
    if num_classes not in (None, classes):
        complete, network = network, entry.build(num_classes)
        report = load_partial(network, complete.state_dict(), where)
        notice(f"{where}: {classes} classes in the file, {num_classes} wanted: "
               f"{len(report.mismatched)} tensors start anew\n{report}")
    return network.eval()


def translate(state: Mapping, entry: Published) -> dict[str, torch.Tensor]:
    """A state dict with the published keys -> one with ours."""
    state = {k: v for k, v in state.items() if not any(re.search(p, k) for p in entry.drop)}
    if entry.convert is not None:
        state = entry.convert(state)
    return rename(state, entry.rename)


def load_strictly(network: nn.Module, state: Mapping, where: str = "checkpoint"):
    """load_state_dict where every tensor must fit; CheckpointError tells all that do not.

    Nothing is copied before everything is known to fit. Batch norm's
    num_batches_tracked, which old files lack, may be missing.
    """
    report = compare(network, state)
    report.missing = [k for k in report.missing if not k.endswith("num_batches_tracked")]
    if not report.exact:
        raise CheckpointError(
            f"the checkpoint does not fit {type(network).__name__}\n{report}", where=where,
            fix="check the network's name, its backbone and the number of classes")
    load_partial(network, state, where)


def _count_classes(entry, state, wanted, where):
    """The number of classes in the file, None for a network without any."""
    if entry.classes is None:
        return wanted
    if entry.classes in state:
        return state[entry.classes].shape[entry.classes_dim]
    if wanted is None:
        raise CheckpointError(f"the checkpoint has no {entry.classes}", where=where,
                              fix="check that the file belongs to this network")
    return wanted
