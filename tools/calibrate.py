"""Fit the temperature of a checkpoint on labeled images, and draw a reliability diagram.

examples:
  python -m tools.calibrate -r saved/camvid/model_best.pth
  python -m tools.calibrate -r model_best.pth --split val --write model_calibrated.pth
  python test.py -r model_best.pth -p rankdice --temperature 1.31

Fit on validation images, never on the images of the final score. `max` gives the same labels at
any temperature; T, rankdice and rankiou do not.
"""
import argparse
import json
import os
import sys

from utils.cli import console
from utils.cli.arguments import (
    add_overrides,
    at_least,
    command_parser,
    parse_with_overrides,
    require_folder,
)
from utils.predict.arguments import CHECKPOINT_HELP, add_prediction_arguments, with_arguments


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `argv` defaults to the command line."""
    parser = command_parser("python -m tools.calibrate", __doc__)
    add = parser.add_argument
    add("-r", "--resume", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint to calibrate" + CHECKPOINT_HELP)
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("-s", "--split", choices=("val", "test", "train"), default="val",
        help="loader of the config (default: val)")
    add("--pixels", type=at_least(1), default=500_000,
        help="labeled pixels to fit on, the same number from each image (default 500000)")
    add("--bins", type=at_least(2), default=15,
        help="bins of the reliability diagram (default 15)")
    add_prediction_arguments(parser, decides=False)
    add("-o", "--output", metavar="PNG",
        help="reliability diagram (default: reliability.png in the folder of the checkpoint)")
    add("--write", metavar="PATH",
        help="also write a copy of the checkpoint with the temperature in its config")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    return parse_with_overrides(parser, argv)


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    require_folder(args.output, args.write)
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.checkpoint.write import write_checkpoint
    from utils.config.load import with_config
    from utils.decision.calibration import (
        HIGHEST,
        LOWEST,
        fit_temperature,
        reliability,
        reliability_diagram,
    )
    from utils.images.image_io import write_image
    args.checkpoint = find_checkpoint(args.checkpoint)
    stored = read_checkpoint(args.checkpoint)
    checkpoint = with_config(stored, args.config, args.overrides)
    logits, labels, activation, images = _sample(args, checkpoint)
    temperature = fit_temperature(logits, labels, activation)
    result: dict = {"temperature": temperature, "images": images, "pixels": len(labels),
                    "activation": activation}
    diagrams = {}
    for name, t in (("before", 1.0), ("after", temperature)):
        of_top = reliability(logits, labels, activation, t, args.bins)
        of_all = reliability(logits, labels, activation, t, args.bins, top=False)
        diagrams[f"{name}, T = {t:.3f}, most likely class"] = of_top
        diagrams[f"{name}, T = {t:.3f}, every class"] = of_all
        result[name] = {"ece": of_top.ece, "class_ece": of_all.ece, "log_loss": of_top.log_loss}
    output = args.output or os.path.join(os.path.dirname(os.path.abspath(args.checkpoint)),
                                         "reliability.png")
    write_image(output, reliability_diagram(diagrams))
    if args.write:
        predict = {**stored["config"].get("predict", {}), "temperature": temperature}
        write_checkpoint(args.write, {**stored, "config": {**stored["config"],
                                                           "predict": predict}})
    if temperature in (LOWEST, HIGHEST):
        console.warn(f"temperature {temperature:g} is the end of the range that is searched, no "
                     "minimum of the log loss: a network that is hardly trained, or labels that "
                     "do not belong to the images")
    console.notice(f"the reliability diagram is in {output}"
                   + (f", the calibrated checkpoint in {args.write}" if args.write else ""))
    console.output(json.dumps(result) if args.json else _text(result))


def _sample(args, checkpoint):
    """(logits, labels, activation, number of images): random labeled pixels of the split."""
    import torch
    from tqdm import tqdm

    from dataloader.loader import split_loader
    from utils.decision.calibration import PixelSample
    from utils.machine import distributed
    from utils.predict.open_model import open_model
    config = checkpoint["config"]
    device = distributed.start(args.device)
    try:
        _, section, loader = split_loader(config, args.split, own_size=True)
        opened = open_model(checkpoint, device, args.checkpoint)
        opened.require_classes(loader.dataset.class_names)
        predictor = opened.predictor(with_arguments(config["predict"], args), section)
        images = len(loader.dataset)
        sample = PixelSample(len(opened.class_names), -(-args.pixels // max(images, 1)),
                             config["ignore_index"], config["seed"])
        with torch.inference_mode():
            batches = tqdm(loader, desc="logits", leave=False, disable=None)
            for _, label, _, logits in predictor.each(batches, device):
                sample.add(logits, label[None].to(device))
    finally:
        distributed.stop()
    return *sample.tensors(), opened.activation, images


def _text(result):
    """The result as a table."""
    lines = [f"temperature {result['temperature']:.4f}, fitted on {result['pixels']} pixels of "
             f"{result['images']} images", "",
             "                              T = 1   fitted"]
    for title, key, factor in (("ECE of the most likely class, %", "ece", 100),
                               ("ECE of every class, %", "class_ece", 100),
                               ("log loss", "log_loss", 1)):
        before, after = (factor * result[when][key] for when in ("before", "after"))
        lines.append(f"{title:<28}{before:>8.4f} {after:>8.4f}")
    lines += ["", f"to use it: predict.temperature={result['temperature']:.4f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(console.run(main))
