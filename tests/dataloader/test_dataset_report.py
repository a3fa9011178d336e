"""The report on every file of a split."""
import json

import numpy as np
import pytest

from dataloader.dataset_report import check_dataset
from tests.dataloader.test_datasets import (
    BROKEN,
    DAMAGED,
    EMPTIED,
    FIXTURES,
    READINGS,
    make_fixtures,
    manifest,
    needs_fixtures,
)
from utils.errors import ConfigError
from utils.images.image_io import write_image, write_label

RNG = np.random.default_rng(0)


def make(root, names=("a", "b", "c"), size=(4, 6)):
    """ADE20K training with one stored value per label: 0 for a, 1 for b, ..."""
    for folder in ("images", "annotations"):
        (root / folder / "training").mkdir(parents=True)
    for value, name in enumerate(names):
        write_image(root / "images" / "training" / f"{name}.png",
                    RNG.integers(0, 255, (*size, 3), dtype=np.uint8))
        write_label(root / "annotations" / "training" / f"{name}.png",
                    np.full(size, value, np.uint8), [])
    return {"data_dir": str(root), "split": "training"}


def test_a_label_is_checked_even_if_its_image_is_damaged(tmp_path):
    args = make(tmp_path)
    for folder in ("images", "annotations"):
        (tmp_path / folder / "training" / "b.png").write_bytes(b"x")
    assert len(check_dataset("ADE20K", args).problems) == 2


def test_a_name_that_occurs_twice_is_a_problem(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "cls").mkdir()
    (tmp_path / "train.txt").write_text("x\nx\n")
    write_image(tmp_path / "img" / "x.png", np.zeros((2, 2, 3), np.uint8))
    write_label(tmp_path / "cls" / "x.png", np.zeros((2, 2), np.uint8), [])
    report = check_dataset("SBD", {"data_dir": str(tmp_path), "split": "train"})
    assert report.problems == ["x: sample occurs 2 times"]


def test_arguments_are_checked():
    for args in ({"data_dir": "x"}, {"data_dir": 5, "split": "training"}, [],
                 {"data_dir": "x", "split": "training", "splitt": 1},
                 {"data_dir": "x", "split": "trainig"}):
        with pytest.raises(ConfigError):
            check_dataset("ADE20K", args)
    with pytest.raises(ConfigError, match="ADE20K"):
        check_dataset("ADE20k", {})


def test_arguments_of_augmentation_and_loader_may_stay(tmp_path):
    args = {**make(tmp_path), "crop_size": 4, "batch_size": 2, "flip": True}
    assert not check_dataset("ADE20K", args).problems


def test_a_generated_dataset_without_files_can_be_checked():
    report = check_dataset("Shapes", {"length": 2})
    assert not report.problems and len(report.samples) == 2


@needs_fixtures
def test_the_samples_are_those_of_the_fixtures(tmp_path):
    out = make_fixtures(tmp_path, FIXTURES, "--seed", "5")
    for fixture, split, name, args, below in READINGS:
        known = manifest(out, fixture)
        given = {"data_dir": str(out / known["root"] / below), **args}
        found = json.loads(json.dumps(check_dataset(name, given).as_json()))
        assert not found["problems"]
        expected = {str(out / s["image"]): s for s in known["samples"] if s["split"] == split}
        assert {s["image"] for s in found["samples"]} == expected.keys()
        for sample in found["samples"]:
            wanted = expected[sample["image"]]
            assert sample["label"] == (wanted["label"] and str(out / wanted["label"]))
            assert sample["size"] == wanted["size"]
            assert sample["hist"].items() <= wanted["hist"].items()


@needs_fixtures
@pytest.mark.parametrize("kind", BROKEN)
def test_each_damage_of_a_fixture_is_one_problem(kind, tmp_path):
    fixtures = ["ade20k", "voc2012", "coco_stuff_10k", "cityscapes_coarse"]
    out = make_fixtures(tmp_path, fixtures, "--train", "2", "--broken", kind)
    for fixture in fixtures:
        _, _, name, args, below = (EMPTIED if kind == "empty-split" else DAMAGED)[fixture]
        given = {"data_dir": str(out / manifest(out, fixture)["root"] / below), **args}
        assert len(check_dataset(name, given).problems) == 1
