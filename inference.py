"""Segment images with a trained checkpoint.

examples:
  python inference.py -r auto -i photos -o segmented
  python inference.py -m model_best.pth -i "photos/**/*.jpg" -o segmented --mode sliding --overlay
  python inference.py -m model_best.pth -i list.txt -o segmented --scales 0.5:1.5:0.25 --flip
"""
import argparse
import json
import sys

from utils import console
from utils.predict_arguments import add_prediction_arguments, predict_options


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="inference.py", description=__doc__, epilog=console.EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-r", "-m", "--model", "--resume", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint, with colours and class names; auto: the newest best one in saved/")
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--output", default="outputs", metavar="DIR",
        help="results, in the folders of the input (default: outputs)")
    add("-c", "--config", help="config to use in place of the checkpoint's own")
    add("-e", "--extension", default="", metavar="LIST",
        help="take only these from folders, e.g. jpg or jpg,png (default: every image type)")
    add("-p", "--predict", metavar="RULE",
        help="max, T, rankdice or rankiou (default: the config's)")
    add("--overlay", action="store_true", help="also write the colours over the image")
    add("--side-by-side", action="store_true", help="also write the image beside that")
    add("--probabilities", action="store_true", help="also write .npz: uint8 (C, H, W), 255 is 1")
    add("--masks", action="store_true", help="also write .npz: bool (C, H, W), may overlap")
    add("--skip-existing", action="store_true", help="leave out images whose results are there")
    add("--skip-bad", action="store_true", help="exit status 0 even if some images failed")
    add("--batch", type=int, default=1, metavar="N", help="images of one size in one forward")
    add("--workers", type=int, default=2, metavar="N", help="decoding and encoding threads")
    add_prediction_arguments(parser)
    add("--json", action="store_true", help="print a report as JSON on stdout")
    add("--debug", action="store_true", help="show the traceback of every error")
    add("--version", action=console.ShowVersion)
    args = parser.parse_args(argv)
    if args.batch < 1 or args.workers < 1:
        parser.error("--batch and --workers must be at least 1")
    return args


def main(argv=None):
    args = parse(argv)
    from utils.image_list import find_images, plan_outputs, prepare_folder
    from utils.prediction_files import (LABELS, MASKS, OVERLAY, PROBABILITIES, SIDE_BY_SIDE)
    products = {LABELS: True, OVERLAY: args.overlay, SIDE_BY_SIDE: args.side_by_side,
                PROBABILITIES: args.probabilities, MASKS: args.masks}
    sources = find_images(args.images, tuple(filter(None, args.extension.split(","))), args.output)
    outputs = plan_outputs(sources, args.output, [name for name, on in products.items() if on])

    from utils import distributed
    from utils.checkpoint import find_checkpoint, read_checkpoint
    from utils.checkpoint_config import with_config
    from utils.decision import build_decision
    from utils.open_model import open_model
    from utils.segment_images import segment_images
    args.checkpoint = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(args.checkpoint), args.config)
    opened = open_model(checkpoint, distributed.start(args.device), args.checkpoint)
    options = predict_options(opened.config.get("predict", {}), args)
    decision = build_decision(args.predict or options.get("test", "max"), opened.activation,
                              options)
    prepare_folder(args.output)
    report = segment_images(sources, outputs, opened, opened.predictor(options), decision,
                            batch=args.batch, workers=args.workers,
                            skip_existing=args.skip_existing)
    console.notice(f"{report}; results in {args.output}")
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
    return 3 if report.failed and not args.skip_bad else 0


if __name__ == "__main__":
    sys.exit(console.run(main))
