"""The text of --list and the JSON Schema of --schema.

Both are made from the signatures that also check a config, so they always agree with the check.
"""
import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from utils.config.load import load_stages
from utils.config.recipes import (
    FOLDER,
    SECTION,
    published_section,
    recipe_files,
    result_text,
)
from utils.config.registry import KINDS, components, load
from utils.config.schema import (
    LOSS,
    MIXED,
    OPTIMIZER,
    PROVIDED,
    SCHEDULE,
    UNSET,
    Component,
    Components,
    Entries,
    Keys,
    Loss,
    config_keys,
    section_callables,
    section_of,
)
from utils.config.signature import Field, annotation_schema, fields, json_default
from utils.errors import ConfigError, nearest, short_path, unknown

# Sections of the config itself that can be listed like the kinds of components.
_SECTIONS = ("config", "trainer", "predict", "normalize")
RECIPES = "recipes"     # the kind that lists the files in configs/
PROTOCOLS = "protocols"     # the kind that lists values of predict.protocol
_TIMM = "Any encoder of timm, if it is installed: --list backbones timm [WORD]."
_COLUMN = 30            # where the descriptions of --list begin


def list_text(kind: str | None = None, name: str | None = None, word: str | None = None) -> str:
    """Returns the text of `--list [KIND [NAME]]`, or of `--list backbones timm [WORD]`.

    Without a kind: a line for each component. With a kind: the first docstring line of each
    component and its arguments with types and defaults. With a name: the whole docstring of that
    component. A word in place of a kind or a name: a line for each component with this word in its
    names or first docstring line. The kinds of _SECTIONS list the keys of the config itself,
    "recipes" the files of configs/, and "protocols" the values of predict.protocol. Raises
    ConfigError for a kind or name that is unknown, and that no line contains.
    """
    if kind is None:
        return "\n\n".join(_lines(one) for one in KINDS) \
            + ("\n\n--list KIND [NAME] prints details; KIND may also be "
               f"{', '.join(_SECTIONS)}\n--list WORD, --list KIND WORD: the lines with that word\n"
               f"--list {RECIPES} [WORD] prints the configs of configs/\n"
               f"--list {PROTOCOLS} [WORD] prints the published ways of predicting\n"
               "--list backbones timm [WORD] prints the encoders of timm")
    if kind == "backbones" and name == "timm":
        return load("models.backbones.timm_list:timm_text")(word)
    if word is not None:
        raise ConfigError(f"--list takes a KIND and a NAME, found {kind} {name} {word}")
    if kind == RECIPES:
        return _recipes(name or "")
    if kind == PROTOCOLS:
        return load("utils.predict.protocols:protocols_text")(name)
    if kind in _SECTIONS:
        return _describe_section(kind)
    if kind not in KINDS:
        return _found(kind)
    if name is not None:
        classes = _classes(kind)
        exact = _spelled(name, classes)
        if exact is not None:
            return _describe_class(kind, exact, classes[exact])
        text = _lines(kind, name)
        if not text:
            raise ConfigError(unknown("name", name, classes), f"--list {kind}")
        return text
    blocks = [_block(_title(kind, names, cls), cls, _own_fields(kind, cls))
              for names, cls in _grouped(_classes(kind))]
    if kind == "backbones":
        blocks.append(f"timm/NAME\n  {_TIMM}")
    return "\n\n".join(blocks + _shared_blocks(kind) + _beside(kind))


def _found(word: str) -> str:
    """The component of this name, or a line for each that contains the word."""
    for kind in KINDS:
        exact = _spelled(word, classes := _classes(kind))
        if exact is not None:
            return _describe_class(kind, exact, classes[exact])
    text = "\n\n".join(filter(None, (_lines(kind, word) for kind in KINDS)))
    kinds = [*KINDS, *_SECTIONS, RECIPES, PROTOCOLS]
    if not text:
        near = nearest(word, kinds) or nearest(word, [name for kind in KINDS
                                                      for name in _classes(kind)])
        raise ConfigError(f"{word!r} is not a kind of component, and no name or description "
                          "contains it." + (f" Did you mean {near!r}?" if near else ""), "--list",
                          f"kinds: {', '.join(kinds)}")
    return text + "\n\n--list NAME prints the details of one"


def _spelled(name: str, known: Mapping[str, type]) -> str | None:
    """The known name that is `name`, or the only one that differs just in upper and lower case."""
    alike = [one for one in known if one.lower() == name.lower()]
    return name if name in known else alike[0] if len(alike) == 1 else None


def _lines(kind: str, word: str = "") -> str:
    """A line for each component of a kind that contains `word`, below the kind; "" if none does."""
    rows = [(_title(kind, names, cls), _first_line(cls)) for names, cls in _grouped(_classes(kind))]
    if kind == "backbones":
        rows.append(("timm/NAME", _TIMM))
    lines = []
    for title, text in rows:
        if word.lower() not in f"{title} {text}".lower():
            continue
        if len(title) >= _COLUMN:
            lines += [_wrapped(title)]
            title = ""
        lines.append(f"  {title:<{_COLUMN}}{text}".rstrip())
    return f"{kind}:\n" + "\n".join(lines) if lines else ""


def _title(kind, names, cls):
    """The names of a class: its own with its aliases in parentheses; of a backbone, all."""
    if cls.__name__ not in names or len(names) == 1:
        return ", ".join(names)
    others = ", ".join(name for name in names if name != cls.__name__)
    return f"{cls.__name__} (or {others})"


def json_schema() -> dict:
    """Returns the JSON Schema (draft 2020-12) of a config file, for editors.

    It accepts a component without its required arguments, because a file that extends another
    may take them from there; resolve_config does not accept it.
    """
    definitions: dict[str, dict] = {}
    schema = _object(fields(config_keys), definitions)
    _describe(schema, config_keys)
    stage = {"type": "object", "additionalProperties": False, "properties": {
        name: {"$ref": f"#/properties/{name}"} for name in (*schema["properties"], "extends")}}
    schema["properties"] |= {
        "$schema": {"type": "string"},
        "extends": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                    "description": "configs that this one changes, relative to this file"},
        "stages": {"type": "array", "minItems": 1, "items": stage,
                   "description": "trainings in turn (docs/training.md)"},
        SECTION: {**_object(fields(published_section), definitions),
                  "description": "the published scores that this file reproduces"}}
    required = [name for name, field in fields(config_keys).items() if field.required]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Segwright config", **schema,
            "anyOf": [{"required": ["extends"]}, {"required": ["stages"]},
                      {"required": required}],
            "$defs": definitions}


def side_command(args: argparse.Namespace):
    """Run --list, --schema or --init of train.py; the result goes to stdout."""
    if args.init:
        from utils.config.first_config import make_config
        make_config(args.images, args.labels, args.init, args.group_by, args.folds)
    elif args.schema:
        print(json.dumps(json_schema(), indent=2))
    else:
        print(list_text(*args.list))


def _recipes(word: str) -> str:
    """A line per recipe whose path, data, network, source or stage contains `word`.

    Its columns: file, published scores, data of each stage, network. A single one is described.
    """
    rows, recipes = [], {path.stem for path in recipe_files()}
    for path in recipe_files():
        stages = load_stages(path)
        published = stages.published
        arch = stages[-1].get("arch", {})
        args = arch.get("args", {})
        data = " -> ".join(_data(stage.get("train_loader", {})) for stage in stages)
        row = [short_path(path), published.score if published else "-", data,
               f"{arch.get('type')} {args.get('backbone') or args.get('variant', '')}".rstrip()]
        names = [str(stage.get("name")) for stage in stages]
        words = [str(path.relative_to(FOLDER)), *row[1:], published.source if published else "",
                 *(name for name in names if name not in recipes)]
        if any(word.lower() in text.lower() for text in words):
            rows.append((row, names, published))
    if not rows:
        raise ConfigError(unknown("recipe", word, [path.stem for path in recipe_files()]),
                          f"--list {RECIPES}", f"--list {RECIPES} prints all")
    widths = [max(len(row[column]) for row, *_ in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)),
                        row[3]]) for row, *_ in rows]
    if len(rows) == 1:
        _, names, published = rows[0]
        lines += [f"  stages      {', '.join(names)}"] if len(names) > 1 else []
        lines += _published(published) if published else []
    return "\n".join(lines)


def _data(loader: dict) -> str:
    """The datasets of a loader section: its type, or those of the parts of a mixture."""
    args = loader.get("args", {})
    inside = args.get("parts") or ([args["source"]] if "source" in args else [loader])
    return " + ".join(str(one.get("type")) for one in inside)


def _published(published) -> list[str]:
    lines = [f"  source      {published.source}"]
    for result in published.results:
        lines.append(f"  published   {result_text(result)}"
                     + (f": {result['name']}" if result["name"] else "")
                     + (f", test.py {result['test']}" if result["test"] else ""))
    lines += [f"  {key:<12}{getattr(published, key)}" for key in ("checkpoint", "loader", "gpus")
              if getattr(published, key) is not None]
    return lines


def _object(schema: Mapping[str, Field], definitions: dict[str, dict]) -> dict[str, Any]:
    """The JSON Schema of an object with the keys of `schema`."""
    properties = {}
    for name, field in schema.items():
        section = next(filter(None, map(section_of, field.annotations)), None)
        if section:
            forms = [_section_schema(section, definitions)]
            forms += [{"type": "null"}] if field.fits(None) else []
        else:
            forms = [annotation_schema(one) for one in field.annotations]
        properties[name] = dict(forms[0]) if len(forms) == 1 else \
            {"anyOf" if section else "allOf": forms}
        try:
            properties[name]["default"] = json_default(field.default)
        except TypeError:
            pass        # required, or a default that JSON cannot hold
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _describe(schema, *functions):
    """Add what the docstrings of the functions say about each key ("key: text") to a schema."""
    properties = schema["properties"]
    for function in functions:
        parts = re.split(rf"(?:(?<=\. )|(?<=\n)|(?<=; ))({'|'.join(properties)}):\s+",
                         inspect.getdoc(_documented(function)) or "")
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            text = " ".join(text.partition("\n\n")[0].split())
            properties[name].setdefault("description", text)
    return schema


def _section_schema(section, definitions):
    if isinstance(section, Keys):
        return _describe(_object(section.fields(), definitions), *map(load, section.functions))
    if isinstance(section, Entries):
        return {"type": "array", "items": _object(section.keys.fields(), definitions)}
    if isinstance(section, Components):
        return {"type": "array", "items": _component_schema(section.item, definitions)}
    if isinstance(section, Loss):
        one = _component_schema(LOSS, definitions)
        outputs = {"type": "object", "additionalProperties": one, "minProperties": 1,
                   "propertyNames": {"not": {"enum": ["type", "args"]}}}
        return {"anyOf": [one, outputs, {"type": "array", "items": one}]}
    return _component_schema(section, definitions)


def _component_schema(section: Component, definitions):
    """A reference to the definition of a section {"type", "args"}, which is added if missing."""
    name = section.name
    if name in definitions:
        return {"$ref": f"#/$defs/{name}"}
    definitions[name] = {}      # added first, because a loss that holds losses refers to itself
    known = sorted(components(section.kind))
    schema = _object(section.extra, definitions)
    schema["properties"] |= {"type": {"enum": known}, "args": {"type": "object"}}
    schema["allOf"] = [_arguments_schema(section, definitions)]
    definitions[name] = {"anyOf": [{"enum": known}, schema]} if section.short else schema
    return {"$ref": f"#/$defs/{name}"}


def _arguments_schema(section, definitions):
    """A reference to the rule that "args" holds the arguments of the class named by "type"."""
    kind, name = section.kind, f"arguments_of_{section.role}"
    if name not in definitions:
        definitions[name] = {}      # added first, as above
        cases = []
        for names, cls in _grouped(dict(sorted(components(kind).items()))):
            args = _object(section.fields(cls)[0], definitions)
            args["description"] = _first_line(cls)
            if kind == "losses" and "losses" in args["properties"]:
                args["properties"]["losses"] = {"type": "array",
                                                "items": _component_schema(MIXED, definitions)}
            cases.append({"if": {"properties": {"type": {"enum": names}}, "required": ["type"]},
                          "then": {"properties": {"args": args}}})
        definitions[name] = {"allOf": cases}
    return {"$ref": f"#/$defs/{name}"}


def _describe_section(kind):
    if kind == "config":
        return _block("config", config_keys, fields(config_keys))
    section = section_of(fields(config_keys)[kind].annotations[0])
    assert isinstance(section, Keys), kind
    return "\n\n".join(_block(kind, _documented(function), fields(function), whole=True)
                       for function in map(load, section.functions))


def _documented(function):
    """The callable that documents the arguments: for a class, the one that defines __init__."""
    ancestors = function.__mro__ if inspect.isclass(function) else [function]
    return next((one for one in ancestors if "__init__" in vars(one)), function)


def _describe_class(kind, name, cls):
    # The docstrings of torch's classes are long and contain TeX.
    blocks = [_block(name, cls, _own_fields(kind, cls),
                     whole=not cls.__module__.startswith("torch."))]
    outputs = getattr(cls, "output_weights", None)
    if isinstance(outputs, dict):
        blocks.append("outputs and their weights in the loss: "
                      + ", ".join(f"{one} {weight}" for one, weight in outputs.items()))
    return "\n\n".join(blocks + _shared_blocks(kind) + _beside(kind))


def _shared_blocks(kind):
    """The arguments that other callables add to the "args" of every component of a kind."""
    shared = section_callables(kind, None)[1:]
    blocks = [_block("", function, fields(function, leave_out=PROVIDED[kind])).lstrip("\n")
              for function in shared]
    return [f"common to all {kind}:", *blocks] if blocks else []


def _beside(kind):
    """The keys that a section of a kind may have beside "type" and "args"."""
    extra = {"schedulers": SCHEDULE, "optimizers": OPTIMIZER}.get(kind)
    if extra is None:
        return []
    assert extra.entry, kind
    blocks = [_block('beside "type" and "args"', extra.entry, extra.extra, whole=True)]
    for name, field in extra.extra.items():
        section = next(filter(None, map(section_of, field.annotations)), None)
        keys = section.keys if isinstance(section, Entries) else section
        if isinstance(keys, Keys):
            blocks += [_block(name, load(one), fields(load(one)), whole=True)
                       for one in keys.functions]
    return blocks


def _block(title: str, function: Callable, schema: Mapping[str, Field], whole: bool = False) -> str:
    """A title, the first line of the docstring or (whole) all of it, and a table of arguments."""
    doc = inspect.getdoc(function) or ""
    doc = doc if whole else _first_line(function)
    rows = [(name, field.expected, "required" if field.required else f"= {_default(field)}")
            for name, field in schema.items()]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [title, *(f"  {line}".rstrip() for line in doc.splitlines())]
    lines += [f"    {name:<{widths[0]}}  {expected:<{min(widths[1], 40)}}  {default}"
              for name, expected, default in rows]
    return "\n".join(lines)


def _default(field):
    if field.default is UNSET:
        return "not set"
    try:
        return json.dumps(json_default(field.default))
    except TypeError:
        return "set by the program"


def _own_fields(kind, cls):
    schema, _ = Component(kind).fields(cls)
    own = fields(cls)
    return {name: field for name, field in schema.items() if name in own}


def _classes(kind):
    """name -> class, in alphabetical order; backbones by the names that a model accepts."""
    if kind == "backbones":
        found = {name: cls for cls in components(kind).values() for name in cls.aliases}
        return dict(sorted(found.items()))
    return dict(sorted(components(kind).items()))


def _grouped(classes):
    """(all names of the class, class) for every class."""
    groups = {}
    for name, cls in classes.items():
        groups.setdefault(cls, []).append(name)
    return [(names, cls) for cls, names in groups.items()]


def _wrapped(text):
    return textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="  ",
                         break_long_words=False, break_on_hyphens=False)


def _first_line(function):
    return (inspect.getdoc(function) or "").partition("\n")[0]
