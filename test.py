"""Score a checkpoint: every rule over a labeled split, as tables and as files.

Options: utils/evaluation/arguments.py.
"""
import argparse
import os
from pathlib import Path

from utils.cli import console
from utils.evaluation.arguments import parse
from utils.machine import distributed
from utils.predict.arguments import require_rule_arguments, with_arguments


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    with distributed.reporting_once():
        score(args)


def score(args: argparse.Namespace):
    """Score the checkpoint, write the files, and print the scores."""
    from dataloader.loader import split_loader
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint_and_digest
    from utils.config.load import with_config
    from utils.config.loader_section import read_size
    from utils.decision.rules import rule_of
    from utils.errors import ConfigError
    from utils.evaluation.evaluate import build_rules, evaluate
    from utils.evaluation.results_file import check_results
    from utils.evaluation.score_report import Scored, deliver, score_entries
    from utils.images.image_list import prepare_folder
    from utils.predict.open_model import open_model
    from utils.predict.predictor import build_predictor
    from utils.segfix.refiner import open_refiner
    args.checkpoint = find_checkpoint(args.checkpoint)
    stored, digest = read_checkpoint_and_digest(args.checkpoint)
    checkpoint = with_config(stored, args.config, args.overrides)
    config = checkpoint["config"]
    options = with_arguments(config["predict"], args)
    folder = args.output or os.path.dirname(os.path.abspath(args.checkpoint))
    prepare_folder(folder)
    if distributed.is_main():
        check_results(Path(folder))
    device = distributed.start(args.device)
    opened = open_model(checkpoint, device, args.checkpoint)
    # The targets of a network that predicts no classes are made at the size of validation.
    own_size = not args.as_validation and rule_of(opened.model, "max") == "max"
    key, section, loader = split_loader(config, args.split, distributed.rank(),
                                        distributed.world_size(), own_size=own_size)
    opened.require_classes(loader.dataset.class_names)
    read = None if own_size else read_size(section)
    if args.as_validation and read is None:
        raise ConfigError(f"--as-validation has no effect: {key} reads images and labels at their "
                          "own size", "--as-validation", "leave it out")
    predictor = (opened.predictor(options, section) if own_size else
                 build_predictor(opened.model, opened.normalize, options, opened.activation))
    rules = build_rules(args.predict or options["test"], opened.activation, options, opened.model)
    require_rule_arguments(args, [rule.name for rule in rules])
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    options = {**options, "boundary": options["boundary"] or refiner is not None}
    results = evaluate(predictor, loader, rules, num_classes=len(opened.class_names),
                       ignore_index=config["ignore_index"], classes_of_interest=options["CoI"],
                       published=options["published"], boundary=options["boundary"],
                       loss=opened.loss(), device=device, progress=key, refiner=refiner)
    if distributed.is_main():
        names = loader.dataset.class_names
        scored = Scored(opened, digest, predictor, rules, key, section, names, options, refiner,
                        read)
        ids = [sample.id for sample in loader.dataset.samples]
        deliver(folder, results, score_entries(results, scored), names, ids, args.json)


if __name__ == "__main__":
    distributed.exit_after(lambda: console.run(main))
