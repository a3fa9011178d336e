"""Passes the log lines of a run to one tracker.

The training never waits for a service and never ends because of one: calls of a tracker that may
wait are made in a thread, in their order, and errors cost one warning.
"""
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from utils.cli.console import notice, warn
from utils.errors import counted, first_line
from utils.images.types import Image
from utils.training.trackers.tracker import Outcome, Session, Tracker, without_passwords

MOST_LINES = 10_000         # that wait for a service
MOST_PICTURES = 8           # likewise; a picture may have 100 MB
# Seconds in which a service can take what waits when the training ends. A cluster kills an
# interrupted job soon.
LAST_SECONDS = {"finished": 60.0, "interrupted": 15.0, "failed": 15.0}
_SILENT_SECONDS = 2.0
NUMBERS = "metrics.jsonl has the numbers"
Line = tuple[dict[str, float], int, int | None]     # values by tag, step, epoch


@dataclass
class _Job:
    """A call of the tracker for a tag and step. before: what is called first, in any case."""

    tag: str
    step: int
    call: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


class Channel:
    """One tracker of a training, from its start to its end.

    logged: for each kind of line ("train", "val"), the last step that the tracker was given in an
    earlier session. What its record has of that is left out.
    history: the lines (values, step, epoch) up to the step of the session. Those that the record
    lacks are logged first: lines that a kill or a network kept from it, or all in a new record.
    """

    def __init__(self, tracker: Tracker, session: Session, logged: dict[str, int] | None = None,
                 history: Callable[[], Iterable[Line]] = lambda: ()):
        self.tracker, self.title, self._history = tracker, tracker.title, history
        self._logged = logged or {}
        self._started = self._dead = self._warned = False
        self._unsent = self._refused = self._pictures = 0       # what is missing in the end
        self._thread = None
        say = session.say
        session = replace(session, failed=self._warn,
                          say=lambda text: say(without_passwords(text)))
        if not tracker.waits:
            self._start(session)
            return
        self._jobs: queue.Queue[Callable[[], Any] | None] = queue.Queue(MOST_LINES)
        self._room = threading.Semaphore(MOST_PICTURES)
        self._jobs.put(lambda: self._start(session))
        self._thread = threading.Thread(target=self._work, name=f"log to {self.title}", daemon=True)
        self._thread.start()

    @property
    def draws(self) -> bool:
        """Whether pictures reach the tracker."""
        return self.tracker.draws and not self._dead

    def log(self, values: dict[str, float], step: int, epoch: int | None = None):
        """Pass on one log line, all of whose tags begin with the same kind."""
        if values:
            first = next(iter(values))
            self._pass(_Job(first, step, lambda: self.tracker.log(values, step, epoch)))

    def image(self, tag: str, image: Image, step: int):
        """Pass on a picture, unless too many wait already."""
        if not self.draws:
            return
        if self._thread is None:
            self._pass(_Job(tag, step, lambda: self.tracker.image(tag, image, step)))
        elif self._room.acquire(blocking=False):
            self._pass(_Job(tag, step, lambda: self.tracker.image(tag, image, step),
                            self._room.release))
        else:
            self._pictures += 1

    def best(self, values: dict[str, float], step: int):
        """Pass on the best values; also those that a record has, which replace each other."""
        self._pass(_Job("", step, lambda: self.tracker.best(values, step)))

    def end(self, outcome: Outcome, text: str):
        """End the session after what waits, which `close` waits for."""
        if self._thread is None:
            self._end(outcome, text)
            return
        try:
            for job in (lambda: self._end(outcome, text), None):
                self._jobs.put_nowait(job)
        except queue.Full:
            pass            # `close` will find that the thread has not ended

    def close(self, seconds: float):
        """Wait for the end, at most some seconds, and say what is missing. Call `end` before."""
        if self._thread is not None:
            self._wait(seconds)
        lines = self._unsent + self._refused
        missing = [counted(lines, "log line")] if lines else []
        missing += [counted(self._pictures, "picture")] if self._pictures else []
        if missing:
            notice(f"{self.title} lacks {' and '.join(missing)}; {NUMBERS}")

    def _start(self, session):
        try:
            stored = self.tracker.start(session)
            if stored is not None:
                self._logged = {kind: min(step, stored.get(kind, -1))
                                for kind, step in self._logged.items()}
            self._started = True
        except Exception as error:          # of a service: it may be any
            self._dead = True
            warn(f"{self.title} keeps no record of this session, the training continues "
                 f"({NUMBERS}): {without_passwords(first_line(error))}")
            return
        if session.step and (stored is not None or not session.record):
            self._call(lambda: self._catch_up(stored or {}))

    def _catch_up(self, stored):
        for values, step, epoch in self._history():
            kind = next(iter(values)).partition("/")[0]
            if step > stored.get(kind, -1) and not self._call(
                    partial(self.tracker.log, values, step, epoch)):
                self._refused += 1

    def _end(self, outcome, text):
        if self._started:
            self._call(lambda: self.tracker.close(outcome, text))

    def _pass(self, job: "_Job"):
        """Do a job, in the thread if there is one."""
        if self._thread is None:
            self._do(job)
            return
        try:
            self._jobs.put_nowait(lambda: self._do(job))
        except queue.Full:
            job.before()
            self._unsent += 1
            self._warn(RuntimeError(f"{MOST_LINES} lines wait for it"))

    def _do(self, job):
        job.before()
        if self._started and job.step > self._logged.get(job.tag.partition("/")[0], -1) \
                and not self._call(job.call):
            self._refused += 1

    def _call(self, call):
        try:
            call()
            return True
        except Exception as error:          # of a service: it may be any
            self._warn(error)
            return False

    def _warn(self, error):
        if not self._warned:
            self._warned = True
            warn(f"{self.title} can no longer be written, the training continues: "
                 f"{without_passwords(first_line(error))}")

    def _work(self):
        while (job := self._jobs.get()) is not None:
            job()

    def _wait(self, seconds):
        assert self._thread is not None
        limit = time.monotonic() + seconds
        try:
            self._thread.join(min(_SILENT_SECONDS, seconds))
            if self._thread.is_alive() and seconds > _SILENT_SECONDS:
                notice(f"waiting for {self.title}, at most {seconds:.0f} s (Ctrl-C: no longer)")
                self._thread.join(max(0.0, limit - time.monotonic()))
        except KeyboardInterrupt:
            pass            # the training has ended; what waits is counted
        if self._thread.is_alive():
            warn(f"{self.title} has not taken everything in time: about "
                 f"{counted(max(0, self._jobs.qsize() - 2), 'line')} not sent, and the end of the "
                 f"run not marked; {NUMBERS}")


def close_all(channels: Sequence[Channel], outcome: Outcome, text: str):
    """End the session in all trackers, waiting for them together. text: why it ended."""
    for channel in channels:
        channel.end(outcome, text)
    limit = time.monotonic() + LAST_SECONDS[outcome]
    for channel in channels:
        channel.close(max(0.0, limit - time.monotonic()))
