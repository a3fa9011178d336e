"""A wish to stop, noted by a signal handler and honoured between two steps.

Saving inside a handler may catch a network in the middle of its backward pass,
so the handler only takes note. Where the program merely waits (for data, for a
validation) nothing is half done, and the wish is honoured at once.
"""
import contextlib
import signal


class StopNow(Exception):
    """A signal came while nothing was half done."""


class StopSignal:
    """Notes SIGINT, SIGTERM and SIGHUP (stop) and SIGUSR1 (save) while the `with` block runs.

    at_once: whether a signal to stop ends a wait (see `idle`).
    signum: the first signal to stop, or None. save_asked: whether SIGUSR1 came;
    whoever saves sets it back. The second Ctrl-C leaves at once, by
    KeyboardInterrupt. A signal that is ignored (nohup) stays ignored.
    """

    STOP = ("SIGINT", "SIGTERM", "SIGHUP")
    SAVE = "SIGUSR1"

    def __init__(self, at_once: bool = True):
        self.at_once = at_once
        self.signum, self.save_asked = None, False
        self._idle = False

    def __enter__(self):
        self._previous = {}
        for name in (*self.STOP, self.SAVE):
            number = getattr(signal, name, None)       # some systems know fewer
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                handler = self._note_save if name == self.SAVE else self._note_stop
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def idle(self):
        """Around a wait during which nothing is half done: a signal ends it with StopNow."""
        self._idle = self.at_once
        try:
            if self._idle and self.signum is not None:
                raise StopNow
            yield
        finally:
            self._idle = False

    def while_idle(self, items):
        """The items of an iterable, waiting for each of them idly."""
        items = iter(items)
        while True:
            with self.idle():
                item = next(items, None)
            if item is None:
                return
            yield item

    def _note_stop(self, signum, frame):
        self.signum = self.signum or signum
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._idle and not _forks(frame):
            self._idle = False
            raise StopNow

    def _note_save(self, signum, frame):
        self.save_asked = True


def _forks(frame):
    """Whether a process is being started: Python swallows, and prints, what is raised there, and
    torch's half-made iterator over its workers cannot be taken down."""
    while frame and frame.f_code.co_name not in ("_launch", "_execute_child", "_start_reading"):
        frame = frame.f_back
    return frame is not None


class Heeded:
    """A loader whose batches are counted aloud: heed(number) is called before each is given out."""

    def __init__(self, loader, heed):
        self.loader, self.heed, self.batch_size = loader, heed, loader.batch_size

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            self.heed(number)
            yield batch
