"""The config inside a checkpoint, with what the command line says put over it."""
import copy

from utils.config import apply_overrides, load_config, resolve_config
from utils.config_schema import section_callables
from utils.errors import ConfigError
from utils.registry import components, lookup
from utils.signature import fields


def with_config(checkpoint: dict, path: str | None = None, overrides: list[str] = ()) -> dict:
    """The checkpoint, its config replaced by the file at `path` and changed by overrides.

    A config without test_loader takes overrides of test_loader for a copy of its
    val_loader. Raises ConfigError for what the config cannot hold, the checkpoint's too.
    """
    if path:
        config, source = load_config(path, overrides), path
    else:
        own, source = copy.deepcopy(checkpoint["config"]), "the checkpoint's config"
        if any(text.startswith("test_loader.") for text in overrides) \
                and not own.get("test_loader"):
            own["test_loader"] = copy.deepcopy(own.get("val_loader"))
        config = apply_overrides(own, overrides)
    try:
        return {**checkpoint, "config": resolve_config(config, source)}
    except ConfigError as error:
        fix = error.fix if path or overrides else "give a whole config with -c CONFIG.json"
        raise ConfigError(error.what, error.where, fix) from None


def loader_section(config: dict, split: str | None = None) -> tuple[str, dict]:
    """(key in the config, loader section) of the data to score.

    split: "test", "val" or "train"; None takes test_loader, or val_loader where
        there is none. Training data is read as validation data is: whole images
        without augmentation.
    """
    known = [name for name in ("test", "val", "train") if config.get(f"{name}_loader")]
    if split is None:
        split = next((name for name in ("test", "val") if name in known), None)
    if split not in known:
        found = ", ".join(f"{name}_loader" for name in known) or "none"
        raise ConfigError(f"there is no {split or 'test or val'}_loader to take images and labels "
                          f"from (loaders found: {found})", "the checkpoint's config",
                          "give a config that names the data with -c CONFIG.json, or choose "
                          "another --split")
    if split != "train":
        return f"{split}_loader", config[f"{split}_loader"]
    train, val = config["train_loader"], config.get("val_loader") or {}
    dataset = lookup(train["type"], components("datasets"), "train_loader.type")
    own = _of_the_data(dataset, "datasets")
    # Of the validation data, which may be another dataset: what says how images are read.
    reading = fields(*section_callables("datasets", dataset)[2:])
    args = {key: value for key, value in val.get("args", {}).items() if key in reading}
    args |= {key: value for key, value in train["args"].items() if key in own}
    if isinstance(args.get("parts"), list):
        args["parts"] = [_unaugmented(part) for part in args["parts"]]
    return "train_loader", {"type": train["type"], "args": args}


def _unaugmented(part):
    """A part of a mixture without the options of the augmentation that it has of its own."""
    dataset = lookup(part["type"], components("datasets"), "train_loader.args.parts")
    own = _of_the_data(dataset, "parts")
    return {**part, "args": {key: value for key, value in part["args"].items() if key in own}}


def _of_the_data(dataset, role):
    """The arguments that say what the data is: those of the class and of its cache."""
    return fields(*section_callables(role, dataset)[:2])
