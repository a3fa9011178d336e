"""Draw where two decision rules differ: the class masks whose Dice changes most.

    python -m tools.plot_rules -r model_best.pth -p max,rankdice -o rules.png

Above, the class and image that the second rule helps most, below the one that it
harms most: the photo, then the mask of each rule. Green is right, red is too much,
blue is missed; ignored pixels keep the photo's colours. stdout says which class and image.
"""
import sys

import numpy as np

from utils import console
from utils.arguments import (add_overrides, at_least, command_parser, parse_with_overrides,
                             require_folder)
from utils.predict_arguments import add_prediction_arguments, predict_options

COLOURS = {"right": (40, 170, 60), "too much": (220, 40, 40), "missed": (50, 90, 230)}


def parse(argv):
    parser = command_parser("python -m tools.plot_rules", __doc__)
    add = parser.add_argument
    add("-r", "--resume", dest="checkpoint", required=True, metavar="PATH",
        help="checkpoint to predict with")
    add("-p", "--predict", default="max,rankdice", metavar="A,B",
        help="the two rules (default: max,rankdice)")
    add("-s", "--split", choices=("val", "test", "train"), default="val",
        help="which loader of the config (default: val)")
    add("--min-pixels", type=at_least(1), default=400,
        help="of a class in an image, to be shown (default 400)")
    add_prediction_arguments(parser)
    add("-o", "--output", metavar="PNG", default="rules.png", help="default: rules.png")
    add_overrides(parser, "val_loader.args.data_dir=/data/camvid")
    args = parse_with_overrides(parser, argv)
    if len(set(args.predict.split(","))) != 2:
        parser.error("--predict takes two different rules, such as max,rankdice")
    return args


def main(argv=None):
    args = parse(argv)
    require_folder(args.output)
    from utils.image_io import write_image
    from utils.visualize import legend, side_by_side, stacked
    helped, harmed, names = differences(args)
    rows = []
    for found in (helped, harmed):
        rows.append(side_by_side(found.image, *(painted(found, mask) for mask in found.masks)))
        first, second = (f"{rule} {100 * score:.1f}" for rule, score
                         in zip(args.predict.split(","), found.dice))
        print(f"{found.id}: {names[found.label_class]}, Dice {first}, {second}")
    rows.append(legend(list(COLOURS), list(COLOURS.values()), width=rows[0].shape[1]))
    write_image(args.output, stacked(*rows))
    console.notice(f"the picture is in {args.output}")


def differences(args):
    """(most helped, most harmed, class names): two `Found`."""
    import torch
    from tqdm import tqdm

    from dataloader.loader import split_loader
    from utils import distributed
    from utils.checkpoint import read_checkpoint
    from utils.checkpoint_config import with_config
    from utils.errors import DataError
    from utils.evaluate import build_rules
    from utils.open_model import open_model
    checkpoint = with_config(read_checkpoint(args.checkpoint), None, args.overrides)
    config = checkpoint["config"]
    device = distributed.start(args.device)
    *_, loader = split_loader(config, args.split)
    opened = open_model(checkpoint, device, args.checkpoint)
    opened.require_classes(loader.dataset.class_names)
    options = predict_options(config["predict"], args)
    predictor = opened.predictor(options)
    rules = build_rules(args.predict, opened.activation, options)
    found = []
    with torch.inference_mode():
        for batch in tqdm(loader, desc="rules", leave=False, disable=None):
            for image, label, name in zip(batch["image"], batch["label"], batch["id"]):
                logits = predictor(image[None].to(device))
                answers = [rule(logits)[0].cpu().numpy() for rule in rules]
                found += compared(image.numpy().transpose(1, 2, 0), label.numpy(), name, answers,
                                  len(opened.class_names), config["ignore_index"],
                                  args.min_pixels)
                found.sort(key=lambda one: one.gain)
                found = [found[0], found[-1]] if found else []
    if not found:
        raise DataError(f"no class has {args.min_pixels} pixels in an image", str(args.split),
                        "lower --min-pixels")
    return found[1], found[0], opened.class_names


class Found:
    """One class of one image under both rules."""

    def __init__(self, image, truth, seen, name, label_class, masks):
        self.image, self.truth, self.seen, self.id = image, truth, seen, name
        self.label_class, self.masks = label_class, masks
        self.dice = [dice(mask & seen, truth) for mask in masks]
        self.gain = self.dice[1] - self.dice[0]


def compared(image, label, name, answers, classes, ignore_index, min_pixels) -> list[Found]:
    """A `Found` for every class with enough pixels. answers: labels (H, W) or masks (C, H, W)."""
    seen = label != ignore_index
    return [Found(image, label == k, seen, name, k,
                  [answer == k if answer.ndim == 2 else answer[k] for answer in answers])
            for k in range(classes) if np.count_nonzero(label == k) >= min_pixels]


def dice(mask, truth) -> float:
    return 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))


def painted(found: Found, mask: np.ndarray) -> np.ndarray:
    """The photo, darker, with the mask's pixels in the colours of COLOURS."""
    picture = found.image // 2
    picture[~found.seen] = found.image[~found.seen]
    parts = (mask & found.truth, mask & ~found.truth & found.seen, ~mask & found.truth)
    for part, colour in zip(parts, COLOURS.values()):
        picture[part] = colour
    return picture


if __name__ == "__main__":
    sys.exit(console.run(main))
