"""utils/study/pictures.py: what the pictures show is what the result has scored."""
import json

import pytest
import torch

import test as test_py
from dataloader.loader import make_loader, split_loader
from dataloader.shapes import Shapes
from tests.support.places import ROOT
from utils.checkpoint.write import write_checkpoint
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import DataError
from utils.evaluation.arguments import parse
from utils.files.json_values import plain_json
from utils.images.normalize import Normalize
from utils.metrics.image_scores import read_image_scores
from utils.predict.predictor import Predictor
from utils.study.pictures import picture_process
from utils.study.results import COSTS

# The settings of the config are others than those of any test below.
SETTINGS = ['train_loader.args={"split":"train","length":4,"size":[32,48],"num_workers":0}',
            'val_loader.args={"split":"val","length":5,"size":[32,48],"num_workers":0,'
            '"base_size":40}', "predict.flip=true", 'predict.mode="multiscale"',
            "predict.scales=[1,2]", "arch.type=LRASPP"]


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


def job_of(checkpoint, folder, options, from_entry, change=0.0):
    """The result of test.py with these options, and the job that draws two of its images."""
    test_py.main(["-r", str(checkpoint), "-d", "cpu", "-o", str(folder), *options])
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
    [], ["--no-flip", "--base-size", "none", "--scales", "1"], ["--as-validation"],
    ["--mode", "sliding", "--crop-size", "24", "--base-size", "48", "--split", "train"]])
def test_pictures_are_predicted_as_the_result_was(checkpoint, tmp_path, options, from_entry,
                                                  monkeypatch):
    job = job_of(checkpoint, tmp_path, options, from_entry)
    entry = json.loads((tmp_path / "results.json").read_text())
    used, labels = [], Predictor.labels

    def noted(predictor, *arguments):
        used.append(plain_json(predictor.describe()))
        return labels(predictor, *arguments)
    monkeypatch.setattr(Predictor, "labels", noted)
    picture_process(job, split_loader, arguments)
    assert used == [{key: entry.get(key, "missing") for key in used[0]}] * 2
    assert ("base_size" in used[0]) == ("base_size" in entry)
    assert len(list((tmp_path / "pictures").iterdir())) == 6
    costs = json.loads((tmp_path / COSTS).read_text())
    assert costs["flops"] > 0 and costs["classes"][0] == ["road", Shapes.palette[0]]


def test_a_prediction_with_another_score_than_the_result_is_not_shown(checkpoint, tmp_path):
    job = job_of(checkpoint, tmp_path, [], True, change=0.1)
    with pytest.raises(DataError, match="and the result says"):
        picture_process(job, split_loader, arguments)
    assert not list((tmp_path / "pictures").iterdir())
