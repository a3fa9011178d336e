"""Convert the auto-labeled pictures of Cityscapes from label ids to train ids, as PaddleSeg does.

    refinement_final/train_extra/CITY/NAME_leftImg8bit.png   label ids, as released
 -> convert_autolabelled/CITY/NAME_leftImg8bit.png           train ids, 255 ignored, palette

examples:
  python -m tools.prepare_autolabelled data/cityscapes --dry-run
  python -m tools.prepare_autolabelled data/cityscapes

The dataset Cityscapes_autolabelled reads either folder and does not need this command. Existing
files are kept, so the command can be interrupted and repeated. A damaged label is named and the
others are written.
"""
import argparse
import functools
import sys
from pathlib import Path

from utils.cli import console
from utils.files.file_jobs import Job, conversion_parser, convert

SOURCE, TARGET = "refinement_final/train_extra", "convert_autolabelled"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = conversion_parser("prepare_autolabelled", __doc__)
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help=f"in place of DATA_DIR/{TARGET}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from dataloader.cityscapes import LEFTOVERS, Cityscapes_autolabelled
    from dataloader.label_files import label_files
    from utils.errors import DataError, shown
    from utils.images.picture_files import picture_files
    folder, output = args.data_dir / SOURCE, args.output or args.data_dir / TARGET
    if not folder.is_dir():
        raise DataError(f"found no folder {SOURCE} in it", shown(args.data_dir),
                        "unpack the auto-labeled pictures (refinement_final) there")
    paths = [path for path in picture_files(folder, (".png",))
             if path.relative_to(folder).parts[0] != LEFTOVERS]
    if not paths:
        raise DataError("holds no PNG files", shown(folder))
    labels = label_files(Cityscapes_autolabelled, folder, paths)
    jobs = []
    for path in paths:
        target = output / path.relative_to(folder)
        jobs.append(Job((path,), (target,), functools.partial(_write, labels, path, target)))
    return convert(jobs, args).status


def _write(labels, source, target):
    from utils.images.image_io import write_label
    from utils.images.palette import voc_palette
    write_label(target, labels.read_train_ids(source), voc_palette(256))


if __name__ == "__main__":
    sys.exit(console.run(main))
