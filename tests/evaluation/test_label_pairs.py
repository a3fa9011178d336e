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
    with pytest.raises(DataError, match=r"holds 7 \(1 pixels\); expected less"):
        require_below(stored, 5, stored, Path("a"), "less")
