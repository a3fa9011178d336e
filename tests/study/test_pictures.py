"""utils/study/pictures.py: what the pictures show is what the result has scored."""
import base64
import io
import json
import os
import shutil

import pytest
import torch
from PIL import Image

import test as test_py
from dataloader.loader import make_loader, split_loader
from dataloader.shapes import Shapes
from tests.support.places import ROOT
from tools import study
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import DataError
from utils.evaluation.arguments import parse
from utils.files.json_values import plain_json
from utils.images.normalize import Normalize
from utils.metrics.image_scores import read_image_scores
from utils.study import pictures
from utils.study.pictures import picture_process, picture_results
from utils.study.results import COSTS, RunResult, read_result
from utils.study.study_file import Cell

# The settings of the config are others than those of any test below.
SETTINGS = ['train_loader.args={"split":"train","length":2,"size":[32,48],"num_workers":0}',
            'val_loader.args={"split":"val","length":3,"size":[32,48],"num_workers":0,'
            '"base_size":40}', "predict.flip=true", 'predict.mode="multiscale"',
            "predict.scales=[1,2]", "arch.type=ENet"]

PLAIN = ["--no-flip", "--scales", "1"]
MASKS = ["--predict", "rankdice", *PLAIN, "predict.pruning=0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = resolve_config(load_config(ROOT / "config.json", SETTINGS))
    dataset = make_loader(config["val_loader"], ignore_index=255).dataset
    model = build("models", config["arch"], num_classes=dataset.num_classes)
    path = tmp_path_factory.mktemp("run") / "model_best.pth"
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 3, "config": config,
        "class_names": dataset.class_names, "palette": dataset.palette, "activation": "softmax",
        "normalization": Normalize(dataset.mean, dataset.std).state(), "versions": {}})
    return path


@pytest.fixture(scope="module")
def result_of(checkpoint):
    """A function: (options, folder) puts the result of test.py with these options there."""
    made = {}

    def copy(options, folder):
        place = made.get(tuple(options))
        if place is None:
            place = made[tuple(options)] = checkpoint.parent / f"result{len(made)}"
            test_py.main(["-r", str(checkpoint), "-d", "cpu", "-o", str(place), *options])
        shutil.copytree(place, folder, dirs_exist_ok=True)
    return copy


def job_of(checkpoint, folder, options, from_entry, change=0.0):
    """The job that draws two images of the result of test.py with these options in `folder`."""
    entry = json.loads((folder / "results.json").read_text())
    scores = read_image_scores(folder / entry["image_scores"])
    return {"checkpoint": str(checkpoint), "folder": str(folder), "device": "cpu",
            "test": [] if from_entry else list(options), "entry": entry if from_entry else None,
            "ids": {name: score + change for name, score in
                    zip(scores.ids[:2], scores.image[:2, 0], strict=True)}}


def arguments(options):
    return parse(["-r", "model_best.pth", *options])


@pytest.mark.parametrize("from_entry", [True, False])
@pytest.mark.parametrize("options", [
    [], [*PLAIN, "--base-size", "none"], ["--as-validation"],
    ["--mode", "sliding", "--crop-size", "40", "--base-size", "48", "--split", "train"],
    MASKS, ["predict.input_size=24", *PLAIN, "val_loader.args.base_size=null",
            "predict.score_at=input", "predict.published=true"]])
def test_pictures_are_predicted_as_the_result_was(checkpoint, result_of, tmp_path, options,
                                                  from_entry, monkeypatch):
    result_of(options, tmp_path)
    job = job_of(checkpoint, tmp_path, options, from_entry)
    entry = json.loads((tmp_path / "results.json").read_text())
    used, decided = [], pictures._decided

    def noted(predictor, *arguments):
        used.append(plain_json(predictor.describe()))
        return decided(predictor, *arguments)
    monkeypatch.setattr(pictures, "_decided", noted)
    picture_process(job, split_loader, arguments)
    assert used == [{key: entry.get(key, "missing") for key in used[0]}] * 2
    assert ("base_size" in used[0]) == ("base_size" in entry)
    assert len(list((tmp_path / "pictures").iterdir())) == 6
    costs = json.loads((tmp_path / COSTS).read_text())
    assert costs["flops"] > 0 and costs["classes"][0] == ["road", Shapes.palette[0]]


@pytest.mark.parametrize("options", [[], MASKS])
def test_a_prediction_with_another_score_than_the_result_is_not_shown(checkpoint, result_of,
                                                                      tmp_path, options):
    result_of(options, tmp_path)
    job = job_of(checkpoint, tmp_path, options, True, change=0.1)
    with pytest.raises(DataError, match="and the result says"):
        picture_process(job, split_loader, arguments)
    assert not list((tmp_path / "pictures").iterdir())


@pytest.fixture
def results(checkpoint, result_of, tmp_path, monkeypatch):
    """Two results of one checkpoint; the process that draws is this one. With what it was given."""
    started = []

    def run_program(command, log, devices):
        started.append(json.loads(command[-1]))
        log.write_text("error: no memory\n")
        return console.run(study.main, command[3:]), 0
    monkeypatch.setattr(pictures, "run_program", run_program)
    for name, options in (("a", PLAIN), ("b", [*PLAIN, "--base-size", "none"])):
        result_of(options, tmp_path / name)
    return started, [read_result(tmp_path / name / "results.json", Cell(name), 0, name,
                                 checkpoint.parent) for name in "ab"]


def test_images_that_differ_and_the_worst_ones_are_shown_and_made_once(results, tmp_path, capsys):
    started, (one, two) = results
    shown = picture_results([one, two, RunResult(Cell("c"), "c", tmp_path, {}, {})], "cpu",
                            tmp_path)
    assert "the report shows no pictures of c: no checkpoint" in capsys.readouterr().err
    assert [len(job["ids"]) for job in started] == [3, 3] and len(shown["differing"]) == 3
    first = shown["differing"][0]
    assert [run["name"] for run in first["runs"]] == ["a, seed 0", "b, seed 0"]
    spread = [abs(image["runs"][0]["score"] - image["runs"][1]["score"])
              for image in shown["differing"]]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0
    for picture in (first["image"], first["label"], first["runs"][0]["picture"]):
        data = base64.b64decode(picture.partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (48, 32)
    assert first["runs"][0]["picture"] != first["runs"][1]["picture"]
    worst = shown["worst"][1]["images"]
    assert [image["score"] for image in worst] == sorted(two.images.image[:, 0])[:2]
    assert shown["classes"][""][0][0] == "road" and one.costs["parameters"] > 1e5
    assert two.costs["size"] == [32, 48]
    assert picture_results([one, two], "cpu", tmp_path) == shown and len(started) == 2


def test_damaged_costs_are_counted_again(results, tmp_path):
    started, (one, _) = results
    picture_results([one], "cpu", tmp_path)
    costs = dict(one.costs)
    (one.place.parent / COSTS).write_text('{"parameters": 1')
    assert read_result(one.place, one.cell).costs == {}
    picture_results([one], "cpu", tmp_path)
    assert one.costs == costs and costs["flops"] > 0 and len(started) == 2


def test_pictures_that_cannot_be_made_leave_none_and_a_warning(results, tmp_path, capsys):
    _, (one, _) = results
    picture_results([one], "cpu", tmp_path)
    assert one.images is not None
    one.images.image[:, 0] = 0.9        # another result than the network gives
    os.utime(one.place, (2e9, 2e9))
    shown = picture_results([one], "cpu", tmp_path)
    assert "no pictures of a, seed 0: no memory; all of it: " in capsys.readouterr().err
    assert [image["picture"] for image in shown["worst"][0]["images"]] == [None, None]
    assert shown["worst"][0]["images"][0]["image"] is None and shown["differing"] == []
