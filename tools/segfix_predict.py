"""Predict offset files with a SegFix network: one .mat file per image, in the format of openseg.

examples:
  python -m tools.segfix_predict -r segfix.pth --images leftImg8bit/val -o offset_hrnext
  python -m tools.segfix_predict -r segfix.pth --images photos -o offsets --crop 512 --stride 170

A file contains "mat", (H, W, 2): the (dy, dx) of every pixel, 0 if the pixel is not a border. All
files are written to one folder. If two images have the same name, the files are written to
subfolders like those of the images. Convert a published checkpoint first, with
python -m tools.convert_checkpoint.
"""
import argparse
import os
import sys

from utils.cli import console
from utils.cli.arguments import at_least, command_parser, device
from utils.predict.arguments import add_base_size, add_checkpoint, given_base_size


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.segfix_predict", __doc__)
    add = parser.add_argument
    add_checkpoint(parser, purpose="SegFix checkpoint")
    add("-i", "--images", required=True, nargs="+", metavar="PATH",
        help="folders, images, .txt lists or patterns")
    add("-o", "--output", "--out", dest="out", required=True, metavar="DIR",
        help="folder for the offset files")
    add("--crop", type=at_least(1), metavar="N",
        help="predict on square crops of this size and average (published: 512; default: the "
             "whole image)")
    add("--stride", type=at_least(1), metavar="N",
        help="distance between crops (default: a third of the crop; published: 170)")
    add_base_size(parser)
    add("--skip-existing", action="store_true", help="leave out images whose file exists")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if args.stride is not None and (args.crop is None or args.stride > args.crop):
        parser.error("--stride needs --crop and must not be larger")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    import torch

    from utils.checkpoint.find import find_checkpoint
    from utils.errors import DataError, first_line, shown, size_text
    from utils.files.file_jobs import work_through
    from utils.files.whole_file import make_folder
    from utils.images.base_size import base_size_text
    from utils.images.image_io import read_image
    from utils.images.image_list import find_images, prepare_folder
    from utils.machine import distributed
    from utils.segfix.mat_files import write_offsets
    from utils.segfix.refiner import NetworkOffsets
    sources = find_images(args.images, leave_out=args.out)
    jobs = [(source.path, path) for source, path in zip(sources, _paths(sources, args.out),
                                                     strict=True)]
    args.checkpoint = find_checkpoint(args.checkpoint)
    prepare_folder(args.out)
    network = NetworkOffsets.open(args.checkpoint, distributed.start(args.device), args.crop,
                                  args.stride)
    if args.base_size is None and network.base_size is not None:
        console.notice(f"borders are predicted at {base_size_text(network.base_size)}, as in "
                       "validation; --base-size none predicts at the images' own size")
    network.base_size = given_base_size(args, network.base_size)

    def predict(job):
        source, path = job
        image = torch.from_numpy(read_image(source, network.white)).permute(2, 0, 1)
        try:
            offset = network.predict(image)
        except RuntimeError as error:
            # Usually out of memory: one image too large for the device must not stop the others.
            raise DataError(f"the network fails on {size_text(image.shape[1:])} (height x width): "
                            f"{first_line(error)}", shown(source), "try --crop 512") from None
        make_folder(os.path.dirname(path))
        write_offsets(path, offset)
        return float((offset != 0).any(axis=2).mean())

    def exists(job):
        return args.skip_existing and os.path.exists(job[1])

    outcome = work_through(jobs, predict, 1, "predicting", exists, console.warn)
    share = sum(outcome.done) / len(outcome.done) if outcome.done else 0.0
    print(f"{outcome.summary('offset files written')} ({share:.1%} of the pixels are border): "
          f"{shown(args.out)}")
    return outcome.status


def _paths(sources, folder):
    """Returns the offset file of each image: in one folder unless two images share a name."""
    from utils.images.image_list import Source, plan_outputs
    names = [os.path.basename(source.relative) for source in sources]
    stems = {os.path.splitext(name)[0].casefold() for name in names}
    if len(stems) == len(names):
        sources = [Source(source.path, name) for source, name in zip(sources, names, strict=True)]
    return [planned[".mat"] for planned in plan_outputs(sources, folder, [".mat"])]


if __name__ == "__main__":
    sys.exit(console.run(main))
