"""Watches the other ranks and reports which one failed, disappeared or hangs.

The errors of torch's collectives ("connection closed by peer", "timed out") do not name a rank. So
every rank keeps a status line in the store of the process group: a counter that rises every half
second, and the step it is at. A daemon thread writes this line, checks whether another rank has
failed, and ends the process if the main thread is stuck in a collective.
"""
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING

from utils.cli import console
from utils.errors import first_line

if TYPE_CHECKING:   # at run time only the functions that need torch import it
    from torch.distributed import TCPStore

BEAT = 0.5          # seconds between two status lines
SILENCE = 2.5       # seconds without a new status line after which a rank counts as gone
LAST_WORDS = 4.0    # seconds that a main thread gets to end by itself
STORE_TIMEOUT = 5.0     # seconds


def connect(timeout: float = STORE_TIMEOUT) -> "TCPStore":
    """A new connection to the store of the process group, or of the launcher."""
    import torch.distributed as dist
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                         is_master=False, wait_for_workers=False,
                         timeout=timedelta(seconds=timeout))


class RankWatch:
    """The watch of one rank.

    timeout: seconds that the other ranks wait for a rank that does not move; None starts no
        thread (before there is a process group).
    store: whether there is a store to write to.
    """

    def __init__(self, rank: int, world: int, timeout: float | None = None, store: bool = True):
        self.rank, self.world, self.timeout = rank, world, timeout
        self._prefix = f"segwright/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._passed, self._place, self._since = 0, "start", time.monotonic()
        self._main = threading.main_thread().ident or 0     # None only before the thread starts
        self._ended = threading.Event()
        self._reporting = threading.Lock()    # only one of main thread and watch thread reports
        self._store = None
        if store:
            with contextlib.suppress(Exception):   # without a store only this rank is reported
                self._store = connect()
        self._thread = None
        if timeout is not None and self._store:
            self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
            self._thread.start()

    def mark(self, place: str):
        """Record that this rank has reached `place`."""
        self._passed += 1
        self._place, self._since = place, time.monotonic()

    def close(self):
        """Record that this rank has ended normally, so that it counts as neither gone nor late."""
        if self._store and not self._ended.is_set():
            self._ended.set()
            try:
                self._store.set(self._key("line", self.rank), json.dumps({"ended": True}))
            except Exception:       # the store ended first
                pass
            self._join()

    def report(self, error: BaseException) -> int:
        """Report why this rank stops: its own error if it came first, else the rank whose error
        did. Returns the exit status."""
        with self._reporting:
            self._ended.set()
            status = self._report(error)
        self._join()
        return status

    def _report(self, error):
        first = None
        if _of_a_collective(error):          # probably a consequence of another rank's failure
            first = self._wait_for_failure() or self._blame()
        if first is None:
            first = self._claim(self.rank, first_line(error))
            if first["rank"] == self.rank:
                status = console.report(error)
                if status is None:
                    traceback.print_exception(error)
                return 1 if status is None else status
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        self._print(first)
        return 1

    def _join(self):
        """Wait for the thread: Python aborts if the program ends during a daemon thread's call to
        the store. Such a call takes at most the timeout of the store."""
        if self._thread:
            self._thread.join(2 * STORE_TIMEOUT)

    def _run(self):
        assert self._store and self.timeout is not None, "the thread needs a store and a timeout"
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            try:
                self._store.set(self._key("line", self.rank),
                                json.dumps({"beat": beats, **self._own_line()}))
                first = self._failure()
                if first is None and time.monotonic() - self._since > self.timeout:
                    first = self._late()
            except Exception:       # the store has ended, and with it rank 0
                continue
            if first and not self._ended.wait(LAST_WORDS):
                with self._reporting:
                    if not self._ended.is_set():
                        self._print(first)
                        os._exit(1)

    def _print(self, first):
        text = first["text"] if first["rank"] is None else \
            f"rank {first['rank']} failed: {first['text']}"
        if first.get("by") == self.rank:
            console.fail(text)
        else:
            console.fail(f"[rank {self.rank}] stopped because {text}")

    def _claim(self, rank, text):
        """The failure that all ranks report: the first one stored, or this one if it is the first.

        A failure is {"rank": the rank that failed or None, "text", "by": the rank that noticed}.
        """
        failure = json.dumps({"rank": rank, "text": text, "by": self.rank})
        if not self._store:
            return json.loads(failure)
        try:
            return json.loads(self._store.compare_set(f"{self._prefix}/failure", "", failure))
        except Exception:       # the store has ended, and with it rank 0
            return json.loads(failure)

    def _failure(self):
        """The failure in the store, or None."""
        assert self._store, "there is no store"
        key = f"{self._prefix}/failure"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _wait_for_failure(self, seconds=1.0):
        """The failure that another rank stores within `seconds`, or None."""
        deadline = time.monotonic() + seconds
        while self._store and time.monotonic() < deadline:
            try:
                first = self._failure()
            except Exception:       # the store has ended, and with it rank 0
                break
            if first:
                return first
            time.sleep(0.1)
        return None

    def _blame(self):
        """The failure of a rank that is gone or late; None if all are where this rank is."""
        text = f"rank 0, which holds the store of the ranks, is gone; rank {self.rank} was at " \
               f"{self._place}"
        try:
            before = self._lines()
            time.sleep(SILENCE)
            first = self._failure()
            after = self._lines()
        except Exception:       # the store has ended
            return self._claim(None, text)
        if first:
            return first
        gone = [r for r in range(self.world) if r != self.rank and not after[r].get("ended")
                and before[r].get("beat") == after[r].get("beat")]
        if gone:
            return self._claim(None, f"rank {_and(gone)} is gone (killed? short of memory?); "
                                     f"rank {self.rank} was at {self._place}")
        return self._late(after)

    def _late(self, lines=None):
        """The failure of the ranks that are behind the others; None if there are none."""
        lines = lines or self._lines()
        lines[self.rank] = self._own_line()
        running = {r: line for r, line in enumerate(lines) if not line.get("ended")}
        most = max(line.get("passed", 0) for line in running.values())
        ahead = next(line for line in running.values() if line.get("passed", 0) == most)
        late = [r for r, line in running.items() if line.get("passed", 0) < most]
        if not late:
            return None
        where = "; ".join(f"rank {r} is still at {lines[r].get('place', 'its start')}"
                          + (f", {lines[r]['line']}, for {lines[r]['still']:.0f} s"
                             if lines[r].get("line") else "") for r in late)
        return self._claim(None, f"rank {_and(late)} did not reach {ahead['place']} within "
                                 f"{self.timeout:.0f} s (trainer.rank_timeout): {where}")

    def _lines(self):
        """The status line of every rank, {} for a rank that has not written one."""
        assert self._store, "there is no store"
        keys = [self._key("line", r) for r in range(self.world)]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else {}
                for key in keys]

    def _own_line(self):
        return {"passed": self._passed, "place": self._place, "line": self._current_line(),
                "still": time.monotonic() - self._since}

    def _current_line(self):
        frame = sys._current_frames().get(self._main)
        if frame is None:
            return ""
        return f"in {frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:" \
               f"{frame.f_lineno})"

    def _key(self, what, rank):
        return f"{self._prefix}/{what}/{rank}"


def _and(ranks):
    return " and ".join(map(str, ranks))


def _of_a_collective(error):
    """Whether an error only means that some rank did not answer."""
    import torch.distributed as dist
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    words = ("gloo", "NCCL", "peer", "Timed out waiting", "monitoredBarrier", "ProcessGroup")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
