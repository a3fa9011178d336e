"""What is left of a config and of results when other people may read them.

Folders of a machine say who worked where, and are of no use elsewhere. Each is replaced by a
relative path of the same last part; accounts of log services and the command line are left out.
"""
import os
import re
from collections.abc import Mapping
from typing import Any

_ABSOLUTE = re.compile(r"[/~]|\\\\|[A-Za-z]:[/\\]|file:|\w+://[^/]*@")
_UP = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
# Keys whose path becomes one below "data"; that of others is its last part alone.
_OF_DATA = ("data_dir", "cache")
# What is left of a checkpoint: all that a prediction needs.
_KEPT = ("format", "model", "ema", "config", "class_names", "palette", "normalization",
         "activation", "epoch", "versions")


def without_private(value: Any, name: str = "") -> tuple[Any, dict[str, tuple[str, str]]]:
    """(value without private paths, what was replaced: its place -> (before, now)).

    value: JSON values. A path is private if it is absolute, begins with "~", or leads upwards.
    """
    replaced: dict[str, tuple[str, str]] = {}
    return _walk(value, name, replaced), replaced


def public_config(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(a resolved config that others may read and train with, a line per change)."""
    changed, replaced = without_private(config)
    lines = [f"{place}: {now!r} in place of a path of this machine"
             for place, (_, now) in replaced.items()]
    trainer = changed.get("trainer")
    if isinstance(trainer, dict):
        if trainer.get("log_to"):
            trainer["log_to"] = []
            lines.append("trainer.log_to: [], without accounts")
        start = trainer.get("finetune_from")
        if start:
            trainer["finetune_from"] = None
            lines.append(f"trainer.finetune_from: null; it was {os.path.basename(start)!r}, which "
                         "is not in this folder")
    return changed, lines


def public_checkpoint(checkpoint: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """(a checkpoint with what a prediction needs, and no private paths; a line per change).

    Its weights are the average of the training, if there is one.
    """
    config, changes = public_config(checkpoint["config"])
    public = {key: value for key, value in checkpoint.items() if key in _KEPT}
    versions = {key: value for key, value in checkpoint.get("versions", {}).items()
                if key not in ("command", "source")}
    return {**public, "model": checkpoint.get("ema") or checkpoint["model"], "ema": None,
            "config": config, "versions": versions}, changes


def _walk(value, name, replaced):
    if isinstance(value, dict):
        return {key: _walk(item, f"{name}.{key}" if name else str(key), replaced)
                for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, f"{name}[{number}]", replaced) for number, item in enumerate(value)]
    if not isinstance(value, str) or "class_names" in name \
            or not (_ABSOLUTE.match(value) or _UP.search(value)):
        return value
    key = name.rpartition(".")[2]
    last = re.split(r"[/\\]", value.rstrip("/\\"))[-1].lstrip("~") or "data"
    if key in ("save_dir", "log_dir"):
        last = "saved"
    public = f"data/{last}" if key in _OF_DATA and last != "data" else last
    replaced[name] = (value, public)
    return public
