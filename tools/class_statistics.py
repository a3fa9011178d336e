"""Count the pixels and images of each class; weights for a loss; mean and std of the images.

examples:
  python -m tools.class_statistics -c config.json
  python -m tools.class_statistics --type CamVid --args '{"data_dir": "CV", "split": "train"}' \\
      --json camvid_classes.json --png camvid_classes.png

Whole images are counted, without augmentation, each once. A loss reads the JSON file as its
"class_pixels": {"type": "wCE", "args": {"weight": "log", "class_pixels": "camvid_classes.json"}}.
Numbers are sums of integers: they do not depend on the workers.
"""
import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser, require_folder
from utils.config.dataset_arguments import (
    add_dataset_arguments,
    dataset_config,
    parse_dataset_arguments,
    whole_images,
)

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset

EXACT = 2 ** 24      # pixels that OpenCV's float32 histogram counts without rounding


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.class_statistics", __doc__)
    add = parser.add_argument
    add_dataset_arguments(parser)
    add("--json", metavar="FILE", help="write the numbers, for class_pixels of a loss")
    add("--png", metavar="FILE", help="draw the shares of pixels and of images")
    add("--workers", type=at_least(0), default=DEFAULT_WORKERS,
        help="reading processes")
    return parse_dataset_arguments(parser, argv)


def main(argv: list[str] | None = None):
    args = parse(argv)
    require_folder(args.json, args.png)
    from utils.files.whole_file import write_bytes
    from utils.images.image_io import write_image
    section, config = dataset_config(args)
    dataset = whole_images(section, config)
    result = statistics(dataset, args.workers)
    if args.json:
        write_bytes(args.json, json.dumps(result, indent=1).encode() + b"\n")
    if args.png:
        from utils.images.class_chart import class_chart
        write_image(args.png, class_chart(result["class_names"], dataset.palette,
                                          result["pixels"], result["images_with"],
                                          result["images"]))
    console.output(as_text(result))


def statistics(dataset: "BaseDataset", workers: int = 0) -> dict[str, Any]:
    """The content of the JSON file, counted over every image of the dataset.

    pixels, images_with, pixels_in_images_with: per class (see utils.losses.class_weights).
    mean, std: of all pixels, RGB in 0..1; of bands, in stored values. weights: per rule; None if
    the rule does not apply.
    """
    import numpy as np
    from tqdm import tqdm

    from dataloader.loader import build_loader
    for part in getattr(dataset, "parts", [dataset]):
        if part.bands and part.bands.no_data is not None:       # values without data do not count
            part.bands, part.cache = part.bands.stored(), None
    classes = dataset.num_classes
    pixels, images_with, pixels_in_images_with = np.zeros((3, classes), np.int64)
    values, ignored = np.zeros((3, 256), np.int64), 0
    sums = _Sums(dataset.in_channels, dataset.bands and dataset.bands.no_data)
    loader = build_loader(dataset, batch_size=1, num_workers=workers)
    try:
        for batch in tqdm(loader, desc="counting", total=len(loader), unit="image", leave=False,
                          dynamic_ncols=True, disable=None):
            label = batch["label"][0].numpy()
            counts = np.bincount(label[(label >= 0) & (label < classes)], minlength=classes)
            pixels += counts
            images_with += counts > 0
            pixels_in_images_with += np.where(counts > 0, counts.sum(), 0)
            ignored += label.size - int(counts.sum())
            image = batch["image"][0].permute(1, 2, 0).numpy()
            if dataset.bands:
                sums.add(image)
            else:
                values += _histogram(image)
    finally:
        loader.close()
    mean, std = sums.moments() if dataset.bands else _moments(values)
    total = int(pixels.sum())
    return {"schema": 1, "dataset": type(dataset).__name__, "split": dataset.split,
            "data_title": dataset.title, "images": len(dataset),
            "class_names": list(dataset.class_names),
            "pixels": pixels.tolist(), "images_with": images_with.tolist(),
            "pixels_in_images_with": pixels_in_images_with.tolist(), "ignored_pixels": ignored,
            "share": [n / total if total else 0.0 for n in pixels.tolist()],
            "weights": _weights(dataset, pixels, images_with, pixels_in_images_with),
            "mean": mean, "std": std,
            **({"bands": dataset.bands.state()} if dataset.bands else {})}


def as_text(result: dict) -> str:
    """The table, and the numbers that a config can use."""
    from utils.metrics.table import cell
    rules = [rule for rule, values in result["weights"].items() if values]
    names = list(map(cell, result["class_names"]))
    width = max(map(len, ["class", *names]))
    digits = max(6, *(len(str(n)) for n in result["pixels"]))
    images = max(1, result["images"])
    lines = [f"{result['data_title']}: {result['images']} images",
             f" id  {'class':<{width}}  {'pixels':>{digits}}  {'share':>8}  images  {'share':>7}"
             + "".join(f"  {rule:>7}" for rule in rules)]
    for k, name in enumerate(names):
        weights = "".join(f"  {result['weights'][rule][k]:7.4f}" for rule in rules)
        lines.append(f"{k:3}  {name:<{width}}  {result['pixels'][k]:>{digits}}  "
                     f"{100 * result['share'][k]:7.3f}%  {result['images_with'][k]:6}  "
                     f"{100 * result['images_with'][k] / images:6.1f}%{weights}")
    counted = sum(result["pixels"]) + result["ignored_pixels"]
    share = 100 * result["ignored_pixels"] / counted if counted else 0.0
    absent = [name for name, n in zip(names, result["pixels"], strict=True) if not n]
    lines.append(f"ignored: {result['ignored_pixels']} pixels, {share:.2f}% of all")
    if absent:
        lines.append(f"without a single pixel: {', '.join(absent)}")
    if "bands" in result:
        lines += [f"\"{key}\": {json.dumps([float(f'{x:.6g}') for x in result[key]])}"
                  for key in ("mean", "std")]
        constant = [number for number, std in zip(result["bands"]["numbers"], result["std"],
                                                  strict=True) if not std]
        if constant:
            lines.append(f"without any difference, so leave out: band "
                         f"{', '.join(map(str, constant))}")
        return "\n".join(lines)
    numbers = {key: [round(x, 5) for x in result[key]] for key in ("mean", "std")}
    lines.append(f"\"normalize\": {json.dumps(numbers)}")
    return "\n".join(lines)


def _weights(dataset, pixels, images_with, pixels_in_images_with):
    """rule -> weights; None without any pixel, or if the table is for other classes."""
    from dataloader.cityscapes import CLASS_NAMES
    from utils.losses.class_weights import CITYSCAPES_TABLE, WEIGHT_RULES, rule_weights
    weights = {"table": list(CITYSCAPES_TABLE) if dataset.class_names == CLASS_NAMES else None}
    for rule in WEIGHT_RULES:
        weights[rule] = rule_weights(rule, pixels.tolist(), images_with.tolist(),
                                     pixels_in_images_with.tolist()) if pixels.any() else None
    return weights


def _histogram(image):
    """The number of pixels of each value, int64 (3, 256), of an image uint8 (H, W, 3)."""
    import cv2
    import numpy as np
    rows = max(1, EXACT // max(1, image.shape[1]))
    counts = np.zeros((3, 256), np.int64)
    for top in range(0, len(image), rows):
        for channel in range(3):
            part = cv2.calcHist([image[top:top + rows]], [channel], None, [256], [0, 256])
            counts[channel] += part.ravel().astype(np.int64)
    return counts


class _Sums:
    """The sum and the sum of squares of every band; of integers exactly.

    no_data: the value of pixels that do not count; None: all count.
    """

    def __init__(self, bands: int, no_data: float | str | None):
        self.pixels, self.first, self.second = [0] * bands, [0] * bands, [0] * bands
        self.no_data = no_data

    def add(self, image):
        """Add an image (H, W, bands)."""
        import numpy as np

        from utils.images.bands import without_data
        whole = image.dtype.kind == "u"
        for band in range(image.shape[2]):
            values = image[..., band].ravel()
            if self.no_data is not None:
                values = values[~without_data(values, self.no_data)]
            self.pixels[band] += len(values)
            values = values.astype(np.int64 if whole else np.float64)
            self.first[band] += values.sum().item()
            self.second[band] += (values * values).sum().item()

    def moments(self) -> tuple[list[float], list[float]]:
        """(mean, standard deviation) of each band."""
        means, deviations = [], []
        for pixels, first, second in zip(self.pixels, self.first, self.second, strict=True):
            number = max(pixels, 1)
            means.append(first / number)
            deviations.append(max(number * second - first * first, 0) ** 0.5 / number)
        return means, deviations


def _moments(values):
    """(mean, standard deviation) of each channel, in 0..1, computed exactly in integers."""
    means, stds = [], []
    for counts in values.tolist():
        number = sum(counts)
        first = sum(value * n for value, n in enumerate(counts))
        second = sum(value * value * n for value, n in enumerate(counts))
        means.append(first / number / 255)
        stds.append((number * second - first * first) ** 0.5 / number / 255)
    return means, stds


if __name__ == "__main__":
    sys.exit(console.run(main))
