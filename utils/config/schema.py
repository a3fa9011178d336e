"""The schema of a config, and the check of a whole config against it.

Every level is an annotated signature: `config_keys` for the top level, the constructors of the
components for their "args". A section that needs more than a type has one of the classes below in
its annotation. Each of them resolves its part of a config: it adds the defaults and collects the
mistakes.
"""
import copy
import functools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from utils.cli.console import notice
from utils.config.cross_checks import check_between_keys, check_names, names_outputs
from utils.config.registry import STEP_IMPLEMENTATION, components, load
from utils.config.signature import (
    Field,
    KeyPath,
    converted,
    fields,
    json_default,
    literals,
    provided_by,
    value_name,
)
from utils.errors import ConfigError, listed, nearest, short_path, unknown
from utils.files.jsonc import unusable_character

# kind -> parameters that come from the program and must not occur in a config.
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
# kind or role -> callables that share the flat "args" of a section with its class.
SHARED = {
    "models": ("base.base_model:BaseModel.freeze", "base.base_model:BaseModel.two_classes",
               "base.base_model:BaseModel.set_norms"),
    "datasets": ("dataloader.pixel_cache:use_cache",
                 "dataloader.augmentation.transforms:Augmentation",
                 "dataloader.loader:build_loader",
                 "base.base_dataset:BaseDataset.add_void"),
    # Datasets inside a mixture: they take the options that they leave out from the mixture.
    "parts": ("dataloader.pixel_cache:use_cache",
              "dataloader.augmentation.transforms:Augmentation"),
}
# kind or section -> arguments that name a file or folder to read: see Mistakes.find_files.
PATHS = {"datasets": ("data_dir", "classes", "list_file", "annotations", "cache", "targets"),
         "samplers": ("centroids",), "losses": ("class_pixels",), "trainer": ("finetune_from",)}
# Of these, arguments that the dataset also looks for below its data_dir.
_BELOW_DATA_DIR = ("classes", "list_file", "annotations")
_WRITTEN = ("centroids",)       # of PATHS, those that are written if they are missing
# The meaning of "lr_scheduler": null.
CONSTANT = {"type": "ConstantLR", "args": {"factor": 1.0, "total_iters": 0}}
MOST_MISTAKES = 50      # lines of a message
# Names that other programs give to keys, for the suggestion when a key is unknown.
_ALSO_CALLED = {"learning_rate": "lr", "learningrate": "lr", "base_lr": "lr", "init_lr": "lr",
                "wd": "weight_decay", "bs": "batch_size", "n_workers": "num_workers",
                "steps": "iterations", "max_steps": "iterations", "max_iter": "iterations",
                "max_iters": "iterations", "iters": "iterations", "model": "arch",
                "network": "arch", "encoder": "backbone", "criterion": "loss",
                "dataset": "train_loader", "data": "train_loader", "gpus": "n_gpu",
                "devices": "n_gpu", "output_dir": "save_dir", "work_dir": "save_dir",
                "fp16": "amp", "mixed_precision": "amp", "patience": "early_stop",
                "grad_clip": "clip_grad_norm", "checkpoint": "finetune_from"}
_MOST_PLACES = 3        # of a key that is unknown where it was given
# The default of a key that a resolved config contains only if it was given.
UNSET: Any = object()


class Component:
    """A section {"type": NAME, "args": {...}}.

    extra: a function whose parameters are the further keys of the section.
    short: the name alone is a valid section.
    name: the name of its definition in the JSON Schema; None: the kind.
    role: the entry of SHARED to use when it differs from `kind`. Arguments of those callables
        are then in the resolved config only if they were given.
    """

    def __init__(self, kind: str, extra: Callable | None = None, short: bool = False,
                 name: str | None = None, role: str | None = None):
        self.kind, self.short, self.name, self.role = kind, short, name or kind, role or kind
        self.entry, self.extra = extra, fields(extra) if extra else {}

    def resolve(self, value: Any, path: KeyPath, report: "Mistakes") -> dict[str, Any]:
        """The section with its defaults; its mistakes go to `report`."""
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

    def find(self, section: dict, path: KeyPath, report: "Mistakes") -> type | None:
        """The class that the section names; None, and a mistake, if there is none."""
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

    def arguments(self, cls: type, args: dict, path: KeyPath,
                  report: "Mistakes") -> dict[str, Any]:
        """The "args" of a section with the defaults of the class."""
        schema, hidden = self.fields(cls)
        nested = args.get("losses") if self.kind == "losses" else None
        before = len(report.mistakes)
        args = report.find_files(args, path, self.kind)
        resolved = report.keys(args, path, schema, hidden=hidden)
        if isinstance(nested, list) and "losses" in schema:
            resolved["losses"] = [MIXED.resolve(item, (*path, "losses", i), report)
                                  for i, item in enumerate(nested)]
        if self.kind == "models":
            check_names(resolved, path, report)
        only_if_given: Collection[str] = STEP_IMPLEMENTATION if self.kind == "optimizers" else ()
        if self.role != self.kind:
            only_if_given = fields(*section_callables(self.role, cls)[1:])
        resolved = {key: item for key, item in resolved.items()
                    if key in args or key not in only_if_given}
        if hasattr(cls, "check_settings") and len(report.mistakes) == before:
            for problem in cls.check_settings(resolved):
                place, _, text = problem.partition(": ")
                report.note(path, text, place)
        return resolved

    def fields(self, cls: type) -> tuple[dict[str, Field], set[str]]:
        """(the keys of "args", the parameters that the program provides)."""
        functions = section_callables(self.role, cls)
        hidden = set(PROVIDED.get(self.kind, ())).union(*map(provided_by, functions))
        optional = ()
        if self.kind == "schedulers":
            if hasattr(cls, "per_iteration"):
                hidden |= {"total_steps", "steps_per_epoch"}
            optional = load("utils.training.lr_scheduler:FILLED_IN").get(cls.__name__, ())
        schema = fields(*functions, leave_out=hidden)
        for name in optional:   # null: the program computes it from the length of the run
            annotations = tuple(one | None for one in schema[name].annotations)
            schema[name] = Field(name, annotations, None)
        return schema, hidden


class Components:
    """A list of sections {"type": NAME, "args": {...}} or, without a role, of names.

    Without a role a section without mistakes is also constructed once (these kinds cost nothing),
    so that a value which the constructor rejects is reported with its position in the config.
    extra, role: as for a Component.
    """

    def __init__(self, kind: str, extra: Callable | None = None, role: str | None = None):
        self.kind, self.constructs = kind, role is None
        self.item = Component(kind, extra, short=role is None, name=role, role=role)

    def resolve(self, value: Any, path: KeyPath, report: "Mistakes") -> list[dict[str, Any]]:
        """The list with the defaults of its sections; mistakes go to `report`."""
        if not isinstance(value, (list, tuple)):
            report.note(path, f'expected a list of {"names or of " if self.constructs else ""}'
                              f'{{"type": NAME, "args": {{...}}}}, found {value_name(value)}')
            return []
        return [self._resolve_item(item, (*path, i), report) for i, item in enumerate(value)]

    def _resolve_item(self, value, path, report):
        before = len(report.mistakes)
        section = self.item.resolve(value, path, report)
        if self.constructs and len(report.mistakes) == before:
            cls = components(self.kind)[section["type"]]
            schema, _ = self.item.fields(cls)
            try:
                cls(**{key: converted(item, schema[key].annotations)
                       for key, item in section["args"].items()})
            except ValueError as error:
                report.note((*path, "args"), str(error))
        return section


class Keys:
    """A section without "type": its keys are the parameters of `functions`, "module:name" each.

    presets: "module:name" of a function that adds the keys which another key of the section stands
    for.
    """

    def __init__(self, *functions: str, presets: str | None = None):
        self.functions, self.presets = functions, presets

    def resolve(self, value: Any, path: KeyPath, report: "Mistakes") -> dict[str, Any]:
        """The section with its defaults; its mistakes go to `report`."""
        if not report.is_object(value, path, "an object {...}"):
            return {}
        if self.presets:
            value = load(self.presets)(value)
        functions = list(map(load, self.functions))
        hidden = {name for function in functions for name in provided_by(function)}
        before = len(report.mistakes)
        value = report.find_files(value, path, path_name(path))
        resolved = report.keys(value, path, self.fields(), hidden)
        for function in functions:
            if hasattr(function, "check_settings"):
                self._check(function, resolved, path, report, len(report.mistakes) == before)
        return resolved

    def fields(self) -> dict[str, Field]:
        """The keys of the section."""
        return fields(*map(load, self.functions))

    def _check(self, function, resolved, path, report, sound):
        """Report the problems that function.check_settings returns, each as "section.key: text".

        sound: whether no value has a wrong type. Otherwise the default replaces the wrong value,
        and only problems of the other keys are reported.
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


class Entries:
    """A list of sections without "type"; keys: the keys of each."""

    def __init__(self, keys: Keys):
        self.keys = keys

    def resolve(self, value: Any, path: KeyPath, report: "Mistakes") -> list[dict[str, Any]]:
        """The list with the defaults of its sections; mistakes go to `report`."""
        if not isinstance(value, (list, tuple)):
            report.note(path, f"expected a list of objects {{...}}, found {value_name(value)}")
            return []
        return [self.keys.resolve(item, (*path, i), report) for i, item in enumerate(value)]


class Loss:
    """One loss for all outputs, a loss per named output, or a list in output order."""

    def resolve(self, value: Any, path: KeyPath, report: "Mistakes") -> Any:
        """The losses with their defaults, in the form that was given."""
        if isinstance(value, list):
            return [LOSS.resolve(item, (*path, i), report) for i, item in enumerate(value)]
        if not names_outputs(value):
            return LOSS.resolve(value, path, report)
        return {name: LOSS.resolve(item, (*path, name), report) for name, item in value.items()}


WARMUP = Keys("utils.training.warmup:Warmup")
GROUPS = Entries(Keys("utils.training.parameter_groups:ParameterGroup"))
_NONE: list = []


def loss_entry(weight: float = UNSET, target: str = UNSET,
               resize: Literal["logits", "logits_align_corners", "target"] = UNSET):
    """Further keys of a loss section; the model or the loss decides those that are left out."""


def mixed_entry(weight: float = 1.0):
    """Further keys of one loss in a sum."""


def optimizer_entry(differential_lr: bool = False,
                    groups: Annotated[list, GROUPS] = _NONE,
                    no_decay: list[Literal["norm", "bias", "position", "vector"]] = _NONE,
                    layer_decay: float = 1.0):
    """Further keys of the optimizer.

    differential_lr: a tenth of the rate for the backbone. groups: other rates and weight decays
    for parameters by their names, see utils/training/parameter_groups.py. no_decay: kinds of
    parameters without weight decay: of normalization layers, biases, position tables and tokens,
    everything with one axis. layer_decay: the rate of each layer of the backbone as a share of
    that of the layer after it, where the head comes after the last one.
    """


def scheduler_entry(warmup: Annotated[dict | None, WARMUP] = UNSET):
    """Further keys of the schedule.

    warmup: lower rates in the first steps, over any schedule; see utils/training/warmup.py.
    """


LOSS = Component("losses", loss_entry, short=True, name="loss_of_an_output")
MIXED = Component("losses", mixed_entry, short=True, name="loss_in_a_sum")
PREDICT = Keys("utils.decision.rules:predict_section", "utils.predict.predictor:Predictor",
               "utils.images.input_size:InputSize", "utils.predict.protocols:protocol_section",
               presets="utils.predict.protocols:expanded")
OPTIMIZER = Component("optimizers", optimizer_entry, short=True)
SCHEDULE = Component("schedulers", scheduler_entry, short=True)
NORMALIZE = Keys("utils.images.normalize:InputNumbers")

_POLY = {"type": "Poly", "args": {}}
_ALL_DEFAULTS: dict = {}


def config_keys(*, name: str = "segwright", seed: int = 0, deterministic: bool = False,
                n_gpu: int | None = None, use_synch_bn: bool = False,
                arch: Annotated[dict | str, Component("models", short=True)],
                train_loader: Annotated[dict, Component("datasets")],
                val_loader: Annotated[dict | None, Component("datasets")] = None,
                test_loader: Annotated[dict | None, Component("datasets")] = None,
                normalize: Annotated[dict | None, NORMALIZE] = None,
                optimizer: Annotated[dict | str, OPTIMIZER],
                lr_scheduler: Annotated[dict | str | None, SCHEDULE] = _POLY,
                loss: Annotated[str | dict | list, Loss()],
                loss_weights: list[float] | None = None,
                val_loss: Annotated[dict | str | None, Component("losses", short=True)] = None,
                ignore_index: int = 255,
                predict: Annotated[dict, PREDICT] = _ALL_DEFAULTS,
                trainer: Annotated[dict, Keys("base.trainer_settings:TrainerSettings")]):
    """The keys of a config: one training session.

    name: the folder of its runs. seed: the seed of all random numbers. deterministic: the same
    numbers in every run, at some cost in speed. n_gpu: null: all visible GPUs, or the CPU if
    there is none; 0: the CPU. use_synch_bn: batch norms share their statistics over all GPUs.
    val_loader: null: trainer.val is false. normalize: null: by mean and std of the training set.
    lr_scheduler: null: a constant rate. loss_weights: one per output, if loss is a list. val_loss:
    the loss to report in validation; null: the training loss.
    """


def resolve_config(config: dict, source: str = "config") -> dict:
    """Returns the full config: `config` with all defaults.

    source: the name of the config in errors. The result holds only JSON values, and resolving it
    again changes nothing. Raises one ConfigError for all mistakes, with one line per mistake: its
    position, the value found, what was expected, and the nearest known name. Prints one notice if
    files are found relative to the current folder that are not beside the config file.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"expected an object {{...}}, found {value_name(config)}", source)
    load("utils.images.headers:max_pixels")()   # an environment variable, no mistake of the config
    report = Mistakes(source, getattr(config, "places", {}), getattr(config, "typed", {}), config)
    resolved = report.keys(config, (), fields(config_keys))
    if resolved.get("lr_scheduler", ...) is None:
        resolved["lr_scheduler"] = copy.deepcopy(CONSTANT)
    if trains_without_val(config) and isinstance(resolved.get("trainer"), dict):
        resolved["trainer"]["val"] = False
    check_between_keys(resolved, report)
    report.raise_mistakes()
    report.tell_files()
    predict = resolved["predict"]
    predict["label_pairs"] = predict["label_pairs"] or _flip_label_pairs(resolved["train_loader"])
    return resolved


def trains_without_val(config: dict) -> bool:
    """Whether a config as given has no val_loader, and does not say whether to validate."""
    trainer = config.get("trainer")
    return config.get("val_loader") is None and isinstance(trainer, dict) and "val" not in trainer


class Mistakes:
    """Checks keys and values, and collects all mistakes.

    source: the name of the config in errors. places: path of keys -> "file:line" or "command
    line". typed: path of keys -> the text of a value given on the command line. config: the whole
    config, if this is one: a key that is unknown in one place may belong to another.
    """

    def __init__(self, source: str, places: Mapping[KeyPath, str], typed: Mapping[KeyPath, str],
                 config: dict | None = None):
        self.source, self.places, self.typed, self.config = source, places, typed, config
        self.mistakes: list[str] = []
        self._in_current_folder: dict[str, str] = {}        # value -> the key that it is of
        self._two_of_a_name: dict[str, str] = {}            # likewise

    def note(self, path: KeyPath, text: str, within: str = ""):
        """Add a mistake. within: its position below `path`, as "key" or "list[0].key"."""
        place = self.place(path)
        name = f"{path_name(path)}.{within}" if within else path_name(path)
        self.mistakes.append(f"{name or 'top level'}: {text}"
                             + (f" ({place})" if place else ""))

    def place(self, path: KeyPath) -> str | None:
        """The place of the key, of the section around it, or of a key in it; None if unknown."""
        for n in range(len(path), 0, -1):
            if path[:n] in self.places:
                return self.places[path[:n]]
        below = (place for where, place in self.places.items() if where[:len(path)] == path)
        return next(below, None) if path else None

    def find_files(self, args: dict, path: KeyPath, kind: str) -> dict:
        """The arguments at a path, with those of PATHS as the current folder sees them.

        A path in a file is relative to that file; if nothing is there, to the current folder. One
        of the command line, or of a checkpoint's config, is relative to the current folder.
        """
        found = dict(args)
        for name in PATHS.get(kind, ()):
            text, place = args.get(name), self.places.get((*path, name), "")
            folder = os.path.dirname(place.rpartition(":")[0])
            if not folder or not isinstance(text, str) or not text or os.path.isabs(text) \
                    or text.startswith("run:"):
                continue
            beside = short_path(os.path.join(folder, text))
            here = os.path.exists(text)
            if name in _WRITTEN and not here and not os.path.exists(beside):
                # It will be written: its folder decides.
                here = os.path.isdir(os.path.dirname(text) or ".")
                if not os.path.isdir(os.path.dirname(beside) or ".") and here:
                    self._in_current_folder.setdefault(text, path_name((*path, name)))
                    continue
            if os.path.exists(beside) or not here and name not in _BELOW_DATA_DIR:
                found[name] = beside
                others = [text, os.path.join(args.get("data_dir") or "", text)] \
                    if name in _BELOW_DATA_DIR else [text]
                if any(_is_another(one, beside) for one in others):
                    self._two_of_a_name.setdefault(beside, path_name((*path, name)))
            elif here:
                self._in_current_folder.setdefault(text, path_name((*path, name)))
        return found

    def tell_files(self):
        """Print one notice about the files that were only found in the current folder."""
        if self._in_current_folder:
            files = [f"{key} {text}" for text, key in self._in_current_folder.items()]
            notice(f"{self.source}: relative to the current folder, because nothing is there "
                   f"relative to the config: {listed(files, _MOST_PLACES)}")
        if self._two_of_a_name:
            files = [f"{key} {text}" for text, key in self._two_of_a_name.items()]
            notice(f"{self.source}: taken relative to the config, though older versions found "
                   f"another one: {listed(files, _MOST_PLACES)}")

    def raise_mistakes(self):
        """Raise one ConfigError that lists all mistakes, if there are any."""
        if self.mistakes:
            count = len(self.mistakes)
            header = f"{count} mistake{'s' if count > 1 else ''} in {self.source}"
            raise ConfigError(f"{header}\n  " + listed(self.mistakes, MOST_MISTAKES, "\n  "))

    def is_object(self, value: Any, path: KeyPath, expected: str) -> bool:
        """Whether `value` is a dict; otherwise a mistake is added."""
        if isinstance(value, dict):
            return True
        self.note(path, f"expected {expected}, found {value_name(value)}")
        return False

    def keys(self, values: dict, path: KeyPath, schema: Mapping[str, Field],
             hidden: Collection[str] = (), also: Collection[str] = ()) -> dict[str, Any]:
        """Resolve one flat dict of arguments; returns the keys in the order of `schema`.

        hidden: keys that the program provides. also: keys that are valid but resolved elsewhere.
        """
        for key in values:
            if key in hidden:
                self.note((*path, key), "is set by the program; remove it from the config")
            elif key not in schema:
                # Of a file that is no config every key is unknown: the later ones are only counted.
                self.note((*path, key), self._unknown_key(key, path, [*schema, *also])
                          if len(self.mistakes) < MOST_MISTAKES else "unknown key")
        resolved = {}
        for name, field in schema.items():
            if name in values:
                resolved[name] = self.value(values[name], (*path, name), field)
            elif field.required:
                self.note((*path, name), f"missing; expected {_expected(field)}")
            elif field.default is not UNSET and _is_json(field.default):
                resolved[name] = self.value(json_default(field.default), (*path, name), field)
        return resolved

    def value(self, value: Any, path: KeyPath, field: Field) -> Any:
        """Resolve one value: a section gets its defaults; returns a copy."""
        for annotation in field.annotations:
            section = section_of(annotation)
            if section and not (value is None and field.fits(None)):
                return section.resolve(value, path, self)
        if not field.fits(value) and path in self.typed and field.fits(self.typed[path]):
            value = self.typed[path]        # digits for a text key, such as name=50
        wrong = isinstance(value, str) and unusable_character(value)
        if wrong:       # the config of a checkpoint is no JSON text, where this was found before
            self.note(path, f"the text contains {wrong}")
        elif not field.fits(value):
            self.note(path, f"expected {field.expected}, found {value_name(value)}"
                            f"{_hint(value, field)}")
        return copy.deepcopy(value)


    def _unknown_key(self, key, path, known):
        """The message for a key that is not `known` at a path, with what may be meant."""
        key = str(key)
        other = _ALSO_CALLED.get(key.lower(), key)
        elsewhere = self._keys_elsewhere
        here = other if other in known else nearest(key, known)
        if other not in known and other not in elsewhere and not here:
            other = nearest(key, elsewhere) or other
        if other in elsewhere and here != other:
            # Below the same section, if possible: "train_loader.crop_size".
            near = max(_common(place, path) for place in elsewhere[other])
            places = [place for place in elsewhere[other] if _common(place, path) == near]
            names = [("" if len(place) > 1 else "the top-level key ") + path_name(place)
                     for place in places[:_MOST_PLACES]]
            return f"unknown key. Did you mean {' or '.join(names)}?"
        if here:
            return f"unknown key. Did you mean {here!r}?"
        return f"unknown key. Known: {', '.join(sorted(known)) or 'none'}."

    @functools.cached_property
    def _keys_elsewhere(self) -> dict[str, list[KeyPath]]:
        """Key -> its paths, of all keys that the config could have with its components."""
        found: dict[str, list[KeyPath]] = {}
        for path in _known_paths(self.config) if self.config is not None else ():
            found.setdefault(str(path[-1]), []).append(path)
        return found


def _is_another(path, beside):
    """Whether a file exists that is not the one at the path `beside`.

    A path such as "../.." has no name: it exists from everywhere, and says nothing of what was
    meant.
    """
    if not path.strip("./\\"):
        return False
    return os.path.exists(path) and os.path.exists(beside) and not os.path.samefile(path, beside)


def _common(path, other):
    """The number of keys that two paths share at their beginning."""
    same = 0
    while same < min(len(path), len(other)) and path[same] == other[same]:
        same += 1
    return same


def _known_paths(config: dict) -> Iterator[KeyPath]:
    """The paths of the keys of a config, and of its sections with the components they name."""
    for name, field in fields(config_keys).items():
        yield (name,)
        section = next(filter(None, map(section_of, field.annotations)), None)
        section = LOSS if isinstance(section, Loss) else section
        value = config.get(name)
        value = {"type": value} if isinstance(value, str) else value
        if isinstance(section, Keys):
            yield from ((name, key) for key in section.fields())
        elif isinstance(section, Component) and isinstance(value, dict):
            yield from ((name, key) for key in section.extra)
            cls = components(section.kind).get(str(value.get("type")))
            yield from ((name, "args", key) for key in (section.fields(cls)[0] if cls else ()))


def _flip_label_pairs(section):
    """[[left, right], ...]: the classes of a loader's dataset that a mirrored image exchanges.

    Done here because inference.py has the config but never opens the dataset.
    """
    first, *_ = section["args"].get("parts") or [section]       # parts: of a mixture
    cls = components("datasets").get(first["type"])
    return [list(pair) for pair in getattr(cls, "flip_label_pairs", ())]


def section_callables(kind: str, cls: Any) -> list[Callable]:
    """The class of a section and the callables that share its "args". kind: or a role."""
    return [cls, *map(load, SHARED.get(kind, ()))]


def section_of(annotation: Any) -> Component | Components | Keys | Entries | Loss | None:
    """The section object (of one of the classes above) in an annotation, or None."""
    if get_origin(annotation) is Annotated:
        return next((one for one in annotation.__metadata__
                     if isinstance(one, (Component, Components, Keys, Entries, Loss))), None)
    # Python 3.10 wraps the annotation of a parameter with default None once more.
    return next(filter(None, map(section_of, get_args(annotation))), None)


def path_name(path: KeyPath) -> str:
    """("loss", "losses", 0, "type") -> "loss.losses[0].type"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".")


def _expected(field):
    sections = [section_of(annotation) for annotation in field.annotations]
    if any(isinstance(section, (Component, Loss)) for section in sections):
        return '{"type": NAME, "args": {...}}'
    return field.expected


def _hint(value, field):
    """A suggestion for a value of the wrong type, or ""."""
    choices = [one for annotation in field.annotations for one in literals(annotation)]
    if "auto" in choices and str(value).lower() in ("true", "on", "yes"):
        return '. Write "auto"'
    if isinstance(value, str):
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
        json.dumps(json_default(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
