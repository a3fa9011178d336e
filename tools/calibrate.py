"""Fit the temperature of a checkpoint on labeled images, and draw a reliability diagram.

First what the loss did to the logits is undone (docs/rankdice.md), then the temperature is fitted.
--per-class adds two numbers per class (vector scaling).

examples:
  python -m tools.calibrate -r saved/camvid/model_best.pth
  python -m tools.calibrate -r model_best.pth --split val --write model_calibrated.pth
  python -m tools.calibrate -r model_best.pth --per-class --class-diagrams classes.png
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
from utils.predict.arguments import (
    add_checkpoint,
    add_posterior,
    add_prediction_arguments,
    require_inverse,
    with_arguments,
)

TITLES = {"raw": "raw", "before": "{posterior}", "after": "temperature", "per_class": "per class"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `argv` defaults to the command line."""
    parser = command_parser("python -m tools.calibrate", __doc__)
    add = parser.add_argument
    add_checkpoint(parser, purpose="checkpoint to calibrate")
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("-s", "--split", choices=("val", "test", "train"), default="val",
        help="loader of the config (default: val)")
    add("--pixels", type=at_least(1), default=500_000,
        help="labeled pixels to fit on, the same number from each image (default 500000)")
    add("--bins", type=at_least(2), default=15,
        help="bins of the reliability diagram (default 15)")
    add_prediction_arguments(parser, decides=False)
    add_posterior(parser)
    add("--per-class", action="store_true",
        help="also fit a power and a factor for the probability of each class")
    add("--class-diagrams", metavar="PNG", help="also draw a reliability diagram for each class")
    add("-o", "--output", metavar="PNG",
        help="reliability diagram (default: reliability.png in the folder of the checkpoint)")
    add("--write", metavar="PATH",
        help="also write a copy of the checkpoint with what was fitted in its config")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    return parse_with_overrides(parser, argv)


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    require_folder(args.output, args.write, args.class_diagrams)
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.checkpoint.write import write_checkpoint
    from utils.config.load import with_config
    from utils.decision.calibration import HIGHEST, LOWEST, fit_temperature, fit_vector
    from utils.decision.posterior import Posterior
    args.checkpoint = find_checkpoint(args.checkpoint)
    stored = read_checkpoint(args.checkpoint)
    checkpoint = with_config(stored, args.config, args.overrides)
    logits, labels, posterior, images, names = _sample(args, checkpoint)
    undone, activation = posterior.logits(logits), posterior.of_logits
    temperature = fit_temperature(undone, labels, activation)
    fitted = {"temperature": temperature, "scale": None, "bias": None}
    after = undone / temperature
    stages = {"before": undone, "after": after}
    if posterior.inverse:
        stages = {"raw": logits, **stages}
    if args.per_class:
        fitted["scale"], fitted["bias"] = fit_vector(after, labels, activation)
        vector = Posterior(activation, scale=fitted["scale"], bias=fitted["bias"])
        stages["per_class"] = vector.logits(after)
    result: dict = {**fitted, "images": images, "pixels": len(labels),
                    "activation": activation, "posterior": posterior.describe().get(
                        "posterior", "raw"), "class_names": names}
    _measure(args, stages, labels, result)
    if args.write:
        setting = args.posterior or checkpoint["config"]["predict"]["posterior"]
        if args.posterior == "auto" and checkpoint["config"]["predict"]["posterior"] != "auto":
            setting = None      # the default, with which max keeps deciding on raw logits
        predict = {**stored["config"].get("predict", {}), **fitted, "posterior": setting}
        write_checkpoint(args.write, {**stored, "config": {**stored["config"],
                                                           "predict": predict}})
    if temperature in (LOWEST, HIGHEST):
        console.warn(f"temperature {temperature:g} is the end of the range that is searched, no "
                     "minimum of the log loss: a network that is hardly trained, or labels that "
                     "do not belong to the images")
    console.output(json.dumps(result) if args.json else _text(result, args.posterior))


def _measure(args, stages, labels, result):
    """Add the errors of each stage, {name: logits (P, C)}, to `result`, and draw the diagrams."""
    from utils.decision.calibration import class_reliability, reliability, reliability_diagram
    from utils.images.class_names import drawable
    from utils.images.image_io import write_image
    from utils.images.visualize import stacked
    diagrams, of_classes, activation = {}, {}, result["activation"]
    for stage, logits in stages.items():
        top = reliability(logits, labels, activation, 1.0, args.bins)
        every = reliability(logits, labels, activation, 1.0, args.bins, top=False)
        of_classes[stage] = class_reliability(logits, labels, activation, args.bins)
        errors = [one.ece for one in of_classes[stage]]
        result[stage] = {"ece": top.ece, "class_ece": every.ece, "log_loss": top.log_loss,
                         "classwise_ece": sum(errors) / len(errors), "ece_of_classes": errors}
        if stage in (list(stages)[0], list(stages)[-1]):
            title = f"T = {result['temperature']:.3f}" if stage == "after" else \
                TITLES[stage].format(**result)
            diagrams[f"{title}, most likely class"] = top
            diagrams[f"{title}, every class"] = every
    output = args.output or os.path.join(os.path.dirname(args.checkpoint), "reliability.png")
    write_image(output, reliability_diagram(diagrams, columns=2))
    console.notice(f"the reliability diagram is in {output}"
                   + (f", the calibrated checkpoint in {args.write}" if args.write else ""))
    if not args.class_diagrams:
        return
    rows = [reliability_diagram({f"{name}, {TITLES[stage].format(**result)}": of_classes[stage][c]
                                 for stage in stages})
            for c, name in enumerate(drawable(result["class_names"]))]
    write_image(args.class_diagrams, stacked(*rows))
    console.notice(f"the diagram of each class is in {args.class_diagrams}")


def _sample(args, checkpoint):
    """(logits, labels, posterior, number of images, class names): random labeled pixels.

    The posterior has neither temperature nor vector.
    """
    import torch
    from tqdm import tqdm

    from dataloader.loader import split_loader
    from utils.decision.calibration import PixelSample
    from utils.decision.posterior import build_posterior
    from utils.machine import distributed
    from utils.predict.open_model import open_model
    config = checkpoint["config"]
    device = distributed.start(args.device)
    try:
        _, section, loader = split_loader(config, args.split, own_size=True)
        opened = open_model(checkpoint, device, args.checkpoint)
        opened.require_data(loader.dataset)
        options = with_arguments(config["predict"], args)
        if args.posterior:
            require_inverse(opened.inverse())
        predictor = opened.predictor(options, section)
        posterior = build_posterior({"posterior": options["posterior"]}, opened.activation,
                                    opened.inverse)
        images = len(loader.dataset)
        sample = PixelSample(len(opened.class_names), -(-args.pixels // max(images, 1)),
                             config["ignore_index"], config["seed"])
        with torch.inference_mode():
            batches = tqdm(loader, desc="logits", leave=False, disable=None)
            for _, label, _, logits in predictor.each(batches, device):
                sample.add(logits, label[None].to(device))
    finally:
        distributed.stop()
    return *sample.tensors(), posterior, images, opened.class_names


def _text(result, posterior):
    """The result as a table, one column for each stage, and with a vector one line per class."""
    stages = [stage for stage in TITLES if stage in result]
    heads = {"raw": "raw", "before": "undone" if "raw" in stages else "T = 1", "after": "fitted",
             "per_class": "per class"}
    lines = [f"temperature {result['temperature']:.4f}, fitted on {result['pixels']} pixels of "
             f"{result['images']} images"
             + (f", {result['posterior']}" if "raw" in stages else ""), "",
             " " * 34 + "".join(f"{heads[stage]:>10}" for stage in stages)]
    for title, key, factor in (("ECE of the most likely class, %", "ece", 100),
                               ("ECE of every class, %", "class_ece", 100),
                               ("classwise ECE, mean, %", "classwise_ece", 100),
                               ("log loss", "log_loss", 1)):
        lines.append(f"{title:<34}"
                     + "".join(f"{factor * result[stage][key]:>10.4f}" for stage in stages))
    if result["scale"]:
        from utils.errors import shown
        lines += ["", "classwise ECE, %"]
        for c, name in enumerate(map(shown, result["class_names"])):
            errors = "".join(f"{100 * result[stage]['ece_of_classes'][c]:>10.4f}"
                             for stage in stages)
            lines.append(f"{name[:33]:<34}{errors}   scale {result['scale'][c]:.3f} bias "
                         f"{result['bias'][c]:+.3f}")
        return "\n".join([*lines, "", "to use it: --write PATH"])
    raw = " predict.posterior=raw" if posterior == "raw" else ""
    lines += ["", f"to use it: predict.temperature={result['temperature']:.4f}{raw}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(console.run(main))
