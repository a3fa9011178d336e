"""Draw a contact sheet of samples as training sees them, with their labels over the images.

examples:
  python -m tools.browse -c config.json -o browse.png
  python -m tools.browse -c configs/camvid_enet.json --epoch 3 --batch 10 -n 24
  python -m tools.browse --type CamVid --args '{"data_dir": "CamVid", "split": "train", \\
      "augment": true, "crop_size": 360, "flip": true, "batch_size": 4}' -n 8

Shown are the batches of a training on one process, from the given epoch and batch: with the same
(seed, epoch, index) and the batch transforms (CutMix, CopyBlob, ...) of that step. Below each image
the colors of the classes are mixed into it; ignored pixels are dotted. A legend names the classes
that occur.
"""
import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import at_least, command_parser, require_folder
from utils.config.dataset_arguments import (
    add_dataset_arguments,
    dataset_config,
    parse_dataset_arguments,
)

if TYPE_CHECKING:
    from dataloader.loader import Loader
    from utils.images.types import Image


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.browse", __doc__)
    add = parser.add_argument
    add_dataset_arguments(parser)
    add("-n", "--samples", type=at_least(1), default=16, help="how many (default 16)")
    add("--epoch", type=at_least(1), default=1, help="of the training, from 1 (default 1)")
    add("--batch", type=at_least(0), default=0, help="first batch of the epoch, from 0 (default 0)")
    add("--columns", type=at_least(1), default=4, help="samples in a row (default 4)")
    add("--width", type=at_least(1), default=320,
        help="largest width and height of a picture (320)")
    add("--bands", metavar="R,G,B", help="of images with bands: which three, or which one, to "
                                         "show, from 1 (default: the first three)")
    add("--opacity", type=float, default=0.55, help="of the colors over the image (0.55)")
    add("-o", "--output", default="browse.png", metavar="FILE", help="default: browse.png")
    args = parse_dataset_arguments(parser, argv)
    if not 0 <= args.opacity <= 1:
        parser.error("--opacity is from 0 to 1")
    try:
        args.bands = args.bands and tuple(map(int, args.bands.split(",")))
    except ValueError:
        parser.error(f"--bands: expected numbers such as 4,3,2, found {args.bands}")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    require_folder(args.output)
    from dataloader.loader import make_loader
    from utils.errors import ConfigError, shown
    from utils.images.image_io import write_image
    section, config = dataset_config(args)
    # A dataset without a config is read as in training if it is augmented, else as whole images.
    training = args.loader == "train" and bool(args.config or section["args"].get("augment"))
    section["args"]["num_workers"] = 0          # a few batches are not worth starting processes
    loader = make_loader(section, ignore_index=config["ignore_index"], seed=config["seed"],
                         training=training, normalize=config.get("normalize"))
    accumulate = config["trainer"]["accumulate"] if training else 1
    if args.batch >= len(loader):
        raise ConfigError(f"epoch {args.epoch} has the batches 0 to {len(loader) - 1}", "--batch")
    samples = list(as_trained(loader, config["seed"], accumulate, args.epoch, args.batch,
                              args.samples))
    dataset = loader.dataset
    _make_pictures(samples, dataset, args.bands)
    write_image(args.output, contact_sheet(samples, dataset.palette, dataset.class_names,
                                           args.columns, args.width, args.opacity))
    for sample in samples:
        print(f"batch {sample['batch']}: {shown(sample['id'])}")
    console.notice(f"{len(samples)} samples in {args.output}")


def _make_pictures(samples, dataset, shown_bands):
    """Replace images with bands by pictures to look at, and say which bands they show, and how."""
    from utils.errors import ConfigError
    from utils.images.bands import as_picture
    if not dataset.bands:
        if shown_bands:
            raise ConfigError("the images are RGB", "--bands", "leave it out")
        return
    normalize = dataset.normalization()
    numbers = dataset.bands.numbers
    shown = shown_bands or (numbers[:3] if len(numbers) > 2 else numbers[:1])
    missing = [number for number in shown if number not in numbers]
    if missing or len(shown) not in (1, 3):
        raise ConfigError(f"expected one or three of the bands {', '.join(map(str, numbers))}, "
                          f"found {','.join(map(str, shown))}", "--bands")
    places = [numbers.index(number) + 1 for number in shown]
    for sample in samples:
        sample["image"] = as_picture(sample["image"], normalize.mean, normalize.std, places)
    console.notice(f"shown: band{'s' * (len(shown) > 1)} {', '.join(map(str, shown))} of "
                   f"{dataset.bands.text}, from mean - 2 std (black) to mean + 2 std (white)")


def as_trained(loader: "Loader", seed: int, accumulate: int, epoch: int, first: int,
               count: int) -> Iterator[dict[str, Any]]:
    """Yield {"image", "label", "id", "batch"} of `count` samples, from batch `first` of an epoch.

    accumulate: batches per optimizer step. They share one stream of random numbers, so the batch
    transforms run from the first batch of the step.
    """
    from utils.machine.seeding import seed_everything
    start = first - first % accumulate
    steps = math.ceil(len(loader) / accumulate)
    loader.set_epoch(epoch, start)
    for number, batch in enumerate(loader, start):
        if number % accumulate == 0:
            seed_everything(seed, (epoch - 1) * steps + number // accumulate, 0)
        for transform in loader.batch_transforms:
            batch = transform(batch)
        if number < first:
            continue
        for place, name in enumerate(batch["id"]):
            if not count:
                return
            count -= 1
            yield {"image": batch["image"][place].permute(1, 2, 0).numpy(),
                   "label": batch["label"][place].numpy(), "id": name, "batch": number}


def contact_sheet(samples: list[dict[str, Any]], palette: Sequence[Sequence[int]],
                  class_names: list[str], columns: int = 4, width: int = 320,
                  opacity: float = 0.55) -> "Image":
    """One picture, uint8 (H, W, 3), of all samples: image, image with labels, and id."""
    import numpy as np

    from utils.errors import shown
    from utils.images.visualize import (
        caption,
        dotted,
        overlay,
        side_by_side,
        stacked,
        with_legend,
    )
    cells, present = [], set()
    for sample in samples:
        image, label = sample["image"], sample["label"]
        present.update(np.unique(label).tolist())
        ignored = (label < 0) | (label >= len(palette))
        colored = dotted(overlay(image, label, palette, opacity), ignored)
        pictures = [_fitted(picture, width) for picture in (image, colored)]
        cells.append(stacked(*pictures, caption(shown(sample["id"]), pictures[0].shape[1], 11,
                                                keep_end=True)))
    rows = [side_by_side(*cells[i:i + columns]) for i in range(0, len(cells), columns)]
    return with_legend(stacked(*rows), class_names, palette,
                       [k for k in range(len(class_names)) if k in present], over_photo=True)


def _fitted(picture, side):
    """The picture, reduced to fit a square of `side` pixels, never enlarged."""
    import cv2
    import numpy as np
    height, width = picture.shape[:2]
    share = min(1.0, side / max(height, width))
    if share == 1.0:
        return np.ascontiguousarray(picture)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    sys.exit(console.run(main))
