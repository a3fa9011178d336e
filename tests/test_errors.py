"""The errors of users, and what is told of the errors of others."""
import pickle

import pytest

from utils.errors import DataError, first_line


@pytest.mark.parametrize("error, line", [
    (RuntimeError("one\ntwo"), "one"), (RuntimeError("\n\n  one \ntwo"), "one"),
    (RuntimeError(""), "RuntimeError"), (MemoryError(), "MemoryError"),
    (ValueError(" \n "), "ValueError"),
])
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def test_an_error_without_a_place_names_none_in_its_one_line():
    assert DataError("it is empty").in_one_line == "it is empty"
    assert DataError("it is empty", "a.png", "delete it").in_one_line == "a.png: it is empty"


def test_an_error_comes_back_whole_from_another_process():
    error = pickle.loads(pickle.dumps(DataError("it is empty", "a.png", "delete it")))
    assert (error.what, error.where, error.fix) == ("it is empty", "a.png", "delete it")
