"""Command-line arguments of the tools that read a dataset: from a config, or by its type."""
import argparse
from typing import Any

from utils.cli.arguments import add_overrides, parse_with_overrides

_LOADERS = ("train", "val", "test")


def add_dataset_arguments(parser: argparse.ArgumentParser, every_loader: bool = False):
    """Add -c, --loader, --type, --args and KEY=VALUE, which dataset_configs reads.

    every_loader: without --loader, take all loaders of the config and not only that for training.
    """
    add = parser.add_argument
    add("-c", "--config", help="use the data of this config")
    add("--loader", choices=_LOADERS, default=None if every_loader else "train",
        help=f"which loader of the config (default: {'all' if every_loader else 'train'})")
    add("--type", metavar="NAME", help="instead of -c: a dataset of `train.py --list datasets`")
    add("--args", metavar="JSON", default="{}",
        help="with --type: the arguments of its loader, as in a config")
    add_overrides(parser, "train_loader.args.data_dir=/data/camvid")


def parse_dataset_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) \
        -> argparse.Namespace:
    """Returns the arguments of `argv`; usage errors that need no file end the program."""
    args = parse_with_overrides(parser, argv)
    if bool(args.config) == bool(args.type):
        parser.error("give either -c CONFIG or --type NAME with --args")
    if args.overrides and not args.config:
        parser.error("KEY=VALUE changes a config: give -c, or write the value into --args")
    return args


def dataset_config(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first of `dataset_configs`."""
    return dataset_configs(args)[0]


def dataset_configs(args: argparse.Namespace) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(loader section with its defaults, the whole config or the defaults of its other keys) each.

    Of the loader that the arguments choose, or of all. Raises ConfigError that lists all mistakes.
    """
    from utils.config.load import load_config
    from utils.config.schema import Component, Mistakes, resolve_config
    from utils.errors import ConfigError
    from utils.files.jsonc import parse_jsonc
    if args.config:
        config = resolve_config(load_config(args.config, args.overrides), args.config)
        if args.loader and not config.get(f"{args.loader}_loader"):
            raise ConfigError(f"there is no {args.loader}_loader", args.config)
        return [(section, config) for name in ([args.loader] if args.loader else _LOADERS)
                if (section := config.get(f"{name}_loader"))]
    report = Mistakes("--type and --args", {}, {})
    section = Component("datasets").resolve(
        {"type": args.type, "args": parse_jsonc(args.args, "--args")}, (), report)
    report.raise_mistakes()
    return [(section, {"seed": 0, "ignore_index": 255, "trainer": {"accumulate": 1}})]


def whole_images(section: dict, config: dict) -> Any:
    """Builds the dataset of a loader section without its augmentation."""
    from utils.config.build import split_args
    from utils.config.registry import components, load, lookup
    from utils.config.schema import section_callables
    cls = lookup(section["type"], components("datasets"), "type")
    dataset_args, cache_args, *_ = split_args(section, *section_callables("datasets", cls))
    dataset = cls(**dataset_args, ignore_index=config["ignore_index"], seed=config["seed"])
    return load("dataloader.pixel_cache:use_cache")(dataset, **cache_args)
