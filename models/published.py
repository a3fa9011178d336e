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
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from models.foreign_state import rename
from utils.checkpoint import read_state, unwrap
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
    or the path of a file. num_classes: taken from the weights when None.
    CheckpointError when the name is unknown, the file unreadable or refused, or
    one tensor is missing, left over or of another shape.
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
    if num_classes is None:
        num_classes = _count_classes(entry, state, where)
    network = entry.build(num_classes)
    load_strictly(network, translate(state, entry), where)
    return network.eval()


def translate(state: Mapping, entry: Published) -> dict[str, torch.Tensor]:
    """A state dict with the published keys -> one with ours."""
    state = {k: v for k, v in state.items() if not any(re.search(p, k) for p in entry.drop)}
    if entry.convert is not None:
        state = entry.convert(state)
    return rename(state, entry.rename)


def from_published(state: Mapping, entries: Mapping[str, Published]) -> Mapping:
    """`state` in our keys if it has those of one of the entries, else as it is.

    For fine-tuning, where it may also be an encoder's or one of ours.
    """
    entry = next((e for e in entries.values() if e.classes in state), None)
    return state if entry is None else translate(state, entry)


def load_strictly(network: nn.Module, state: Mapping, where: str | None = None):
    """load_state_dict where every tensor must fit; CheckpointError tells all that do not.

    Shapes are compared before anything is copied. Batch norm's
    num_batches_tracked, which old files lack, may be missing.
    """
    own = network.state_dict()
    needed = [k for k in own if not k.endswith("num_batches_tracked")]
    missing = [k for k in needed if k not in state]
    extra = [k for k in state if k not in own]
    shapes = [f"{k} {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
              for k in own if k in state and state[k].shape != own[k].shape]
    kinds = [f"{k} {state[k].dtype}, expected {own[k].dtype}" for k in own if k in state
             and state[k].is_floating_point() != own[k].is_floating_point()]
    report = [_group_keys("missing", missing), _group_keys("not known to the network", extra),
              _group_keys("of another shape", shapes), _group_keys("of another kind", kinds)]
    report = [line for line in report if line]
    if report:
        unfit = {*missing, *(line.split(" ")[0] for line in shapes + kinds)}
        fits = sum(k not in unfit for k in needed)
        raise CheckpointError(
            f"the checkpoint does not fit: {fits} of {len(needed)} tensors match\n  "
            + "\n  ".join(report), where=where,
            fix="check the network's name, its backbone and the number of classes")
    network.load_state_dict(dict(state), strict=False)


def _group_keys(title, keys):
    """One line for the report: how many, by first part of the key, and the first five."""
    if not keys:
        return ""
    groups = Counter(key.split(".", 1)[0] for key in keys)
    counts = ", ".join(f"{prefix}: {count}" for prefix, count in groups.most_common(8))
    more = ", …" if len(keys) > 5 else ""
    return f"{len(keys)} {title} ({counts}): {', '.join(keys[:5])}{more}"


def _count_classes(entry, state, where):
    if entry.classes is None:
        return 0
    if entry.classes not in state:
        raise CheckpointError(f"the checkpoint has no {entry.classes}", where=where,
                              fix="check that the file belongs to this network")
    return state[entry.classes].shape[entry.classes_dim]
