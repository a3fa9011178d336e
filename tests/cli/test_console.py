"""Signals outside a training: every program ends with 128 + the number of the signal."""
import contextlib
import errno
import io
import os
import signal
import sys
import time

import pytest

from utils.cli import console

NUMBERS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


@pytest.mark.parametrize("number, status", NUMBERS)
def test_code_that_judges_files_does_not_catch_a_signal(number, status, capsys):
    def main(argv):
        try:
            os.kill(os.getpid(), number)
        except Exception:
            return 4
    assert console.run(main, []) == status
    assert capsys.readouterr().err.startswith("interrupted: ")


@pytest.mark.parametrize("number, status", NUMBERS)
def test_a_signal_that_a_library_turned_into_an_error_is_still_the_signal(number, status, capsys):
    def main(argv):
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise RuntimeError("operator failed") from None
    assert console.run(main, []) == status
    assert "operator failed" not in capsys.readouterr().err


@pytest.mark.parametrize("number, status", NUMBERS)
def test_a_signal_that_a_library_caught_comes_again(number, status, monkeypatch, capsys):
    monkeypatch.setattr(console._Stop, "PATIENCE", 0.05)

    def main(argv):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
        time.sleep(20)
    started = time.monotonic()
    assert console.run(main, []) == status and time.monotonic() - started < 5


def test_a_signal_does_not_come_again_while_the_program_clears_up(monkeypatch, capsys):
    monkeypatch.setattr(console._Stop, "PATIENCE", 0.05)
    cleared = []

    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            time.sleep(0.3)
            with contextlib.suppress(OSError):      # an error of the cleaning itself
                raise OSError
            time.sleep(0.2)
            cleared.append(1)
    assert console.run(main, []) == 143 and cleared == [1]


def test_an_error_without_a_signal_stays_the_error():
    def main(argv):
        raise RuntimeError("operator failed")
    with pytest.raises(RuntimeError, match="operator failed"):
        console.run(main, [])


class Full(io.StringIO):
    """A stdout on a disk that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_result_that_does_not_fit_on_the_disk_of_stdout_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert console.run(lambda argv: console.output("0.5"), []) == 3
    assert "cannot write the output: No space left on device" in capsys.readouterr().err


def test_a_character_that_stdout_cannot_show_is_printed_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert console.run(lambda argv: print("Stra\u00dfe \ud800"), []) == 0
    assert buffer.getvalue() == b"Stra\\xdfe \\ud800\n"


def test_a_signal_that_is_just_being_sent_comes_before_the_end(monkeypatch):
    # Later its handler is gone, and it would kill the process.
    sent = []
    monkeypatch.setattr(console.os, "kill", lambda *_: (time.sleep(0.2), sent.append(1)))
    monkeypatch.setattr(console._Stop, "PATIENCE", 0.0)
    stop = console._Stop()
    with pytest.raises(console.Interrupted):
        stop.handle(signal.SIGTERM, None)
    time.sleep(0.05)
    stop.end()
    assert sent == [1]


def test_a_signal_of_a_destructor_is_not_sent_after_the_end(monkeypatch):
    sent = []
    monkeypatch.setattr(console.os, "kill", lambda *_: sent.append(1))

    class Lost:
        def __del__(self):
            raise console.Interrupted(signal.SIGTERM, "before anything was saved")
    assert console.run(lambda argv: Lost() and None, []) == 0
    time.sleep(0.1)
    assert sent == []
