"""What a config may say, and the check of a whole config against it.

`experiment` is the schema of the top level, and the constructors of the
components are the schema of their "args": every level is an annotated
signature. Sections that need more than a type carry one of the classes below
in their annotation; each resolves its part of a config: defaults written out,
mistakes noted.
"""
import copy
import json
from typing import Annotated, Literal, get_args, get_origin

from utils.config_checks import check_across, check_backbone, names_outputs
from utils.errors import ConfigError
from utils.registry import components, load, nearest, unknown
from utils.signature import Field, as_json, converted, fields, literals, provided_by, value_name

# Parameters that the program fills in; a config may not.
PROVIDED = {
    "models": ("num_classes", "ignore_index", "seed"),
    "backbones": ("name",),
    "datasets": ("dataset", "augmentation", "ignore_index", "seed", "rank", "world_size",
                 "training"),
    "batch_transforms": ("num_classes",),
    "losses": ("ignore_index",),
    "optimizers": ("params",),
    "schedulers": ("optimizer", "last_epoch"),
}
# Callables that share the flat "args" of a section with its class.
SHARED = {
    "models": ("base.base_model:BaseModel.freeze", "base.base_model:BaseModel.two_classes"),
    "datasets": ("dataloader.pixel_cache:use_cache", "dataloader.transforms:Augmentation",
                 "dataloader.loader:build_loader"),
    # Datasets inside a mixture: what they leave out, the mixture says for all.
    "parts": ("dataloader.pixel_cache:use_cache", "dataloader.transforms:Augmentation"),
}
# How torch computes a step is no part of a recipe: the defaults differ between
# machines and versions, so a resolved config leaves them to the program.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# What "lr_scheduler": null stands for.
CONSTANT = {"type": "ConstantLR", "args": {"factor": 1.0, "total_iters": 0}}
_UNSET = object()       # the default of a key that is left out of the resolved config


class Component:
    """A section {"type": NAME, "args": {...}}.

    extra: a function whose parameters are the section's further keys.
    short: the name alone serves for a section without args.
    name: of its definition in the JSON Schema, where it is not the kind's only form.
    role: whose callables share the args (see SHARED), where it is not the kind's; a
        resolved config then holds of theirs only what was given.
    """

    def __init__(self, kind: str, extra=None, short: bool = False, name: str | None = None,
                 role: str | None = None):
        self.kind, self.short, self.name, self.role = kind, short, name or kind, role or kind
        self.extra = fields(extra) if extra else {}

    def resolve(self, value, path, report):
        if self.short and isinstance(value, str):
            value = {"type": value}
        if not report.is_object(value, path, f'{{"type": NAME, "args": {{...}}}}'
                                             f'{" or a name" if self.short else ""}'):
            return {}
        rest = {key: item for key, item in value.items() if key not in ("type", "args")}
        extra = report.keys(rest, path, self.extra, also=("type", "args"))
        cls = self.find(value, path, report)
        args = value.get("args", {})
        if report.is_object(args, (*path, "args"), "an object with the arguments") and cls:
            args = self.arguments(cls, args, (*path, "args"), report)
        return {"type": value.get("type"), "args": args, **extra}

    def find(self, section, path, report):
        """The class that the section names, or None."""
        known, name = components(self.kind), section.get("type")
        if "type" not in section:
            report.note(path, f'missing key "type". Known: {", ".join(sorted(known))}.')
        elif not isinstance(name, str):
            report.note((*path, "type"), f"expected a name, found {value_name(name)}")
        elif name not in known:
            report.note((*path, "type"), unknown("type", name, known))
        else:
            return known[name]
        return None

    def arguments(self, cls, args, path, report):
        schema, hidden = self.fields(cls)
        nested = args.get("losses") if self.kind == "losses" else None
        before = len(report.mistakes)
        resolved = report.keys(args, path, schema, hidden=hidden)
        if isinstance(nested, list) and "losses" in schema:
            resolved["losses"] = [MIXED.resolve(item, (*path, "losses", i), report)
                                  for i, item in enumerate(nested)]
        if self.kind == "models" and isinstance(resolved.get("backbone"), str):
            check_backbone(resolved["backbone"], (*path, "backbone"), report)
        unsaid = _IMPLEMENTATION if self.kind == "optimizers" else ()
        if self.role != self.kind:
            unsaid = fields(*section_callables(self.role, cls)[1:])
        resolved = {key: item for key, item in resolved.items()
                    if key in args or key not in unsaid}
        if hasattr(cls, "check_settings") and len(report.mistakes) == before:
            for problem in cls.check_settings(resolved):
                place, _, text = problem.partition(": ")
                report.note(path, text, place)
        return resolved

    def fields(self, cls) -> tuple[dict[str, Field], set]:
        """(the keys of "args", the parameters that the program provides)."""
        functions = section_callables(self.role, cls)
        hidden = set(PROVIDED.get(self.kind, ())).union(*map(provided_by, functions))
        optional = ()
        if self.kind == "schedulers":
            if hasattr(cls, "per_iteration"):
                hidden |= {"total_steps", "steps_per_epoch"}
            optional = load("utils.lr_scheduler:PROVIDED").get(cls.__name__, ())
        schema = fields(*functions, leave_out=hidden)
        for name in optional:   # null: the program knows the length of the run
            annotations = tuple(one | None for one in schema[name].annotations)
            schema[name] = Field(name, annotations, None)
        return schema, hidden


class Components:
    """A list of sections {"type": NAME, "args": {...}}, each as a Component's, or a name.

    Without a role, for kinds that are made at no cost: a section without mistakes is made
    once, so that a value its constructor refuses is noted here, with its path.
    extra, role: as those of a Component; such sections have no short form.
    """

    def __init__(self, kind: str, extra=None, role: str | None = None):
        self.kind, self.made = kind, role is None
        self.item = Component(kind, extra, short=role is None, name=role, role=role)

    def resolve(self, value, path, report):
        if not isinstance(value, (list, tuple)):
            report.note(path, f'expected a list of {{"type": NAME, "args": {{...}}}}, found '
                              f"{value_name(value)}")
            return []
        return [self._resolve_item(item, (*path, i), report) for i, item in enumerate(value)]

    def _resolve_item(self, value, path, report):
        before = len(report.mistakes)
        section = self.item.resolve(value, path, report)
        if self.made and len(report.mistakes) == before:
            cls = components(self.kind)[section["type"]]
            schema, _ = self.item.fields(cls)
            try:
                cls(**{key: converted(item, schema[key].annotations)
                       for key, item in section["args"].items()})
            except ValueError as error:
                report.note((*path, "args"), str(error))
        return section


class Keys:
    """A section without "type": its keys are the parameters of the given callables."""

    def __init__(self, *functions: str):
        self.functions = functions

    def resolve(self, value, path, report):
        if not report.is_object(value, path, "an object {...}"):
            return {}
        functions = list(map(load, self.functions))
        hidden = {name for function in functions for name in provided_by(function)}
        before = len(report.mistakes)
        resolved = report.keys(value, path, self.fields(), hidden)
        for function in functions:
            if hasattr(function, "check_settings"):
                self._check(function, resolved, path, report, len(report.mistakes) == before)
        return resolved

    def fields(self) -> dict[str, Field]:
        return fields(*map(load, self.functions))

    def _check(self, function, resolved, path, report, sound):
        """Note what the callable's own `check_settings` finds, each as "section.key: text".

        Where a type is wrong already (not `sound`), the default stands in for
        the value, and only what is said of a sound key counts.
        """
        known = self.fields()
        settings = {name: resolved[name] if name in resolved and field.fits(resolved[name])
                    else field.default for name, field in known.items()}
        if any(field.required and settings[name] is field.default
               for name, field in known.items()):
            return
        for problem in function.check_settings(settings):
            place, _, text = problem.partition(": ")
            key = place.rpartition(".")[2]
            if key in known:
                if settings[key] is resolved.get(key):
                    report.note((*path, key), text)
            elif sound:
                report.note(path, text)


class Loss:
    """One loss for all outputs, a loss per named output, or a list in output order."""

    def resolve(self, value, path, report):
        if isinstance(value, list):
            return [LOSS.resolve(item, (*path, i), report) for i, item in enumerate(value)]
        if not names_outputs(value):
            return LOSS.resolve(value, path, report)
        return {name: LOSS.resolve(item, (*path, name), report) for name, item in value.items()}


def loss_entry(weight: float = _UNSET, target: str = _UNSET,
               resize: Literal["logits", "logits_align_corners", "target"] = _UNSET):
    """Keys beside "type" and "args" of a loss; left out, the model or the loss decides."""


def mixed_entry(weight: float = 1.0):
    """Keys beside "type" and "args" of one loss in a sum."""


def optimizer_entry(differential_lr: bool = False):
    """Keys beside "type" and "args": the backbone learns at a tenth of the rate."""


LOSS = Component("losses", loss_entry, short=True, name="loss_of_an_output")
MIXED = Component("losses", mixed_entry, short=True, name="loss_in_a_sum")
PREDICT = Keys("utils.decision:predict_options", "utils.predictor:Predictor")


def experiment(*, name: str = "segwright", seed: int = 0, deterministic: bool = False,
               n_gpu: int | None = None, use_synch_bn: bool = False,
               arch: Annotated[dict, Component("models")],
               train_loader: Annotated[dict, Component("datasets")],
               val_loader: Annotated[dict | None, Component("datasets")] = None,
               test_loader: Annotated[dict | None, Component("datasets")] = None,
               optimizer: Annotated[dict, Component("optimizers", optimizer_entry)],
               lr_scheduler: Annotated[dict | str | None, Component("schedulers", short=True)]
               = {"type": "Poly", "args": {}},
               loss: Annotated[str | dict | list, Loss()],
               loss_weights: list[float] | None = None,
               val_loss: Annotated[dict | str | None, Component("losses", short=True)] = None,
               ignore_index: int = 255,
               predict: Annotated[dict, PREDICT] = {},
               trainer: Annotated[dict, Keys("trainer:Trainer")]):
    """One training session.

    name: the folder of its runs. seed: of every random number. deterministic:
    the same numbers on every run, at some cost in speed. n_gpu: null takes every
    visible GPU, or the CPU; 0 takes the CPU. use_synch_bn: batch norms share
    statistics over the GPUs. lr_scheduler: null keeps the rate. loss_weights: where
    loss is a list. val_loss: the loss reported in validation, where it is another one.
    """


def resolve_config(config: dict, source: str = "config") -> dict:
    """The full config with every default written out.

    source: names the config in errors. ConfigError: one for all mistakes, a
    line each with its path, what was found, what was expected, and the nearest
    match. Whatever `config` says, the result holds only JSON values; the
    resolved config of a resolved config is itself.
    """
    report = Report(source, getattr(config, "places", {}), getattr(config, "typed", {}))
    if not isinstance(config, dict):
        raise ConfigError(f"expected an object {{...}}, found {value_name(config)}", source)
    resolved = report.keys(config, (), fields(experiment))
    if resolved.get("lr_scheduler", ...) is None:
        resolved["lr_scheduler"] = copy.deepcopy(CONSTANT)
    check_across(resolved, report)
    report.raise_mistakes()
    predict = resolved["predict"]
    predict["label_pairs"] = predict["label_pairs"] or _swapped_by_mirrors(resolved["train_loader"])
    return resolved


class Report:
    """Checks keys and values, and collects every mistake.

    places: path -> "file:line" of what a file or the command line says.
    typed: path -> the text of a value given on the command line.
    """

    def __init__(self, source, places, typed):
        self.source, self.places, self.typed = source, places, typed
        self.mistakes = []

    def note(self, path, text, within=""):
        """within: a place below `path`, as "key" or "list[0].key"."""
        place = self.place(path)
        name = f"{path_name(path)}.{within}" if within else path_name(path)
        self.mistakes.append(f"{name or 'top level'}: {text}"
                             + (f" ({place})" if place else ""))

    def place(self, path):
        """Where the key is written, or what encloses it, or else something in it; may be None."""
        for n in range(len(path), 0, -1):
            if path[:n] in self.places:
                return self.places[path[:n]]
        within = (place for where, place in self.places.items() if where[:len(path)] == path)
        return next(within, None) if path else None

    def raise_mistakes(self):
        if self.mistakes:
            count = len(self.mistakes)
            header = f"{count} mistake{'s' if count > 1 else ''} in {self.source}"
            raise ConfigError("\n".join([header, *(f"  {line}" for line in self.mistakes)]))

    def is_object(self, value, path, expected):
        if isinstance(value, dict):
            return True
        self.note(path, f"expected {expected}, found {value_name(value)}")
        return False

    def keys(self, values, path, schema, hidden=(), also=()):
        """Resolve one flat dict of arguments: schema's keys, in the order of the signature.

        hidden: keys the program provides; also: keys that are known and handled elsewhere.
        """
        for key in values:
            if key in hidden:
                self.note((*path, key), "is set by the program; remove it from the config")
            elif key not in schema:
                self.note((*path, key), _unknown_key(key, [*schema, *also]))
        resolved = {}
        for name, field in schema.items():
            if name in values:
                resolved[name] = self.value(values[name], (*path, name), field)
            elif field.required:
                self.note((*path, name), f"missing; expected {_expected(field)}")
            elif field.default is not _UNSET and _is_json(field.default):
                resolved[name] = self.value(as_json(field.default), (*path, name), field)
        return resolved

    def value(self, value, path, field):
        for annotation in field.annotations:
            section = section_of(annotation)
            if section and not (value is None and field.fits(None)):
                return section.resolve(value, path, self)
        if not field.fits(value) and path in self.typed and field.fits(self.typed[path]):
            value = self.typed[path]        # a name such as 50, typed in a shell
        if not field.fits(value):
            self.note(path, f"expected {field.expected}, found {value_name(value)}"
                            f"{_hint(value, field)}")
        return copy.deepcopy(value)


def _swapped_by_mirrors(section):
    """[[left, right], ...] of the dataset of a loader, whose classes name sides of a body.

    Here and not where data is opened: inference.py knows the config alone.
    """
    first, *_ = section["args"].get("parts") or [section]       # of a mixture
    cls = components("datasets").get(first["type"])
    return [list(pair) for pair in getattr(cls, "flip_label_pairs", ())]


def section_callables(kind: str, cls) -> list:
    """The class of a section and the callables that share its "args"."""
    return [cls, *map(load, SHARED.get(kind, ()))]


def section_of(annotation):
    """The Component, Components, Keys or Loss an annotation carries, or None."""
    if get_origin(annotation) is Annotated:
        return next((one for one in annotation.__metadata__
                     if isinstance(one, (Component, Components, Keys, Loss))), None)
    # Python 3.10 wraps the annotation of a parameter with default None once more.
    return next(filter(None, map(section_of, get_args(annotation))), None)


def path_name(path: tuple) -> str:
    """("loss", "losses", 0, "type") -> "loss.losses[0].type"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".")


def _unknown_key(key, known):
    near = nearest(key, known)
    if near:
        return f"unknown key. Did you mean {near!r}?"
    return f"unknown key. Known: {', '.join(sorted(known)) or 'none'}."


def _expected(field):
    sections = [section_of(annotation) for annotation in field.annotations]
    if any(isinstance(section, (Component, Loss)) for section in sections):
        return '{"type": NAME, "args": {...}}'
    return field.expected


def _hint(value, field):
    """How the value was probably meant."""
    if isinstance(value, str):
        choices = [one for annotation in field.annotations for one in literals(annotation)]
        near = nearest(value, [one for one in choices if isinstance(one, str)])
        if near:
            return f". Did you mean {json.dumps(near)}?"
        try:
            meant = json.loads(value.lower())
        except ValueError:
            return ""
        return f". Write {json.dumps(meant)} without quotes" if field.fits(meant) else ""
    if field.fits(str(value)):
        return '. Write it in double quotes'
    return ""


def _is_json(value):
    try:
        json.dumps(as_json(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
