"""Draw where two decision rules differ: the class masks whose Dice changes most.

    python -m tools.plot_rules -r model_best.pth -p max,rankdice -o rules.png

The upper row shows the class and image where the second rule gains most over the first, the lower
row those where it loses most: the photo, then the mask of each rule with its Dice. White is right,
orange is too much, blue is missed; ignored pixels keep the colors of the photo. The class and the
image stand above each row, and are printed on stdout.
"""
import argparse
import sys

import numpy as np

from utils.cli import console
from utils.cli.arguments import (
    add_overrides,
    at_least,
    command_parser,
    parse_with_overrides,
    require_folder,
)
from utils.errors import shown
from utils.images.types import Image, Labels
from utils.predict.arguments import (
    add_checkpoint,
    add_prediction_arguments,
    require_rule_arguments,
    with_arguments,
)

# Light, medium and dark, so that every eye can tell them apart.
COLORS = {"right": (250, 250, 250), "too much": (230, 130, 0), "missed": (0, 90, 200)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `argv` defaults to the command line."""
    parser = command_parser("python -m tools.plot_rules", __doc__)
    add = parser.add_argument
    add_checkpoint(parser, purpose="checkpoint to predict with")
    add("-p", "--predict", default="max,rankdice", metavar="A,B",
        help="the two rules (default: max,rankdice)")
    add("-s", "--split", choices=("val", "test", "train"), default="val",
        help="loader of the config (default: val)")
    add("--min-pixels", type=at_least(1), default=400,
        help="fewest pixels that a class needs in an image (default 400)")
    add_prediction_arguments(parser)
    add("-o", "--output", metavar="PNG", default="rules.png",
        help="the picture (default: rules.png)")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    args = parse_with_overrides(parser, argv)
    if len(set(args.predict.split(","))) != 2:
        parser.error("--predict takes two different rules, such as max,rankdice")
    return args


def main(argv: list[str] | None = None):
    """Run the program with `argv`, by default the command line."""
    args = parse(argv)
    require_folder(args.output)
    from utils.images.image_io import write_image
    gain, loss, names = differences(args)
    rules = args.predict.split(",")
    write_image(args.output, drawn(gain, loss, rules, names))
    console.notice(f"the picture is in {args.output}")
    console.output("\n".join(
        f"{shown(case.id)}: {shown(names[case.label_class])}, Dice "
        + ", ".join(f"{rule} {100 * score:.1f}" for rule, score in
                    zip(rules, case.dice, strict=True)) for case in (gain, loss)))


def drawn(gain: "Case", loss: "Case", rules: list[str], class_names: list[str]) -> Image:
    """The picture of two cases, with titles and a legend, uint8 (H, W, 3)."""
    from utils.images.class_names import drawable
    from utils.images.visualize import (
        NARROW,
        caption,
        side_by_side,
        stacked,
        text_size,
        titled_columns,
        with_legend,
    )
    names, rows = drawable(class_names), []
    for case, extreme in ((gain, "gains most" if gain.gain > 0 else "loses least"),
                          (loss, "loses most" if loss.gain < 0 else "gains least")):
        # Every pixel of a small image becomes a square of pixels, so that the titles find room.
        zoom = -(-NARROW // case.image.shape[1])
        columns = [np.repeat(np.repeat(picture, zoom, 0), zoom, 1)
                   for picture in (case.image, *(painted(case, mask) for mask in case.masks))]
        row = side_by_side(*columns)
        scores = [f"{rule}, Dice {100 * score:.1f}" for rule, score in
                  zip(rules, case.dice, strict=True)]
        title = f"{rules[1]} {extreme}: {names[case.label_class]} in {shown(case.id)}"
        size = text_size(row.shape[1])
        rows += [caption(title, row.shape[1], round(1.2 * size)),
                 titled_columns(["image", *scores], columns[0].shape[1], size), row]
    return with_legend(stacked(*rows), list(COLORS), list(COLORS.values()), range(len(COLORS)))


def differences(args: argparse.Namespace) -> tuple["Case", "Case", list[str]]:
    """(largest gain of the second rule, its largest loss, class names) over a whole split.

    Raises DataError if no class has --min-pixels pixels in any image.
    """
    import torch
    from tqdm import tqdm

    from dataloader.loader import split_loader
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.config.load import with_config
    from utils.errors import DataError
    from utils.evaluation.evaluate import build_rules
    from utils.machine import distributed
    from utils.predict.open_model import open_model
    args.checkpoint = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(args.checkpoint), None, args.overrides)
    config = checkpoint["config"]
    device = distributed.start(args.device)
    _, section, loader = split_loader(config, args.split, own_size=True)
    opened = open_model(checkpoint, device, args.checkpoint)
    opened.require_data(loader.dataset)
    options = with_arguments(config["predict"], args)
    predictor = opened.predictor(options, section)
    require_rule_arguments(args, args.predict.split(","), options, inverse=opened.inverse)
    rules = build_rules(args.predict, opened.activation, options, opened.model, opened.inverse)
    cases = []
    with torch.inference_mode():
        batches = tqdm(loader, desc="rules", leave=False, disable=None)
        for image, label, name, logits in predictor.each(batches, device):
            answers = [rule(logits)[0].cpu().numpy() for rule in rules]
            picture = opened.normalize.shown(image).numpy().transpose(1, 2, 0)
            cases += compared(picture, label.numpy(), name, answers, len(opened.class_names),
                              config["ignore_index"], args.min_pixels)
            cases.sort(key=lambda case: case.gain)
            cases = [cases[0], cases[-1]] if cases else []
    if not cases:
        raise DataError(f"no class has {args.min_pixels} pixels in an image", str(args.split),
                        "lower --min-pixels")
    return cases[1], cases[0], opened.class_names


class Case:
    """One class of one image under both rules.

    image: uint8 (H, W, 3). truth, valid: bool (H, W), the pixels of the class, and those that are
    not ignored. id: of the image. masks: bool (H, W), one for each rule.
    dice: the Dice of each mask. gain: the difference, second minus first.
    """

    def __init__(self, image: Image, truth: np.ndarray, valid: np.ndarray, name: str,
                 label_class: int, masks: list[np.ndarray]):
        self.image, self.truth, self.valid, self.id = image, truth, valid, name
        self.label_class, self.masks = label_class, masks
        self.dice = [dice(mask & valid, truth) for mask in masks]
        self.gain = self.dice[1] - self.dice[0]


def compared(image: Image, label: Labels, name: str, answers: list[np.ndarray], classes: int,
             ignore_index: int, min_pixels: int) -> list[Case]:
    """A `Case` for every class with enough pixels. answers: labels (H, W) or masks (C, H, W)."""
    valid = label != ignore_index
    return [Case(image, label == k, valid, name, k,
                 [answer == k if answer.ndim == 2 else answer[k] for answer in answers])
            for k in range(classes) if np.count_nonzero(label == k) >= min_pixels]


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """2 |mask & truth| / (|mask| + |truth|) of two bool arrays (H, W), not both empty."""
    return 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))


def painted(case: Case, mask: np.ndarray) -> Image:
    """The photo, darker, with the pixels of the mask, bool (H, W), in the colors of COLORS."""
    picture = case.image // 2
    picture[~case.valid] = case.image[~case.valid]
    parts = (mask & case.truth, mask & ~case.truth & case.valid, ~mask & case.truth)
    for part, color in zip(parts, COLORS.values(), strict=True):
        picture[part] = color
    return picture


if __name__ == "__main__":
    sys.exit(console.run(main))
