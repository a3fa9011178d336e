"""Mistakes in a config that show only between keys, or in a value's range.

They need neither data nor a network: what a class states is compared with what
the rest of the config says of it.
"""
from utils.errors import ConfigError
from utils.registry import components, load, unknown
from utils.signature import fields, value_name

LOADERS = ("train_loader", "val_loader", "test_loader")
_PART = "dataloader.mixture:part_entry"
_RULES, _PREDICTOR = "utils.decision:predict_options", "utils.predictor:Predictor"


def check_across(config, report):
    """Note every contradiction in a resolved config; parts of it may be wrong already."""
    for key, lowest in (("seed", 0), ("n_gpu", 0)):
        if type(config.get(key)) is int and config[key] < lowest:
            report.note((key,), f"expected an int of at least {lowest}, found {config[key]}")
    _check_splits(config, report)
    _check_labels(config, report)
    _check_draws(config, report)
    _check_outputs(config, report)
    _check_class_weights(config, report)
    _check_predict(config, report)
    if config.get("val_loader", ...) is None and (config.get("trainer") or {}).get("val") is True:
        report.note(("trainer", "val"), "is true, but there is no val_loader; add one or set it to "
                                        "false")
    weights, loss = config.get("loss_weights"), config.get("loss")
    if weights is not None and not isinstance(loss, list):
        report.note(("loss_weights",), "has an effect only when loss is a list; write \"weight\" "
                                       "beside the type of each loss")
    elif isinstance(weights, list) and len(weights) != len(loss):
        report.note(("loss_weights",), f"expected {len(loss)} weights, one per loss, found "
                                       f"{len(weights)}")


def check_backbone(name, path, report):
    """Note a backbone that no encoder answers to."""
    names = load("models.backbones:backbone_names")()
    if name not in names and not name.startswith("timm/"):
        report.note(path, unknown("backbone", name, names))


def names_outputs(section) -> bool:
    """Whether a loss section is the form {"out": ..., "aux": ...}."""
    return isinstance(section, dict) and bool(section) and not {"type", "args"} & set(section)


def _datasets(config):
    """(path, section) of every dataset that a loader names, itself or as part of a mixture."""
    for key in LOADERS:
        section = config.get(key)
        args = section.get("args") if isinstance(section, dict) else None
        parts = args.get("parts") if isinstance(args, dict) else None
        if isinstance(parts, list):
            yield from (((key, "args", "parts", number), part)
                        for number, part in enumerate(parts))
        elif isinstance(section, dict):
            yield (key,), section


def _check_splits(config, report):
    for path, section in _datasets(config):
        splits, args = _class_attribute(section, "datasets", "splits"), section.get("args")
        split = args.get("split") if isinstance(args, dict) else None
        if splits and isinstance(split, str) and split not in splits:
            report.note((*path, "args", "split"), unknown("split", split, splits))


def _check_labels(config, report):
    """Every dataset has the classes of the first one of the training set."""
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
    if type(ignored) is int and 0 <= ignored < max(counts.values(), default=0):
        report.note(("ignore_index",), f"{ignored} is a class of the dataset (0 to "
                                       f"{max(counts.values()) - 1}); expected another value")


def _check_draws(config, report):
    """A score is taken over every image: nothing is drawn for it."""
    for path, section in _datasets(config):
        for key in fields(load(_PART)) if path[0] != "train_loader" and len(path) > 1 else ():
            if isinstance(section, dict) and section.get(key) is not None:
                report.note((*path, key), "has an effect in training only; remove it")


def _check_outputs(config, report):
    """The outputs a loss names, against the model's where the class states them."""
    section = config.get("loss")
    outputs = _static(config, "arch", "models", "output_weights")
    base = load("base.base_model:BaseModel")
    if not isinstance(outputs, dict) or outputs is base.output_weights:
        return      # decided in the constructor: the criterion checks the built model
    if isinstance(section, list) and len(section) > len(outputs):
        report.note(("loss",), f"{len(section)} losses; {config['arch']['type']} has "
                               f"{len(outputs)} outputs: {', '.join(outputs)}")
    if names_outputs(section):
        for entry in section:
            for name in entry.split("+"):
                if name not in outputs:
                    report.note(("loss", entry), unknown("output", name, outputs))


def _check_class_weights(config, report):
    """Lists of class weights, anywhere in the losses, against the classes of the training set."""
    count = _static(config, "train_loader", "datasets", "num_classes")
    if type(count) is not int:
        loader = config.get("train_loader")
        args = loader.get("args") if isinstance(loader, dict) else None
        count = args.get("num_classes") if isinstance(args, dict) else None
    if type(count) is not int:
        return
    for key in ("loss", "val_loss"):
        for path, args in _arguments_in(config.get(key), (key,)):
            weights = args.get("weight")
            if isinstance(weights, list) and len(weights) != count:
                report.note((*path, "weight"), f"expected {count} numbers, one per class, found "
                                               f"{len(weights)}")


def _arguments_in(section, path):
    """(path, "args") of every section within a loss."""
    if isinstance(section, list):
        for number, item in enumerate(section):
            yield from _arguments_in(item, (*path, number))
    elif isinstance(section, dict):
        for key, item in section.items():
            if key == "args" and isinstance(item, dict):
                yield (*path, key), item
            yield from _arguments_in(item, (*path, key))


def _check_predict(config, report):
    """Settings that the decision rules and the predictor refuse, found by making them."""
    predict = config.get("predict", {})
    options, predictor = load(_RULES), load(_PREDICTOR)
    known = fields(options, predictor)
    if not all(name in predict and field.fits(predict[name]) for name, field in known.items()):
        return
    _check_classes_of_interest(predict["CoI"], config, report)
    build_decision = load("utils.decision:build_decision")
    given = [{name: predict[name] for name in fields(function)}
             for function in (options, predictor)]
    attempts = [lambda: options(**given[0]), lambda: predictor(None, None, **given[1])]
    attempts += [lambda phase=phase: build_decision(predict[phase], options=predict)
                 for phase in ("train", "val", "test")]
    found = set()
    for attempt in attempts:
        try:
            attempt()
        except ConfigError as error:
            if error.what not in found:
                found.add(error.what)
                key = (error.where or error.what.split(" ")[0]).rpartition(".")[2]
                report.note(("predict", key) if key in known else ("predict",), error.what)


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


