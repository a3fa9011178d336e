"""What the entry points share: messages on stderr, colours, exit statuses.

stdout belongs to results, stderr to everything said about them.
"""
import argparse
import os
import sys
import traceback

from utils.errors import UserError

VERSION = "0.1.0"
EXIT_STATUSES = ("exit status: 0 success; 1 unexpected; 2 usage or config; 3 data; 4 checkpoint; "
                 "5 numbers or a failed verification; 130 Ctrl-C; 143 SIGTERM")


class Interrupted(Exception):
    """The program was asked to stop and has finished its last step.

    signum: the signal that asked (2 for Ctrl-C, 15 for SIGTERM).
    message: what was saved and how to go on.
    """

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message)
        self.signum = signum


class ShowVersion(argparse.Action):
    """--version: ours, and those of python and of what decides the numbers."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, help="print versions and stop", **options)

    def __call__(self, parser, *_):
        from importlib.metadata import PackageNotFoundError, version
        found = [f"segwright {VERSION}", f"python {sys.version.split()[0]}"]
        for package in ("torch", "torchvision", "numpy", "pillow", "opencv-python",
                        "opencv-python-headless"):
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                pass
        print("\n".join(found))
        parser.exit()


def run(main, argv=None) -> int:
    """Call main(argv); turn a user's mistake into one message and its exit status.

    A traceback is printed for errors of ours, and for every error when --debug
    is given or SEGWRIGHT_DEBUG is set.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Read when torch starts: large tensors on huge pages spare a CPU a tenth of its time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    debug = "--debug" in argv or bool(os.environ.get("SEGWRIGHT_DEBUG"))
    try:
        return main(argv) or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        _say("error", str(error), "31")
        return error.exit_status
    except (Interrupted, KeyboardInterrupt) as stop:
        _say("interrupted", str(stop) or "nothing was saved", "33")
        return 128 + getattr(stop, "signum", 2)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def notice(text: str):
    """One line about what the program does, on stderr, from rank 0 only."""
    if _rank() == 0:
        _print(text)


def warn(text: str):
    """A warning on stderr; other ranks than 0 name themselves."""
    rank = _rank()
    _say("warning" if rank == 0 else f"[rank {rank}] warning", text, "33")


def coloured(text: str, code: str, stream=None) -> str:
    """`text` in an ANSI colour where the stream shows it (NO_COLOR, TERM, FORCE_COLOR)."""
    stream = stream or sys.stderr
    forced = os.environ.get("FORCE_COLOR", "") not in ("", "0")
    allowed = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{code}m{text}\033[0m" if forced or (allowed and stream.isatty()) else text


def _say(label, text, code):
    _print(f"{coloured(label + ':', code)} {text}")


def _print(text):
    # A file name may hold bytes that are no text: show them escaped, never fail.
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def _rank():
    return int(os.environ.get("RANK", 0) or 0)
