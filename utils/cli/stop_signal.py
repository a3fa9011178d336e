"""Stops a program between two steps: a signal handler stores the signal, the program checks it.

A handler that saves could interrupt a network in the middle of its backward pass, so it only
stores the signal. While the program only waits (for data, for a validation) nothing is half done,
and a signal stops it immediately.
"""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

TYPE_CHECKING = False     # of typing, whose import would take a sixteenth of the time of --help
if TYPE_CHECKING:
    from typing import Any, TypeVar

    _T = TypeVar("_T")


class StopNow(BaseException):
    """A signal arrived while the program was waiting, so nothing is half done.

    Like KeyboardInterrupt it is no Exception: code that judges files, and libraries, catch those,
    and would take the signal for damage.
    """


class StopSignal:
    """Stores SIGINT, SIGTERM and SIGHUP (stop) and SIGUSR1 (save) while the `with` block runs.

    at_once: whether a stop signal ends a wait (see `idle`).
    tell: called with the name of the first stop signal, in a thread of its own, if the block has
    not ended 0.2 s later: the program's thread may be busy in one operation for minutes.
    signum: the first stop signal, or None. save_asked: whether SIGUSR1 has arrived; the code that
    saves resets it. The second Ctrl-C raises KeyboardInterrupt immediately. Signals that are
    ignored (nohup) stay ignored.
    """

    STOP = ("SIGINT", "SIGTERM", "SIGHUP")
    SAVE = "SIGUSR1"
    PATIENCE = 0.2

    def __init__(self, at_once: bool = True, tell: Callable[[str], object] | None = None):
        self.at_once, self.tell = at_once, tell
        self.signum: int | None = None
        self.save_asked = self._idle = False

    def __enter__(self):
        self._previous = {}
        for name in (*self.STOP, self.SAVE):
            number = getattr(signal, name, None)       # some systems have fewer signals
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                handler = self._note_save if name == self.SAVE else self._note_stop
                self._previous[number] = signal.signal(number, handler)
        self._ended = threading.Event()
        if self.tell:
            self._watch()
        return self

    def __exit__(self, *_):
        self._ended.set()
        if self.tell:
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._write_end)       # ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _watch(self):
        """Start the thread that calls `tell`. Python writes the numbers of signals into a pipe at
        once, but runs their handlers only between two operations."""
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._tell_of_stop, args=(read_end,), daemon=True).start()

    def _tell_of_stop(self, read_end):
        stops, told = {getattr(signal, name, None) for name in self.STOP}, False
        with open(read_end, "rb", buffering=0) as numbers:
            while byte := numbers.read(1):          # to the end: Python warns of a broken pipe
                if byte[0] in stops and self.tell and not told \
                        and not self._ended.wait(self.PATIENCE):
                    told = True
                    self.tell(signal.Signals(byte[0]).name)

    @contextlib.contextmanager
    def idle(self):
        """Mark a block that only waits: a stop signal ends it with StopNow.

        Also if a library has caught that StopNow, or raised an error of its own in its place.
        """
        self._idle = self.at_once
        try:
            self._raise_if_stopped()
            yield
            self._raise_if_stopped()
        except Exception:
            self._raise_if_stopped()
            raise
        finally:
            self._idle = False

    def _raise_if_stopped(self):
        if self.at_once and self.signum is not None:
            raise StopNow

    def while_idle(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yields the items of an iterable; the wait for each of them is an `idle` block."""
        iterator = iter(items)
        while True:
            with self.idle():
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def _note_stop(self, signum: int, frame: FrameType | None):
        self.signum = self.signum or signum
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._idle and not _starts_process(frame):
            self._idle = False
            raise StopNow

    def _note_save(self, signum, frame):
        self.save_asked = True


def _forget_pipe():
    """In a forked process, whose signals are not those of the program."""
    with contextlib.suppress(ValueError):       # not in the main thread: there is no pipe then
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pipe)


def _starts_process(frame: FrameType | None) -> bool:
    """Whether a process is being started in this frame, where StopNow must not be raised.

    Python only prints an exception there, and torch cannot shut down an iterator whose workers
    are half started.
    """
    while frame and frame.f_code.co_name not in ("_launch", "_execute_child", "_start_reading"):
        frame = frame.f_back
    return frame is not None


class StopCheckedLoader:
    """A loader that calls check(number) before it yields batch `number`, counted from 0."""

    def __init__(self, loader: Any, check: Callable[[int], object]):
        self.loader, self.check, self.batch_size = loader, check, loader.batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
            self.check(number)
            yield batch
