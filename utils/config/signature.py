"""Reads annotated signatures as a schema: the keys, their types and their defaults.

The values come from JSON. A bool is not an int, and a string is never read as a number; an int is
accepted for a float, a list for a tuple; NaN and infinity are not accepted.
"""
import collections.abc
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = inspect.Parameter.empty
KeyPath = tuple[str | int, ...]     # ("loss", "losses", 0, "type"): a position in a config
_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_NAMES = {bool: "bool", int: "int", float: "float", str: "string", dict: "object",
          types.NoneType: "null", list: "list", tuple: "list"}
# Names that torch's modules import only for type checkers, needed to evaluate its annotations.
_TYPING_NAMES = {name: getattr(module, name) for module in (typing, collections.abc)
                 for name in module.__all__}


@dataclass(frozen=True)
class Field:
    """One key of a config, as declared by one or several signatures.

    annotations: the type that each signature declares; a value must fit all of them.
    default: that of the first signature; REQUIRED if one of them has no default.
    """

    name: str
    annotations: tuple
    default: Any

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def fits(self, value: Any) -> bool:
        return all(fits(value, annotation) for annotation in self.annotations)

    @property
    def expected(self) -> str:
        return " and ".join(dict.fromkeys(map(type_name, self.annotations)))


def fields(*callables: Callable, leave_out: Iterable[str] = ()) -> dict[str, Field]:
    """The keys of one flat dict with the arguments of all `callables`.

    leave_out: parameters that the program provides, in addition to those of each callable's
    attribute `provided`. If several callables declare a key, a resolved config shows the first
    default.
    """
    found: dict[str, Field] = {}
    for function in callables:
        hidden = {*leave_out, *provided_by(function)}
        for name, (annotation, default) in parameters(function).items():
            if name in hidden:
                continue
            if name in found:
                known = found[name]
                annotations = tuple(dict.fromkeys((*known.annotations, annotation)))
                required = known.required or default is REQUIRED
                found[name] = Field(name, annotations, REQUIRED if required else known.default)
            else:
                found[name] = Field(name, (annotation,), default)
    return found


def provided_by(function: Callable) -> tuple[str, ...]:
    """The parameters in a callable's attribute `provided`: from the program, not the config."""
    return tuple(getattr(function, "provided", ()))


@functools.cache        # a config asks for the same signatures many times
def parameters(function: Callable) -> Mapping[str, tuple[Any, Any]]:
    """name -> (annotation, default) of all parameters that can be passed by keyword.

    A parameter without annotation accepts any value (typing.Any).
    """
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, localns=_TYPING_NAMES, include_extras=True)
    signature = inspect.signature(target)
    return {name: (hints.get(name, typing.Any), parameter.default)
            for name, parameter in signature.parameters.items()
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD,
                                                     parameter.KEYWORD_ONLY)}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a JSON value is valid for a parameter with this annotation."""
    annotation = _bare(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (typing.Any, object, REQUIRED):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    kind = origin or annotation
    if kind in _SEQUENCES:
        return isinstance(value, (list, tuple)) and _elements_fit(value, kind, inner)
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, dict) and (
            not inner or all(fits(key, inner[0]) and fits(item, inner[1])
                             for key, item in value.items()))
    if annotation in (None, types.NoneType):
        return value is None
    if type(value) is int and not -2 ** 63 <= value < 2 ** 63:
        return False        # tensors and C code cannot hold it
    if annotation is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return annotation in (bool, int, str) and type(value) is annotation


def converted(value: Any, annotations: Iterable) -> Any:
    """`value` with its lists turned into tuples where an annotation declares a tuple."""
    for annotation in annotations:
        value = _convert(value, annotation)
    return value


def type_name(annotation: Any) -> str:
    """The text for users: "float", "list of int", "one of \"bf16\", \"fp16\", false"."""
    annotation = _bare(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (typing.Any, object, REQUIRED):
        return "any value"
    if origin in (typing.Union, types.UnionType):
        names = dict.fromkeys(type_name(choice) for choice in inner if _from_json(choice))
        return " or ".join(names) or "a value that a config cannot hold"
    if origin is typing.Literal:
        choices = ", ".join(map(json.dumps, inner))
        return choices if len(inner) == 1 else f"one of {choices}"
    kind = origin or annotation
    if kind in _SEQUENCES:
        if not inner or inner == ((),):
            return "list"
        if kind is tuple and inner[-1] is not Ellipsis:
            return f"list [{', '.join(map(type_name, inner))}]"
        return f"list of {type_name(inner[0])}"
    return _NAMES.get(types.NoneType if annotation is None else kind,
                      getattr(kind, "__name__", str(kind)))


def literals(annotation: Any) -> list:
    """The values that the Literals inside `annotation` allow."""
    annotation = _bare(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [value for choice in typing.get_args(annotation) for value in literals(choice)]
    return []


def value_name(value: Any) -> str:
    """A value and its type for a message: `"0.01" (string)`."""
    text = json.dumps(json_default(value), ensure_ascii=False)
    text = text if len(text) <= 60 else text[:57] + "..."
    if value is None or isinstance(value, bool):
        return text
    kind = _NAMES.get(type(value), type(value).__name__)
    if type(value) is int and not -2 ** 63 <= value < 2 ** 63:
        kind = "a number of more than 64 bits"
    return f"{text} ({kind})"


def json_default(value: Any) -> Any:
    """A default as a JSON value: tuples become lists. Raises TypeError if that is impossible."""
    if isinstance(value, (list, tuple)):
        return [json_default(item) for item in value]
    if isinstance(value, dict):
        return {str(key): json_default(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} has no JSON form")


def annotation_schema(annotation: Any) -> dict[str, Any]:
    """The JSON Schema of one annotation."""
    annotation = _bare(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (typing.Any, object, REQUIRED):
        return {}
    if origin in (typing.Union, types.UnionType):
        choices = [annotation_schema(choice) for choice in inner if _from_json(choice)]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    kind = origin or annotation
    if kind in _SEQUENCES:
        if not inner or inner == ((),):
            return {"type": "array"}
        if kind is tuple and inner[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [annotation_schema(item) for item in inner],
                    "minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "items": annotation_schema(inner[0])}
    if kind in (dict, collections.abc.Mapping):
        return {"type": "object"}
    if annotation in (None, types.NoneType):
        return {"type": "null"}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    # No JSON value fits the other types, for example a callable.
    return {"type": names[annotation]} if annotation in names else {"not": {}}


def _elements_fit(values, kind, inner):
    if not inner:
        return True
    if kind is tuple and inner[-1] is not Ellipsis:
        wanted = () if inner == ((),) else inner
        return len(values) == len(wanted) and all(map(fits, values, wanted))
    return all(fits(value, inner[0]) for value in values)


def _convert(value, annotation):
    annotation = _bare(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return next((_convert(value, choice) for choice in inner if fits(value, choice)), value)
    if not isinstance(value, (list, tuple)) or (origin or annotation) not in _SEQUENCES:
        return value
    if (origin or annotation) is tuple and inner and inner[-1] is not Ellipsis:
        return tuple(map(_convert, value, inner))
    items = [_convert(item, inner[0]) if inner else item for item in value]
    return tuple(items) if (origin or annotation) is tuple else items


def _from_json(annotation):
    """Whether a JSON value can fit: false for a Tensor or a callable."""
    return "not" not in annotation_schema(annotation)


def _bare(annotation):
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation
