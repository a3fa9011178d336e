"""Cross-validation in studies: the folds of the file, their runs, and the table over all images."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.study.test_study_file import mistakes, written
from tests.support.places import ROOT
from tests.support.run_program import program
from tools.study import _test_arguments
from utils.errors import ConfigError, DataError
from utils.evaluation.score_report import entry_of
from utils.metrics.counts import count_pixels
from utils.metrics.dataset_metrics import DatasetMetrics
from utils.metrics.image_metrics import ImageMetrics
from utils.metrics.image_scores import image_scores
from utils.metrics.scores import Scores
from utils.study import tables
from utils.study.folds import pooled_runs
from utils.study.html_report import html_report
from utils.study.plan import make_plan
from utils.study.results import RunResult
from utils.study.study_file import Cell, Study, read_study
from utils.study.summary import summarize

FOLDS = {"1": ("a.list=1",), "2": ("a.list=2",), "3": ("a.list=3",)}
NAMES = ["sky", "road", "car", "rider"]
NUMBERS = torch.Generator().manual_seed(3)
TARGETS = torch.randint(0, 3, (10, 8, 9), generator=NUMBERS)
TARGETS[4, :2], TARGETS[7:, 0, 0] = 3, 255       # only one image shows a rider
PREDICTIONS = torch.where(torch.rand(TARGETS.shape, generator=NUMBERS) < 0.6, TARGETS % 4,
                          torch.randint(0, 4, TARGETS.shape, generator=NUMBERS))


def scored(numbers, masks=False, classes=None, loss=0.0):
    """The scores of these images of TARGETS."""
    dataset = DatasetMetrics(4, classes_of_interest=classes)
    image = ImageMetrics(4, classes_of_interest=classes)
    for number in numbers:
        found = PREDICTIONS[number][None]
        if masks:
            found = torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).bool()
            found[:, 1] |= found[:, 2]          # masks may overlap
        counts = count_pixels(found, TARGETS[number][None], 4)
        dataset.add(counts)
        image.add(counts)
    return Scores(dataset.compute(), image.compute(), None, loss, len(numbers))


def fold_run(cell, fold, numbers, seed=0, **settings):
    scores = scored(numbers, **settings)
    table = image_scores(scores.image, [f"image {number}" for number in numbers], NAMES,
                         settings.get("classes"))
    return RunResult(cell, f"run {fold}", Path(f"{fold}.json"), scores.numbers(),
                     dict(zip(NAMES, scores.dataset["Class_IoU"], strict=True)), seed,
                     entry=entry_of(scores, {"procedure": "max"}, NAMES), images=table,
                     seconds=10.0, fold=fold)


@pytest.mark.parametrize("settings", [{}, {"classes": [0, 2, 3]}, {"masks": True}])
def test_the_scores_over_all_folds_are_those_of_one_evaluation_of_all_images(settings):
    cell = Cell("row", folds=FOLDS)
    parts = [range(4), range(4, 5), range(5, 10)]
    runs = [fold_run(cell, fold, part, loss=0.1 * len(part), **settings)
            for fold, part in zip(FOLDS, parts, strict=True)]
    pooled, = pooled_runs(cell, runs[::-1])         # in any order
    whole = scored(range(10), loss=0.42, **settings)    # (4 * 0.4 + 1 * 0.1 + 5 * 0.5) / 10
    assert pooled.scores == pytest.approx(whole.numbers(), rel=1e-12, nan_ok=True)
    assert list(pooled.classes.values()) == whole.dataset["Class_IoU"]
    assert pooled.images.ids == [f"image {number}" for number in range(10)]
    assert pooled.seconds == 30 and pooled.seed == 0
    # It is not the mean of the folds, which differ in what they show.
    of_folds = np.mean([run.scores["Mean_IoU"] for run in runs])
    assert abs(of_folds - pooled.scores["Mean_IoU"]) > 1e-4


def test_an_image_in_two_folds_is_refused():
    cell = Cell("row", folds=FOLDS)
    runs = [fold_run(cell, fold, [0, number]) for fold, number in zip(FOLDS, (1, 2, 3),
                                                                      strict=True)]
    with pytest.raises(DataError, match="1 images are held out by the folds 1 and 2: image 0"):
        pooled_runs(cell, runs)
    runs[1].images.pixels = None
    with pytest.raises(DataError, match="fold 2 has no counts of pixels"):
        pooled_runs(cell, runs)


def study_of(*runs, cells, **settings):
    return summarize(Study("cv", cells, **settings), runs)


def test_the_table_has_each_fold_and_compares_over_all_images():
    cells = tuple(Cell(label, config=Path("c"), seeds=(0, 1), folds=FOLDS) for label in "AB")
    parts = [range(4), range(4, 7), range(7, 10)]
    runs = [fold_run(cell, fold, part, seed) for cell in cells for seed in (0, 1)
            for fold, part in zip(FOLDS, parts, strict=True)]
    summary = study_of(*runs, cells=cells, baseline="A")
    text = tables.markdown(summary)
    row = summary["rows"][0]["scores"]["Mean_IoU"]
    assert row["mean"] == pytest.approx(scored(range(10)).dataset["Mean_IoU"])
    assert row["folds"] == pytest.approx([scored(part).dataset["Mean_IoU"] for part in parts])
    assert "| each fold |" in text and "held-out images of all folds together (10)" in text
    assert summary["comparisons"][0]["images"]["images"] == 10
    assert summary["comparisons"][0]["images"]["runs"] == 2
    lines = list(csv.reader(tables.csv_text(summary).splitlines()))
    assert lines[0][-3:] == ["fold 1", "fold 2", "fold 3"]
    assert float(lines[1][-1]) == pytest.approx(row["folds"][2])
    page = html_report(summary, b"", {})
    assert "each fold" in page and "0, fold 2" in page
    assert "Cross-validation in 3 folds" in tables.latex(summary)
    assert json.dumps(summary, allow_nan=False)


def test_a_seed_without_all_of_its_folds_has_no_score_and_is_named():
    cells = (Cell("A", config=Path("c"), seeds=(0, 1), folds=FOLDS),)
    runs = [fold_run(cells[0], "1", range(4)), fold_run(cells[0], "3", range(4, 8))]
    summary = study_of(*runs, cells=cells)
    text = tables.markdown(summary)
    assert "| A | - | - |" in text and "Without a result: A (seed 0, fold 2; 1)." in text
    assert html_report(summary, b"", {})


def test_a_study_without_folds_looks_as_before():
    cell = Cell("A", config=Path("c"))
    summary = study_of(fold_run(cell, "", range(10)), cells=(cell,))
    assert "fold" not in tables.markdown(summary) + tables.csv_text(summary)


def test_the_file_names_folds_with_their_overrides(tmp_path):
    study = read_study(written(tmp_path, folds={"1": "a=1", "2": ["a=2", "b=3"]},
                               axes={"net": {"A": "x=1", "B": "x=2"}}))
    assert [cell.folds for cell in study.cells] == [{"1": ("a=1",), "2": ("a=2", "b=3")}] * 2
    for folds in ([], {"1": "a=1"}, 5):
        assert "of two folds or more" in mistakes(tmp_path, folds=folds)
    assert "'a' is not an override" in mistakes(tmp_path, folds={"1": "a", "2": "b=1"})
    assert "Boundary_F cannot be computed over the images of all folds" in mistakes(
        tmp_path, folds={"1": "a=1", "2": "a=2"}, scores=["Mean_IoU", "Boundary_F"])


def test_lists_of_a_fold_are_those_beside_the_study(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path, tmp_path / "elsewhere"):       # one of the same name lies there too
        (folder / "one.txt").touch()
    key = "val_loader.args.list_file"
    study = read_study(written(tmp_path, folds={"1": f"{key}=one.txt", "2": f"{key}=two.txt"}))
    assert study.cells[0].folds == {"1": (f"{key}={tmp_path / 'one.txt'}",),
                                    "2": (f"{key}=two.txt",)}


def plan(folder, **content):
    path = folder / "cv.json"
    path.write_text(json.dumps({
        "config": str(ROOT / "config.json"), "seeds": 2, "overrides": [
            f"trainer.save_dir={folder / 'runs'}", "val_loader.args.length=3"], **content}))
    return make_plan(read_study(path), _test_arguments)


def test_each_seed_is_trained_on_each_fold_under_a_name_of_its_own(tmp_path):
    made = plan(tmp_path, folds={"a b": "train_loader.args.length=4",
                                 "2": "train_loader.args.length=5"})
    assert [(run.seed, run.config["train_loader"]["args"]["length"]) for run in made.runs] == [
        (0, 4), (0, 5), (1, 4), (1, 5)]
    assert [test.fold for test in made.tests] == ["a b", "2"] * 2
    assert len({run.key for run in made.runs}) == 4
    assert "_folda_b_s0-" in made.runs[0].name and "_fold2_s1-" in made.runs[3].name
    assert "train_loader.args.length=5" in made.runs[1].train_arguments()


def test_folds_of_the_same_lists_are_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="the folds 1 and 2 train the same"):
        plan(tmp_path, folds={"1": "train_loader.args.length=4",
                              "2": "train_loader.args.length=4"})


@pytest.mark.slow       # three trainings and tests
@pytest.mark.timeout(900)
def test_init_with_folds_and_its_study_score_every_image_once(tmp_path):
    from tests.config.test_first_config import data, indices
    data(tmp_path / "data", indices)
    config = tmp_path / "configs" / "my.json"
    done = program("train.py", "--init", config, "--images", tmp_path / "data/im", "--labels",
                   tmp_path / "data/lab", "--folds", 3)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "configs" / "my.folds.json"
    text = study.read_text().replace('"trainer.monitor=off"', ", ".join(f'"{one}"' for one in (
        "trainer.monitor=off", "trainer.iterations=2", "trainer.tensorboard=false",
        "train_loader.args.num_workers=0", "val_loader.args.num_workers=0",
        f"trainer.save_dir={tmp_path / 'saved'}")))
    study.write_text(text)
    done = program("-m", "tools.study", study, "--devices", "cpu", "--no-pictures", "-o",
                   tmp_path / "out", timeout=800)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "study.json").read_text())
    run, = summary["rows"][0]["runs"]
    assert run["images"] == 12 and [part["images"] for part in run["parts"]] == [4, 4, 4]
    entries = [json.loads(Path(part["place"]).read_text()) for part in run["parts"]]
    matrix = np.sum([entry["confusion"] for entry in entries], 0)
    union = matrix.sum(1) + matrix.sum(0)[:-1] - np.diag(matrix)
    expected = (np.diag(matrix)[union > 0] / union[union > 0]).mean()
    assert run["scores"]["Mean_IoU"] == pytest.approx(expected, rel=1e-12)
