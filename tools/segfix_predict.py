"""Predict offset files with a SegFix network: one .mat per image, as openseg publishes them.

examples:
  python -m tools.segfix_predict -r segfix.pth --images leftImg8bit/val --out offset_hrnext
  python -m tools.segfix_predict -r segfix.pth --images photos --out offsets --crop 512 --stride 170

A file holds "mat", (H, W, 2): the (dy, dx) of every pixel, 0 where it is no border. All files lie
in one folder, unless two images have the same name: then they lie as the images do. A published
checkpoint is first converted by python -m tools.convert_checkpoint.
"""
import os
import sys

from utils import console
from utils.arguments import at_least, command_parser, device


def parse(argv):
    parser = command_parser("python -m tools.segfix_predict", __doc__)
    add = parser.add_argument
    add("-r", "--resume", dest="checkpoint", required=True, metavar="PATH",
        help="SegFix checkpoint")
    add("-i", "--images", required=True, nargs="+", metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--out", required=True, metavar="DIR", help="folder of the offset files")
    add("--crop", type=at_least(1), metavar="N",
        help="predict on square crops and average (the published script: 512); default: the "
             "whole image")
    add("--stride", type=at_least(1), metavar="N",
        help="between crops (default: a third of the crop, 170 for 512, as published)")
    add("--skip-existing", action="store_true", help="leave out images whose file is there")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if args.stride is not None and (args.crop is None or args.stride > args.crop):
        parser.error("--stride must be from 1 to --crop, which has to be given")
    return args


def main(argv=None):
    args = parse(argv)
    import torch

    from utils import distributed
    from utils.errors import DataError, first_line
    from utils.image_io import make_folder, read_image, shown
    from utils.image_list import find_images, prepare_folder
    from utils.segfix_files import write_offsets
    from utils.segfix_jobs import work_through
    from utils.segfix_refiner import NetworkOffsets
    prepare_folder(args.out)
    sources = find_images(args.images, leave_out=args.out)
    jobs = [(source.path, path) for source, path in zip(sources, _paths(sources, args.out))]
    network = NetworkOffsets.open(args.checkpoint, distributed.start(args.device), args.crop,
                                  args.stride)

    def predict(job):
        source, path = job
        image = torch.from_numpy(read_image(source)).permute(2, 0, 1)
        try:
            offset = network.predict(image)
        except RuntimeError as error:
            # Mostly memory: one image too large for the device shall not stop the others.
            raise DataError(f"the network fails on {image.shape[2]}x{image.shape[1]}: "
                            f"{first_line(error)}", shown(source), "try --crop 512") from None
        make_folder(os.path.dirname(path))
        write_offsets(path, offset)
        return float((offset != 0).any(axis=2).mean())

    outcome = work_through(jobs, predict, title="predicting", skip_existing=args.skip_existing)
    share = sum(outcome.done) / len(outcome.done) if outcome.done else 0.0
    print(f"{outcome.summary('offset files written')} ({share:.1%} of the pixels are border): "
          f"{shown(args.out)}")
    return outcome.status


def _paths(sources, folder):
    """The file of each image: in one folder where names allow it."""
    from utils.image_list import Source, plan_outputs
    names = [os.path.basename(source.relative) for source in sources]
    stems = {os.path.splitext(name)[0].casefold() for name in names}
    if len(stems) == len(names):
        sources = [Source(source.path, name) for source, name in zip(sources, names)]
    return [planned[".mat"] for planned in plan_outputs(sources, folder, [".mat"])]


if __name__ == "__main__":
    sys.exit(console.run(main))
