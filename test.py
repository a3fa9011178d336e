"""Score a checkpoint or an ensemble: every rule over a labeled split, as tables and as files.

Options: utils/evaluation/arguments.py.
"""
import argparse
import os
from pathlib import Path

from utils.cli import console
from utils.evaluation.arguments import parse
from utils.machine import distributed


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    with distributed.reporting_once():
        score(args)


def score(args: argparse.Namespace):
    """Score the checkpoint, or the ensemble, under each protocol; write files, print the scores."""
    from dataloader.loader import split_loader
    from utils.config.loader_section import loader_section, read_size
    from utils.decision.rules import rule_of
    from utils.errors import ConfigError
    from utils.evaluation.page_of_test import PageOfTest
    from utils.evaluation.results_file import check_results
    from utils.evaluation.score_protocols import ProtocolScores, protocols_to_score
    from utils.images.image_list import prepare_folder
    from utils.predict.open_networks import each_with_arguments, open_networks, read_networks
    from utils.segfix.refiner import open_refiner
    if len(args.checkpoint) > 1 and not args.output:
        raise ConfigError(f"{len(args.checkpoint)} checkpoints are scored as an ensemble, and its "
                          "result belongs to the folder of none of them", "-r", "add -o DIR")
    stored = read_networks(args.checkpoint, args.config, args.overrides, hashed=True)
    config = stored[0].config
    names = protocols_to_score(args.protocol, loader_section(config, args.split)[1]["type"])
    ways = [each_with_arguments(stored, args, name) for name in names]
    folder = args.output or os.path.dirname(os.path.abspath(stored[0].path))
    prepare_folder(folder)
    if distributed.is_main():
        check_results(Path(folder))
    device = distributed.start(args.device)
    networks = open_networks(stored, device)
    del stored      # a second copy of all weights
    opened = networks[0]
    # The targets of a network that predicts no classes are made at the size of validation.
    own_size = not args.as_validation and rule_of(opened.model, "max") == "max"
    key, section, loader = split_loader(config, args.split, distributed.rank(),
                                        distributed.world_size(), own_size=own_size)
    opened.require_data(loader.dataset)
    read = None if own_size else read_size(section)
    if args.as_validation and read is None:
        raise ConfigError(f"--as-validation has no effect: {key} reads images and labels at their "
                          "own size", "--as-validation", "leave it out")
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    data = loader.dataset
    page = PageOfTest(args.command, data.class_names, data.palette,
                      opened.normalize.shown) if args.report else None
    scores = ProtocolScores(networks, loader, key, section, read, refiner, own_size, page)
    for name, options in zip(names, ways, strict=True):
        scores.add(name, options, args, folder)
    if len(names) > 1 and distributed.is_main() and not args.json:
        console.output("\n" + scores.table())
    if page and distributed.is_main():
        page.write(Path(folder))


if __name__ == "__main__":
    distributed.exit_after(lambda: console.run(main))
