"""Write Cityscapes labels as train ids beside the official ones, for other programs.

    *_gtFine_labelIds.png -> *_gtFine_labelTrainIds.png      0..18, 255 ignored; likewise gtCoarse

examples:
  python -m tools.prepare_cityscapes data/cityscapes --dry-run
  python -m tools.prepare_cityscapes data/cityscapes --kind fine --split train val
  python -m tools.prepare_cityscapes data/cityscapes --suffix labelIds_19classes

The loaders here read labelIds and need none of this. Files that are there are left alone, so the
command can be interrupted and repeated. A damaged label is named and the others are written.
"""
import functools
import sys
from pathlib import Path

from utils import console
from utils.convert_files import Job, conversion_parser, convert

KINDS = {"fine": "gtFine", "coarse": "gtCoarse"}


def parse(argv):
    parser = conversion_parser("prepare_cityscapes", __doc__)
    add = parser.add_argument
    add("--kind", nargs="+", choices=tuple(KINDS), help="annotations (default: all that are there)")
    add("--split", nargs="+", metavar="NAME", help="train, val, ... (default: all that are there)")
    add("--suffix", choices=("labelTrainIds", "labelIds_19classes"), default="labelTrainIds",
        help="end of the written names: the official tool's (default), or a name in use elsewhere")
    add("--output", type=Path, metavar="DIR",
        help="write below this folder, in the same tree, in place of beside the labels")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from dataloader.cityscapes import CityScapes
    from dataloader.label_files import label_files
    from utils.errors import DataError
    from utils.image_io import picture_files, shown
    kinds, jobs = args.kind or tuple(KINDS), []
    if not args.data_dir.is_dir():
        raise DataError("no such folder", shown(args.data_dir))
    for kind, folder in _label_folders(args.data_dir, kinds, args.split):
        ending = f"_{kind}_labelIds.png"
        paths = [path for path in picture_files(folder, (".png",)) if path.name.endswith(ending)]
        labels = label_files(CityScapes, folder, paths)
        for path in paths:
            place = path.parent
            if args.output:
                place = args.output / place.relative_to(args.data_dir)
            name = path.name.removesuffix(ending) + f"_{kind}_{args.suffix}.png"
            jobs.append(Job((path,), (place / name,),
                            functools.partial(_write, labels, path, place / name)))
    if not jobs:
        wanted = " or ".join(f"*_{KINDS[kind]}_labelIds.png" for kind in kinds)
        raise DataError(f"found no {wanted}", shown(args.data_dir),
                        "give the folder into which gtFine_trainvaltest.zip or gtCoarse.zip was "
                        "unpacked")
    return 3 if convert(jobs, args).problems else 0


def _label_folders(root, kinds, splits):
    """(gtFine or gtCoarse, folder of one split) for every split that is there."""
    for name in (KINDS[kind] for kind in kinds):
        for place in (f"{name}_trainvaltest/{name}", f"{name}/{name}", name):
            if (root / place).is_dir():
                for folder in sorted((root / place).iterdir()):
                    if folder.is_dir() and folder.name != name and \
                            (not splits or folder.name in splits):
                        yield name, folder
                break


def _write(labels, source, target):
    from utils.image_io import write_image
    write_image(target, labels.read_train_ids(source))


if __name__ == "__main__":
    sys.exit(console.run(main))
