"""The errors that users can cause, and the wording that messages share."""
import pickle

import pytest

from utils.errors import (
    DataError,
    counted,
    files_text,
    first_line,
    listed,
    nearest,
    short_path,
    shown,
    unknown,
)


@pytest.mark.parametrize("error, line", [
    (RuntimeError("one\ntwo"), "one"), (RuntimeError("\n\n  one \ntwo"), "one"),
    (RuntimeError(""), "RuntimeError"), (MemoryError(), "MemoryError"),
    (ValueError(" \n "), "ValueError"),
])
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def test_an_error_without_a_place_has_only_its_text_in_its_one_line():
    assert DataError("it is empty").in_one_line == "it is empty"
    assert DataError("it is empty", "a.png", "delete it").in_one_line == "a.png: it is empty"


def test_an_error_keeps_its_parts_when_it_is_pickled():
    error = pickle.loads(pickle.dumps(DataError("it is empty", "a.png", "delete it")))
    assert (error.what, error.where, error.fix) == ("it is empty", "a.png", "delete it")


@pytest.mark.parametrize("most, text", [
    (2, "a, b, and 1 more"), (3, "a, b, c"), (4, "a, b, c"), (0, "and 3 more"),
])
def test_a_list_beyond_its_limit_ends_with_the_number_left_out(most, text):
    assert listed(["a", "b", "c"], most) == text


def test_a_list_takes_any_separator_and_turns_only_the_items_shown_into_text():
    assert listed({"a": 1, "b": 0}, 1, "\n  ", str.upper) == "A\n  and 1 more"
    assert listed([1, 0], 1, text=lambda number: f"{1 / number:g}") == "1, and 1 more"
    assert listed([], 3) == ""


@pytest.mark.parametrize("name, known, near", [
    ("pspnet", ["PSPNet", "ENet"], "PSPNet"), ("PSPNett", ["PSPNet", "ENet"], "PSPNet"),
    ("eary_stop", ["early_stop", "epochs"], "early_stop"), ("x", ["early_stop"], None),
    ("x", [], None),
])
def test_the_nearest_name_is_found_in_any_letter_case(name, known, near):
    assert nearest(name, known) == near


def test_an_unknown_name_is_reported_with_the_nearest_and_all_known_names():
    assert unknown("type", "b", ["C", "A"]) == "unknown type 'b'. Known: A, C."
    assert unknown("key", "lr2", {"lr": 1}) == "unknown key 'lr2'. Did you mean 'lr'? Known: lr."
    assert unknown("key", "x", ()) == "unknown key 'x'. Known: none."


def test_of_names_that_differ_only_in_case_all_are_reported():
    assert unknown("type", "upernet", ["UPerNet", "UperNet", "UNet"]) == (
        "unknown type 'upernet'. Did you mean 'UPerNet' or 'UperNet'? Known: UNet, UPerNet, "
        "UperNet.")


def test_a_number_agrees_with_its_noun():
    assert [counted(1, "batch"), counted(2, "batch"), counted(3, "class"), counted(0, "epoch")] \
        == ["1 batch", "2 batches", "3 classes", "0 epochs"]


def test_a_path_is_shown_with_its_odd_characters_escaped():
    assert shown(b"a\xff.png") == r"a\udcff.png"
    assert shown("a\nb") == r"a\nb"


def test_a_path_is_relative_if_it_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "a" / "b.png") == "a/b.png"
    assert short_path("../x/") == "../x" and short_path("/other/x.png") == "/other/x.png"
    assert files_text(tmp_path / "saved", ["a.json", "b\n.png"]) == r"saved: a.json, b\n.png"
