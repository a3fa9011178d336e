"""300 classes through every program: training, test.py, inference.py, evaluate_labels."""
import json

import numpy as np
import pytest
from PIL import Image

import inference
import test as test_program
import train
from tools import evaluate_labels
from utils.cli import console
from utils.images.image_io import write_image

RNG = np.random.default_rng(0)
PADDING = 65535


def run(program, *arguments):
    return console.run(program.main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_300_classes_in_files_of_8_and_16_bits_have_the_same_scores_in_every_program(tmp_path):
    """Twenty seconds: a training and three evaluations."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for k in range(4):
        ids = np.kron(RNG.integers(200, 256 if k == 0 else 300, (8, 8)), np.ones((8, 8), int))
        ids[:4] = ids[0, 0] if k == 0 else PADDING
        write_image(tmp_path / "labels" / f"{k}.png",
                    ids.astype(np.uint8 if k == 0 else np.uint16))
        write_image(tmp_path / "images" / f"{k}.png",
                    RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    args = {"data_dir": str(tmp_path), "num_classes": 300, "batch_size": 2, "num_workers": 0}
    config = {"name": "many", "arch": {"type": "ENet"}, "ignore_index": PADDING,
              "train_loader": {"type": "Folder", "args": {**args, "crop_size": 48,
                                                          "augment": True, "shuffle": True}},
              "val_loader": {"type": "Folder", "args": args}, "loss": "CE",
              "optimizer": {"type": "SGD", "args": {"lr": 0.01}},
              "trainer": {"epochs": 1, "save_dir": str(tmp_path / "saved"), "tensorboard": False}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert run(train, "-c", tmp_path / "c.json") == 0
    checkpoint = next(tmp_path.glob("saved/many/*/last.pth"))
    assert run(test_program, "-r", checkpoint, "-o", tmp_path / "t", "-p", "max") == 0
    scores = json.loads((tmp_path / "t" / "results.json").read_text())["runs"][0]
    assert run(inference, "-r", checkpoint, "-i", tmp_path / "images", "-o", tmp_path / "out",
               "--overlay") == 0
    for k in range(4):
        assert Image.open(tmp_path / "out" / f"{k}.png").mode == "I;16"
    assert run(evaluate_labels, "--dataset", "Folder", "--gt", tmp_path / "labels", "--pred",
               tmp_path / "out", "--args", '{"num_classes": 300}', "--ignore-index", PADDING,
               "--ids", "train", "--json", tmp_path / "s.json", "--results", "") == 0
    by_files = json.loads((tmp_path / "s.json").read_text())
    assert by_files["Pixel_Accuracy"] in _numbers(scores)
    assert by_files["Mean_IoU"] in _numbers(scores)


def _numbers(value):
    """All numbers of a JSON value."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in _numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in _numbers(part)]
    return [value]
