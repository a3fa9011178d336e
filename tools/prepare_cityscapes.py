"""Write Cityscapes labels as train ids next to the official ones, for other programs.

    *_gtFine_labelIds.png -> *_gtFine_labelTrainIds.png      0..18, 255 ignored; likewise gtCoarse

examples:
  python -m tools.prepare_cityscapes data/cityscapes --dry-run
  python -m tools.prepare_cityscapes data/cityscapes --kind fine --split train val
  python -m tools.prepare_cityscapes data/cityscapes --suffix labelIds_19classes

The datasets of this program read labelIds and do not need these files. Existing files are kept, so
the command can be interrupted and repeated. A damaged label is named and the others are written.
"""
import argparse
import functools
import sys
from pathlib import Path

from utils.cli import console
from utils.files.file_jobs import Job, conversion_parser, convert

KINDS = {"fine": "gtFine", "coarse": "gtCoarse"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = conversion_parser("prepare_cityscapes", __doc__)
    add = parser.add_argument
    add("--kind", nargs="+", choices=tuple(KINDS), help="annotations (default: all that exist)")
    add("--split", nargs="+", metavar="NAME", help="train, val, ... (default: all that exist)")
    add("--suffix", choices=("labelTrainIds", "labelIds_19classes"), default="labelTrainIds",
        help="end of the written names: the official tool's (default), or a name in use elsewhere")
    add("--output", type=Path, metavar="DIR",
        help="write below this folder, in the same tree (default: next to the labels)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from dataloader.cityscapes import CityScapes
    from dataloader.label_files import label_files
    from utils.errors import DataError, shown
    from utils.images.picture_files import picture_files
    kinds, jobs = args.kind or tuple(KINDS), []
    if not args.data_dir.is_dir():
        raise DataError("no such folder", shown(args.data_dir))
    for kind, folder in _label_folders(args.data_dir, kinds, args.split):
        ending = f"_{kind}_labelIds.png"
        paths = [path for path in picture_files(folder, (".png",)) if path.name.endswith(ending)]
        labels = label_files(CityScapes, folder, paths)
        for path in paths:
            folder = path.parent
            if args.output:
                folder = args.output / folder.relative_to(args.data_dir)
            target = folder / (path.name.removesuffix(ending) + f"_{kind}_{args.suffix}.png")
            jobs.append(Job((path,), (target,), functools.partial(_write, labels, path, target)))
    if not jobs:
        wanted = " or ".join(f"*_{KINDS[kind]}_labelIds.png" for kind in kinds)
        raise DataError(f"found no {wanted}", shown(args.data_dir),
                        "give the folder into which gtFine_trainvaltest.zip or gtCoarse.zip was "
                        "unpacked")
    return convert(jobs, args).status


def _label_folders(root, kinds, splits):
    """(gtFine or gtCoarse, folder of the split) for every split that exists."""
    for name in (KINDS[kind] for kind in kinds):
        for place in (f"{name}_trainvaltest/{name}", f"{name}/{name}", name):
            if (root / place).is_dir():
                for folder in sorted((root / place).iterdir()):
                    if folder.is_dir() and folder.name != name and \
                            (not splits or folder.name in splits):
                        yield name, folder
                break


def _write(labels, source, target):
    from utils.images.image_io import write_image
    write_image(target, labels.read_train_ids(source))


if __name__ == "__main__":
    sys.exit(console.run(main))
