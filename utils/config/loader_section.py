"""Selects the loader section of a config whose images are scored or measured."""
from typing import Any

from utils.config.registry import components, load, lookup
from utils.config.schema import SHARED
from utils.config.signature import Field, fields
from utils.errors import ConfigError

# What decides how the images of any dataset are read, as opposed to which ones.
_READING = ("dataloader.augmentation.transforms:Augmentation", "dataloader.loader:build_loader")
_RESIZING = ("base_size", "crop_size", "val")    # options that change what an evaluation reads


def loader_section(config: dict, split: str | None = None) -> tuple[str, dict[str, Any]]:
    """(key in the config, loader section) of the data to score.

    split: "test", "val" or "train"; None: "test", or "val" if there is no test_loader. Training
    data is read like validation data: whole images without augmentation. Raises ConfigError if
    there is no such loader.
    """
    known = [name for name in ("test", "val", "train") if config.get(f"{name}_loader")]
    if split is None:
        split = next((name for name in ("test", "val") if name in known), None)
    if split not in known:
        loaders = ", ".join(f"{name}_loader" for name in known) or "none"
        raise ConfigError(f"there is no {split or 'test or val'}_loader to take images and labels "
                          f"from (loaders found: {loaders})", "the checkpoint's config",
                          "give a config that names the data with -c CONFIG.json, or choose "
                          "another --split")
    if split != "train":
        return f"{split}_loader", config[f"{split}_loader"]
    train, val = config["train_loader"], config.get("val_loader") or {}
    dataset = lookup(train["type"], components("datasets"), "train_loader.type")
    data_keys = _data_keys(dataset, "datasets")
    # The validation data may be another dataset, so only its reading options are taken.
    reading_keys = fields(*map(load, _READING))
    args = {key: value for key, value in val.get("args", {}).items() if key in reading_keys}
    args |= {key: value for key, value in train["args"].items() if key in data_keys}
    if isinstance(args.get("parts"), list):
        args["parts"] = [_without_augmentation(part) for part in args["parts"]]
    return "train_loader", {"type": train["type"], "args": args}


def read_size(section: dict | None) -> int | list[int] | None:
    """The base size (utils.images.base_size) at which a loader section reads images for evaluation.

    None: at their own size; the parts of a mixture at several sizes; or random crops.
    """
    sizes = _read_sizes(section)
    return sizes[0] if len(sizes) == 1 else None


def validated_size(config: dict) -> int | list[int] | None:
    """The base size at which the validation of a config reads images; see `read_size`."""
    return read_size(config.get("val_loader") or config.get("test_loader"))


def at_own_size(section: dict) -> dict[str, Any]:
    """The loader section without the options that resize or crop images and labels.

    The parts of a mixture that are read at several sizes keep them.
    """
    if read_size(section) is None:
        return section
    args = {key: value for key, value in section["args"].items() if key not in _RESIZING}
    if isinstance(args.get("parts"), list):
        args["parts"] = [{**part, "args": {key: value for key, value in part["args"].items()
                                           if key not in _RESIZING}} for part in args["parts"]]
    return {**section, "args": args}


def _read_sizes(section):
    """The different base sizes of a loader section: one, or several of the parts of a mixture."""
    args = (section or {}).get("args") or {}
    parts = args.get("parts")
    sizes = []
    for part in parts if isinstance(parts, list) and parts else [{}]:
        reading = {**args, **(part.get("args") or {})}
        crop = reading.get("crop_size") if reading.get("val") else None
        size = [crop, crop] if isinstance(crop, int) else crop or reading.get("base_size")
        size = None if reading.get("augment") else size
        if size not in sizes:
            sizes.append(size)
    return sizes


def _without_augmentation(part: dict) -> dict[str, Any]:
    """A part of a mixture without its options of the augmentation."""
    dataset = lookup(part["type"], components("datasets"), "train_loader.args.parts")
    data_keys = _data_keys(dataset, "parts")
    return {**part, "args": {key: value for key, value in part["args"].items()
                             if key in data_keys}}


def _data_keys(dataset: type, role: str) -> dict[str, Field]:
    """The arguments that select the data: of the dataset class, its cache and its classes."""
    return fields(dataset, *(load(name) for name in SHARED[role] if name not in _READING))
