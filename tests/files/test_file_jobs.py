"""Many files processed in threads; conversion itself is tested in tests/tools/test_prepare.py."""
import pytest

from utils.errors import DataError
from utils.files.file_jobs import work_through


def doubled(number):
    if number % 5 == 3:
        raise DataError("is odd", f"file {number}")
    return 2 * number


def test_results_come_in_the_order_of_the_jobs_and_failures_apart():
    lines = []
    outcome = work_through(range(10), doubled, workers=4, skip=lambda number: number < 2,
                           report=lines.append)
    assert outcome.done == [4, 8, 10, 12, 14, 18]
    assert lines == [error.in_one_line for error in outcome.failed] == \
        ["file 3: is odd", "file 8: is odd"]
    assert outcome.summary("doubled") == "6 doubled, 2 exist already, 2 failed"
    assert outcome.status == 3


def test_work_without_failures_has_status_0():
    outcome = work_through([1, 2], doubled)
    assert outcome.summary("doubled") == "2 doubled" and outcome.status == 0


def test_any_other_error_ends_the_work():
    started = []

    def work(number):
        started.append(number)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        work_through(range(1000), work)
    assert len(started) < 1000
