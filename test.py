"""Score a checkpoint. Its config names the data, so no other argument is needed.

examples:
  python test.py -r auto
  python test.py -r model_best.pth -p all --split val --mode sliding --flip
  python test.py -r model_best.pth --segfix segfix.pth     # with and without refinement
  python test.py -r model_best.pth test_loader.args.data_dir=/data/camvid --json | jq .Mean_IoU
"""
import argparse
import json
import os
import sys

from utils.cli import console
from utils.cli.arguments import add_overrides, command_parser, parse_with_overrides
from utils.machine import distributed
from utils.predict.arguments import (
    add_prediction_arguments,
    require_rule_arguments,
    with_arguments,
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `argv` defaults to the command line."""
    parser = command_parser("test.py", __doc__)
    add = parser.add_argument
    add("-r", "-m", "--resume", "--model", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint to score, or a folder, for the newest model_best.pth in it; "
             "auto: saved/")
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("-p", "--predict", metavar="RULES",
        help="max, T, rankdice, rankiou, several with commas, or all (default: from the config)")
    add("-s", "--split", choices=("test", "val", "train"),
        help="loader of the config (default: test_loader, or val_loader if there is none)")
    add_prediction_arguments(parser)
    add("--as-validation", action="store_true", help="score images and labels as validation in "
        "training does, resized or cropped by the loader (default: labels at their own size)")
    add("--segfix", metavar="PATH", help="also score the labels refined by SegFix: a folder of "
        "offset files, or a SegFix checkpoint; boundary scores are added")
    add("--segfix-scale", type=float, metavar="X",
        help="how many times the offset is added (default 2)")
    add("-o", "--output", metavar="DIR",
        help="folder for results.json, results.txt and confusion_matrix.png "
             "(default: the folder of the checkpoint)")
    add("--json", action="store_true", help="print one JSON object per rule instead of tables")
    add("--version", action=console.ShowVersion)
    add_overrides(parser, "test_loader.args.batch_size=4")
    args = parse_with_overrides(parser, argv)
    if args.segfix_scale is not None and not args.segfix:
        parser.error("--segfix-scale has no effect without --segfix")
    if args.as_validation and args.base_size:
        parser.error("--as-validation scores at the size of the loader: leave out --base-size")
    args.segfix_scale = 2.0 if args.segfix_scale is None else args.segfix_scale
    return args


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    with distributed.reporting_once():
        score(args)


def score(args: argparse.Namespace):
    """Score the checkpoint, print the scores, and write the files."""
    from dataloader.loader import split_loader
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.config.load import with_config
    from utils.config.loader_section import read_size
    from utils.decision.rules import rule_of
    from utils.errors import ConfigError
    from utils.evaluation.evaluate import build_rules, evaluate
    from utils.evaluation.score_report import score_entries, score_text, write_scores
    from utils.images.image_list import prepare_folder
    from utils.predict.open_model import open_model
    from utils.predict.predictor import build_predictor
    from utils.segfix.refiner import open_refiner
    args.checkpoint = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(args.checkpoint), args.config, args.overrides)
    config = checkpoint["config"]
    options = with_arguments(config["predict"], args)
    folder = args.output or os.path.dirname(os.path.abspath(args.checkpoint))
    prepare_folder(folder)
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
    results = evaluate(predictor, loader, rules, num_classes=len(opened.class_names),
                       ignore_index=config["ignore_index"], classes_of_interest=options["CoI"],
                       published=options["published"],
                       boundary=options["boundary"] or refiner is not None, loss=opened.loss(),
                       device=device, progress=key, refiner=refiner)
    if distributed.is_main():
        names = loader.dataset.class_names
        entries = score_entries(results, opened, predictor, key, section, names, options["CoI"],
                                refiner, rules, read)
        print("\n".join(map(json.dumps, entries)) if args.json
              else score_text(results, entries, names))
        ids = [sample.id for sample in loader.dataset.samples]
        written = write_scores(folder, results, entries, names, ids)
        console.notice("written: " + ", ".join(written))


if __name__ == "__main__":
    sys.exit(console.run(main))
