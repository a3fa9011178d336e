"""Refine label files, or Cityscapes instance results, of any program with SegFix's offset files.

examples:
  python -m tools.segfix_refine --input labels --offset offset_hrnext -o refined
  python -m tools.segfix_refine --input results/label --offset data/cityscapes --split val
  python -m tools.segfix_refine --input results --offset offset_instance -o refined --instances

Every pixel takes the label at its position plus --scale offsets. This is a gather, so it creates no
new labels. Label files may be gray, palette or color images of any size, and keep their kind. With
--instances the input contains Cityscapes results: one NAME_pred.txt per image with lines "mask
file, label id, score". The masks are refined and the rest is copied. The offset file of an image is
found by its name. A file that cannot be refined is reported in one line; the others are done.
"""
import argparse
import os
import sys

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.segfix_refine", __doc__)
    add = parser.add_argument
    add("-i", "--input", required=True, metavar="DIR", help="folder of label files or results")
    add("--offset", required=True, metavar="DIR", help="folder of offset files (.mat)")
    add("-o", "--output", "--out", dest="out", metavar="DIR",
        help="folder for the refined files (default, as published: --input with label replaced by "
             "label_w_segfix, or label_w_segfix inside --input)")
    add("--split", metavar="NAME",
        help="use the subfolder of this split in --input and --offset, if it exists "
             "(--offset data/cityscapes --split val: its val/offset_pred/semantic)")
    add("--scale", type=float, metavar="X",
        help="factor for the offsets (default: 2; with --instances 1)")
    add("--instances", action="store_true", help="refine Cityscapes instance results")
    add("--ids", choices=("keep", "cityscapes", "ade20k"), default="keep",
        help="keep: keep all values (default); cityscapes, ade20k: as published, values that are "
             "not classes of the benchmark become 255")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, metavar="N",
        help="number of threads (default: one per core, at most 8)")
    args = parser.parse_args(argv)
    if args.scale is not None and not 0 < args.scale < 1e6:
        parser.error("--scale must be above 0")
    if args.instances and args.ids != "keep":
        parser.error("--ids has no effect with --instances: masks contain no ids")
    if args.scale is None:
        args.scale = 1.0 if args.instances else 2.0
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.errors import shown
    from utils.files.file_jobs import work_through
    from utils.images.image_list import prepare_folder
    from utils.segfix.instances import copy_ground_truth, instance_jobs, refine_instances
    from utils.segfix.label_files import label_jobs, refine_label_file
    from utils.segfix.mat_files import MatFolder, part_of_split
    kind = "instance" if args.instances else "semantic"
    out = args.out or _published_folder(args.input)
    source = part_of_split(args.input, args.split)
    files = MatFolder(part_of_split(args.offset, args.split, kind))
    prepare_folder(out)
    if args.instances:
        jobs = instance_jobs(source, out)
        outcome = work_through(jobs, lambda job: refine_instances(job, files, args.scale),
                               args.workers, "refining", report=console.warn)
        copy_ground_truth(source, out)
        what = "instance results refined"
    else:
        jobs = label_jobs(source, out)
        outcome = work_through(jobs, lambda job: refine_label_file(job, files, args.scale,
                                                                   args.ids),
                               args.workers, "refining", report=console.warn)
        what = "label files refined"
    pixels = sum(total for _, total in outcome.done)
    changed = sum(count for count, _ in outcome.done) / pixels if pixels else 0.0
    print(f"{outcome.summary(what)} ({changed:.2%} of the pixels changed): {shown(out)}")
    return outcome.status


def _published_folder(folder):
    """Returns the folder to which the published script writes: label_w_segfix."""
    parts = os.path.normpath(folder).split(os.sep)
    if "label" not in parts:
        return os.path.join(folder, "label_w_segfix")
    last = len(parts) - 1 - parts[::-1].index("label")
    return os.sep.join([*parts[:last], "label_w_segfix", *parts[last + 1:]])


if __name__ == "__main__":
    sys.exit(console.run(main))
