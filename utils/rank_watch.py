"""Who failed, who is gone, who stands still: what ranks know of each other beside collectives.

A collective that fails says "connection closed by peer" or "timed out", never
which rank did not come. So every rank keeps a line about itself in the store
that the process group was made with: a count that rises once a second, and the
place it is at. A daemon thread writes it, looks whether another rank has
failed, and ends this process if its main thread cannot (stuck in a collective).
"""
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta

from utils import console
from utils.errors import first_line

BEAT = 0.5          # seconds between two lines
SILENCE = 2.5       # a rank that wrote no line for so long is gone
LAST_WORDS = 4.0    # how long a main thread may take to end by itself
STORE_TIMEOUT = 5.0


def connect(timeout: float = STORE_TIMEOUT):
    """A connection of its own to the store of the process group (or of the launcher)."""
    import torch.distributed as dist
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                         is_master=False, wait_for_workers=False,
                         timeout=timedelta(seconds=timeout))


class RankWatch:
    """The watch of one rank. timeout: seconds a rank may stand still before the ranks that wait
    for it give up; None starts no thread (before there is a process group). store: whether there
    is a store to write to."""

    def __init__(self, rank: int, world: int, timeout: float | None = None, store: bool = True):
        self.rank, self.world, self.timeout = rank, world, timeout
        self._prefix = f"segwright/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._passed, self._place, self._since = 0, "start", time.monotonic()
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._telling = threading.Lock()      # the main thread and the watch never both tell
        self._store = None
        if store:
            with contextlib.suppress(Exception):   # of any kind; without it there is nobody to ask
                self._store = connect()
        self._thread = None
        if timeout is not None and self._store:
            self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
            self._thread.start()

    def at(self, place: str):
        self._passed += 1
        self._place, self._since = place, time.monotonic()

    def close(self):
        """This rank has come to its end: it is neither gone nor late."""
        if self._store and not self._ended.is_set():
            self._ended.set()
            try:
                self._store.set(self._key("line", self.rank), json.dumps({"ended": True}))
            except Exception:       # the store ended first
                pass
            self._join()

    def tell(self, error: BaseException) -> int:
        """Say why this rank stops: its own error if it is the first, else whose it was. Returns
        the exit status."""
        with self._telling:
            self._ended.set()
            status = self._told(error)
        self._join()
        return status

    def _told(self, error):
        summary = first_line(error)
        consequence = _of_a_collective(error)
        if consequence:
            first = self._wait_for_failure() or self._blame()
            if first is None:        # nobody else is to blame: it is this rank's own
                consequence = False
        if not consequence:
            first = self._claim(self.rank, summary)
            if first["rank"] == self.rank:
                status = console.report(error)
                if status is None:
                    traceback.print_exception(error)
                return 1 if status is None else status
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        self._say(first)
        return 1

    def _join(self):
        """Python aborts where a daemon thread is in the middle of a call to the store as the
        program ends; a call takes the store's timeout at most."""
        if self._thread:
            self._thread.join(2 * STORE_TIMEOUT)

    def _run(self):
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            try:
                self._store.set(self._key("line", self.rank),
                                json.dumps({"beat": beats, **self._own_line()}))
                first = self._failure()
                if first is None and time.monotonic() - self._since > self.timeout:
                    first = self._late()
            except Exception:       # of any kind: the store ended, and with it rank 0
                continue
            if first and not self._ended.wait(LAST_WORDS):
                with self._telling:
                    if not self._ended.is_set():
                        self._say(first)
                        os._exit(1)

    def _say(self, first):
        text = first["text"] if first["rank"] is None else \
            f"rank {first['rank']} failed: {first['text']}"
        if first.get("by") == self.rank:
            console.fail(text)
        else:
            console.fail(f"[rank {self.rank}] stopped because {text}")

    def _claim(self, rank, text):
        """The failure all ranks stop for: this one, unless another was told before."""
        mine = json.dumps({"rank": rank, "text": text, "by": self.rank})
        if not self._store:
            return json.loads(mine)
        try:
            return json.loads(self._store.compare_set(f"{self._prefix}/failure", "", mine))
        except Exception:       # of any kind: the store ended, and with it rank 0
            return json.loads(mine)

    def _failure(self):
        key = f"{self._prefix}/failure"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _wait_for_failure(self, seconds=1.0):
        """The failure that another rank tells of while this one's collective breaks."""
        deadline = time.monotonic() + seconds
        while self._store and time.monotonic() < deadline:
            try:
                first = self._failure()
            except Exception:       # of any kind: the store ended, and with it rank 0
                break
            if first:
                return first
            time.sleep(0.1)
        return None

    def _blame(self):
        """Which rank is gone or late, as a failure; None when all are where this one is."""
        text = f"rank 0, which holds the store of the ranks, is gone; rank {self.rank} was at " \
               f"{self._place}"
        try:
            before = self._lines()
            time.sleep(SILENCE)
            first = self._failure()
            after = self._lines()
        except Exception:       # of any kind: the store ended
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
        """The failure of the ranks that are behind the others; None when none is."""
        lines = lines or self._lines()
        lines[self.rank] = self._own_line()
        running = {r: line for r, line in enumerate(lines) if not line.get("ended")}
        most = max(line.get("passed", 0) for line in running.values())
        ahead = next(line for line in running.values() if line.get("passed", 0) == most)
        late = [r for r, line in running.items() if line.get("passed", 0) < most]
        if not late:
            return None
        told = "; ".join(f"rank {r} stands still at {lines[r].get('place', 'its start')}"
                         + (f", {lines[r]['line']}, for {lines[r]['still']:.0f} s"
                            if lines[r].get("line") else "") for r in late)
        return self._claim(None, f"rank {_and(late)} did not come to {ahead['place']} within "
                                 f"{self.timeout:.0f} s (trainer.rank_timeout): {told}")

    def _lines(self):
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
    """Whether an error says no more than that some rank did not answer."""
    import torch.distributed as dist
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    words = ("gloo", "NCCL", "peer", "Timed out waiting", "monitoredBarrier", "ProcessGroup")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
