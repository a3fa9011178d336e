"""The command-line arguments of inference.py."""
import argparse

from utils.cli import console
from utils.cli.arguments import at_least, command_parser
from utils.errors import ConfigError
from utils.predict.arguments import (
    add_checkpoint,
    add_prediction_arguments,
    add_unassigned,
    check_segfix,
    option_name,
)

WORKERS = 2
EXAMPLES = """Segment images and videos with a trained checkpoint.

examples:
  python inference.py -r auto -i photos -o segmented
  python inference.py -m model_best.pth -i "photos/**/*.jpg" -o segmented --mode sliding --overlay
  python inference.py -m model_best.pth -i list.txt -o segmented --scales 0.5:1.5:0.25 --flip
  python inference.py -m model_best.pth -i clip.mp4 -o segmented
  python inference.py -r saved/a -r saved/b -i photos -o segmented     # an ensemble
  torchrun --standalone --nproc-per-node 2 inference.py -r auto -i photos -o segmented

docs/inference.md explains all options.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the arguments in `argv`, by default those of the program."""
    parser = command_parser("inference.py", EXAMPLES)
    add = parser.add_argument
    add_checkpoint(parser, "-m", "--model", purpose="checkpoint", several=True)
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists, patterns, video files, or camera:0")
    add("-o", "--output", default="outputs", metavar="DIR",
        help="folder for the results, with the subfolders of the input (default: outputs)")
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("-e", "--extension", default="", metavar="LIST",
        help="image types to take from folders, e.g. jpg or jpg,png (default: every image type)")
    add("-p", "--predict", metavar="RULE",
        help="decision rule: max, T, rankdice, rankiou, rankdice_dep or rankiou_dep (default: from "
             "the config)")
    add("--ids", choices=("train", "label"), default="train",
        help="what label maps hold: class ids 0, 1, ... (default), or the values of the dataset's "
             "own label files, which test servers want (python -m tools.submission)")
    add("--overlay", action="store_true",
        help="also write the image with the class colors over it (videos always have them)")
    add("--side-by-side", action="store_true",
        help="also write the image and its overlay side by side")
    add("--no-legend", action="store_true",
        help="no legend below overlays, side-by-side pictures and films: they have exactly the "
             "size of the image, or twice its width (a film repeats the last row or column of an "
             "odd size)")
    add("--probabilities", nargs="?", const="float16", choices=("float16", "uint8"),
        help="also write .npz files of probabilities (C, H, W): float16 (default), or uint8, where "
             "255 means 1, which is smaller and loses faint classes")
    add("--confidence", action="store_true",
        help="also write a gray PNG of the largest probability of each pixel; 255 is 1")
    add("--entropy", action="store_true",
        help="also write a gray PNG of the entropy of each pixel, divided by the largest possible "
             "one; 255 is 1")
    add("--masks", action="store_true",
        help="also write a folder NAME_masks with a 1-bit PNG per class; masks may overlap")
    add("--geotiff", action="store_true",
        help="also write each label map as a TIFF with the georeference of its image")
    add("--segfix", metavar="PATH",
        help="refine the labels with a SegFix checkpoint or a folder of offset files")
    add("--segfix-scale", type=float, metavar="S",
        help="factor for the SegFix offsets (default: 2)")
    add("--frames", action="store_true",
        help="also write a folder NAME_frames with the label map of each frame of a video, and the "
             "other outputs that are asked for")
    add("--skip-existing", action="store_true", help="leave out images whose results exist")
    add("--skip-bad", action="store_true", help="exit status 0 even if some images failed")
    add("--batch", type=at_least(1), default=1, metavar="N",
        help="number of images of one size in one forward pass (default: 1)")
    add("--workers", type=at_least(1), metavar="N",
        help=f"number of threads that decode, and as many that encode (default: {WORKERS})")
    add("--max-frames", type=at_least(1), metavar="N", help="stop a video or camera after N frames")
    add("--max-pixels", type=at_least(1), metavar="N",
        help="refuse larger images, checked in their header (default: 178956970)")
    add_prediction_arguments(parser)
    add_unassigned(parser)
    add("--json", action="store_true", help="print a report as JSON on stdout")
    add("--version", action=console.ShowVersion)
    args = parser.parse_args(argv)
    check_segfix(parser, args)
    return args


def require_inputs(args: argparse.Namespace, images: bool, videos: bool, folders: bool):
    """Raise ConfigError for an option that has no effect on these kinds of inputs.

    images, videos: whether there are any. folders: whether images come from folders or patterns.
    Prints a notice where an option has an effect on a part of the inputs.
    """
    for name in ("frames", "max_frames"):
        if getattr(args, name) and not videos:
            _refuse(name, "there is no video among the inputs")
    if args.geotiff and not images:
        _refuse("geotiff", "the frames of a video have no georeference")
    for name in ("workers", "max_pixels"):
        if getattr(args, name) is not None and not images:
            _refuse(name, "videos are read frame by frame")
    if args.no_legend and not (videos or args.overlay or args.side_by_side):
        _refuse("no_legend", "there is no legend without --overlay, --side-by-side or a video")
    if args.extension and not folders:
        console.notice("--extension has no effect: it selects images from folders and patterns, "
                       "and there is none")
    if not videos or args.frames:
        return
    outputs = [name for name in ("masks", "probabilities", "confidence", "entropy")
               if getattr(args, name)]
    if outputs and not images:
        _refuse(outputs[0], "the result of a video is a film", "add --frames, or leave it out")
    if outputs:
        options = " and ".join(map(option_name, outputs))
        console.notice(f"{options}: for images only; --frames writes them for videos too")


def _refuse(name, reason, fix="leave it out"):
    option = option_name(name)
    raise ConfigError(f"{option} has no effect: {reason}", option, fix)
