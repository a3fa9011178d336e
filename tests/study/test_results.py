"""utils/study/results.py: what the folders of runs say."""
import json

import numpy as np
import pytest

from tests.support.studies import write_results
from tools import evaluate_labels, study
from utils.errors import DataError
from utils.images.image_io import write_image, write_label
from utils.metrics.image_scores import write_image_scores
from utils.study.plan import PlannedRun, PlannedTest
from utils.study.results import (
    COSTS,
    curves,
    read_existing,
    read_result,
    read_test,
    training_seconds,
)
from utils.study.study_file import Cell


@pytest.mark.parametrize("document,score", [
    ({"Mean_IoU": 0.5, "image": {"Mean_IoU": 0.4}, "class_names": ["a"], "Class_IoU": [0.5]}, 0.5),
    ({"averageScoreClasses": 0.6, "classScores": {"road": 0.9}}, 0.6)])
def test_scores_of_other_programs_are_read(tmp_path, document, score):
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    result = read_result(tmp_path / "theirs.json", Cell("theirs"))
    assert result.scores["Mean_IoU"] == score and len(result.classes) == 1
    assert result.images is None and result.seed is None


@pytest.mark.parametrize("document", [
    "[]", "{", '{"Mean_IoU": "x"}', '{"image": 3}', '{"classes": 3}', "[" * 10_000])
def test_a_file_without_a_score_is_refused(tmp_path, document):
    (tmp_path / "r.json").write_text(document)
    with pytest.raises(DataError, match="is not a results file|has no score"):
        read_result(tmp_path / "r.json", Cell("x"))
    with pytest.raises(DataError, match="cannot read"):
        read_result(tmp_path / "none.json", Cell("x"))


@pytest.mark.parametrize("content", [
    "{", "[]", "{}", '{"parameters": 1, "flops": "x", "size": [1, 2], "classes": []}',
    '{"parameters": 1, "flops": 2, "size": [1, 2], "classes": [["road"]]}',
    '{"parameters": 1, "flops": 2, "size": 3, "classes": [["road", [1, 2, 3]]]}'])
def test_damaged_costs_are_no_costs(tmp_path, content):
    path = write_results(tmp_path, 0.5)
    (tmp_path / COSTS).write_text(content)
    assert read_result(path, Cell("x")).costs == {}


@pytest.mark.parametrize("interest", [3, "x", [9], [-1], [True], [[0]]])
def test_classes_of_interest_that_are_no_classes_are_refused(tmp_path, interest):
    path = write_results(tmp_path, 0.5, classes_of_interest=interest)
    with pytest.raises(DataError, match="classes_of_interest"):
        read_result(path, Cell("x"))
    found = read_result(write_results(tmp_path, 0.5, classes_of_interest=[1]), Cell("x"))
    assert found.images and found.images.classes_of_interest == [1]


def test_odd_entries_of_classes_are_unknown_and_not_a_crash(tmp_path):
    path = write_results(tmp_path, 0.5, classes=[{"name": "a", "IoU": "x"}, 3, {"IoU": 0.5}])
    assert read_result(path, Cell("x")).classes == {"a": None, "None": 0.5}


def test_a_long_curve_is_thinned(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(
        json.dumps({"kind": "train", "step": k, "train/loss": float(k)}) + "\n"
        for k in range(1, 1001)))
    found = curves(tmp_path / "metrics.jsonl")["loss"]
    assert len(found) == 334 and found[0] == (3, 2.0) and found[-1] == (1000, 1000.0)
    assert curves(tmp_path / "none.jsonl") == {"loss": [], "score": []}


def test_the_time_of_a_training_is_that_of_its_sessions(tmp_path):
    (tmp_path / "log.txt").write_text(
        "2026-11-29 08:00:00 training ENet to epoch 3\n2026-11-29 08:00:30 saved\n"
        "2026-11-29 09:00:00 training ENet to epoch 3\n2026-11-29 09:00:12 best\n")
    assert training_seconds(tmp_path / "log.txt") == 42
    assert training_seconds(tmp_path / "none.txt") is None


def test_curves_are_read_past_a_line_that_a_kill_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 5, "train/loss": 2.0}\n{"kind": "trai\n'
        '{"kind": "validation", "step": 8, "Mean_IoU": 0.25}\n')
    assert curves(tmp_path / "metrics.jsonl") == {"loss": [(5, 2.0)], "score": [(8, 0.25)]}


@pytest.mark.parametrize("options,score", [((), 0.5), (("--segfix", "offsets"), 0.6),
                                           (("--segfix=offsets", "--flip"), 0.6)])
def test_a_row_with_segfix_has_the_score_of_the_refined_labels(tmp_path, options, score):
    cell = Cell("net", config=tmp_path, test=options)
    planned = PlannedRun("k", "net_s0-k", tmp_path, (), 0, {"trainer": {
        "save_dir": str(tmp_path), "val": True, "monitor": "max Mean_IoU"}})
    place = planned.folder / "11-29_08-00-00"
    test = PlannedTest(cell, planned)
    folder = place / "tests" / test.code
    folder.mkdir(parents=True)
    for name in ("last.pth", "model_best.pth"):
        (place / name).touch()
    write_image_scores(folder / "scores.csv", {"published": True, "masks": False, **{
        f"img_{name}": [] for name in ("index", "miou", "mdice", "pixacc", "binacc", "iou", "dice")
    }}, [], ["a"])
    plain, refined = ({"procedure": rule, "Mean_IoU": one, "image_scores": "scores.csv"}
                      for rule, one in (("max", 0.5), ("max_segfix", 0.6)))
    (folder / "results.json").write_text(json.dumps({**plain, "runs": [plain, refined]}))
    result = read_test(test)
    assert result is not None and result.scores["Mean_IoU"] == score


def test_results_of_a_file_that_are_not_in_the_table_are_named(tmp_path, capsys):
    top, other = ({"procedure": rule, "Mean_IoU": 0.5} for rule in ("max", "rankdice"))
    (tmp_path / "results.json").write_text(json.dumps({**top, "runs": [top, other]}))
    read_existing([Cell("a", results=(tmp_path / "results.json",))])
    said = capsys.readouterr().err
    assert "holds 2 results" in said and "of rule max, and not those of" in said
    assert "rule rankdice" in said


def test_label_files_of_other_programs_have_an_interval_over_images(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for folder in ("truth/images", "truth/labels", "a", "b"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(8):
        write_image(tmp_path / f"truth/images/i{k}.png", np.zeros((16, 16, 3), np.uint8))
        truth = (generator.random((16, 16)) * 2).astype(np.uint8)
        for folder, wrong in (("truth/labels", 0), ("a", 0.4), ("b", 0.1)):
            write_label(tmp_path / folder / f"i{k}.png",
                        np.where(generator.random((16, 16)) < wrong, 1 - truth, truth), [])
    for name in "ab":
        evaluate_labels.main(["--dataset", "Folder", "--split", "all", "--args",
                              '{"num_classes": 2}', "--gt", str(tmp_path / "truth"), "--pred",
                              str(tmp_path / name), "-o", str(tmp_path / "scores" / name)])
    study.main(["--from", str(tmp_path / "scores/a"), str(tmp_path / "scores/b"), "--baseline",
                "a", "-o", str(tmp_path / "table"), "--no-pictures"])
    one, = json.loads((tmp_path / "table/study.json").read_text())["comparisons"]
    assert one["images"]["low"] > 0 and one["images"]["images"] == 8
    assert "| b | +" in capsys.readouterr().out
