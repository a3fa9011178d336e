"""The command-line arguments of tools that look at data: a config's loader, or a dataset alone."""
import argparse
import copy

from utils.arguments import add_overrides, parse_with_overrides


def add_dataset_arguments(parser: argparse.ArgumentParser):
    """Add -c, --loader, --type, --args and KEY=VALUE; read them with dataset_config."""
    add = parser.add_argument
    add("-c", "--config", help="the data of a config")
    add("--loader", choices=("train", "val", "test"), default="train",
        help="which loader of the config (default: train)")
    add("--type", metavar="NAME", help="in place of -c: a dataset of `train.py --list datasets`")
    add("--args", metavar="JSON", default="{}", help="its arguments, as those of a loader")
    add_overrides(parser, "train_loader.args.data_dir=/data/camvid")


def parse_dataset_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) \
        -> argparse.Namespace:
    """The arguments of `argv`, less the usage errors that show without reading anything."""
    args = parse_with_overrides(parser, argv)
    if bool(args.config) == bool(args.type):
        parser.error("give either -c CONFIG or --type NAME with --args")
    if args.overrides and not args.config:
        parser.error("KEY=VALUE changes a config: give -c, or put the value into --args")
    return args


def dataset_config(args: argparse.Namespace) -> tuple[dict, dict]:
    """(loader section with its defaults, the config's other keys or their defaults).

    ConfigError: for every mistake in it.
    """
    from utils.config import load_config, resolve_config
    from utils.config_schema import Component, Report
    from utils.errors import ConfigError
    from utils.jsonc import parse_jsonc
    if args.config:
        config = resolve_config(load_config(args.config, args.overrides), args.config)
        section = config.get(f"{args.loader}_loader")
        if not section:
            raise ConfigError(f"there is no {args.loader}_loader", args.config)
        return section, config
    report = Report("--type and --args", {}, {})
    section = Component("datasets").resolve(
        {"type": args.type, "args": parse_jsonc(args.args, "--args")}, (), report)
    report.raise_mistakes()
    return section, {"seed": 0, "ignore_index": 255, "trainer": {"accumulate": 1}}


def whole_images(section: dict, config: dict):
    """The dataset of a section without its augmentation."""
    from utils.config import split_args
    from utils.config_schema import section_callables
    from utils.registry import components, load, lookup
    cls = lookup(section["type"], components("datasets"), "type")
    own, cache, *_ = split_args(copy.deepcopy(section), *section_callables("datasets", cls))
    dataset = cls(**own, ignore_index=config["ignore_index"], seed=config["seed"])
    return load("dataloader.pixel_cache:use_cache")(dataset, **cache)
