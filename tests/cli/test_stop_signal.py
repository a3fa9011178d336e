"""A signal to stop is never taken for the fault of a file, and never lost."""
import contextlib
import multiprocessing
import os
import signal
import time

import pytest

from utils.cli.stop_signal import StopNow, StopSignal


def stop_me():
    os.kill(os.getpid(), signal.SIGTERM)


def test_code_that_judges_files_does_not_catch_a_stop():
    judged = []
    with StopSignal() as stop, pytest.raises(StopNow), stop.idle():
        try:
            stop_me()
        except Exception as error:
            judged.append(error)
    assert not judged


def test_a_wait_ends_with_the_stop_that_a_library_caught():
    reached = []
    with StopSignal() as stop, pytest.raises(StopNow), stop.idle():
        with contextlib.suppress(BaseException):      # as a bare `except:`
            stop_me()
        reached.append(1)
    assert reached


def test_a_wait_ends_with_the_stop_that_a_library_turned_into_an_error():
    with StopSignal() as stop, pytest.raises(StopNow), stop.idle():
        try:
            stop_me()
        except BaseException:
            raise OSError("broken data stream") from None


def test_the_batch_that_was_read_when_the_stop_was_caught_is_not_used():
    def batches():
        yield "first"
        with contextlib.suppress(BaseException):
            stop_me()
        yield "second"
    used = []
    with StopSignal() as stop, pytest.raises(StopNow):
        for batch in stop.while_idle(batches()):
            used.append(batch)
    assert used == ["first"]


def test_a_stop_is_told_once_while_the_program_is_busy(capfd):
    told = []
    with StopSignal(tell=told.append) as stop:
        stop_me()
        end = time.monotonic() + 10
        while not told and time.monotonic() < end:
            time.sleep(0.01)
        stop_me()
        time.sleep(0.1)
    assert told == ["SIGTERM"] and stop.signum == signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_a_stop_that_ends_the_block_at_once_is_not_told():
    told = []
    with StopSignal(tell=told.append):
        stop_me()
    time.sleep(2 * StopSignal.PATIENCE)
    assert not told


def test_the_signal_of_a_worker_process_is_not_that_of_the_program():
    told = []
    with StopSignal(tell=told.append) as stop:
        worker = multiprocessing.get_context("fork").Process(target=stop_me)
        worker.start()
        worker.join()
        time.sleep(2 * StopSignal.PATIENCE)
    assert not told and stop.signum is None


def test_an_error_without_a_stop_stays_the_error():
    with StopSignal() as stop, pytest.raises(OSError, match="broken"), stop.idle():
        raise OSError("broken data stream")
