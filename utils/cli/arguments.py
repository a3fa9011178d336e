"""The parser of all command lines, and the types of their values."""
import argparse
import os
import re
from collections.abc import Callable, Collection, Mapping

from utils.cli import console
from utils.errors import DataError

TYPE_CHECKING = False     # of typing, whose import would slow down --help
if TYPE_CHECKING:
    from typing import NoReturn

DEFAULT_WORKERS = min(8, os.cpu_count() or 1)       # threads or processes that read files


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are the message alone: in ten lines of usage nobody finds it."""

    def error(self, message: str) -> "NoReturn":
        if "required" in message and "--resume" in message:
            message += "\n  -r auto takes the newest model_best.pth below saved/"
        command = self.prog if self.prog.startswith("python") else f"python {self.prog}"
        self.exit(2, f"{self.prog}: error: {message}\n  {command} --help lists the options\n")


def command_parser(prog: str, text: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """Returns a parser with the option --debug.

    Its help prints `text` without rewrapping it, and the exit statuses after `epilog`.
    """
    parser = _Parser(prog=prog, description=text, epilog=epilog + console.EXIT_STATUSES,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def add_overrides(parser: argparse.ArgumentParser, example: str):
    """Add the arguments KEY=VALUE ..., which parse_with_overrides reads."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                        help=f"config keys, e.g. {example}")


def add_init(parser: argparse.ArgumentParser):
    """Add --init of train.py and what belongs to it."""
    add = parser.add_argument
    add("--init", metavar="FILE", help="write a config for --images and --labels and stop")
    add("--images", metavar="DIR", help="with --init: the folder of images, or 'DIR/*_rgb.png'")
    add("--labels", metavar="DIR", help="with --init: that of labels, or 'DIR/*_mask.png'")
    add("--group-by", metavar="REGEX",
        help="with --init: images in whose names the expression has the same text (in its "
             "parentheses) stay on one side of the split, such as '^(.+)_' for video1_0001")
    add("--folds", type=at_least(2), metavar="N",
        help="with --init: cross-validation, N lists and a study that trains on each of them")


def check_init(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """End with a usage error unless the arguments of `add_init` fit together."""
    if len({bool(option) for option in (args.init, args.images, args.labels)}) > 1:
        parser.error("--init, --images and --labels belong together: give all three")
    for option, value in (("--group-by", args.group_by), ("--folds", args.folds)):
        if value is not None and not args.init:
            parser.error(f"{option} has an effect only with --init")


def parse_with_overrides(parser: argparse.ArgumentParser, argv: list[str] | None) \
        -> argparse.Namespace:
    """Returns the arguments of `argv`; KEY=VALUE can stand anywhere among the options."""
    args = parser.parse_intermixed_args(argv)
    # Checked last: a lone value may belong to an option that does not exist.
    wrong = [text for text in args.overrides if "=" not in text]
    if wrong:
        parser.error(f"expected KEY=VALUE, found {wrong[0]!r}")
    return args


def one_action(parser: argparse.ArgumentParser, actions: Mapping[str, object],
               options: Mapping[str, object], without_options: Collection[str]):
    """End with a usage error if two actions are given, or options that the action does not read.

    actions, options: what the program was given, by name; false or None: not given.
    without_options: the actions that read none of `options`.
    """
    given = [name for name, value in actions.items() if value]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)}: give only one of them")
    unread = [name for name, value in options.items() if value]
    if given and given[0] in without_options and unread:
        parser.error(f"{', '.join(unread)} {'have' if len(unread) > 1 else 'has'} no effect with "
                     f"{given[0]}")


def require_folder(*paths: str | os.PathLike[str] | None):
    """Raise DataError if the folder of an output file does not exist; None is skipped.

    Called before the work, which can take minutes until the file is written.
    """
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path)) if path else "."
        if not os.path.isdir(folder):
            raise DataError("cannot write: no such folder", folder, "create it first")


def at_least(least: int) -> Callable[[str], int]:
    """Returns the argument type of whole numbers of at least `least`."""
    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, found {number}")
        return number
    return whole_number


def size(text: str) -> tuple[int, int]:
    """Argument type: "512" or "512x1024" -> (height, width) in pixels."""
    match = re.fullmatch(r"(\d+)(?:[xX,](\d+))?", text)
    if not match or not int(match[1]) or match[2] and not int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write N or HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def device(text: str) -> str:
    """Argument type: cpu, mps, cuda or cuda:N."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: write cpu, mps, cuda or "
                                         "cuda:N")
    return text
