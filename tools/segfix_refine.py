"""Refine label files, or Cityscapes instance results, of any program with SegFix's offset files.

examples:
  python -m tools.segfix_refine --input labels --offset offset_hrnext --out refined
  python -m tools.segfix_refine --input results/label --offset data/cityscapes --split val
  python -m tools.segfix_refine --input results --offset offset_instance --out refined --instances

Every pixel takes the label that lies --scale offsets further: a gather, so no label appears that
was not there. Label files may be grey, palette or colour pictures of any size and keep their kind.
With --instances the input holds Cityscapes results, one NAME_pred.txt per image with lines "mask
file, label id, score": the masks are refined, the rest is copied. The offset file of an image is
found by its name. A file that cannot be refined is one line; the others are done.
"""
import os
import sys

from utils import console
from utils.arguments import at_least, command_parser


def parse(argv):
    parser = command_parser("python -m tools.segfix_refine", __doc__)
    add = parser.add_argument
    add("-i", "--input", required=True, metavar="DIR", help="folder of label files or results")
    add("--offset", required=True, metavar="DIR", help="folder of offset files (.mat)")
    add("-o", "--out", metavar="DIR",
        help="folder of the refined files (default: as published, label_w_segfix in place of a "
             "folder label in --input, or below --input)")
    add("--split", metavar="NAME",
        help="take the part of this name of --input and --offset, where there is one "
             "(--offset data/cityscapes --split val: its val/offset_pred/semantic)")
    add("--scale", type=float, metavar="X",
        help="offsets that a label is taken from (default 2; with --instances 1)")
    add("--instances", action="store_true", help="refine Cityscapes instance results")
    add("--ids", choices=("keep", "cityscapes", "ade20k"), default="keep",
        help="keep: all values stay (default); cityscapes, ade20k: as published, a value that is "
             "no class of the benchmark becomes 255")
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), help="threads")
    args = parser.parse_args(argv)
    if args.scale is not None and not 0 < args.scale < 1e6:
        parser.error("--scale must be above 0")
    if args.instances and args.ids != "keep":
        parser.error("--ids has no effect with --instances: masks hold no ids")
    if args.scale is None:
        args.scale = 1.0 if args.instances else 2.0
    return args


def main(argv=None):
    args = parse(argv)
    from utils.image_io import shown
    from utils.image_list import prepare_folder
    from utils.segfix_files import MatFolder, part_of_split
    from utils.segfix_instances import copy_ground_truth, instance_jobs, refine_instances
    from utils.segfix_jobs import work_through
    from utils.segfix_labels import label_jobs, refine_label_file
    kind = "instance" if args.instances else "semantic"
    out = args.out or _published_place(args.input)
    source = part_of_split(args.input, args.split)
    files = MatFolder(part_of_split(args.offset, args.split, kind))
    prepare_folder(out)
    if args.instances:
        jobs = instance_jobs(source, out)
        outcome = work_through(jobs, lambda job: refine_instances(job, files, args.scale),
                               args.workers, "refining")
        copy_ground_truth(source, out)
        what = "instance results refined"
    else:
        jobs = label_jobs(source, out)
        outcome = work_through(jobs, lambda job: refine_label_file(job, files, args.scale,
                                                                   args.ids),
                               args.workers, "refining")
        what = "label files refined"
    pixels = sum(total for _, total in outcome.done)
    changed = sum(count for count, _ in outcome.done) / pixels if pixels else 0.0
    print(f"{outcome.summary(what)} ({changed:.2%} of the pixels changed): {shown(out)}")
    return outcome.status


def _published_place(folder):
    """Where the published script writes: a folder label_w_segfix."""
    parts = os.path.normpath(folder).split(os.sep)
    if "label" not in parts:
        return os.path.join(folder, "label_w_segfix")
    place = len(parts) - 1 - parts[::-1].index("label")
    return os.sep.join([*parts[:place], "label_w_segfix", *parts[place + 1:]])


if __name__ == "__main__":
    sys.exit(console.run(main))
