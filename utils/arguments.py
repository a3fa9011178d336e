"""What every command line shares: the parser, and the kinds of values."""
import argparse
import os
import re
from collections.abc import Callable

from utils import console
from utils.errors import DataError


def command_parser(prog: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser that shows `text` as it stands, ends with the exit statuses and has --debug."""
    parser = argparse.ArgumentParser(prog=prog, description=text,
                                     epilog=epilog + console.EXIT_STATUSES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def add_overrides(parser: argparse.ArgumentParser, example: str):
    """KEY=VALUE ..., to be read by parse_with_overrides."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                        help=f"config keys, e.g. {example}")


def parse_with_overrides(parser: argparse.ArgumentParser, argv: list[str] | None) \
        -> argparse.Namespace:
    """The arguments of `argv`, KEY=VALUE anywhere among the others."""
    args = parser.parse_intermixed_args(argv)
    # Judged last: a value that stands alone may be that of an option which does not exist.
    wrong = [text for text in args.overrides if "=" not in text]
    if wrong:
        parser.error(f"expected KEY=VALUE, got {wrong[0]!r}")
    return args


def require_folder(*paths):
    """DataError for a file to be written into a folder that is not there. None is passed over.

    Asked before the work: it may take minutes until the file is written.
    """
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path)) if path else "."
        if not os.path.isdir(folder):
            raise DataError("cannot write: no such folder", folder, "create it first")


def at_least(least: int) -> Callable[[str], int]:
    """A whole number from `least` on."""
    def whole_number(text):
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number
    return whole_number


def size(text: str) -> tuple[int, int]:
    """"512" or "512x1024" -> (height, width)."""
    match = re.fullmatch(r"(\d+)(?:[xX,](\d+))?", text)
    if not match or not int(match[1]) or match[2] and not int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give N or HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def device(text: str) -> str:
    """cpu, mps, cuda or cuda:N."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: give cpu, cuda or cuda:N")
    return text
