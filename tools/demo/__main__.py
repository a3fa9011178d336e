"""Show in a browser what a checkpoint does: drop an image, see its classes.

examples:
  python -m tools.demo -r auto
  python -m tools.demo -r model_best.pth --port 0 --device cuda

Only this machine can open the page. An image is kept only until its request is answered.
--host 0.0.0.0 opens the page to everybody who can reach this machine; there is no password.
"""
import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import command_parser, device
from utils.predict.arguments import (
    add_base_size,
    add_checkpoint,
    add_rule_arguments,
    tell_base_size,
    with_arguments,
)

if TYPE_CHECKING:
    from tools.demo.examples import Example
    from utils.predict.open_model import OpenModel

PAGE = Path(__file__).with_name("demo.html")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.demo", __doc__)
    add = parser.add_argument
    add_checkpoint(parser, purpose="checkpoint to show")
    add("-c", "--config", help="config to use instead of the one in the checkpoint")
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="default: 8000; 0 takes a free port")
    add("--upload", type=float, default=20, metavar="MB", help="largest file (default: 20)")
    add("--pixels", type=float, default=40, metavar="MILLION",
        help="largest image, checked in its header (default: 40)")
    add("--work-pixels", type=float, default=2, metavar="MILLION",
        help="larger images are reduced to this size (default: 2)")
    add("--seconds", type=float, default=20, help="time limit to receive a request (default: 20)")
    add("--examples", metavar="FOLDER|none",
        help="pictures to click (default: some of the data that test.py scores, if it is here)")
    add_base_size(parser)
    add_rule_arguments(parser)
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if min(args.upload, args.pixels, args.work_pixels, args.seconds) <= 0:
        parser.error("--upload, --pixels, --work-pixels and --seconds must be above 0")
    if not 0 <= args.port < 65536:
        parser.error("--port must be in 0..65535")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    from tools.demo.segmenter import Segmenter
    from tools.demo.server import DemoServer, Limits, is_loopback
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint
    from utils.config.load import with_config
    from utils.machine import distributed
    from utils.predict.open_model import open_model
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config)
    opened = open_model(checkpoint, distributed.start(args.device), path)
    if opened.normalize.bands and opened.normalize.bands.files:
        opened.require_rgb("the page takes one file of each image and is", "-r")
    limits = Limits(upload=int(args.upload * 1e6), seconds=args.seconds)
    options = with_arguments(opened.config["predict"], args)
    segmenter = Segmenter(opened, int(args.pixels * 1e6), int(args.work_pixels * 1e6), options)
    tell_base_size(segmenter.base_size, options)
    examples = _examples(args, opened)
    about = {**segmenter.about(), "examples": [
        {"name": one.name, "picture": one.picture} for one in examples]}
    server = DemoServer(args.host, args.port, PAGE.read_text(encoding="utf-8"), about, segmenter,
                        limits, [one.file for one in examples])
    if not is_loopback(args.host):
        console.warn(f"everybody who can reach {args.host} can open the page, without a password")
    try:
        print(server.url, flush=True)
        console.notice("press Ctrl-C to stop")
        server.serve_forever(poll_interval=0.2)
    except (KeyboardInterrupt, console.Interrupted) as stop:
        raise console.Interrupted(getattr(stop, "signum", signal.SIGINT),
                                  "the page is closed") from None
    finally:
        server.close()


def _examples(args, opened: "OpenModel") -> "list[Example]":
    """The pictures to click; a notice if the data of the checkpoint is not on this machine."""
    from tools.demo.examples import of_config, of_folder
    pixels = int(min(args.pixels, 4 * args.work_pixels) * 1e6)      # larger ones are kept in memory
    if args.examples == "none":
        return []
    if args.examples:
        return of_folder(args.examples, pixels, opened.normalize)
    found = of_config(opened.config, pixels)
    if isinstance(found, str):
        console.notice(f"no example pictures: {found}")
        return []
    return found


if __name__ == "__main__":
    sys.exit(console.run(main))
