"""Submissions: names, values, sizes and counts as the servers want them, checked before packing."""
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dataloader.label_files import stored_ids
from tools import submission
from utils.cli import console
from utils.evaluation.cityscapes_files import score_cityscapes

NAMES = [f"berlin_000000_{number:06}" for number in range(3)]


@pytest.fixture
def city(tmp_path, monkeypatch):
    """A folder with predictions of three images, as inference.py writes them."""
    server = submission.SERVERS["cityscapes"]._replace(count=3, size=(8, 16))
    monkeypatch.setitem(submission.SERVERS, "cityscapes", server)
    for number, name in enumerate(NAMES):
        write(tmp_path / "results/berlin" / f"{name}_leftImg8bit.png",
              np.random.default_rng(number).integers(0, 19, (8, 16)))
    return tmp_path


def write(path, values, mode=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values).astype(mode))
    if mode == np.uint8:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def run(folder, capsys, *arguments, server="cityscapes"):
    status = console.run(submission.main, [server, str(folder / "results"), "-o",
                                           str(folder / "out.zip"), *arguments])
    return status, capsys.readouterr().err


def packed(folder):
    with zipfile.ZipFile(folder / "out.zip") as archive:
        assert archive.testzip() is None
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def test_class_ids_become_gray_label_ids_under_the_names_of_the_images(city, capsys):
    assert run(city, capsys)[0] == 0
    files = packed(city)
    assert sorted(files) == [f"{name}_leftImg8bit.png" for name in NAMES]
    for name, image in files.items():
        classes = np.array(Image.open(city / "results/berlin" / name))
        assert image.mode == "L" and image.size == (16, 8)
        assert np.array_equal(np.array(image), np.array(submission.SERVERS["cityscapes"].ids)[
            classes])


def test_the_official_scoring_reads_what_is_packed(city, capsys):
    run(city, capsys)
    for name, image in packed(city).items():
        image.save(city / name)
        stem = name.removesuffix("_leftImg8bit.png")
        write(city / "gtFine" / f"{stem}_gtFine_labelIds.png", np.array(image))
    (city / "packed").mkdir()
    for path in city.glob("*.png"):
        path.rename(city / "packed" / path.name)
    scores = score_cityscapes(city / "gtFine", city / "packed").scores
    assert scores["averageScoreClasses"] == 1


@pytest.mark.parametrize("server,section", [
    ("cityscapes", {"type": "CityScapes", "args": {}}), ("ade20k", {"type": "ADE20K", "args": {}}),
    ("lip", {"type": "LIP", "args": {}}),
    ("coco_stuff", {"type": "COCO", "args": {"num_classes": 171, "partition": "CocoStuff164k"}})])
def test_the_values_are_those_of_the_datasets_label_files(server, section):
    assert stored_ids(section) == list(submission.SERVERS[server].ids)


def test_files_with_label_ids_are_taken_as_they_are(city, capsys):
    run(city, capsys)
    first = {name: np.array(image) for name, image in packed(city).items()}
    for name, values in first.items():
        write(city / "results/berlin" / name, values)
    status, err = run(city, capsys)
    assert status == 3 and "not a class as --ids train; they fit --ids label" in err
    assert run(city, capsys, "--ids", "label")[0] == 0
    assert all(np.array_equal(first[name], np.array(image))
               for name, image in packed(city).items())


def test_all_problems_are_listed_and_nothing_is_written(city, capsys):
    berlin = city / "results/berlin"
    write(berlin / f"{NAMES[0]}_leftImg8bit.png", np.full((8, 16), 99))
    write(berlin / f"{NAMES[1]}_leftImg8bit.png", np.zeros((8, 15)))
    write(city / "results/other" / f"{NAMES[2]}_leftImg8bit.png", np.zeros((8, 16)))
    write(berlin / "frame.png", np.zeros((8, 16)))
    status, err = run(city, capsys, "--count", "4")
    assert status == 3 and not (city / "out.zip").exists()
    assert "5 problems, no file is written" in err
    for text in ("holds 99, which is not a class", "is 8x15, the image 8x16",
                 "a second prediction for berlin_000000_000002_leftImg8bit",
                 "frame.png: not named as an image of the test set",
                 "3 predictions, expected 4"):
        assert text in err


def test_predictions_are_compared_with_the_test_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(submission.SERVERS, "ade20k",
                        submission.SERVERS["ade20k"]._replace(count=2))
    for number, size in enumerate([(5, 7), (6, 4)]):
        Image.new("RGB", size[::-1]).save(_folder(tmp_path / "images") /
                                          f"ADE_test_{number:08}.jpg")
        write(tmp_path / "results" / f"ADE_test_{number:08}.png", np.full(size, 149))
    images = ("--images", str(tmp_path / "images"))
    assert run(tmp_path, capsys, *images, server="ade20k")[0] == 0
    assert [np.unique(one).tolist() for one in map(np.array, packed(tmp_path).values())] \
        == [[150], [150]]
    (tmp_path / "results/ADE_test_00000001.png").rename(
        tmp_path / "results/ADE_test_00000007.png")
    status, err = run(tmp_path, capsys, *images, server="ade20k")
    assert status == 3 and "ADE_test_00000001: no prediction" in err
    assert "no such image in" in err
    with pytest.raises(SystemExit):
        console.run(submission.main, ["ade20k", str(tmp_path / "results"), "-o", "x.zip"])
    assert "the sizes of the images differ, so --images is needed" in capsys.readouterr().err


def _folder(path):
    path.mkdir(exist_ok=True)
    return path


def test_acdc_gets_train_ids_in_its_folder_and_equal_results_give_equal_files(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(submission.SERVERS, "acdc",
                        submission.SERVERS["acdc"]._replace(count=1, size=(8, 16)))
    name = "GOPR0475_frame_000247_rgb_anon"
    values = np.random.default_rng(0).integers(0, 19, (8, 16))
    write(tmp_path / "results" / f"{name}.png", values)
    write(tmp_path / "results" / f"{name}_overlay.png", values)
    write(tmp_path / "results" / f"{name}_masks" / "00_road.png", values)
    assert run(tmp_path, capsys, server="acdc")[0] == 0
    [(path, image)] = packed(tmp_path).items()
    assert path == f"labelTrainIds/{name}.png" and np.array_equal(np.array(image), values)
    before = (tmp_path / "out.zip").read_bytes()
    assert run(tmp_path, capsys, server="acdc")[0] == 0
    assert (tmp_path / "out.zip").read_bytes() == before
