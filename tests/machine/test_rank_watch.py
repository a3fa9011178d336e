"""What the watch of one rank concludes from the status lines of the others."""
import json
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.support.ranks import free_port
from utils.machine import rank_watch, running_time
from utils.machine.rank_watch import RankWatch


@pytest.fixture
def store(monkeypatch):
    """A store as the launcher has one; the status lines of rank 1 are written by the tests."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(rank_watch, "SILENCE", 0.01)
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False,
                         timeout=timedelta(seconds=5))


def put(store, key, value):
    store.set(f"segwright/0/{key}", json.dumps(value))
    store.get(f"segwright/0/{key}")     # `set` does not wait until other connections see it


def status_of_rank_1(store, **line):
    put(store, "line/1", {"beat": 7, "passed": 1, "place": "step 3", "still": 9.0, **line})


def report(capsys, error):
    watch = RankWatch(0, 2)
    watch.timeout = 4.0
    watch.mark("step 3")
    watch.mark("step 4")
    status = watch.report(error)
    return status, capsys.readouterr().err


BROKEN = RuntimeError("[gloo] connection closed by peer")


def test_a_rank_without_new_status_lines_is_gone(store, capsys):
    status_of_rank_1(store)
    status, printed = report(capsys, BROKEN)
    assert status == 1 and "rank 1 is gone (killed? short of memory?)" in printed


def test_a_rank_that_has_ended_is_not_gone(store, capsys):
    put(store, "line/1", {"ended": True})
    status, printed = report(capsys, BROKEN)
    assert status == 1 and "connection closed by peer" in printed


def test_a_rank_with_fewer_steps_is_late(store, capsys, monkeypatch):
    beats = iter(range(100))
    lines = RankWatch._lines

    def rank_1_writes_on(watch):
        status_of_rank_1(store, beat=next(beats))
        return lines(watch)
    monkeypatch.setattr(RankWatch, "_lines", rank_1_writes_on)
    _, printed = report(capsys, BROKEN)
    assert "rank 1 did not reach step 4 within 4 s" in printed
    assert "rank 1 is still at step 3" in printed


def test_the_first_failure_is_the_one_that_every_rank_reports(store, capsys):
    put(store, "failure", {"rank": 1, "text": "on fire", "by": 1})
    status, printed = report(capsys, ValueError("later, and of another kind"))
    assert status == 1 and "[rank 0] stopped because rank 1 failed: on fire" in printed
    assert "later" not in printed


def beating(monkeypatch, store, **line):
    """Rank 1 writes new status lines whenever it is looked at."""
    beats = iter(range(1000))
    lines = RankWatch._lines

    def written(watch):
        status_of_rank_1(store, beat=next(beats), **line)
        return lines(watch)
    monkeypatch.setattr(RankWatch, "_lines", written)


def at_the_timeout(watch):
    """What the watch finds when its main thread has stood at its place for longer than 4 s."""
    watch.timeout, watch._clock.seconds = 4.0, 9.0
    lines = watch._lines()
    return watch._late(lines) or watch._silent(lines) or watch._standing(lines)


def test_a_rank_at_the_same_place_without_new_lines_is_gone_after_a_while(store):
    watch = RankWatch(0, 2)
    watch.mark("step 3")
    status_of_rank_1(store)
    assert at_the_timeout(watch) is None         # seen for the first time
    watch._clock.seconds += 3 * rank_watch.SILENCE
    lines = watch._lines()
    assert "rank 1 is gone" in watch._silent(lines)["text"]


def test_ranks_that_stand_at_the_same_place_are_a_hang(store, monkeypatch):
    watch = RankWatch(0, 2)
    watch.mark("step 3")
    watch._since = 0.0
    beating(monkeypatch, store, stands=5.0, line="in recv (c10d.py:9)")
    found = at_the_timeout(watch)
    assert found["text"].startswith("no rank has moved from step 3 for 4 s")
    assert "rank 1 in recv (c10d.py:9)" in found["text"] and found["rank"] is None


@pytest.mark.parametrize("line", [{"stands": 1.0}, {"stands": 5.0, "passed": 0}])
def test_ranks_that_compute_or_have_not_begun_are_no_hang(store, monkeypatch, line):
    watch = RankWatch(0, 2)
    if "passed" not in line:
        watch.mark("step 3")
    beating(monkeypatch, store, **{"line": "in conv2d (conv.py:9)", **line})
    assert at_the_timeout(watch) is None


def test_the_clock_of_a_watch_knows_the_processes_of_its_machine(store):
    watch = RankWatch(0, 2)
    watch._find_neighbors()
    assert watch._neighbors is None
    put(store, "process/1", [running_time.machine(), 4711])
    watch._find_neighbors()
    assert watch._neighbors == [4711]
