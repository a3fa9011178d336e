"""The report on every file of a split."""
import json

import cv2
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


def folder_of(root, labels):
    """A Folder dataset of these labels; returns its arguments."""
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number, label in enumerate(labels):
        write_image(root / "images" / f"{number}.jpg",
                    RNG.integers(0, 255, (*label.shape, 3), dtype=np.uint8))
        write_image(root / "labels" / f"{number}.png", label)
    return {"data_dir": str(root), "split": "all"}


def test_binary_masks_whose_foreground_is_ignored_are_a_problem(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:25] = 255
    args = folder_of(tmp_path, [mask, mask[::-1]])
    report = check_dataset("Folder", {**args, "num_classes": 2})
    assert len(report.problems) == 1 and "would learn class 0 only" in report.problems[0]
    for label_map in ({"255": 1}, {"255": "ignore"}):
        report = check_dataset("Folder", {**args, "num_classes": 2, "label_map": label_map})
        assert report.problems == []


def test_smoothed_labels_are_a_note_with_their_number(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 250
    soft = cv2.GaussianBlur(mask, (0, 0), 1.5)
    args = folder_of(tmp_path, [mask, soft, soft.T])
    report = check_dataset("Folder", {**args, "num_classes": 251})
    note = next(note for note in report.notes if "smoothed" in note)
    assert note.startswith("2 labels look smoothed") and "1.png" in note and "0.png" not in note


def test_the_labels_beside_the_images_are_no_other_files(tmp_path):
    args = folder_of(tmp_path, [np.zeros((4, 6), np.uint8)] * 2)
    for number in range(2):
        (tmp_path / f"labels/{number}.png").rename(tmp_path / f"images/{number}_m.png")
    report = check_dataset("Folder", {**args, "num_classes": 2, "label_dir": "images",
                                      "label_ending": "_m"})
    assert not report.problems and not [n for n in report.notes if "other files" in n]
