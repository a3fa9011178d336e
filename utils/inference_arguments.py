"""The command line of inference.py."""
import argparse

from utils import console
from utils.arguments import at_least, command_parser
from utils.predict_arguments import add_prediction_arguments

EXAMPLES = """Segment images with a trained checkpoint.

examples:
  python inference.py -r auto -i photos -o segmented
  python inference.py -m model_best.pth -i "photos/**/*.jpg" -o segmented --mode sliding --overlay
  python inference.py -m model_best.pth -i list.txt -o segmented --scales 0.5:1.5:0.25 --flip
  python inference.py -m model_best.pth -i clip.mp4 -o segmented
  torchrun --standalone --nproc-per-node 2 inference.py -r auto -i photos -o segmented

docs/inference.md has the whole of it.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("inference.py", EXAMPLES)
    add = parser.add_argument
    add("-r", "-m", "--model", "--resume", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint, with colours and class names; auto: the newest best one in saved/")
    add("-i", "--images", nargs="+", required=True, metavar="PATH",
        help="folders, images, .txt lists, patterns, video files, or camera:0")
    add("-o", "--output", default="outputs", metavar="DIR",
        help="results, in the folders of the input (default: outputs)")
    add("-c", "--config", help="config to use in place of the checkpoint's own")
    add("-e", "--extension", default="", metavar="LIST",
        help="take only these from folders, e.g. jpg or jpg,png (default: every image type)")
    add("-p", "--predict", metavar="RULE",
        help="max, T, rankdice or rankiou (default: the config's)")
    add("--overlay", action="store_true",
        help="also write the colours over the image (videos are always that)")
    add("--side-by-side", action="store_true", help="also write the image beside that")
    add("--probabilities", action="store_true", help="also write .npz: uint8 (C, H, W), 255 is 1")
    add("--masks", action="store_true",
        help="also write a folder NAME_masks with a 1-bit PNG per class; they may overlap")
    add("--segfix", metavar="PATH",
        help="refine the labels: a SegFix checkpoint, or a folder of offset files")
    add("--segfix-scale", type=float, default=2.0, metavar="S", help="of its offsets (default 2)")
    add("--skip-existing", action="store_true", help="leave out images whose results are there")
    add("--skip-bad", action="store_true", help="exit status 0 even if some images failed")
    add("--batch", type=at_least(1), default=1, metavar="N",
        help="images of one size in one forward")
    add("--workers", type=at_least(1), default=2, metavar="N", help="decoding and encoding threads")
    add("--max-frames", type=at_least(1), metavar="N", help="end a video or camera after N frames")
    add("--max-pixels", type=at_least(1), metavar="N",
        help="refuse larger images, by their header (default 178956970)")
    add_prediction_arguments(parser)
    add("--json", action="store_true", help="print a report as JSON on stdout")
    add("--version", action=console.ShowVersion)
    return parser.parse_args(argv)
