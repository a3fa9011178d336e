"""The clock that stands still while a job is suspended."""
import os
import signal
import subprocess
import time

import pytest

from utils.machine import running_time
from utils.machine.running_time import RunningClock, is_suspended


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, as a list of one number that a test changes."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_waits_of_a_running_program_count_as_long_as_they_took(now):
    clock = RunningClock()
    for took in (1.0, 1.2, 3.5):        # a busy machine ends a wait late
        now[0] += took
        clock.advance(1.0)
    assert clock.seconds == pytest.approx(5.7)


def test_a_wait_that_took_much_too_long_counts_as_asked(now):
    clock = RunningClock()
    for took in (0.5, 3600.0, 0.5):
        now[0] += took
        clock.advance(0.5)
    assert clock.seconds == pytest.approx(1.5)


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_the_clock_stands_still_while_a_part_of_the_job_is_suspended(sleeper, now, capsys):
    clock = RunningClock("data worker")
    os.kill(sleeper, signal.SIGSTOP)
    _until(sleeper, True)
    for _ in range(3):
        now[0] += 1
        clock.advance(1.0, [sleeper])
    assert clock.seconds == 0
    assert capsys.readouterr().err.count(f"data worker {sleeper} is suspended") == 1
    os.kill(sleeper, signal.SIGCONT)
    _until(sleeper, False)
    now[0] += 1
    clock.advance(1.0, [sleeper])       # it was suspended at the beginning of this wait
    now[0] += 1
    clock.advance(1.0, [sleeper])
    assert clock.seconds == 1


def _until(process, suspended):
    for _ in range(1000):
        if is_suspended(process) == suspended:
            return
        time.sleep(0.01)
    raise AssertionError("the signal had no effect")


def test_a_process_that_does_not_exist_is_not_suspended():
    assert not is_suspended(2 ** 22 + 1)


def test_processes_of_one_machine_agree_on_its_name():
    assert running_time.machine() == running_time.machine() != ""
