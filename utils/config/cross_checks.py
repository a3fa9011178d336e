"""Checks between keys, and of value ranges.

They need no data and no network: class attributes are compared with the rest of the config.
"""
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config.registry import components, load
from utils.config.signature import KeyPath, converted, fields, json_default, value_name
from utils.errors import ConfigError, unknown

if TYPE_CHECKING:
    from utils.config.schema import Mistakes

LOADERS = ("train_loader", "val_loader", "test_loader")
_PART = "dataloader.mixture:part_entry"
_TRAINER = ("base.trainer_settings:TrainerSettings",)
_LOADER = ("dataloader.augmentation.transforms:Augmentation", "dataloader.loader:build_loader")
_RULES, _PREDICTOR = "utils.decision.rules:predict_section", "utils.predict.predictor:Predictor"
_INPUT_SIZE = "utils.images.input_size:InputSize"


class _Condition(NamedTuple):
    """`keys` have an effect only if `holds` is true of their section; `otherwise`: why not.

    A key at its default was perhaps never given, so only other values count.
    """

    keys: tuple[str, ...]
    holds: Callable[[dict], Any]
    otherwise: str


_OF_TRAINER = (
    _Condition(("monitor",), lambda s: s["val"] or s["monitor"] == "off", "val is false"),
    _Condition(("early_stop",), lambda s: s["val"] and s["monitor"] != "off",
               'val is false or monitor is "off"'),
    _Condition(("val_per_iterations",), lambda s: s["val"], "val is false"),
    _Condition(("keep",), lambda s: s["save_period"], "save_period is 0"),
    _Condition(("max_skipped",), lambda s: s["nonfinite"] == "skip", 'nonfinite is "stop"'),
    _Condition(("finetune_exclude",), lambda s: s["finetune_from"], "finetune_from is null"),
    _Condition(("log_dir",), lambda s: s["tensorboard"], "tensorboard is false"),
)
_OF_LOADER = (
    _Condition(("prefetch_factor", "timeout"), lambda s: s["num_workers"], "num_workers is 0"),
    _Condition(("scale", "flip", "vflip", "rot90", "rotate", "blur"), lambda s: s["augment"],
               "augment is false"),
    _Condition(("base_size",), lambda s: not (s["val"] and s["crop_size"]),
               "val cuts the crop out of the image resized to crop_size"),
)
_OF_RULES = (
    _Condition(("theta", "amplitude"),
               lambda s: any(s[phase].endswith("_dep") for phase in ("train", "val", "test")),
               "train, val and test are not rankdice_dep or rankiou_dep; test.py -p rankdice_dep "
               "uses it"),
)


def settings_without_effect(config: dict) -> list[str]:
    """The settings of a resolved config that do nothing in a training, a line per reason.

    They are no mistakes: a config may switch off a part of the one that it extends.
    """
    lines = _idle("trainer", config["trainer"], _OF_TRAINER, _TRAINER)
    for key in ("train_loader", "val_loader"):
        if config[key] and (key == "train_loader" or config["trainer"]["val"]):
            lines += _idle(f"{key}.args", config[key]["args"], _OF_LOADER, _LOADER)
    return lines + _idle("predict", config["predict"], _OF_RULES, (_RULES,))


def _idle(name, settings, conditions, callables):
    defaults = {key: json_default(field.default)
                for key, field in fields(*map(load, callables)).items() if not field.required}
    lines = []
    for keys, holds, otherwise in conditions:
        idle = [f"{name}.{key}" for key in keys
                if not holds(settings) and settings[key] != defaults[key]]
        if idle:
            lines.append(f"{', '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect: "
                         f"{otherwise}")
    return lines


def check_between_keys(config: dict, report: "Mistakes"):
    """Report all contradictions in a resolved config, parts of which may be wrong already."""
    for key, lowest in (("seed", 0), ("n_gpu", 0)):
        if type(config.get(key)) is int and config[key] < lowest:
            report.note((key,), f"expected an int of at least {lowest}, found {config[key]}")
    _check_optimizer(config, report)
    _check_warmup(config, report)
    _check_splits(config, report)
    _check_labels(config, report)
    _check_draws(config, report)
    _check_void(config, report)
    _check_outputs(config, report)
    _check_class_weights(config, report)
    _check_predict(config, report)
    if config.get("val_loader", ...) is None and (config.get("trainer") or {}).get("val") is True:
        report.note(("trainer", "val"), "is true, but there is no val_loader; add one or set it to "
                                        "false")
    _check_loss_weights(config, report)


def check_names(args: dict, path: KeyPath, report: "Mistakes"):
    """Report a backbone or norm of a network that does not exist; names of timm are not checked."""
    for key, names in (("backbone", "models.backbones:backbone_names"),
                       ("norm", "models.layers.norm:norm_names")):
        name = args.get(key)
        if isinstance(name, str) and not (key == "backbone" and name.startswith("timm/")):
            known = load(names)()
            if name not in known:
                report.note((*path, key), unknown(key, name, known))


def names_outputs(section: Any) -> bool:
    """Whether a loss section has the form {"out": ..., "aux": ...}."""
    return isinstance(section, dict) and bool(section) and not {"type", "args"} & set(section)


def _datasets(config: dict) -> Iterator[tuple[KeyPath, Any]]:
    """(path, section) of every dataset: of the loaders, or of the parts of their mixtures."""
    for key in LOADERS:
        section = config.get(key)
        args = section.get("args") if isinstance(section, dict) else None
        parts = args.get("parts") if isinstance(args, dict) else None
        if isinstance(parts, list):
            yield from (((key, "args", "parts", number), part)
                        for number, part in enumerate(parts))
        elif isinstance(section, dict):
            yield (key,), section


def _check_optimizer(config, report):
    section = config.get("optimizer")
    decay = section.get("layer_decay") if isinstance(section, dict) else None
    if isinstance(decay, (int, float)) and not 0 < decay <= 1:
        report.note(("optimizer", "layer_decay"), f"expected a number in (0, 1], found {decay}")


def _check_warmup(config, report):
    """A schedule with a warm-up of its own must not get a second one."""
    section = config.get("lr_scheduler")
    args = section.get("args") if isinstance(section, dict) and section.get("warmup") else None
    for key in ("warmup_epochs", "warmup_steps"):
        if isinstance(args, dict) and args.get(key):
            report.note(("lr_scheduler", "warmup"), f"{section['type']} already warms up: remove "
                                                    f"lr_scheduler.args.{key}, or this section")


def _check_splits(config, report):
    for path, section in _datasets(config):
        splits, args = _class_attribute(section, "datasets", "splits"), section.get("args")
        split = args.get("split") if isinstance(args, dict) else None
        if splits and isinstance(split, str) and split not in splits:
            report.note((*path, "args", "split"), unknown("split", split, splits))


def _check_labels(config, report):
    """Every dataset must have as many classes as the first dataset of the training set."""
    from utils.images.types import IGNORE_INDICES
    counts, first = {}, None
    for path, section in _datasets(config):
        count = _class_attribute(section, "datasets", "num_classes")
        if type(count) is not int:
            continue
        counts[path] = count
        if path[0] == "train_loader" and first is None:
            first = path, section
        elif first and count != counts[first[0]]:
            place, other = first
            what = "the training set" + (f"'s parts[{place[-1]}]" if len(place) > 1 else "")
            report.note((*path, "type"), f"{section['type']} has {count} classes, {what} "
                                         f"{other['type']} has {counts[place]}")
    ignored = config.get("ignore_index")
    if type(ignored) is int and ignored not in IGNORE_INDICES:
        report.note(("ignore_index",), f"{ignored} does not fit 32 bits; expected "
                                       f"{IGNORE_INDICES[0]} to {IGNORE_INDICES[-1]}")
    if type(ignored) is int and 0 <= ignored < max(counts.values(), default=0):
        report.note(("ignore_index",), f"{ignored} is a class of the dataset (0 to "
                                       f"{max(counts.values()) - 1}); expected another value")


def _check_draws(config, report):
    """Evaluation uses every image, so only training can draw from the parts of a mixture."""
    for path, section in _datasets(config):
        for key in fields(load(_PART)) if path[0] != "train_loader" and len(path) > 1 else ():
            if isinstance(section, dict) and section.get(key) is not None:
                report.note((*path, key), "has an effect in training only; remove it")


def _check_outputs(config, report):
    """The outputs that a loss names must be outputs of the model, if its class declares them."""
    section = config.get("loss")
    outputs = _static(config, "arch", "models", "output_weights")
    base = load("base.base_model:BaseModel")
    if not isinstance(outputs, dict) or outputs is base.output_weights:
        return      # set by the constructor: the criterion checks the built model
    if isinstance(section, list) and len(section) > len(outputs):
        report.note(("loss",), f"{len(section)} losses; {config['arch']['type']} has "
                               f"{len(outputs)} outputs: {', '.join(outputs)}")
    if names_outputs(section):
        for entry in section:
            for name in entry.split("+"):
                if name not in outputs:
                    report.note(("loss", entry), unknown("output", name, outputs))


def _check_loss_weights(config, report):
    weights, loss = config.get("loss_weights"), config.get("loss")
    if weights is None:
        return
    if not isinstance(loss, list):
        report.note(("loss_weights",), "has an effect only when loss is a list; write \"weight\" "
                                       "next to \"type\" in each loss")
    elif isinstance(weights, list) and len(weights) != len(loss):
        report.note(("loss_weights",), f"expected {len(loss)} weights, one per loss, found "
                                       f"{len(weights)}")


def _check_class_weights(config, report):
    """Every list of class weights in the losses must have one entry per training class."""
    count = _static(config, "train_loader", "datasets", "num_classes")
    if type(count) is not int:
        loader = config.get("train_loader")
        args = loader.get("args") if isinstance(loader, dict) else None
        count = args.get("num_classes") if isinstance(args, dict) else None
    if type(count) is not int:
        return
    count += bool(_train_void(config, "train_loader"))
    for key in ("loss", "val_loss"):
        for path, args in _arguments_in(config.get(key), (key,)):
            weights = args.get("weight")
            if isinstance(weights, list) and len(weights) != count:
                report.note((*path, "weight"), f"expected {count} numbers, one per class, found "
                                               f"{len(weights)}")


def _arguments_in(section, path):
    """(path, "args") of every section inside a loss."""
    if isinstance(section, list):
        for number, item in enumerate(section):
            yield from _arguments_in(item, (*path, number))
    elif isinstance(section, dict):
        for key, item in section.items():
            if key == "args" and isinstance(item, dict):
                yield (*path, key), item
            yield from _arguments_in(item, (*path, key))


def _check_predict(config, report):
    """Construct the decision rules and the predictor to find the settings that they reject."""
    predict = config.get("predict", {})
    protocols, name = load("utils.predict.protocols:PROTOCOLS"), predict.get("protocol")
    if isinstance(name, str) and name not in protocols:
        report.note(("predict", "protocol"), unknown("protocol", name, protocols))
    options, predictor, size = load(_RULES), load(_PREDICTOR), load(_INPUT_SIZE)
    known = fields(options, predictor, size)
    if not all(name in predict and field.fits(predict[name]) for name, field in known.items()):
        return
    _check_classes_of_interest(predict["CoI"], config, report)
    build_decision = load("utils.decision.rules:build_decision")
    given = [{name: converted(predict[name], field.annotations)
              for name, field in fields(function).items()}
             for function in (options, predictor, size)]

    def whole_predictor():
        seen_at = size(**given[2])
        _check_read_once(seen_at, config, report)
        predictor(None, None, **given[1], seen_at=seen_at if seen_at.active else None)
    constructions = [lambda: options(**given[0]), whole_predictor]
    constructions += [lambda phase=phase: build_decision(predict[phase], options=predict)
                      for phase in ("train", "val", "test")]
    messages = set()
    for construct in constructions:
        try:
            construct()
        except ConfigError as error:
            if error.what not in messages:
                messages.add(error.what)
                key = (error.where or error.what.split(" ")[0]).rpartition(".")[2]
                report.note(("predict", key) if key in known else ("predict",), error.what)


def _check_read_once(seen_at, config, report):
    """An image that the loader of the validation resizes must not be resized a second time."""
    loader, trainer = config.get("val_loader"), config.get("trainer") or {}
    size = load("utils.config.loader_section:read_size")(loader) if seen_at.active else None
    if size is not None and trainer.get("val"):
        report.note(("predict", "input_size"), "the val_loader already resizes images and labels "
                    f"to {size}; remove base_size, val and crop_size there, or "
                    f"{', '.join(seen_at.describe())} here")


def _train_void(config, loader):
    args = (config.get(loader) or {}).get("args")
    return isinstance(args, dict) and args.get("train_void") is True


def _check_void(config, report):
    """Every loader must have the class void or none, and no score may average over it."""
    given = {key: _train_void(config, key) for key in LOADERS if config.get(key)}
    if not any(given.values()):
        return
    for key in (key for key, value in given.items() if not value):
        report.note((key, "args", "train_void"), "expected true, as in the other loaders")
    if isinstance(predict := config.get("predict"), dict) and predict.get("CoI") == "all":
        count = _static(config, "train_loader", "datasets", "num_classes")
        last = count - 1 if type(count) is int else "N"
        report.note(("predict", "CoI"), "train_void adds the class void, over which no score "
                                        f"averages: list the others, [0, 1, …, {last}]")


def _check_classes_of_interest(classes, config, report):
    count = _static(config, "train_loader", "datasets", "num_classes")
    limit = count if type(count) is int else float("inf")
    if isinstance(classes, str) and classes != "all":
        report.note(("predict", "CoI"), f'expected "all" or a list of classes, found {classes!r}')
    elif isinstance(classes, list):
        wrong = [one for one in classes if type(one) is not int or not 0 <= one < limit]
        if wrong or not classes:
            bound = f" from 0 to {limit - 1}" if type(count) is int else ""
            report.note(("predict", "CoI"), f"expected classes{bound}, found "
                                            f"{', '.join(map(value_name, wrong)) or 'none'}")
        elif len(set(classes)) < len(classes):
            twice = next(one for one in classes if classes.count(one) > 1)
            report.note(("predict", "CoI"), f"expected different classes, found {twice} twice")


def _static(config, key, kind, attribute):
    """A class attribute of the component that a section names, or None."""
    return _class_attribute(config.get(key), kind, attribute)


def _class_attribute(section, kind, attribute):
    name = section.get("type") if isinstance(section, dict) else None
    cls = components(kind).get(name) if isinstance(name, str) else None
    return getattr(cls, attribute, None)
