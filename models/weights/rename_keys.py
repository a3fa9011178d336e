"""Renames the keys of another repository's state dict to ours, by rules.

A rule is a (pattern, replacement) pair for re.sub. All rules are applied to every key, in
order. The rules themselves are in the tables called *_KEYS of the networks, encoders and
layers. Files differ from ours in three ways: other key names; the names that Paddle gives to
norms and convolutions; and openseg's in-place activated batch norm, whose weights have any
sign and are used as |weight| + 1e-5.
"""
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from utils.errors import CheckpointError

Rule: TypeAlias = tuple[str, str | Callable[[re.Match[str]], str]]
State: TypeAlias = dict[str, torch.Tensor]

# The first modules of openseg's heads. In its first branch, each of them is a norm and its
# activation in one module, which contains the running statistics directly.
_IN_PLACE_NORM = re.compile(
    r"^(conv3x3|conv_3x3|oc_module_pre|isa_head|asp_ocr_head\.conv2|mask_head)\.1\.running_var$")

# The index of a module in a Sequential of convolutions and norms, before the name of a tensor.
# In some files a norm is itself a Sequential, which adds ".0".
ROW = r"\.(\d)(?:\.0)?\.(?=\w+$)"

# What a training program puts before every key.
PREFIXES: tuple[Rule, ...] = ((r"^(module\.|model\.|_orig_mod\.)+", ""),)
# Keys that a training program saves in addition to those of the network.
TRAINING_KEYS = (r"^((module|model)\.)*(loss|criterion)\.", r"^best_metric_score$")


def rename(state: State, rules: Sequence[Rule]) -> State:
    """Return `state` with every key renamed by all rules in order.

    Raises CheckpointError if two keys become the same key.
    """
    renamed = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise CheckpointError(f"two tensors of the file belong to {new!r}; one is {key!r}",
                                  fix="give a checkpoint of a single network")
        renamed[new] = value
    return renamed


_QKV = re.compile(r"(.*\.attn\.)(query|key|value)\.(weight|bias)$")


def join_qkv(state: State) -> State:
    """Return `state` with the layers attn.query, attn.key and attn.value of each block as attn.qkv.

    Keys get a bias of zeros where only queries and values have one, as in DINOv3's files of Hugging
    Face. Layers that do not belong together (one is missing, or their shapes differ) stay.
    """
    parts: dict[str, State] = {}
    for key, value in state.items():
        if match := _QKV.match(key):
            parts.setdefault(f"{match[1]}qkv.{match[3]}", {})[match[2]] = value
    for place, found in parts.items():
        if place.endswith("bias") and found.keys() == {"query", "value"}:
            found["key"] = torch.zeros_like(found["query"])
    whole = {place: torch.cat([found[name] for name in ("query", "key", "value")])
             for place, found in parts.items()
             if len(found) == 3 and len({value.shape for value in found.values()}) == 1}
    joined = {}
    for key, value in state.items():
        match = _QKV.match(key)
        place = f"{match[1]}qkv.{match[3]}" if match else key
        joined[place if place in whole else key] = whole.get(place, value)
    return joined


def to_our_keys(state: State, rules: Sequence[Rule], paddle_rules: Sequence[Rule] = ()) -> State:
    """Return a state dict of unknown origin with our keys; keys that match no rule stay.

    paddle_rules: used in place of `rules` if Paddle wrote the file. In-place activated norms
    of openseg are folded. Raises CheckpointError for PaddleSeg's ordinary HRNet: it has the
    same names and shapes, but pads its strided convolutions on one side, so its numbers differ.
    """
    if any("._batch_norm." in key for key in state):
        if any(key.startswith("backbone.conv_layer1") for key in state):
            raise CheckpointError(
                "these weights belong to PaddleSeg's ordinary HRNet, which pads strided "
                "convolutions on one side only: here they would give other numbers",
                fix="use the files of contrib/CityscapesSOTA (keys ocrnet.…) or of PaddleClas")
        return rename(state, paddle_rules)
    if uses_in_place_norm(state):
        state = fold_in_place_norm(state)
    return rename(state, (*PREFIXES, *rules))


def uses_in_place_norm(state: State) -> bool:
    """Return whether the file comes from openseg's first branch (PyTorch 0.4.1)."""
    return any(_IN_PLACE_NORM.search(key.removeprefix("module.")) for key in state)


def fold_in_place_norm(state: State) -> State:
    """Replace the weights of in-place activated norms by those of a plain batch norm.

    The new weight is |weight| + 1e-5. Every one-dimensional `weight` belongs to a norm. The
    leaky ReLU inside the norms of the heads cannot be folded: the network must be built
    with activation="leaky_relu".
    """
    return {key: value.abs() + 1e-5 if key.endswith(".weight") and value.ndim == 1 else value
            for key, value in state.items()}
