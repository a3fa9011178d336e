"""Builds the components that the sections of a checked config name."""
import copy
from collections.abc import Callable
from typing import Any, TypeVar

from utils.config.registry import components, lookup
from utils.config.schema import section_callables
from utils.config.signature import REQUIRED, converted, fields, parameters
from utils.errors import ConfigError, UserError, unknown

_T = TypeVar("_T")
# kind -> the key of its section in a config, where the two differ.
_SECTIONS = {"models": "arch", "samplers": "sampler"}


def build(kind: str, section: dict | str, **provided: Any) -> Any:
    """Builds the component of a config section {"type": NAME, "args": {...}} or NAME.

    kind: a key of utils.config.registry.KINDS. provided: arguments from the program, such as
    num_classes=11; those that the constructor does not declare are ignored. A model's freeze_bn,
    freeze_backbone and one_logit are applied to the built model, and so is in_channels, the
    number of bands of the images (3 if it is not provided). Raises ConfigError for an unknown
    type, a wrong argument, and a value that the constructor refuses.
    """
    section = {"type": section} if isinstance(section, str) else section
    where = _SECTIONS.get(kind, kind)
    cls = lookup(section["type"], components(kind), f"{where}.type")
    args, *shared = split_args(section, *section_callables(kind, cls))
    if kind == "models" and shared[1].get("one_logit"):
        provided["num_classes"] = _one_channel(provided["num_classes"])
    declared = parameters(cls)
    component = construct(cls, args, f"{where}.args", {
        name: value for name, value in provided.items() if name in declared})
    if kind == "models":
        component.take_channels(provided.get("in_channels", 3), bool(args.get("pretrained")))
        component.freeze(**shared[0]).two_classes(**shared[1]).set_norms(**shared[2])
    return component


def construct(cls: type[_T], args: dict, where: str | None, provided: dict | None = None,
              refusals: tuple[type[Exception], ...] = (ValueError, OverflowError)) -> _T:
    """Returns cls(**args, **provided); every mistake in `args` is a ConfigError.

    args: the arguments of a config; where: their position in it, for messages. provided: the
    arguments of the program, which a config must not set. refusals: the exceptions by which the
    constructor rejects a value. Raises ConfigError for an argument that is unknown, missing or
    rejected; a UserError of the constructor passes unchanged.
    """
    provided = provided or {}
    declared = parameters(cls)
    for name in args:
        if name in provided:
            raise ConfigError(f"{cls.__name__}: {name!r} is set by the program", where,
                              "remove it from the config")
        if name not in declared:
            raise ConfigError(f"{cls.__name__}: "
                              f"{unknown('argument', name, declared.keys() - provided)}", where)
    for name, (_, default) in declared.items():
        if default is REQUIRED and name not in args and name not in provided:
            raise ConfigError(f"{cls.__name__} needs the argument {name!r}", where)
    try:
        return cls(**args, **provided)
    except UserError:
        raise
    except refusals as error:
        raise ConfigError(f"{cls.__name__}: {error or type(error).__name__}", where) from error


def split_args(section: dict, *callables: Callable) -> list[dict]:
    """Splits the flat "args" of a section into one dict of keyword arguments per callable.

    A key goes to every callable that declares it, as a tuple if a tuple is declared. Raises
    ConfigError for a key that no callable declares.
    """
    args = section.get("args") or {}
    schemas = [fields(function) for function in callables]
    for key in args:
        if not any(key in schema for schema in schemas):
            known = {name for schema in schemas for name in schema}
            raise ConfigError(f"{section.get('type')}: {unknown('argument', key, known)}")
    return [{key: converted(copy.deepcopy(value), schema[key].annotations)
             for key, value in args.items() if key in schema} for schema in schemas]


def _one_channel(num_classes):
    if num_classes != 2:
        raise ConfigError(f"one_logit is for two classes; the dataset has {num_classes}",
                          "arch.args.one_logit", "set it to false")
    return 1
