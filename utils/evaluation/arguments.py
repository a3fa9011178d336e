"""The command-line arguments of test.py."""
import argparse
import shlex
import sys

from utils.cli import console
from utils.cli.arguments import add_overrides, command_parser, parse_with_overrides
from utils.predict.arguments import add_checkpoint, add_prediction_arguments, check_segfix

EXAMPLES = """Score a checkpoint. Its config names the data, so no other argument is needed.

examples:
  python test.py -r auto
  python test.py -r model_best.pth -p all --split val --mode sliding --flip
  python test.py -r model_best.pth --protocol all          # what flip, scales, windows are worth
  python test.py -r model_best.pth -p all --report         # and a page that explains it
  python test.py -r saved/a -r saved/b -o scores/both      # an ensemble of two networks
  python test.py -r model_best.pth --segfix segfix.pth     # with and without refinement
  python test.py -r model_best.pth test_loader.args.data_dir=/data/camvid --json | jq .Mean_IoU
"""


def parse(argv: list[str] | None, abbreviations: bool = True) -> argparse.Namespace:
    """The arguments; `argv` defaults to the command line. abbreviations: --spl for --split."""
    parser = command_parser("test.py", EXAMPLES)
    parser.allow_abbrev = abbreviations
    add = parser.add_argument
    add_checkpoint(parser, "-m", "--model", purpose="checkpoint to score", several=True)
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("-p", "--predict", metavar="RULES",
        help="max, T, rankdice, rankiou, rankdice_dep, rankiou_dep, several with commas, or all "
             "(default: from the config)")
    add("-s", "--split", choices=("test", "val", "train"),
        help="loader of the config (default: test_loader, or val_loader if there is none)")
    add_prediction_arguments(parser, protocol_help="score under a published protocol, under "
        "several (A,B), or under all that fit the data, and print what each is worth "
        "(train.py --list protocols)")
    add("--as-validation", action="store_true", help="score images and labels as validation in "
        "training does, resized or cropped by the loader (default: labels at their own size)")
    add("--segfix", metavar="PATH", help="also score the labels refined by SegFix: a folder of "
        "offset files, or a SegFix checkpoint; boundary scores are added")
    add("--segfix-scale", type=float, metavar="X",
        help="how many times the offset is added (default 2)")
    add("--risk-coverage", action="store_true", help="also the error rate of the most confident "
        "pixels and its area, AURC: in results.json, and as a picture (docs/metrics.md)")
    add("--regret", action="store_true", help="also what part of the Dice score each rule loses to "
        "its solver, to taking pixels as independent, to calibration and to the network: in the "
        "table, in results.json, and as a picture (docs/rankdice.md)")
    add("--report", action="store_true", help="also write report.html, a page for a browser: "
        "tables, confusion, calibration, every image, pictures of the worst and best ones "
        "(docs/metrics.md)")
    add("-o", "--output", metavar="DIR",
        help="folder for results.json, results.txt and confusion_matrix.png "
             "(default: the folder of the checkpoint; an ensemble needs it)")
    add("--json", action="store_true", help="print one JSON object per rule instead of tables")
    add("--version", action=console.ShowVersion)
    add_overrides(parser, "test_loader.args.batch_size=4")
    args = parse_with_overrides(parser, argv)
    args.command = shlex.join(["python", "test.py", *(sys.argv[1:] if argv is None else argv)])
    check_segfix(parser, args)
    if args.as_validation and (args.base_size or args.input_size or args.protocol):
        parser.error("--as-validation scores at the size of the loader: leave out --base-size, "
                     "--input-size and --protocol")
    if args.regret and args.segfix:
        parser.error("--regret does not go with --segfix: what SegFix does to labels does not "
                     "follow from probabilities. Leave out one of them")
    return args
