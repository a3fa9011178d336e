"""Draw what an annotation tool has exported as label maps: PNG files and a class file.

examples:
  python -m tools.import_labels instances.json --images photos -o labels
  python -m tools.import_labels labelme/ --images photos -o labels --classes my.classes.json
  python train.py --init my.json --images photos --labels labels/maps

OUT/maps/NAME.png has the class of each pixel as value and in the colors of the class file,
OUT/classes.json names the classes (type Folder). 255 means "no class" (65535 if there are 255
classes or more). Without --classes the classes are those that `train.py --init` proposes. The
formats are those of docs/own_data.md. Training reads annotations directly: label maps are for
looking at them, for editing and for other programs.
"""
import argparse
import json
import sys
from pathlib import Path

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.import_labels", __doc__)
    add = parser.add_argument
    add("labels", help="a file or folder of annotations, or a pattern of mask files")
    add("--images", required=True, metavar="DIR", help="the folder of the images")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="a new folder")
    add("--classes", metavar="FILE", help="a class file, as for the type Annotated")
    add("--background", metavar="NAME",
        help="with --classes: the class of pixels in no region (default: background, or none)")
    add("--overlap", choices=("order", "area"),
        help="what is on top: the later region or the smaller one (default: as the tool draws)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="threads")
    args = parser.parse_args(argv)
    if args.background and not args.classes:
        parser.error("--background names a class of --classes")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.errors import ConfigError, shown
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise ConfigError(f"{shown(args.output)} exists and is not empty", "--output",
                          "name a new folder")
    from utils.config.annotated_pairs import annotated_pairs
    from utils.config.first_config import LABELS_READ
    from utils.config.pair_search import place_of
    labels, classes, background = args.labels, args.classes, args.background
    if not classes:
        found = annotated_pairs(place_of(args.images, "--images"), labels, LABELS_READ)
        if found is None:
            raise ConfigError(f"{shown(labels)}: these are no annotations of a known tool",
                              "LABELS", "docs/own_data.md lists the formats")
        print("\n  ".join([f"annotations: {found.title}", *found.lines, found.remark]))
        args.output.mkdir(parents=True, exist_ok=True)
        classes = args.output / "classes.json"
        classes.write_text(json.dumps({"names": found.names, "palette": found.palette,
                                       **found.class_lists}, ensure_ascii=False), "utf-8")
        labels, background = str(found.path), found.background
    return _write(args, labels, str(classes), background)


def _write(args, labels, classes, background) -> int:
    """Draw the label maps of all annotated images, and the class file of type Folder."""
    from dataloader.annotated import Annotated
    from utils.errors import shown
    from utils.files.file_jobs import work_through
    from utils.files.jsonc import read_jsonc
    from utils.images.image_io import write_label
    if args.classes and background is None:
        names = read_jsonc(classes)
        background = "background" if "background" in (names.get("names") or ()) else None
    dataset = Annotated(".", labels, classes, background=background, overlap=args.overlap,
                        image_dir=str(Path(args.images).absolute()))

    def write(index):
        sample = dataset.samples[index]
        target = args.output / "maps" / f"{sample.id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_label(target, dataset.load_label(index), dataset.palette)

    outcome = work_through(range(len(dataset)), write, args.workers, "writing",
                           report=console.notice)
    args.output.mkdir(parents=True, exist_ok=True)
    content = {"names": dataset.class_names, "palette": dataset.palette,
               "label_ids": list(range(dataset.num_classes)),
               "ignore_ids": [dataset.ignored_value]}
    (args.output / "classes.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    print(f"wrote {shown(args.output / 'maps')}: {outcome.summary('label maps')}")
    print(f"wrote {shown(args.output / 'classes.json')}: {dataset.num_classes} classes")
    return outcome.status


if __name__ == "__main__":
    sys.exit(console.run(main))
