"""A signal to stop is never taken for the fault of a file, and never lost."""
import contextlib
import os
import signal

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


def test_an_error_without_a_stop_stays_the_error():
    with StopSignal() as stop, pytest.raises(OSError, match="broken"), stop.idle():
        raise OSError("broken data stream")
