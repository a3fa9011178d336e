"""tools.check_dataset: one report on every file of a split."""
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.test_datasets import (BROKEN, DAMAGED, EMPTIED, FIXTURES, READINGS, make_fixtures,
                                 manifest, needs_fixtures)
from tools.check_dataset import check, main
from utils.console import run
from utils.errors import ConfigError
from utils.image_io import write_image, write_label

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


def checked(args, *argv, name="ADE20K"):
    return run(main, ["--type", name, "--args", json.dumps(args), *argv])


def test_a_whole_dataset_passes_and_its_samples_are_listed(tmp_path, capsys):
    args = make(tmp_path / "ade")
    assert checked(args, "--json", str(tmp_path / "out.json")) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["problems"] == [] and len(document["samples"]) == 3
    place = tmp_path / "ade"
    assert document["samples"][1] == {
        "id": "b", "split": "training", "image": str(place / "images" / "training" / "b.png"),
        "label": str(place / "annotations" / "training" / "b.png"), "size": [6, 4],
        "hist": {"150": {"0": 24}}}
    assert document["samples"][0]["hist"] == {"150": {"ignore": 24}}


def test_every_problem_is_reported_at_once(tmp_path, capsys):
    args = make(tmp_path, "abcdefg")
    images, labels = tmp_path / "images" / "training", tmp_path / "annotations" / "training"
    (labels / "a.png").unlink()
    (images / "b.png").unlink()
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:60])
    write_label(labels / "c.png", np.full((4, 6), 201, np.uint8), [])
    write_label(labels / "d.png", np.full((4, 5), 1, np.uint8), [])
    write_label(labels / "e.png", np.full((4, 6), 200, np.uint8), [])
    (labels / "f.png").write_bytes(b"")
    assert checked(args, "--json", str(tmp_path / "out.json")) == 3
    out = capsys.readouterr().out
    for text in ("a.png: no label", "b.png: a label without an image", "c.png: truncated PNG",
                 "its label is 5x4", "value 200 (24 pixels)", "f.png: the file is empty",
                 "6 problems"):
        assert text in out
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["problems"]) == 6
    assert [sample["id"] for sample in document["samples"]] == ["g"]


def test_a_label_is_looked_at_even_if_its_image_is_damaged(tmp_path):
    args = make(tmp_path)
    for folder in ("images", "annotations"):
        (tmp_path / folder / "training" / "b.png").write_bytes(b"x")
    assert len(check("ADE20K", args).problems) == 2


def test_notes_name_equal_files_turned_images_and_void_labels(tmp_path, capsys):
    args = make(tmp_path)
    images = tmp_path / "images" / "training"
    (images / "b.png").write_bytes((images / "a.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(images / "c.png").save(images / "c.png", exif=exif)
    (images / "list.txt").write_text("")
    assert checked(args) == 0
    out = capsys.readouterr().out
    for text in ("2 image files have the same content", "1 images are turned",
                 "1 labels hold ignored pixels only", "148 classes do not occur",
                 "1 other files are in the image folders", "20210 in the published split"):
        assert text in out


def test_a_name_that_occurs_twice_is_a_problem(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "cls").mkdir()
    (tmp_path / "train.txt").write_text("x\nx\n")
    write_image(tmp_path / "img" / "x.png", np.zeros((2, 2, 3), np.uint8))
    write_label(tmp_path / "cls" / "x.png", np.zeros((2, 2), np.uint8), [])
    report = check("SBD", {"data_dir": str(tmp_path), "split": "train"})
    assert report.problems == ["x: sample occurs 2 times"]


def test_a_missing_list_is_a_problem_and_no_crash(tmp_path, capsys):
    (tmp_path / "img").mkdir()
    assert checked({"data_dir": str(tmp_path), "split": "train"}, name="SBD") == 3
    assert "train.txt: split file cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("name", [b"odd \xff.png", "ü ä.b.png".encode(), b"line\nbreak.png"])
def test_odd_names_are_printed_and_written(name, tmp_path, capsys):
    args = make(tmp_path / "ade")
    for folder in ("images", "annotations"):
        place = os.fsencode(tmp_path / "ade" / folder / "training")
        try:
            os.rename(place + b"/a.png", place + b"/" + name)
        except OSError:
            pytest.skip("this file system refuses the name")
    os.unlink(place + b"/" + name)
    assert checked(args, "--json", str(tmp_path / "out.json")) == 3
    assert "no label" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert [sample["id"] for sample in document["samples"]] == ["b", "c"]


def test_arguments_are_checked(tmp_path, capsys):
    for args in ({"data_dir": "x"}, {"data_dir": 5, "split": "training"}, [],
                 {"data_dir": "x", "split": "training", "splitt": 1},
                 {"data_dir": "x", "split": "trainig"}):
        with pytest.raises(ConfigError):
            check("ADE20K", args)
    with pytest.raises(ConfigError, match="ADE20K"):
        check("ADE20k", {})
    assert run(main, ["--type", "ADE20K", "--args", "{"]) == 2


def test_arguments_of_augmentation_and_loader_may_stay(tmp_path):
    args = {**make(tmp_path), "crop_size": 4, "batch_size": 2, "flip": True}
    assert not check("ADE20K", args).problems


def test_a_made_up_dataset_without_files_can_be_checked():
    report = check("Shapes", {"length": 2})
    assert not report.problems and len(report.samples) == 2


@needs_fixtures
def test_the_samples_are_those_of_the_fixtures(tmp_path):
    out = make_fixtures(tmp_path, FIXTURES, "--seed", "5")
    for fixture, split, name, args, below in READINGS:
        known = manifest(out, fixture)
        given = {"data_dir": str(out / known["root"] / below), **args}
        found = json.loads(json.dumps(check(name, given).as_json()))
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
        assert len(check(name, given).problems) == 1
