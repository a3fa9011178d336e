"""Signals outside a training: every program ends with 128 + the number of the signal."""
import contextlib
import os
import signal
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
