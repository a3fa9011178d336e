"""Make the folder VOC2010_Context from the two downloads of PASCAL-Context.

    VOCtrainval_03-May-2010/VOCdevkit/VOC2010/{JPEGImages,ImageSets/Main}
    trainval/trainval/ID.mat                                 459 ids
 -> VOC2010_Context/Images/{train,val}/ID.jpg
    VOC2010_Context/Annotations/{train,val}/ID.png           0 background, 1..59

examples:
  python -m tools.prepare_pascal_context data/context --dry-run
  python -m tools.prepare_pascal_context data/context --link

The datasets of this program also read the downloads; PNG labels are read faster than .mat files.
Existing files are kept, so the command can be interrupted and repeated. A damaged file is named and
the others are written.
"""
import argparse
import functools
import os
import sys
from pathlib import Path

from utils.cli import console
from utils.files.file_jobs import Job, conversion_parser, convert

NAME = "VOC2010_Context"
SPLITS = ("train", "val")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = conversion_parser("prepare_pascal_context", __doc__)
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", help=f"in place of DATA_DIR/{NAME}")
    add("--link", action="store_true",
        help="hard links to the images in place of copies (on one file system)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from dataloader.dataset_report import open_unchecked
    from dataloader.pascal_context import VOC2010_Context_60
    from utils.errors import DataError, shown
    output, jobs, problems = args.output or args.data_dir / NAME, [], []
    for split in SPLITS:
        dataset = open_unchecked("VOC2010_Context_60",
                                 {"data_dir": str(args.data_dir), "split": split}, 255)
        assert isinstance(dataset, VOC2010_Context_60)
        if dataset.prepared:
            raise DataError("holds the prepared folder, not the downloads", shown(args.data_dir),
                            "give the folder with VOCdevkit/ and trainval/")
        problems += dataset.problems
        for sample in dataset.samples:
            assert sample.image and sample.label
            image = output / "Images" / split / sample.image.name
            label = output / "Annotations" / split / f"{sample.id}.png"
            jobs.append(Job((sample.image, sample.label), (image, label), functools.partial(
                _write, dataset, sample, image, label, args.link)))
    if not jobs:
        raise DataError("; ".join(problems) or "found no pictures", shown(args.data_dir))
    return convert(jobs, args, problems).status


def _write(dataset, sample, image, label, link):
    from utils.errors import DataError, shown, size_text
    from utils.files.whole_file import write_bytes
    from utils.images.image_io import read_image, write_image
    size = read_image(sample.image).shape[:2]
    ids = dataset.read_train_ids(sample.label)
    if ids.shape != size:
        raise DataError(f"is {size_text(ids.shape)}, its image {size_text(size)} (height x width)",
                        shown(sample.label))
    if link:
        image.unlink(missing_ok=True)
        try:
            os.link(sample.image, image)
        except OSError as error:
            raise DataError(f"cannot be linked: {error.strerror}", shown(sample.image),
                            "leave --link out to copy the images") from None
    else:
        write_bytes(image, sample.image.read_bytes())
    write_image(label, ids)


if __name__ == "__main__":
    sys.exit(console.run(main))
