"""The files of test.py: which scores they keep, and what they say about each."""
import json
import types

import numpy as np
import pytest
import torch

from utils.decision.rules import build_decision
from utils.errors import DataError
from utils.evaluation.score_report import (
    Scored,
    score_entries,
    score_text,
    table_of,
    write_scores,
)
from utils.metrics import DatasetMetrics, ImageMetrics, Scores
from utils.metrics.image_scores import read_image_scores
from utils.metrics.table import format_table
from utils.predict.predictor import Predictor

NAMES = ["road", "car", "never there"]
SECTION = {"type": "Shapes", "args": {"split": "val"}}


def measured(error=0.2, images=2):
    """The Scores of some images in which about `error` of the pixels are wrong."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (images, 8, 8), generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < error
    dataset, image = DatasetMetrics(3), ImageMetrics(3)
    for metrics in (dataset, image):
        metrics.update(torch.where(wrong, 1 - target, target), target)
    return Scores(dataset.compute(), image.compute(), loss=0.5, images=images)


def write(folder, results, refiner=None, ids=None, **options):
    """The entries of `results`, written into `folder` as for a checkpoint in it."""
    opened = types.SimpleNamespace(path=folder / "model.pth", epoch=3, device="cpu",
                                   sha256="0" * 64, config={"ignore_index": 255})
    predictor = Predictor(torch.nn.Identity(), torch.nn.Identity(), **options)
    rules = [build_decision(name) for name in results if not name.endswith("_segfix")]
    scored = Scored(opened, predictor, rules, "val_loader", SECTION, NAMES, {}, refiner)
    entries = score_entries(results, scored)
    write_scores(folder, results, entries, NAMES, ids or ["a", "b"])
    return entries


def test_an_entry_is_plain_json_and_nan_is_null(tmp_path):
    entry, = json.loads(json.dumps(write(tmp_path, {"max": measured()}), allow_nan=False))
    assert entry["Mean_IoU"] == measured().dataset["Mean_IoU"] and entry["loss"] == 0.5
    assert entry["classes"][0]["name"] == "road" and entry["classes"][2]["IoU"] is None
    assert entry["n_images"] == 2 and entry["split"] == "val" and entry["checkpoint"]["epoch"] == 3


def test_a_repeated_score_replaces_its_run_and_keeps_the_others(tmp_path):
    write(tmp_path, {"max": measured(0.2)})
    write(tmp_path, {"max": measured(0.3)}, mode="sliding")
    write(tmp_path, {"max": measured(0.1)})
    document = json.loads((tmp_path / "results.json").read_text())
    assert [run["mode"] for run in document["runs"]] == ["sliding", "whole"]
    assert document["Mean_IoU"] == document["runs"][1]["Mean_IoU"] > document["runs"][0]["Mean_IoU"]
    assert (tmp_path / "results.txt").read_text().count("== model.pth") == 2


def test_only_refined_rules_name_the_refiner(tmp_path):
    refiner = types.SimpleNamespace(describe=lambda: "offset files, scale 2")
    plain, refined = write(tmp_path, {"max": measured(), "max_segfix": measured()}, refiner)
    assert "segfix" not in plain and refined["segfix"] == "offset files, scale 2"
    assert plain["image_scores"] != refined["image_scores"]


def test_the_text_has_a_table_per_rule_and_one_of_all_rules(tmp_path):
    results = {"max": measured(), "T": measured(0.3)}
    text = score_text(results, write(tmp_path, results), NAMES)
    assert text.count("== model.pth, Shapes val (val_loader, 2 images)") == 2
    assert "IoU of the class, all images together" in text


def test_a_table_from_results_json_is_that_of_the_scores(tmp_path):
    """Also with undefined scores, which JSON stores as null."""
    scores = measured()
    entry, = write(tmp_path, {"max": scores})
    stored = json.loads((tmp_path / "results.json").read_text())["runs"][0]
    assert table_of(stored) == table_of(entry) == format_table(scores, NAMES)


def test_the_settings_of_a_rule_are_in_its_entry(tmp_path):
    plain, threshold, rank = write(tmp_path, dict.fromkeys(("max", "T", "rankdice"), measured()))
    assert "temperature" not in plain
    assert (threshold["threshold"], threshold["temperature"]) == (0.5, 1.0)
    assert rank["temperature"] == 1.0


def test_enough_images_have_intervals_and_few_have_none(tmp_path):
    few, = write(tmp_path, {"max": measured()})
    assert few["intervals"] == {} and "interval" not in table_of(few)
    scores, ids = measured(images=60), [str(i) for i in range(60)]
    entry, = write(tmp_path, {"max": scores}, ids=ids)
    bounds = entry["intervals"]["Mean_IoU"]
    assert bounds["low"] < entry["Mean_IoU"] < bounds["high"]
    line = table_of(entry).splitlines()[-1]
    assert line.startswith(f"95 % intervals for other images: mean IoU {100 * bounds['low']:.2f} "
                           f".. {100 * bounds['high']:.2f}, mean Dice ")


def test_nothing_to_score_is_an_error_that_says_why(tmp_path):
    dataset, image = DatasetMetrics(3), ImageMetrics(3)
    for metrics in (dataset, image):
        metrics.update(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.full((2, 4, 4), 255))
    with pytest.raises(DataError, match="not one pixel of 2 images has a label"):
        write(tmp_path, {"max": Scores(dataset.compute(), image.compute(), images=2)})
    assert not (tmp_path / "results.json").exists()


def test_odd_names_of_classes_and_files_are_written_and_read_again(tmp_path, monkeypatch):
    names = ["a\ud800\r\n== b", "=1+1, \"c\"", "x" * 200_000]
    monkeypatch.setattr("tests.evaluation.test_score_report.NAMES", names)
    monkeypatch.setattr("utils.evaluation.score_report.confusion_picture",
                        lambda *_: np.zeros((4, 4, 3), np.uint8))
    entry, = write(tmp_path, {"max": measured()}, ids=["i\udc80\n", "=x"])
    assert entry["classes"][0]["name"] == names[0]
    read = read_image_scores(tmp_path / entry["image_scores"])
    assert read.ids == ["i\\udc80\\n", "=x"] and read.class_names[1] == names[1]
    assert read.pixels[:, 2].sum() == 2 * 64        # labeled pixels
    text = (tmp_path / "results.txt").read_text()
    assert max(map(len, text.splitlines())) < 300 and text.count("\n== ") == 0
