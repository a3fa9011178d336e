"""Draws what the augmentations do, on scenes of Shapes: pictures for docs/augmentation.md.

    python -m tools.plot_augmentation [docs] [--seed 3]

cutmix.png and copyblob.png: a batch with its labels, and below it the same after the transform.
transforms.png: a scene, and the scene after each of the transforms.
"""
import argparse
import sys
from pathlib import Path

from utils.images.types import Image

BATCH = {"cutmix": {"type": "CutMix"},
         # Cars onto the road, people onto the sidewalk.
         "copyblob": {"type": "CopyBlob", "args": {"pairs": [[8, 0], [7, 1]]}}}
# With every p at 1, so that each picture shows something.
TRANSFORMS = (
    {"type": "ColorJitter", "args": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3,
                                     "hue": 0.3}},
    {"type": "RandomDistort"},
    {"type": "PhotometricDistortion"},
    {"type": "BrightnessShift", "args": {"limit": 40}},
    {"type": "RGBShift", "args": {"limit": 40, "p": 1.0}},
    {"type": "GaussianBlur", "args": {"sigma": [0.5, 2.0]}},
    {"type": "Cutout", "args": {"holes": [1, 3], "p": 1.0}},
    {"type": "RandAugment", "args": {"magnitude": 6, "p": 1.0}},
)
COLUMNS = 4
SIZE = (112, 168)       # of a scene


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    parser.add_argument("--seed", type=int, default=3, help="of the scenes and of the draws")
    args = parser.parse_args(argv)
    from utils.images.image_io import write_image
    pictures = {name: batch_picture(section, args.seed) for name, section in BATCH.items()}
    pictures["transforms"] = transforms_picture(args.seed)
    for name, picture in pictures.items():
        path = args.folder / f"{name}.png"
        write_image(path, picture)
        print(path)


def batch_picture(section: dict, seed: int) -> Image:
    """Four scenes and their labels, before and after a batch transform."""
    import torch

    from dataloader.shapes import Shapes
    from utils.config.build import build
    from utils.images.visualize import stacked
    from utils.machine.seeding import seed_everything
    data = Shapes(size=SIZE, length=COLUMNS, seed=seed)
    samples = [data[i] for i in range(COLUMNS)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "label")}
    seed_everything(seed)
    mixed = build("batch_transforms", section, num_classes=data.num_classes)(batch)
    return stacked(_rows(batch, data.palette), _rows(mixed, data.palette))


def transforms_picture(seed: int) -> Image:
    """A scene after each transform, below the transform's name and above its label."""
    from dataloader.augmentation.transforms import Augmentation
    from dataloader.shapes import Shapes
    from utils.images.palette import colorize
    from utils.images.visualize import caption, side_by_side, stacked
    cells = []
    for number, section in enumerate((None, *TRANSFORMS)):
        chain = Augmentation(augment=True, scale=False, transforms=[section] if section else [])
        data = Shapes(size=SIZE, length=1, seed=seed, augmentation=chain)
        sample = data[number, 0]        # the first index is the epoch: other random draws
        cells.append(stacked(caption(section["type"] if section else "as loaded", SIZE[1], 14),
                             sample["image"].permute(1, 2, 0).numpy(),
                             colorize(sample["label"].numpy(), data.palette)))
    return stacked(*(side_by_side(*cells[i:i + 3]) for i in range(0, len(cells), 3)))


def _rows(batch, palette):
    from utils.images.palette import colorize
    from utils.images.visualize import side_by_side, stacked
    images = [image.permute(1, 2, 0).numpy() for image in batch["image"]]
    labels = [colorize(label.numpy(), palette) for label in batch["label"]]
    return stacked(side_by_side(*images), side_by_side(*labels))


if __name__ == "__main__":
    sys.exit(main())
