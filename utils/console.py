"""What the entry points share: messages on stderr, colours, exit statuses.

stdout belongs to results, stderr to everything said about them.
"""
import argparse
import contextlib
import functools
import os
import re
import select
import signal
import sys
import threading
import traceback

from utils.errors import UserError
from utils.stop_signal import StopNow, StopSignal

VERSION = "0.1.0"
EXIT_STATUSES = ("exit status: 0 success; 1 unexpected; 2 usage or config; 3 data; 4 checkpoint; "
                 "5 numbers or a failed verification; 75 saved and to be started again "
                 "(trainer.requeue); 129 SIGHUP; 130 Ctrl-C; 143 SIGTERM")

_OUR_PACKAGES = ("base", "dataloader", "models", "tools", "trainer", "utils")
# What torch's and OpenCV's allocators say on a CPU.
_NO_MEMORY = r"can't allocate memory|Insufficient memory"


class Interrupted(Exception):
    """The program was asked to stop and has finished its last step.

    signum: the signal that asked (2 for Ctrl-C, 15 for SIGTERM).
    message: what was saved and how to go on.
    status: the exit status, where it is not 128 + signum.
    """

    def __init__(self, signum: int, message: str = "", status: int | None = None):
        super().__init__(message)
        self.signum = signum
        self.status = 128 + signum if status is None else status


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
    is given or SEGWRIGHT_DEBUG is set. SIGTERM and SIGHUP end the program as
    Ctrl-C does, unless they are ignored (nohup).
    """
    argv = sys.argv[1:] if argv is None else argv
    # Read when torch starts: large tensors on huge pages spare a CPU a tenth of its time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _open_standard_streams()
    try:
        with _ending_on_signals():
            status = main(argv) or 0
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _lost_its_reader(sys.stdout):
            # (`| head`): nobody is left to tell.
            _silence(sys.stdout)
            return 0
        status = report(error, argv)
        if status is None:
            raise
        return status


def report(error: BaseException, argv=None) -> int | None:
    """Say what ended the program; its exit status, or None for an error of ours."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(error, UserError):
        if "--debug" in argv or os.environ.get("SEGWRIGHT_DEBUG"):
            traceback.print_exception(error)
        _say("error", str(error), "31")
        return error.exit_status
    if isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error)):
        # The last line: torch's allocator begins with a line of its own source.
        reason = str(error).splitlines()[-1:] or ["the machine has no more of it"]
        _say("error", f"out of memory: {reason[0]}\n  fix: lower batch_size, crop_size or "
                      "num_workers", "31")
        return 1
    if isinstance(error, ModuleNotFoundError) and error.name \
            and error.name.partition(".")[0] not in _OUR_PACKAGES:
        package = error.name.partition(".")[0]
        _say("error", f"this needs the package {package}, which is not installed\n"
                      f"  fix: pip install {package}", "31")
        return 2
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        _say("interrupted", str(error) or "at once; nothing more was saved", "33")
        return getattr(error, "status", 130)
    return None


def notice(text: str):
    """One line about what the program does, on stderr, from rank 0 only."""
    if _rank() == 0:
        _print(text)


def warn(text: str):
    """A warning on stderr; other ranks than 0 name themselves."""
    rank = _rank()
    _say("warning" if rank == 0 else f"[rank {rank}] warning", text, "33")


def fail(text: str):
    """An error on stderr, from any rank."""
    _say("error", text, "31")


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
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr,
              flush=True)
    except OSError:
        # The terminal, or the reader of the pipe, went away: a training does not end for it.
        _silence(sys.stderr)


def _open_standard_streams():
    """Streams that were closed (`2>&-`) lead nowhere, instead of into the next file opened."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))


def _lost_its_reader(stream):
    """Whether it was a pipe of ours that broke; one to a worker process is an error."""
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)      # asks for nothing: a lost reader is always told
        return bool(watch.poll(0))
    except (AttributeError, OSError, ValueError):
        return True         # no poll on this system, or no file behind the stream


def _silence(stream):
    """What is still written to a stream that lost its reader goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _ending_on_signals():
    """Turn signals into Interrupted, so that temporary files and worker processes are cleared."""
    def end(signum, frame):
        if _torch_is_being_imported():
            # An exception that comes up in its C++ part would abort the program.
            _say("interrupted", "before anything was saved", "33")
            os._exit(128 + signum)
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Interrupted(signum, "before anything was saved")

    previous, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for name in StopSignal.STOP:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                previous[number] = signal.signal(number, end)
    sys.unraisablehook = functools.partial(_ask_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ask_again(hook, unraisable):
    """Python prints and forgets what is raised in a destructor or a fork; a wish to stop that
    came up there is sent once more, a moment later."""
    error = unraisable.exc_value
    if isinstance(error, StopNow):
        return              # it is noted
    if not isinstance(error, (Interrupted, KeyboardInterrupt)):
        hook(unraisable)
        return
    later = threading.Timer(0.05, os.kill, (os.getpid(), getattr(error, "signum", signal.SIGINT)))
    later.daemon = True
    later.start()


def _torch_is_being_imported():
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _rank():
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0
