"""Messages on stderr, colors and exit statuses of all entry points.

Results go to stdout, messages to stderr.
"""
import argparse
import contextlib
import functools
import io
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from utils.cli.stop_signal import StopNow, StopSignal
from utils.errors import DataError, UserError

VERSION = "0.1.0"
EXIT_STATUSES = ("exit status: 0 success; 1 unexpected; 2 usage or config; 3 data; 4 checkpoint; "
                 "5 numbers or a failed verification; 75 saved, start it again "
                 "(trainer.requeue); 129 SIGHUP; 130 Ctrl-C; 143 SIGTERM")

_OUR_PACKAGES = ("base", "dataloader", "models", "tools", "trainer", "utils")
# Parts of the messages of torch's and OpenCV's allocators on a CPU.
_NO_MEMORY = r"can't allocate memory|Cannot allocate memory|not enough memory|Insufficient memory"


class Interrupted(BaseException):
    """A signal stopped the program, after its last step was finished.

    Like KeyboardInterrupt it is no Exception, so that no code takes it for the fault of a file.

    signum: the signal (2 for Ctrl-C, 15 for SIGTERM).
    message: what was saved, and how to resume.
    status: the exit status; None: 128 + signum.
    """

    def __init__(self, signum: int, message: str = "", status: int | None = None):
        super().__init__(message)
        self.signum = signum
        self.status = 128 + signum if status is None else status


class ShowVersion(argparse.Action):
    """--version: prints the versions of Segwright, Python and the packages that affect results."""

    def __init__(self, option_strings: list[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print versions and stop")

    def __call__(self, parser: argparse.ArgumentParser, *_: object):
        from importlib.metadata import PackageNotFoundError, version
        versions = [f"segwright {VERSION}", f"python {sys.version.split()[0]}"]
        for package in ("torch", "torchvision", "numpy", "pillow", "opencv-python",
                        "opencv-python-headless"):
            try:
                versions.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                pass
        print("\n".join(versions))
        parser.exit()


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Call main(argv) and return the exit status; a user's mistake is printed as one message.

    An error in this program is raised with its traceback; with --debug or SEGWRIGHT_DEBUG every
    error is printed with it. SIGTERM and SIGHUP end the program like Ctrl-C, unless they are
    ignored (nohup).
    """
    argv = sys.argv[1:] if argv is None else argv
    # torch reads it when it starts: huge pages for large tensors save a tenth of the time on CPUs.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _open_standard_streams()
    try:
        with _ending_on_signals():
            status = main(argv) or 0
        with _output_errors():
            sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended(sys.stdout):
            # The reader of a pipe (such as `| head`) has ended: nobody reads further output.
            _silence(sys.stdout)
            return 0
        status = report(error, argv)
        if status is None:
            raise
        return status


def report(error: BaseException, argv: list[str] | None = None) -> int | None:
    """Print the error and return its exit status; None if it is an error in this program."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(error, UserError):
        if "--debug" in argv or os.environ.get("SEGWRIGHT_DEBUG"):
            traceback.print_exception(error)
        fail(str(error))
        return error.exit_status
    if is_out_of_memory(error):
        # The last line, because the message of torch's allocator begins with a line of source.
        reason = str(error).splitlines()[-1:] or ["the machine has no memory left"]
        fail(f"out of memory: {reason[0]}\n  fix: lower batch_size, crop_size or num_workers")
        return 1
    if isinstance(error, ModuleNotFoundError) and error.name \
            and error.name.partition(".")[0] not in _OUR_PACKAGES:
        package = error.name.partition(".")[0]
        fail(f"this needs the package {package}, which is not installed\n"
             "  fix: activate the environment that has it (. .venv/bin/activate), or "
             "pip install -r requirements.txt")
        return 2
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        _print_labeled("interrupted", str(error) or "at once; nothing more was saved", "33")
        return getattr(error, "status", 130)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, of Python, torch or OpenCV."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" \
        or bool(re.search(_NO_MEMORY, str(error)))


def output(text: str):
    """Print a result to stdout. Call it after the results are in their files.

    Raises DataError if it cannot be written (a full disk). That the reader of a pipe has left is
    no error: BrokenPipeError ends the program with status 0 (see `run`).
    """
    with _output_errors():
        print(text, flush=True)


@contextlib.contextmanager
def _output_errors():
    """Report what the system says about stdout in the block as a DataError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(sys.stdout)        # else Python tries once more at its end
        raise DataError(f"cannot write the output: {error.strerror or error}",
                        "standard output", "free some space; files that were written are "
                                           "complete") from None


def notice(text: str):
    """Print a line about the progress to stderr, on rank 0 only."""
    if _rank() == 0:
        _print(text)


@functools.cache
def notice_once(text: str):
    """Print a line like `notice`, but never the same one again."""
    notice(text)


def warn(text: str):
    """Print a warning to stderr; on ranks other than 0 with the rank."""
    rank = _rank()
    _print_labeled("warning" if rank == 0 else f"[rank {rank}] warning", text, "33")


def fail(text: str):
    """Print an error to stderr, on every rank."""
    _print_labeled("error", text, "31")


def _print_labeled(label, text, code):
    _print(f"{_colored(label + ':', code)} {_wrapped(text)}")


def _colored(text: str, code: str) -> str:
    """`text` in an ANSI color if stderr is a terminal that shows colors.

    NO_COLOR or TERM=dumb switch colors off, FORCE_COLOR on.
    """
    forced = os.environ.get("FORCE_COLOR", "") not in ("", "0")
    allowed = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    shows = forced or (allowed and sys.stderr.isatty())
    return f"\033[{code}m{text}\033[0m" if shows else text


def _wrapped(text):
    """`text` with its lists of known names wrapped at the width of the terminal, if it is one."""
    if not sys.stderr.isatty():
        return text
    import shutil
    import textwrap
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="      ", break_long_words=False,
                      break_on_hyphens=False)
        if len(line) > width and "Known: " in line else line for line in text.split("\n"))


def _print(text):
    # A file name may contain bytes that are not text: they are printed escaped.
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr,
              flush=True)
    except OSError:
        # The terminal or the reader of the pipe was closed: the training must continue.
        _silence(sys.stderr)


def _open_standard_streams():
    """Open closed standard streams (`2>&-`) as the null device, before a file gets their number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A class name that the terminal cannot show is printed escaped; stderr does so anyway.
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_has_ended(stream):
    """Whether the reader of this stream has ended; a broken pipe to a worker is an error."""
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)      # no event needed: a lost reader is always reported
        return bool(watch.poll(0))
    except (AttributeError, OSError, ValueError):
        return True         # this system has no poll, or the stream is not a file


def _silence(stream):
    """Redirect a stream without a reader to the null device."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def _ending_on_signals():
    """Turn signals into exceptions, so that temporary files and worker processes are removed."""
    stop = _Stop()
    previous, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for name in StopSignal.STOP:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                previous[number] = signal.signal(number, stop.handle)
    sys.unraisablehook = functools.partial(stop.send_again, hook)
    try:
        yield
    except Exception:
        if stop.error:              # a library took the signal for an error
            raise stop.error from None
        raise
    finally:
        stop.end()
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Stop:
    """Raises the exception of a stop signal, again and again until it ends the program.

    Libraries contain `except:` and callbacks from C++; a signal that arrives there would be lost.
    """

    PATIENCE = 3.0      # seconds until the exception counts as lost

    def __init__(self):
        self.error: BaseException | None = None
        self._again = False                         # this process sent the signal to itself
        self._timer: threading.Timer | None = None
        self._later: threading.Timer | None = None
        self._over = False                          # the program has ended; handlers still stand

    def handle(self, signum: int, frame: object):
        """The signal handler."""
        if self._over:
            return
        if _torch_is_being_imported():
            # An exception inside torch's C++ code would abort the program.
            _print_labeled("interrupted", "before anything was saved", "33")
            os._exit(128 + signum)
        again, self._again = self._again, False
        self._wait(signum)
        if again and self._is_being_handled():
            return                                  # temporary files and workers are being removed
        if not again or self.error is None:
            self.error = (KeyboardInterrupt() if signum == signal.SIGINT
                          else Interrupted(signum, "before anything was saved"))
        raise self.error

    def send_again(self, hook: Callable[..., object], unraisable: "sys.UnraisableHookArgs"):
        """Send a signal again whose exception was lost; other errors go to `hook`.

        Python only prints an exception that is raised in a destructor or a fork, so a request to
        stop that arrives there is sent again 0.05 s later.
        """
        error = unraisable.exc_value
        if isinstance(error, StopNow):
            return              # StopSignal has stored the signal
        if not isinstance(error, (Interrupted, KeyboardInterrupt)):
            hook(unraisable)
            return
        self._later = threading.Timer(0.05, os.kill, (os.getpid(),
                                                      getattr(error, "signum", signal.SIGINT)))
        self._later.daemon = True
        self._later.start()

    def end(self):
        """Send the signal no more, and take none.

        One that is just being sent would come when its handler is gone, and kill the process.
        """
        self._over = True
        self._cancel()

    def _cancel(self):
        for timer in (self._timer, self._later):
            if timer:
                timer.cancel()
                # It may wait for a lock that this thread held when the signal came.
                timer.join(0.5)

    def _wait(self, signum):
        self._cancel()
        self._timer = threading.Timer(self.PATIENCE, self._send, (signum,))
        self._timer.daemon = True
        self._timer.start()

    def _send(self, signum):
        self._again = True
        os.kill(os.getpid(), signum)

    def _is_being_handled(self):
        """Whether an `except` or `finally` block is at work on the exception."""
        error, seen = sys.exc_info()[1], 0
        while error is not None and error is not self.error and seen < 100:
            error, seen = error.__context__, seen + 1
        return error is self.error


def _torch_is_being_imported():
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _rank():
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0
