"""Write the distance maps for training SegFix: one .mat file per label, in the published format.

examples:
  python -m tools.segfix_targets --labels gtFine/train --ids cityscapes -o dt_offset
  python -m tools.segfix_targets --labels gtFine/train --instances -o dt_offset_inst_w_stuff
  python -m tools.segfix_targets --labels trainannot --void 11 -o train_offsets
  python -m tools.segfix_targets --labels annotations/training --ids ade20k -o dt_offset

A file contains "depth" (uint8: distance to the nearest border, rounded down to whole pixels, at
most 250), "dir_deg" (uint8: half of the angle to the inside + 180) and "deg_reduce" (2). Training
does not need these files: the dataset SegFixTargets computes the maps when it reads an image. It
reads the files only if its argument "targets" names their folder.
"""
import argparse
import os
import sys

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser

IDS = ("keep", "cityscapes", "ade20k")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.segfix_targets", __doc__)
    add = parser.add_argument
    add("-l", "--labels", required=True, nargs="+", metavar="PATH",
        help="label files: folders, files, .txt lists or patterns")
    add("-o", "--output", "--out", dest="out", required=True, metavar="DIR",
        help="folder for the .mat files")
    add("--ids", choices=IDS, default="keep",
        help="which values are classes. keep: all except --void (default); cityscapes: the 19 "
             "label ids that are evaluated; ade20k: all except 255")
    add("--void", type=int, action="append", metavar="V",
        help="with --ids keep: a value that is not a class; may be repeated (default: 255)")
    add("--instances", action="store_true",
        help="the labels are *_instanceIds.png; every instance has borders, small ones too")
    add("--min-pixels", type=at_least(0), default=100, metavar="N",
        help="ignore classes with fewer pixels in an image (default: 100, as published; no "
             "effect with --instances)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, metavar="N",
        help="number of threads (default: one per core, at most 8)")
    add("--skip-existing", action="store_true", help="leave out labels whose file exists")
    args = parser.parse_args(argv)
    if args.void and args.ids != "keep":
        parser.error(f"--void has no effect with --ids {args.ids}")
    if args.instances and (args.void or args.ids != "keep"):
        parser.error("--instances reads Cityscapes' instance ids: --ids and --void have no effect")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.errors import DataError, shown
    from utils.files.file_jobs import work_through
    from utils.files.whole_file import make_folder
    from utils.images.image_io import read_label
    from utils.images.image_list import find_images, plan_outputs, prepare_folder
    from utils.images.picture_files import LABEL_SUFFIXES
    from utils.segfix.mat_files import write_distance_maps
    from utils.segfix.targets import VOID, distance_maps, instance_regions, semantic_regions
    prepare_folder(args.out)
    sources = find_images(args.labels, LABEL_SUFFIXES, leave_out=args.out)
    if args.instances:
        sources = [source for source in sources if "_instanceIds" in source.path]
    elif args.ids == "cityscapes":
        # A gtFine folder also contains color images and instance ids of the same labels.
        label_ids = [source for source in sources if "_labelIds" in source.path]
        sources = label_ids or sources
    if not sources:
        raise DataError("found no *_instanceIds.png", shown(args.labels[0]),
                        "give the folder of gtFine")
    jobs = [(source.path, planned[".mat"]) for source, planned
            in zip(sources, plan_outputs(sources, args.out, [".mat"]), strict=True)]

    def write(job):
        source, path = job
        labels = read_label(source)
        if args.instances:
            maps = distance_maps(instance_regions(labels), None, 0)
        else:
            maps = distance_maps(semantic_regions(labels, args.ids, args.void or (255,)), VOID,
                                 args.min_pixels)
        make_folder(os.path.dirname(path))
        write_distance_maps(path, *maps)
        return path

    def exists(job):
        return args.skip_existing and os.path.exists(job[1])

    outcome = work_through(jobs, write, args.workers, "computing", exists, console.warn)
    print(f"{outcome.summary('files of distance maps written')}: {shown(args.out)}")
    return outcome.status


if __name__ == "__main__":
    sys.exit(console.run(main))
