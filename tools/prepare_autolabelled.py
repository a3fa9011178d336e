"""Convert the auto-labelled pictures of Cityscapes from label ids to train ids, as PaddleSeg does.

    refinement_final/train_extra/CITY/NAME_leftImg8bit.png   label ids, as released
 -> convert_autolabelled/CITY/NAME_leftImg8bit.png           train ids, 255 ignored, palette

examples:
  python -m tools.prepare_autolabelled data/cityscapes --dry-run
  python -m tools.prepare_autolabelled data/cityscapes

The dataset Cityscapes_autolabelled reads either folder and needs none of this. Files that are
there are left alone, so the command can be interrupted and repeated. A damaged label is named
and the others are written.
"""
import functools
import sys
from pathlib import Path

from utils import console
from utils.convert_files import Job, conversion_parser, convert

SOURCE, TARGET = "refinement_final/train_extra", "convert_autolabelled"


def parse(argv):
    parser = conversion_parser("prepare_autolabelled", __doc__)
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help=f"in place of DATA_DIR/{TARGET}")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from dataloader.cityscapes import LEFTOVERS, Cityscapes_autolabelled
    from dataloader.label_files import label_files
    from utils.errors import DataError
    from utils.image_io import picture_files, shown
    folder, output = args.data_dir / SOURCE, args.output or args.data_dir / TARGET
    if not folder.is_dir():
        raise DataError(f"found no folder {SOURCE} in it", shown(args.data_dir),
                        "unpack the auto-labelled pictures (refinement_final) there")
    paths = [path for path in picture_files(folder, (".png",))
             if path.relative_to(folder).parts[0] != LEFTOVERS]
    if not paths:
        raise DataError("holds no PNG files", shown(folder))
    labels = label_files(Cityscapes_autolabelled, folder, paths)
    jobs = []
    for path in paths:
        target = output / path.relative_to(folder)
        jobs.append(Job((path,), (target,), functools.partial(_write, labels, path, target)))
    return 3 if convert(jobs, args).problems else 0


def _write(labels, source, target):
    from utils.image_io import write_label
    from utils.palette import voc_palette
    write_label(target, labels.read_train_ids(source), voc_palette(256))


if __name__ == "__main__":
    sys.exit(console.run(main))
