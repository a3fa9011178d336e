"""From a JSON file to a checked config and to built components.

load_config reads, merges and overrides; resolve_config checks everything and
writes the defaults out; build and split_args construct what a section names.
A config stays a plain dict. Nothing here imports torch before a component is
looked up, so mistakes in the file's syntax are reported at once.
"""
import copy
import json
import os
import re

from utils.config_checks import names_outputs
from utils.config_docs import describe, json_schema
from utils.config_schema import path_name, resolve_config, section_callables
from utils.errors import ConfigError, UserError
from utils.jsonc import parse_jsonc, read_jsonc
from utils.registry import components, lookup, unknown
from utils.signature import REQUIRED, converted, fields, parameters
from utils.whole_files import WholeFile

__all__ = ["LoadedConfig", "apply_overrides", "build", "describe", "json_schema", "load_config",
           "resolve_config", "save_config", "split_args"]

COMMAND_LINE = "command line"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_OVERRIDE = re.compile(r"(?P<path>[^=]+?)(?P<add>\+?)=(?P<value>.*)", re.DOTALL)


class LoadedConfig(dict):
    """The config as its files and the command line say it; a dict that knows its sources.

    places: path of keys -> "file:line". typed: path -> the text of an override.
    """

    def __init__(self, values, places, typed):
        super().__init__(values)
        self.places, self.typed = places, typed


def load_config(path, overrides=()) -> LoadedConfig:
    """The config in a JSON file, merged with the files it extends, then overridden.

    overrides: "a.b.c=value" assigns and "a.b+=value" appends to a list; values
    are JSON, or else text; "loss[0].weight=1" reaches into a list. ${NAME} in a
    string is the environment variable, a leading ~ the home folder. Keys and
    values are not checked here: see resolve_config.
    """
    config = LoadedConfig(*_load(os.fspath(path), ()), {})
    config = apply_overrides(config, overrides)
    problems = []
    values = _expanded(config, (), config.places, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return LoadedConfig(values, config.places, config.typed)


def apply_overrides(config: dict, overrides=()) -> LoadedConfig:
    """A copy of `config` with overrides as in load_config, ${NAME} and ~ in them expanded."""
    values = copy.deepcopy(dict(config))
    places, typed = dict(getattr(config, "places", {})), dict(getattr(config, "typed", {}))
    # A new type drops the old arguments, never those given beside it.
    for override in sorted(overrides, key=lambda text: not _is_type(text)):
        _apply(override, values, places, typed)
    return LoadedConfig(values, places, typed)


def save_config(config: dict, path):
    """Write a config as JSON; a crash leaves the old file or the new one, never a part."""
    path = os.fspath(path)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    try:
        with WholeFile(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"the config cannot be written: {error}", path) from None


def build(kind: str, section: dict | str, **provided):
    """The component that a section names, built from its "args" and what the program provides.

    section: {"type", "args"}, or a name. kind: one of utils.registry.KINDS.
    provided: e.g. num_classes=11; what the constructor does not declare is left
    out. A model's freeze_bn, freeze_backbone and one_logit take effect at once.
    ConfigError: a value the constructor refuses.
    """
    section = {"type": section} if isinstance(section, str) else section
    cls = lookup(section["type"], components(kind), f"{kind}.type")
    args, *shared = split_args(section, *section_callables(kind, cls))
    if kind == "models" and shared[1].get("one_logit"):
        provided["num_classes"] = _one_channel(provided["num_classes"])
    declared = parameters(cls)
    args.update((name, value) for name, value in provided.items() if name in declared)
    missing = [name for name, (_, default) in declared.items()
               if default is REQUIRED and name not in args]
    if missing:
        raise ConfigError(f"{section['type']} needs the argument {missing[0]!r}")
    try:
        component = cls(**args)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{section['type']}: {error}") from error
    if kind == "models":
        component.freeze(**shared[0]).two_classes(**shared[1])
    return component


def _one_channel(num_classes):
    if num_classes != 2:
        raise ConfigError(f"one_logit stands for two classes; the dataset has {num_classes}",
                          "arch.args.one_logit", "set it to false")
    return 1


def split_args(section: dict, *callables) -> list[dict]:
    """The section's flat "args" as one dict of keyword arguments per callable.

    A key goes to every callable that declares it, as a tuple where a tuple is
    declared. ConfigError: a key that none declares.
    """
    args = section.get("args") or {}
    schemas = [fields(function) for function in callables]
    for key in args:
        if not any(key in schema for schema in schemas):
            known = {name for schema in schemas for name in schema}
            raise ConfigError(f"{section.get('type')}: {unknown('argument', key, known)}")
    return [{key: converted(copy.deepcopy(value), schema[key].annotations)
             for key, value in args.items() if key in schema} for schema in schemas]


def _load(path, chain):
    """(values, places) of one file with its parents merged in. chain: the files that led here."""
    identity = os.path.realpath(path)
    if identity in [os.path.realpath(one) for one in chain]:
        raise ConfigError(f'"extends" goes in a circle: {" -> ".join([*chain, path])}', path,
                          "remove one of the links")
    lines = {}
    if chain and not os.path.isfile(path):
        raise ConfigError(f"{path} does not exist", f"extends: {' -> '.join([*chain, path])}",
                          'a path in "extends" is relative to the file that says it')
    child = read_jsonc(path, lines)
    if not isinstance(child, dict):
        raise ConfigError(f"a config is an object {{...}}, found {type(child).__name__}", path)
    places = {where: f"{path}:{line}" for where, line in lines.items() if where}
    child.pop("$schema", None)      # names the schema for editors
    parents = child.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(one, str) for one in parents):
        raise ConfigError('"extends" is a path or a list of paths', places[("extends",)])
    if not parents:
        return child, places
    values, merged_places = {}, {}
    for parent in parents:
        problems = []
        parent = _expand_text(parent, "extends", problems)
        if problems:
            raise ConfigError(problems[0], places[("extends",)])
        parent = os.path.normpath(os.path.join(os.path.dirname(path), parent))
        _merge(values, merged_places, *_load(parent, (*chain, path)))
    _merge(values, merged_places, child, places)
    return values, merged_places


def _merge(values, places, child, child_places, path=()):
    """Merge `child` into `values` and its places into `places`, both in place."""
    if "type" in child and "type" in values and child["type"] != values["type"]:
        values.pop("args", None)
        _forget(places, (*path, "args"))
    for key, value in child.items():
        old, here = values.get(key), (*path, key)
        if isinstance(value, dict) and isinstance(old, dict) and not _other_form(here, old, value):
            _merge(old, places, value, child_places, here)
            places[here] = child_places[here]
        else:
            values[key] = copy.deepcopy(value)
            _forget(places, here)
            places.update({where: place for where, place in child_places.items()
                           if where[:len(here)] == here})


def _forget(places, path):
    for where in [where for where in places if where[:len(path)] == path]:
        del places[where]


def _other_form(path, old, new):
    """Whether one loss for all outputs meets a loss per output: they do not merge."""
    return path in (("loss",), ("val_loss",)) and names_outputs(old) != names_outputs(new)


def _apply(override, values, places, typed):
    match = _OVERRIDE.fullmatch(override)
    if not match:
        raise ConfigError(f"{override!r} is no override", COMMAND_LINE,
                          "write KEY=VALUE, e.g. trainer.epochs=5")
    keys = _override_path(match["path"].strip(), override)
    problems = []
    value = _expanded(_override_value(match["value"]), tuple(keys), {}, problems)
    if problems:
        raise ConfigError(problems[0], COMMAND_LINE)
    holder, path = _holder(values, keys, override)
    key = path[-1]
    if match["add"]:
        old = holder[key] if isinstance(holder, list) else holder.get(key)
        if old is not None and not isinstance(old, list):
            raise ConfigError(f"{override!r}: {path_name(path)} is no list", COMMAND_LINE,
                              "use = to replace it")
        holder[key] = [*(old or []), value]
        places[(*path, len(old or []))] = COMMAND_LINE
        return
    if key == "type" and holder.get("type", value) != value:
        holder.pop("args", None)
        _forget(places, (*path[:-1], "args"))
    holder[key] = value
    _forget(places, path)
    places[path] = COMMAND_LINE
    if isinstance(value, (bool, int, float)):
        typed[path] = match["value"]


def _holder(values, keys, override):
    """(the dict or list that holds the last key, the full path); missing dicts are made."""
    path = ()
    for key in keys:
        here = path_name(path) or "the config"
        if path:
            values = values[path[-1]] if isinstance(values, list) \
                else values.setdefault(path[-1], {})
        if isinstance(values, list):
            if not key.isascii() or not key.isdigit() or int(key[:9]) >= len(values):
                raise ConfigError(f"{override!r}: {here} is a list of {len(values)}; expected an "
                                  f"index below that, found {key!r}", COMMAND_LINE)
            key = int(key)
        elif not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {here} is {json.dumps(values)} and has no keys",
                              COMMAND_LINE, f"give the whole section, e.g. {here}='{{...}}'")
        path = (*path, key)
    return values, path


def _override_path(text, override):
    """The keys and indices of "loss.losses[0].type" or "loss.losses.0.type"."""
    parts = re.sub(r"\[(\d+)\]", r".\1", text).split(".")
    if not all(parts) or re.search(r"[][]", "".join(parts)):
        raise ConfigError(f"{override!r}: {text!r} is no path of keys", COMMAND_LINE,
                          "write KEY=VALUE, e.g. trainer.epochs=5")
    return parts


def _override_value(text):
    try:
        return parse_jsonc(text, COMMAND_LINE)
    except ConfigError:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise
        return text


def _is_type(override):
    return bool(re.match(r"[^=]*\btype=", override))


def _expanded(value, path, places, problems):
    """`value` with ${NAME} and ~ expanded in its strings, but for what overrides gave already."""
    if path and places.get(path) == COMMAND_LINE:
        return value
    if isinstance(value, dict):
        return {key: _expanded(item, (*path, key), places, problems)
                for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, (*path, i), places, problems) for i, item in enumerate(value)]
    if isinstance(value, str):
        place = places.get(path)
        return _expand_text(value, path_name(path) + (f" ({place})" if place else ""), problems)
    return value


def _expand_text(text, where, problems):
    def variable(match):
        if match[1] not in os.environ:
            problems.append(f"{where}: the environment variable {match[1]!r} is not set")
        return os.environ.get(match[1], "")
    return os.path.expanduser(_VARIABLE.sub(variable, text))
