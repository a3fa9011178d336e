"""tools.check_dataset: what is printed and written."""
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.dataloader.test_dataset_report import make
from tests.support.places import ROOT
from tools.check_dataset import main
from utils.cli.console import run
from utils.images.image_io import write_image, write_label


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
                 "its label is", "value 200 (24 pixels)", "f.png: the file is empty",
                 "6 problems"):
        assert text in out
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["problems"]) == 6
    assert [sample["id"] for sample in document["samples"]] == ["g"]


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
    for text in ("2 image files have the same content", "1 image is turned",
                 "1 label has ignored pixels only", "148 classes do not occur",
                 "1 other file is in the image folders", "20210 in the published split"):
        assert text in out


def test_a_missing_list_is_a_problem_and_not_a_crash(tmp_path, capsys):
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


def test_the_loaders_of_a_config_are_checked(tmp_path, capsys):
    make(tmp_path / "ade", "ab")
    part = '{"type": "ADE20K", "args": {"data_dir": "ade", "split": "%s"}}'
    (tmp_path / "c.json").write_text(
        f'{{"extends": "{ROOT}/config.json", "train_loader": '
        f'{part % "training"}, "val_loader": {part % "validation"}, "loss": "CE"}}')
    assert run(main, ["-c", str(tmp_path / "c.json")]) == 3
    out = capsys.readouterr().out
    assert f"ADE20K training in {tmp_path / 'ade'}" in out and "ADE20K validation in" in out
    assert "1 problem" in out
    assert run(main, ["-c", str(tmp_path / "c.json"), "--loader", "train"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(main, ["-c", str(tmp_path / "c.json"), "--json", str(tmp_path / "o.json")])


def test_a_problem_of_many_files_is_printed_for_three_with_its_fix(tmp_path, capsys):
    args = make(tmp_path, "abcdefgh")
    for name in "abcdef":
        (tmp_path / "annotations" / "training" / f"{name}.png").write_bytes(b"")
    assert checked(args) == 3
    out = capsys.readouterr().out
    assert out.count("the file is empty") == 3 and "and 3 more files with the same problem" in out
    assert out.count("  fix: ") == 1 and "6 problems" in out


def test_problems_of_one_kind_are_one_list_also_if_each_names_a_file(tmp_path, capsys):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in "abcdef":
        write_image(images / f"{name}.png", np.zeros((6, 8, 3), np.uint8))
        write_label(labels / f"{name}_mask.png", np.zeros((6, 8), np.uint8), [])
    args = ["--type", "Folder", "--args", json.dumps({"data_dir": str(tmp_path), "num_classes": 2})]
    assert run(main, args) == 3
    out = capsys.readouterr().out
    assert out.count(": no label ") == 3 and out.count(": a label without an image") == 3
    assert out.count("and 3 more files with the same problem") == 2 and out.count("  fix: ") == 2

    (tmp_path / "all.txt").write_text("x\ny\nz\nu\nv\n")
    assert run(main, args) == 3
    out = capsys.readouterr().out
    assert out.count(": no image ") == 3 and "and 2 more files" in out and out.count("fix: ") == 1

    (tmp_path / "all.txt").unlink()
    for name in "abcdef":
        (labels / f"{name}_mask.png").unlink()
        write_label(labels / f"{name}.png", np.zeros((6, 9), np.uint8), [])
    assert run(main, args) == 3
    out = capsys.readouterr().out
    assert out.count("but its label") == 3 and "and 3 more files with the same problem" in out

    for number, name in enumerate("abcdef"):
        label = np.zeros((6, 8), np.uint8)
        label[:number + 1, 0] = 7
        write_label(labels / f"{name}.png", label, [])
    assert run(main, args) == 3
    out = capsys.readouterr().out
    assert out.count("7 (") == 3 and "and 3 more files with the same problem" in out


def test_arguments_that_are_not_json_have_status_2():
    assert run(main, ["--type", "ADE20K", "--args", "{"]) == 2
