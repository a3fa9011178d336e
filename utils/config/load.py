"""Reads a config: JSON files that extend each other, then the overrides of the command line.

A config is a plain dict; utils.config.schema checks it and adds the defaults. This file does not
import torch, so that a mistake in the syntax of a file is reported at once.
"""
import copy
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from utils.cli.console import notice, notice_once, warn
from utils.config.cross_checks import names_outputs
from utils.config.loader_section import validated_size
from utils.config.recipes import SECTION, Published, no_such_config, published_in
from utils.config.registry import load
from utils.config.schema import path_name, resolve_config
from utils.config.signature import KeyPath, value_name
from utils.errors import ConfigError, shown
from utils.files.jsonc import MAX_DEPTH, Lines, parse_jsonc, read_jsonc
from utils.files.whole_file import WholeFile, remedy

COMMAND_LINE = "command line"
RUN = "run:"              # before the name of a run, in trainer.finetune_from
MAX_VALUES = 300_000      # of all files that a config extends together
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
# Sections that can be the name of a class alone.
_SHORT = ("arch", "optimizer", "lr_scheduler", "loss", "val_loss")
# Two settings of which a config has one: who sets one of them replaces the other.
_EITHER: dict[KeyPath, str] = {("trainer", "epochs"): "iterations",
                               ("trainer", "iterations"): "epochs"}
_OVERRIDE = re.compile(r"(?P<path>[^=]+?)(?P<add>\+?)=(?P<value>.*)", re.DOTALL)


class LoadedConfig(dict):
    """A config as given by its files and the command line, with the place of every value.

    places: path of keys -> "file:line" or "command line". typed: path of keys -> the text of an
    override whose value is a number or a bool.
    """

    def __init__(self, values: dict, places: dict[KeyPath, str], typed: dict[KeyPath, str]):
        super().__init__(values)
        self.places, self.typed = places, typed


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> LoadedConfig:
    """Returns the config of a JSON file, merged with the files it extends, with the overrides.

    overrides: "a.b.c=value" assigns, "a.b+=value" appends to a list, "loss[0].weight=1" changes
    an element of a list; a value is JSON or else text. In strings ${NAME} is replaced by the
    environment variable and a leading ~ by the home folder. Keys and values are not checked: see
    resolve_config. Raises ConfigError for a file, an override or a variable that is wrong.
    """
    values, places = _Files().load(os.fspath(path))
    if "stages" in values:
        raise ConfigError("the config has stages; a single config is expected here",
                          places["stages"].place, "give the config.json of one of its runs; "
                                                  "train.py takes all stages")
    return _completed(values, places, overrides)


def has_stages(path: str | os.PathLike[str]) -> bool:
    """Whether the config at a path is a chain of stages. Raises ConfigError for a wrong file."""
    return "stages" in _Files().load(os.fspath(path))[0]


class LoadedStages(list[LoadedConfig]):
    """The config of each stage of a file; one if it has no "stages".

    chain: whether it has. published: what its section "published" says, or None; reading this
    raises ConfigError if the section is wrong.
    """

    def __init__(self, chain: bool, section: tuple[Any, Lines, str]):
        super().__init__()
        self.chain, self._section = chain, section

    @property
    def published(self) -> Published | None:
        return published_in(*self._section)


def load_stages(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> LoadedStages:
    """Returns the config of each stage of the chain at `path`; one if it has no "stages".

    A stage changes the keys beside "stages"; one that has "extends" is a config of its own. The
    last stage is called like the chain and the others <name>_stage1, ..., unless they state a name.
    Each starts from "run:" the one before, unless it states trainer.finetune_from. overrides:
    "stages[0].KEY=VALUE" changes one stage, trainer.finetune_from the first one, others all.
    Raises ConfigError as `load_config` does.
    """
    files = _Files()
    values, places = files.load(os.fspath(path))
    configs = LoadedStages("stages" in values, files.section)
    if not configs.chain:
        configs.append(_completed(values, places, overrides))
        return configs
    stages, nodes = values.pop("stages"), places.pop("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise ConfigError(f"expected a list of objects {{...}}, found {value_name(stages)}",
                          f"stages ({nodes.place})")
    general, own = _sorted_overrides(overrides, len(stages))
    for number, stage in enumerate(stages):
        merged, merged_places = _of_stage(stage, nodes.below[number], values, places)
        named = "name" in stage or "extends" in stage and "name" in merged
        config = _completed(merged, merged_places,
                            [one for one in general if not (named and one.startswith("name="))])
        if not named and number < len(stages) - 1:
            config["name"] = f"{config.get('name', 'segwright')}_stage{number + 1}"
        if configs and "finetune_from" not in (stage.get("trainer") or {}):
            config["trainer"] = {**config.get("trainer", {}),
                                 "finetune_from": f"{RUN}{configs[-1].get('name')}"}
        configs.append(apply_overrides(config, own[number]))
    return configs


def _of_stage(stage, node, values, places):
    """(values, places) of a stage merged with the keys beside "stages" or the files it extends."""
    if "extends" not in stage:
        values, places = copy.deepcopy(values), copy.deepcopy(places)
        _merge(values, places, stage, node.below)
        return values, places
    file = node.below["extends"].place.rpartition(":")[0]
    values, places = {}, {}
    for parent in _parents(stage["extends"], file, node.below):
        _merge(values, places, *_Files().load(parent, (file,)))
    _merge(values, places, {key: stage[key] for key in stage if key != "extends"}, node.below)
    return values, places


def _sorted_overrides(overrides, count):
    """(overrides of all stages, a list of those of each)."""
    general, own = [], [[] for _ in range(count)]
    for override in overrides:
        match = re.match(r"stages(?:\[(\d+)\]|\.(\d+))\.", override)
        if match and int(match[1] or match[2]) < count:
            own[int(match[1] or match[2])].append(override[match.end():])
        elif re.match(r"stages\W", override):
            raise ConfigError(f"{override!r} is not a key of one of {count} stages", COMMAND_LINE,
                              "write stages[0].KEY=VALUE")
        elif override.startswith("trainer.finetune_from="):
            own[0].append(override)         # the others start from the stage before
        else:
            general.append(override)
    return general, own


def _completed(values: dict, places: "_Tree", overrides: Iterable[str]) -> LoadedConfig:
    """The config with the overrides and without variables."""
    config = apply_overrides(LoadedConfig(values, _flat(places), {}), overrides)
    problems = []
    values = _expanded(config, (), config.places, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return LoadedConfig(values, config.places, config.typed)


def apply_overrides(config: dict, overrides: Iterable[str] = ()) -> LoadedConfig:
    """Returns a copy of `config` with overrides as in load_config; ${NAME} and ~ are replaced."""
    values = copy.deepcopy(dict(config))
    places, typed = dict(getattr(config, "places", {})), dict(getattr(config, "typed", {}))
    # A new type removes the old arguments, so it comes before overrides of its arguments; and so
    # does a protocol.
    for override in sorted(overrides, key=lambda text: not _is_type(text)):
        _apply(override, values, places, typed)
    return LoadedConfig(values, places, typed)


def with_config(checkpoint: Mapping[str, Any], path: str | None = None,
                overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the checkpoint with the config at `path`, or its own config, and the overrides.

    A config without test_loader applies overrides of test_loader to a copy of its val_loader.
    "base_size" is the size at which the network was validated and "trained_loss" the loss that it
    minimizes, for utils.predict.open_model.
    The images are normalized as the checkpoint says: overrides of `normalize` are refused, and
    another section of the config at `path` is replaced, with a warning.
    Raises ConfigError for every mistake in the config, also in that of the checkpoint.
    """
    overrides = list(overrides)
    for text in overrides:
        if re.match(r"\s*normalize\s*[.+=]", text):
            raise ConfigError(f"{text!r}: a network reads images as it was trained to, and its "
                              "checkpoint says how", COMMAND_LINE, "remove it")
    if path:
        config, source = load_config(path, overrides), path
        # What the command line sets is of today.
        if "posterior" not in (checkpoint["config"].get("predict") or {"posterior": None}) and \
                config.places.get(("predict", "temperature")) != COMMAND_LINE:
            _keep_fitted(config, path)
    else:
        saved, source = copy.deepcopy(checkpoint["config"]), "the checkpoint's config"
        if any(text.startswith("test_loader.") for text in overrides) \
                and not saved.get("test_loader"):
            saved["test_loader"] = copy.deepcopy(saved.get("val_loader"))
        _keep_fitted(saved, "the checkpoint")
        config = apply_overrides(saved, overrides)
    try:
        resolved = resolve_config(config, source)
    except ConfigError as error:
        whole = None if path or overrides else "give a whole config with -c CONFIG.json"
        raise ConfigError(error.what, error.where, error.fix or whole) from None
    if path:
        resolved["normalize"] = _normalized_as(checkpoint, resolved["normalize"], path)
    size = validated_size(resolved)
    if path and size is None:       # another config: the network was still validated as it was
        size = validated_size(checkpoint["config"])
    trained = checkpoint["config"].get("loss") if path else resolved["loss"]
    return {**checkpoint, "config": resolved, "base_size": size, "trained_loss": trained}


def _keep_fitted(config, source):
    """A temperature that was fitted before posteriors were undone holds for raw logits.

    source: of the config, which is of the age of an old checkpoint.
    """
    predict = config.get("predict")
    if isinstance(predict, dict) and "posterior" not in predict \
            and predict.get("temperature", 1.0) != 1.0:
        predict["posterior"] = "raw"
        notice(f"the temperature {predict['temperature']} of {source} was fitted on raw "
               "logits, so predict.posterior is \"raw\"; tools.calibrate --posterior auto fits "
               "it anew, and predict.posterior=auto is for one that was")


def _normalized_as(checkpoint, section, path):
    """The section `normalize` of another config, as the checkpoint has it; warns if they differ."""
    numbers = checkpoint.get("normalization") or {}
    saved = {key: numbers[key] for key in ("mean", "std", "order", "scale") if key in numbers}
    wrong = [key for key, value in (section or {}).items()
             if value is not None and saved and saved.get(key) != value]
    if not wrong:
        return section
    warn(f"{path}: normalize.{wrong[0]} is {section[wrong[0]]}; the network was trained with "
         f"{saved.get(wrong[0])}, which is used")
    return saved


def save_config(config: dict, path: str | os.PathLike[str]):
    """Write a config as JSON. After a crash the file is the old or the new one, never a part."""
    path = os.fspath(path)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    try:
        with WholeFile(path, durable=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the config cannot be written: {error.strerror or error}", path,
                          remedy(error)) from None


class _Node:
    """The place of a value, and the nodes of the values inside it."""

    def __init__(self, place: str):
        self.place, self.below = place, {}


_Tree = dict[str | int, _Node]      # the places of a dict or list: one level of a config


class _Files:
    """Reads config files with the files they extend, each file once.

    Files that extend the same file several times would otherwise be read 2^n times.
    """

    def __init__(self):
        self.read: dict[str, tuple[dict, _Tree]] = {}
        self.merged = 0         # values that were merged so far
        # "published" of the file that nothing extends, the lines of its values, and its path.
        self.section: tuple[Any, Lines, str] = None, {}, ""

    def load(self, path: str, chain: tuple[str, ...] = ()) -> tuple[dict, _Tree]:
        """(values, places) of a file merged with its parents. chain: the files that extend it."""
        name = _real_path(path)
        if name in map(_real_path, chain):
            raise ConfigError(f'"extends" forms a circle: {" -> ".join([*chain, path])}', path,
                              "remove one of the links")
        if len(chain) > MAX_DEPTH:
            raise ConfigError(f"more than {MAX_DEPTH} files extend each other in a row", chain[0])
        if name not in self.read:
            self.read[name] = self._merged(path, chain)
        return self.read[name]

    def _merged(self, path, chain):
        lines = {}
        if chain and not os.path.isfile(path):
            raise ConfigError(f"{path} does not exist", f"extends: {' -> '.join([*chain, path])}",
                              'a path in "extends" is relative to the file that contains it')
        if not os.path.exists(path):
            raise no_such_config(path)
        child = read_jsonc(path, lines)
        if not isinstance(child, dict):
            raise ConfigError(f"a config is an object {{...}}, found {value_name(child)}",
                              path)
        places = _tree({where: f"{path}:{line}" for where, line in lines.items() if where})
        child.pop("$schema", None)      # only editors use it
        section = child.pop(SECTION, None)      # speaks of this file alone: utils.config.recipes
        if not chain:
            self.section = section, lines, path
        parents = child.pop("extends", [])
        values, merged_places = {}, {}
        for parent in _parents(parents, path, places):
            inherited, inherited_places = self.load(parent, (*chain, path))
            self.merged += len(_flat(inherited_places))
            if self.merged > MAX_VALUES:
                raise ConfigError(f"the files that extend each other hold more than {MAX_VALUES} "
                                  "values; are they configs?", path)
            _merge(values, merged_places, inherited, inherited_places)
        _merge(values, merged_places, child, places)
        return values, merged_places


def _parents(parents, path, places):
    """The paths that "extends" of the file at `path` names."""
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(one, str) for one in parents):
        raise ConfigError('"extends" must be a path or a list of paths, found '
                          f"{value_name(parents)}", places["extends"].place)
    for parent in parents:
        problems: list[str] = []
        parent = _expand_text(parent, "extends", problems)
        if problems:
            raise ConfigError(problems[0], places["extends"].place)
        yield os.path.normpath(os.path.join(os.path.dirname(path), parent))


def _real_path(path):
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the path cannot be used: {error}", shown(path)) from None


def _tree(places: dict[KeyPath, str]) -> _Tree:
    """Nested places from flat ones."""
    top = _Node("")
    for path, place in sorted(places.items(), key=lambda item: len(item[0])):
        node = top
        for key in path[:-1]:
            node = node.below[key]
        node.below[path[-1]] = _Node(place)
    return top.below


def _flat(tree: _Tree, path: KeyPath = ()) -> dict[KeyPath, str]:
    """Flat places from nested ones."""
    places = {}
    for key, node in tree.items():
        places[(*path, key)] = node.place
        places |= _flat(node.below, (*path, key))
    return places


def _merge(values: dict, places: _Tree, child: dict, child_places: _Tree, path: KeyPath = ()):
    """Merge `child` into `values` and its places into `places`, both in place."""
    if "type" in child and "type" in values and child["type"] != values["type"]:
        values.pop("args", None)
        places.pop("args", None)
    for key in _replaced_by_protocol(path, values, child):
        values.pop(key, None)
        places.pop(key, None)
    for key, value in child.items():
        old, here = values.get(key), (*path, key)
        if value is not None and (other := _EITHER.get(here)) in values and other not in child:
            values[other] = None
        if isinstance(old, str) and isinstance(value, dict) and _is_of_section(here, value):
            old = values[key] = {"type": old}
            places[key].below["type"] = _Node(places[key].place)
        if isinstance(value, dict) and isinstance(old, dict) and not _other_form(here, old, value):
            places[key].place = child_places[key].place
            _merge(old, places[key].below, value, child_places[key].below, here)
        else:
            _tell_replaced(here, values, value, f'"{key}": "{value}" '
                           f"({child_places[key].place})", f'"{key}": {{"type": "{value}"}}')
            values[key], places[key] = copy.deepcopy(value), copy.deepcopy(child_places[key])


def _replaced_by_protocol(path, values, child):
    """The keys of `predict` that an evaluation protocol replaces which `child` brings in."""
    name = child.get("protocol")
    if path != ("predict",) or name is None or name == values.get("protocol"):
        return ()
    return load("utils.predict.protocols:DETERMINED")


def _forget(places: dict, path: KeyPath):
    """Remove the places of `path` and of everything below it."""
    for where in [where for where in places if where[:len(path)] == path]:
        del places[where]


def _other_form(path, old, new):
    """Whether one value is a loss for all outputs, the other a loss per output: not merged."""
    return path in (("loss",), ("val_loss",)) and names_outputs(old) != names_outputs(new)


def _is_of_section(path, value):
    """Whether an object changes the section of which the name of a class was given alone."""
    return path[0] in _SHORT and "type" not in value and not names_outputs(value)


def _apply(override: str, values: dict, places: dict, typed: dict):
    """Apply one override to `values`, in place, and note its place."""
    match = _OVERRIDE.fullmatch(override)
    if not match:
        raise ConfigError(f"{override!r} is not an override", COMMAND_LINE,
                          "write KEY=VALUE, e.g. trainer.epochs=5")
    keys = _override_path(match["path"].strip(), override)
    problems = []
    value = _expanded(_override_value(match["value"]), tuple(keys), {}, problems)
    if problems:
        raise ConfigError(problems[0], COMMAND_LINE)
    holder, path = _holder(values, keys, override)
    key: Any = path[-1]
    if match["add"]:
        old = holder[key] if isinstance(holder, list) else holder.get(key)
        if old is not None and not isinstance(old, list):
            raise ConfigError(f"{override!r}: {path_name(path)} is not a list", COMMAND_LINE,
                              "use = to replace it")
        holder[key] = [*(old or []), value]
        places[(*path, len(old or []))] = COMMAND_LINE
        return
    if key == "type" and holder.get("type", value) != value:
        holder.pop("args", None)
        _forget(places, (*path[:-1], "args"))
    if isinstance(holder, dict):
        for name in _replaced_by_protocol(path[:-1], holder, {key: value}):
            holder.pop(name, None)
            _forget(places, (*path[:-1], name))
    _tell_replaced(path, holder, value, f"{path[0]}={value}", f"{path[0]}.type={value}")
    other = _EITHER.get(path)
    if other and value is not None and isinstance(holder, dict) and other in holder \
            and places.get((*path[:-1], other)) != COMMAND_LINE:
        holder[other] = None
    holder[key] = value
    _forget(places, path)
    places[path] = COMMAND_LINE
    if isinstance(value, (bool, int, float)):
        typed[path] = match["value"]


def _tell_replaced(path, holder, value, given, keeping):
    """A notice, once, of what is left out if a section becomes the name of a class.

    given: what does it. keeping: what would keep the rest.
    """
    old = holder.get(path[-1]) if isinstance(holder, dict) else None
    if len(path) == 1 and path[0] in _SHORT and isinstance(value, str) and isinstance(old, dict):
        gone = [key for key, one in old.items() if key != "type" and one]
        if gone and "type" in old:
            notice_once(f"{given} replaces the whole section; left out: {', '.join(gone)} "
                        f"({keeping} keeps what is beside args)")


def _holder(values: Any, keys: list[str], override: str) -> tuple[Any, KeyPath]:
    """(the dict or list that holds the last key, the full path). Missing dicts are created."""
    path: KeyPath = ()
    index: Any = None       # of the key before
    for key in keys:
        here = path_name(path) or "the config"
        if path:
            inner = values[index] if isinstance(values, list) else values.setdefault(index, {})
            if isinstance(inner, str) and (key in ("type", "args") or path[0] in _SHORT):
                inner = values[index] = {"type": inner}     # a class by its name alone
            values = inner
        index = key
        if isinstance(values, list):
            if not key.isascii() or not key.isdigit() or int(key[:9]) >= len(values):
                raise ConfigError(f"{override!r}: {here} is a list of {len(values)}; expected an "
                                  f"index below {len(values)}, found {key!r}", COMMAND_LINE)
            index = int(key)
        elif not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {here} is {json.dumps(values)} and has no keys",
                              COMMAND_LINE, f"give the whole section, e.g. {here}='{{...}}'")
        path = (*path, index)
    return values, path


def _override_path(text, override):
    """The keys and indices of "loss.losses[0].type" or "loss.losses.0.type"."""
    parts = re.sub(r"\[(\d+)\]", r".\1", text).split(".")
    if not all(parts) or re.search(r"[][]", "".join(parts)) or len(parts) > MAX_DEPTH:
        raise ConfigError(f"{override[:100]!r}: {text[:100]!r} is not a path of keys", COMMAND_LINE,
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
    sections = "|".join(_SHORT)
    return bool(re.match(rf"\s*({sections})\s*=|[^=]*\btype=|predict\.protocol=", override))


def _expanded(value, path, places, problems):
    """`value` with ${NAME} and ~ replaced in its strings; overrides are replaced already."""
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
