"""The files of test.py: which scores they keep, and what they say about each."""
import json
import types

import pytest
import torch

from utils.errors import DataError
from utils.evaluation.score_report import score_entries, score_text, write_scores
from utils.metrics import DatasetMetrics, ImageMetrics, Scores
from utils.predict.predictor import Predictor

NAMES = ["road", "car", "never there"]
SECTION = {"type": "Shapes", "args": {"split": "val"}}


def measured(error=0.2):
    """The Scores of two images in which about `error` of the pixels are wrong."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (2, 8, 8), generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < error
    dataset, image = DatasetMetrics(3), ImageMetrics(3)
    for metrics in (dataset, image):
        metrics.update(torch.where(wrong, 1 - target, target), target)
    return Scores(dataset.compute(), image.compute(), loss=0.5, images=2)


def write(folder, results, refiner=None, **options):
    """The entries of `results`, written into `folder` as for a checkpoint in it."""
    path = folder / "model.pth"
    path.write_bytes(b"weights")
    opened = types.SimpleNamespace(path=path, epoch=3, device="cpu")
    predictor = Predictor(torch.nn.Identity(), torch.nn.Identity(), **options)
    entries = score_entries(results, opened, predictor, "val_loader", SECTION, NAMES,
                            refiner=refiner)
    write_scores(folder, results, entries, NAMES, ["a", "b"])
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


def test_another_programs_results_file_is_an_error_and_stays(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="not a results file"):
        write(tmp_path, {"max": measured()})
    assert (tmp_path / "results.json").read_text() == "[]"
