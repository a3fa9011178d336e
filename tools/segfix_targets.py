"""Write the distance maps that SegFix is trained on: one .mat per label, as published.

examples:
  python -m tools.segfix_targets --labels gtFine/train --ids cityscapes --out dt_offset
  python -m tools.segfix_targets --labels gtFine/train --instances --out dt_offset_inst_w_stuff
  python -m tools.segfix_targets --labels trainannot --void 11 --out train_offsets
  python -m tools.segfix_targets --labels annotations/training --ids ade20k --out dt_offset

A file holds "depth" (uint8: distance to the nearest border, cut to whole pixels, at most 250),
"dir_deg" (uint8: half of the angle to the inside + 180) and "deg_reduce" (2). They need not be
written to train: the dataset SegFixTargets computes them when it reads an image, and reads these
files where its argument "targets" names their folder.
"""
import os
import sys

from utils import console
from utils.arguments import at_least, command_parser

IDS = ("keep", "cityscapes", "ade20k")


def parse(argv):
    parser = command_parser("python -m tools.segfix_targets", __doc__)
    add = parser.add_argument
    add("-l", "--labels", required=True, nargs="+", metavar="PATH",
        help="label files: folders, files, .txt lists or patterns")
    add("-o", "--out", required=True, metavar="DIR", help="folder of the .mat files")
    add("--ids", choices=IDS, default="keep",
        help="what values mean. keep: every value but --void is a class (default); cityscapes: "
             "the 19 official label ids are, the rest is void; ade20k: all but 255")
    add("--void", type=int, action="append", metavar="V",
        help="with --ids keep: a value without borders of its own, more than one if repeated "
             "(default 255)")
    add("--instances", action="store_true",
        help="labels are *_instanceIds.png: every instance has its own borders, small ones too")
    add("--min-pixels", type=at_least(0), default=100, metavar="N",
        help="classes with fewer pixels in the image are passed over (default 100, as published; "
             "of no effect with --instances)")
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), help="threads")
    add("--skip-existing", action="store_true", help="leave out labels whose file is there")
    args = parser.parse_args(argv)
    if args.void and args.ids != "keep":
        parser.error(f"--void has no effect with --ids {args.ids}")
    if args.instances and (args.void or args.ids != "keep"):
        parser.error("--instances reads Cityscapes' instance ids: --ids and --void have no effect")
    return args


def main(argv=None):
    args = parse(argv)
    from utils.errors import DataError
    from utils.image_io import LABEL_SUFFIXES, make_folder, read_label, shown
    from utils.image_list import find_images, plan_outputs, prepare_folder
    from utils.segfix import VOID, distance_maps, instance_regions, semantic_regions
    from utils.segfix_files import write_distance_maps
    from utils.segfix_jobs import work_through
    prepare_folder(args.out)
    sources = find_images(args.labels, LABEL_SUFFIXES, leave_out=args.out)
    if args.instances:
        sources = [source for source in sources if "_instanceIds" in source.path]
    elif args.ids == "cityscapes":
        # A folder of gtFine holds pictures of the same labels beside them.
        named = [source for source in sources if "_labelIds" in source.path]
        sources = named or sources
    if not sources:
        raise DataError("found no *_instanceIds.png", shown(args.labels[0]),
                        "give the folder of gtFine")
    jobs = [(source.path, planned[".mat"]) for source, planned
            in zip(sources, plan_outputs(sources, args.out, [".mat"]))]

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

    outcome = work_through(jobs, write, args.workers, "computing", args.skip_existing)
    print(f"{outcome.summary('files of distance maps written')}: {shown(args.out)}")
    return outcome.status


if __name__ == "__main__":
    sys.exit(console.run(main))
