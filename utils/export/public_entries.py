"""What is left of a config and of results when other people may read them.

Folders of a machine say who worked where, and are of no use elsewhere. Each is replaced by a
relative path of the same last part, also inside a longer text; accounts of log services and the
command line are left out.
"""
import os
import re
from collections.abc import Mapping
from typing import Any

# Texts that are private paths as a whole: absolute ones, of a home, or of a variable.
_ABSOLUTE = re.compile(r"[/~]|\\\\|[A-Za-z]:[/\\]|file:|\w+://[^/]*@|\$\{?\w+\}?[/\\]|%\w+%")
# Private paths inside a text, whose folders may have spaces; addresses that name a person or a
# secret, or that are of no use to others.
_INSIDE = re.compile(
    r"""\w+://[^\s/]*@\S*|https?://[^\s?]*\?\S*|(?!https?:)\b\w+://\S+"""
    r"""|(?<![\w.])[\w.+-]+@[\w.-]+:\S*|(?<![\w.])[\w.+-]+@[\w-]+\.[A-Za-z][\w.]*"""
    r"""|(?:\$\{?\w+\}?|%\w+%)[/\\][^\s,;'"]*"""
    r"""|(?<![\w./\\])(?:~[\w.-]*/|[A-Za-z]:[/\\]|\\\\|/)"""
    r"""(?:[^\s/\\,;:'"][^/\\,;:'"\n]*[/\\])*[^\s/\\,;:'"]+""")
# The folder of a user, whose last part is a name.
_HOME = re.compile(r"(?:.*[/\\](?:home|Users)[/\\]|~)[^/\\]+$")
_UP = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
# Keys whose path becomes one below "data"; that of others is its last part alone.
_OF_DATA = ("data_dir", "cache")
# Keys of regular expressions, and of names that people read.
_NO_PATHS = ("match", "class_names")
# What is left of a checkpoint: all that a prediction needs.
_KEPT = ("format", "model", "ema", "config", "class_names", "palette", "normalization",
         "activation", "epoch", "versions")


def without_private(value: Any, name: str = "") -> tuple[Any, dict[str, tuple[str, str]]]:
    """(value without private paths, what was replaced: its place -> (before, now)).

    value: JSON values. A path is private if it is absolute, begins with "~" or a variable, or leads
    upwards; an address if it has an account or a query, or is none of the web.
    """
    replaced: dict[str, tuple[str, str]] = {}
    return _walk(value, name, replaced), replaced


def replacements(replaced: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line for each replaced path, for people."""
    return [f"{place}: {now!r} in place of a path of this machine"
            for place, (_, now) in replaced.items()]


def public_config(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(a resolved config that others may read and train with, a line per change)."""
    changed, replaced = without_private(config)
    lines = replacements(replaced)
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
    versions, _ = without_private({key: value for key, value in
                                   checkpoint.get("versions", {}).items()
                                   if key not in ("command", "source")}, "versions")
    return {**public, "model": checkpoint.get("ema") or checkpoint["model"], "ema": None,
            "config": config, "versions": versions}, changes


def _walk(value, name, replaced):
    if isinstance(value, dict):
        made: dict[Any, Any] = {}
        for key, item in value.items():
            place = f"{name}.{key}" if name else str(key)
            public = _without_paths(key, place) if isinstance(key, str) else key
            while public in made:
                public += "_"
            if public != key:
                place = f"{name}.{public}" if name else public
                replaced[f"the key {place}"] = (key, public)
            made[public] = _walk(item, place, replaced)
        return made
    if isinstance(value, list):
        return [_walk(item, f"{name}[{number}]", replaced) for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    public = _without_paths(value, name)
    if public != value:
        replaced[name] = (value, public)
    return public


def _without_paths(text, name):
    """The text without private paths. name: of the key that it has."""
    key = name.rpartition(".")[2]
    if any(part in name for part in _NO_PATHS):
        return text
    if not (_ABSOLUTE.match(text) or _UP.search(text)):
        return _INSIDE.sub(lambda found: _last_part(found[0]), text)
    last = "saved" if key in ("save_dir", "log_dir") else _last_part(text)
    return f"data/{last}" if key in _OF_DATA and last != "data" else last


def _last_part(path):
    """What is left of a private path or address."""
    path = path.partition("?")[0].rstrip("/\\")
    if _HOME.match(path):
        return "home"
    last = re.split(r"[/\\]", path)[-1].rpartition("@")[2].rpartition(":")[2]
    return re.sub(r"^[~$%{]+|[%}]+$", "", last) or "data"
