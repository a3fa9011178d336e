"""Predicted label files and the names of the true ones; scores are tested with the command."""
from pathlib import Path

import numpy as np
import pytest

from utils.errors import DataError
from utils.evaluation.label_pairs import count_all, pair_files, require_below


def pairs(tmp_path, truths, predictions):
    for name in predictions:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, problems = pair_files({name: Path(f"gt/{name}.png") for name in truths}, tmp_path,
                                 (".png",))
    return {name: str(path.relative_to(tmp_path)) for name, path in found.items()}, problems


def test_a_prediction_belongs_to_the_longest_name_that_it_begins_with(tmp_path):
    found, problems = pairs(tmp_path, ["a", "a_1"], ["a_1_pred.png", "sub/a-labels.png"])
    assert found == {"a": "sub/a-labels.png", "a_1": "a_1_pred.png"} and not problems


def test_names_with_folders_are_compared_as_a_whole_first(tmp_path):
    found, problems = pairs(tmp_path, ["x/a", "y/a"], ["x/a.png", "y/a.png"])
    assert found == {"x/a": "x/a.png", "y/a": "y/a.png"} and not problems


def test_missing_surplus_and_ambiguous_predictions_are_problems(tmp_path):
    found, problems = pairs(tmp_path, ["x/a", "y/a"], ["a.png", "bc.png"])
    assert not found and len(problems) == 4
    text = "\n".join(problems)
    assert "a.png: may belong to 2 files of the truth" in text
    assert "bc.png: a prediction without truth" in text and "no prediction x/a" in text


def test_files_that_continue_the_name_of_a_prediction_are_left_out_with_a_notice(tmp_path, capsys):
    """As inference.py writes them beside the labels."""
    found, problems = pairs(tmp_path, ["a", "b"], [
        "a.png", "a_overlay.png", "a_masks/00_road.png", "a_masks/01_car.png", "b_x.png",
        "b_x_overlay.png"])
    assert found == {"a": "a.png", "b": "b_x.png"} and not problems
    assert "left out: 4 files whose names continue that of a prediction (_masks/...: 2, " \
        "_overlay: 2)" in capsys.readouterr().err


def test_two_files_of_which_none_continues_the_other_are_a_problem(tmp_path):
    _, problems = pairs(tmp_path, ["a"], ["a_1.png", "a_2.png"])
    assert len(problems) == 1 and "a_2.png: a second prediction of a; the first is" in problems[0]


def test_predictions_of_other_splits_are_left_out_with_a_notice(tmp_path, capsys):
    found, problems = pairs(tmp_path, ["a"], ["a.png", "b.png", "c.png"])
    assert found == {"a": "a.png"} and not problems
    assert "left out: 2 predictions without truth (b.png, c.png)" in capsys.readouterr().err


def test_all_problems_are_one_error_with_the_remedies_once():
    def count(name):
        if name != "good":
            raise DataError("is wrong", name, "mend it")
    with pytest.raises(DataError, match="3 files are wrong") as caught:
        count_all(count, ["good", "bad", "worse"], 2, ["c: missing"])
    assert caught.value.fix == "mend it"
    assert all(text in caught.value.what for text in ("c: missing", "bad: is wrong", "worse: is"))


def test_values_that_are_too_large_are_listed_as_stored():
    stored = np.array([[3, 3, 7]])
    assert require_below(stored, 8, stored, Path("a"), "less") is stored
    with pytest.raises(DataError, match=r"holds 7 \(1 pixel\); expected less"):
        require_below(stored, 5, stored, Path("a"), "less")
