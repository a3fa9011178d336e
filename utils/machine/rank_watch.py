"""Watches the other ranks and reports which one failed, disappeared or hangs.

The errors of torch's collectives ("connection closed by peer", "timed out") do not name a rank. So
every rank keeps a status line in the store of the process group: a counter that rises every half
second, and the step it is at. A daemon thread writes this line, checks whether another rank has
failed, and ends the process if the main thread is stuck in a collective.

Torch's own timeouts go on while a job is suspended and would end it when it is continued. So
torch gets none (utils.machine.distributed.start), and this watch finds every hang: it counts only
the time in which the ranks of this machine ran.
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
from utils.machine.running_time import RunningClock, machine

if TYPE_CHECKING:   # at run time only the functions that need torch import it
    from torch.distributed import TCPStore

BEAT = 0.5          # seconds between two status lines
SILENCE = 2.5       # seconds without a new status line after which a rank counts as gone
LAST_WORDS = 4.0    # seconds that a main thread gets to end by itself
STORE_TIMEOUT = 5.0     # seconds
# The files of Python in which a main thread waits for other processes, such as compilers.
_WAITS_FOR_PROCESSES = ("threading.py", "subprocess.py", "selectors.py", "connection.py",
                        "_base.py", "popen_fork.py")


def connect(timeout: float = STORE_TIMEOUT) -> "TCPStore":
    """A new connection to the store of the process group, or of the launcher."""
    import torch.distributed as dist
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                         is_master=False, wait_for_workers=False,
                         timeout=timedelta(seconds=timeout))


class RankWatch:
    """The watch of one rank.

    timeout: seconds that the other ranks wait for a rank that does not move, without those in
        which the job was suspended; None starts no thread.
    store: whether there is a store to write to.
    """

    def __init__(self, rank: int, world: int, timeout: float | None = None, store: bool = True):
        self.rank, self.world, self.timeout = rank, world, timeout
        self._prefix = f"segwright/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._clock = RunningClock("rank")
        self._passed, self._place, self._since = 0, "start", 0.0
        self._instruction, self._stands_since = None, 0.0       # of the main thread
        self._heard: dict[int, tuple] = {}      # rank -> (its last beat, when it was new)
        self._neighbors: list[int] | None = None    # processes of the other ranks of this machine
        self._main = threading.main_thread().ident or 0     # None only before the thread starts
        self._ended = threading.Event()
        self._reporting = threading.Lock()    # only one of main thread and watch thread reports
        self._store = None
        if store:
            # To report an error, this rank alone is enough; to find a hang it is not.
            with contextlib.suppress(*([Exception] if timeout is None else [])):
                self._store = connect()
        self._thread = None
        if timeout is not None and self._store:
            self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
            self._thread.start()

    def mark(self, place: str):
        """Record that this rank has reached `place`."""
        self._passed += 1
        self._place, self._since = place, self._clock.seconds

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
            self._clock.advance(BEAT, self._neighbors or ())
            self._look_at_main_thread()
            beats += 1
            late = self._clock.seconds - self._since > self.timeout
            try:
                self._find_neighbors()
                self._store.set(self._key("line", self.rank),
                                json.dumps({"beat": beats, **self._own_line()}))
                first = self._failure()
                if first is None and late:
                    lines = self._lines()
                    first = self._late(lines) or self._silent(lines) or self._standing(lines)
            except RuntimeError:    # the store has ended, and with it rank 0
                first = self._claim(None, self._without_store()) if late else None
            self._clock.advance(2 * STORE_TIMEOUT, self._neighbors or ())
            if first and not self._ended.wait(LAST_WORDS):
                with self._reporting:
                    if not self._ended.is_set():
                        self._print(first)
                        os._exit(1)

    def _find_neighbors(self):
        """Learn which ranks are on this machine, as soon as all have told."""
        assert self._store, "there is no store"
        if self._neighbors is None:
            keys = [self._key("process", r) for r in range(self.world)]
            self._store.set(keys[self.rank], json.dumps([machine(), os.getpid()]))
            if self._store.check(keys):
                known = [json.loads(self._store.get(key)) for key in keys]
                self._neighbors = [process for place, process in known
                                   if place == machine() and process != os.getpid()]

    def _look_at_main_thread(self):
        """Notice how long the main thread has been in one call."""
        frame = sys._current_frames().get(self._main)
        instruction = (id(frame), frame and frame.f_lasti, self._passed)
        if instruction != self._instruction:
            self._instruction, self._stands_since = instruction, self._clock.seconds

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
        try:
            before = self._lines()
            self._let_pass(SILENCE)
            first = self._failure()
            after = self._lines()
        except Exception:       # the store has ended
            return self._claim(None, self._without_store())
        if first:
            return first
        gone = [r for r in range(self.world) if r != self.rank and not after[r].get("ended")
                and before[r].get("beat") == after[r].get("beat")]
        return self._gone(gone) or self._late(after)

    def _without_store(self):
        return f"rank 0, which holds the store of the ranks, is gone; rank {self.rank} was at " \
               f"{self._place}"

    def _gone(self, ranks):
        """The failure of ranks that have disappeared; None if there are none."""
        return self._claim(None, f"rank {_and(ranks)} is gone (killed? short of memory?); rank "
                                 f"{self.rank} was at {self._place}") if ranks else None

    def _let_pass(self, seconds):
        """Wait for `seconds` in which the ranks of this machine run."""
        clock = RunningClock("rank")
        while clock.seconds < seconds:
            time.sleep(min(BEAT, seconds))
            clock.advance(BEAT, self._neighbors or ())

    def _silent(self, lines):
        """The failure of the ranks without a new status line, which are where the others are."""
        now = self._clock.seconds
        others = {r: line for r, line in enumerate(lines) if r != self.rank}
        for r, line in others.items():
            if r not in self._heard or self._heard[r][0] != line.get("beat"):
                self._heard[r] = (line.get("beat"), now)
        return self._gone([r for r, line in others.items() if not line.get("ended")
                           and now - self._heard[r][1] > 2 * SILENCE])

    def _standing(self, lines):
        """The failure if no rank moves, although none is behind; None if any does.

        So is it if a network between machines loses what the ranks exchange. Phases before the
        first recorded step, and waits for other programs, take as long as they take.
        """
        if not all(line.get("passed") and line.get("stands", 0) > self.timeout for line in lines):
            return None
        where = "; ".join(f"rank {r} {line['line']}" for r, line in enumerate(lines))
        return self._claim(None, f"no rank has moved from {self._place} for {self.timeout:.0f} s "
                                 f"(trainer.rank_timeout): {where}")

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
        frame = sys._current_frames().get(self._main)
        waits = frame and os.path.basename(frame.f_code.co_filename) in _WAITS_FOR_PROCESSES
        now = self._clock.seconds
        return {"passed": self._passed, "place": self._place, "line": self._current_line(frame),
                "still": now - self._since, "stands": 0 if waits else now - self._stands_since}

    def _current_line(self, frame):
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
