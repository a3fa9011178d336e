"""Turns state dicts of other repositories into ours, for fine-tuning and for published files.

Three kinds of strangers come up: openseg's in-place activated batch norm
(weights of any sign, used as |weight| + 1e-5), Paddle's names of norms and
convolutions, and plain other names. Rules are (pattern, replacement) pairs of
re.sub, applied to every key in order.
"""
import re

from utils.errors import CheckpointError

# The first modules of openseg's heads: their norm is one module with the
# activation there, and its statistics stand directly below it.
_IN_PLACE_NORM = re.compile(
    r"^(conv3x3|conv_3x3|oc_module_pre|isa_head|asp_ocr_head\.conv2|mask_head)\.1\.running_var$")

# The place of a module in a row of convolutions and norms, before the name of a tensor. In
# some dialects a norm is a Sequential of its own, which adds ".0".
ROW = r"\.(\d)(?:\.0)?\.(?=\w+$)"

# What a training program puts before every key, and what it saves beside the network.
PREFIXES = ((r"^(module\.|model\.|_orig_mod\.)+", ""),)
BESIDE = (r"^((module|model)\.)*(loss|criterion)\.", r"^best_metric_score$")


def rename(state: dict, rules) -> dict:
    """`state` under the keys that the rules give; two keys that become one are an error."""
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


def foreign_state(state: dict, rules, paddle_rules=()) -> dict:
    """A state dict of unknown origin in our keys; what no rule knows keeps its name.

    paddle_rules serve files that Paddle wrote. PaddleSeg's ordinary HRNet pads
    its strided convolutions on one side: equal names and shapes, other numbers.
    """
    if any("._batch_norm." in key for key in state):
        if any(key.startswith("backbone.conv_layer1") for key in state):
            raise CheckpointError(
                "these weights belong to PaddleSeg's ordinary HRNet, which pads strided "
                "convolutions on one side only: here they would give other numbers",
                fix="take the files of contrib/CityscapesSOTA (keys ocrnet.…) or of PaddleClas")
        return rename(state, paddle_rules)
    if uses_in_place_norm(state):
        state = fold_in_place_norm(state)
    return rename(state, PREFIXES + tuple(rules))


def uses_in_place_norm(state: dict) -> bool:
    """Whether the state dict is in the dialect of openseg's first branch (PyTorch 0.4.1)."""
    return any(_IN_PLACE_NORM.search(key.removeprefix("module.")) for key in state)


def fold_in_place_norm(state: dict) -> dict:
    """Norm weights as plain batch norm uses them: |weight| + 1e-5.

    Every one-dimensional `weight` is a norm's. The leaky ReLU that the heads'
    norms include cannot be folded: build the network with activation="leaky_relu".
    """
    return {key: value.abs() + 1e-5 if key.endswith(".weight") and value.ndim == 1 else value
            for key, value in state.items()}
