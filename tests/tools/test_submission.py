"""Submissions: names, values, sizes and counts as the servers want them, checked before packing."""
import fnmatch
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader.label_files import stored_ids
from tests.images.test_run_lengths import decoded
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


def test_the_packed_files_pass_the_rules_by_which_the_official_script_reads(city, capsys):
    """One file CITY_SEQUENCE_FRAME*.png of each image, of its size, flat, with known ids."""
    run(city, capsys)
    files = packed(city)
    for name in NAMES:
        town, sequence, frame = name.split("_")
        [found] = [one for one in files if fnmatch.fnmatch(Path(one).name,
                                                           f"{town}_{sequence}_{frame}*.png")]
        values = np.array(files[found])
        assert values.ndim == 2 and files[found].size == (16, 8)
        assert set(np.unique(values).tolist()) <= set(range(34))


HOSTILE = {"cityscapes": "ulm_000000_00000{}_leftImg8bit",
           "acdc": "GOPR0475_frame_00024{}_rgb_anon", "ade20k": "ADE_test_0000000{}",
           "coco_stuff": "00000000000{}", "lip": "100034_48368{}",
           "pascal_context": "2008_00000{}"}


@pytest.mark.parametrize("server", submission.SERVERS)
def test_every_mistake_in_a_hostile_folder_is_named_and_nothing_is_written(server, tmp_path,
                                                                          monkeypatch, capsys):
    size = (8, 16) if submission.SERVERS[server].size else None
    monkeypatch.setitem(submission.SERVERS, server,
                        submission.SERVERS[server]._replace(count=6, size=size))
    names = [HOSTILE[server].format(number) for number in range(8)]
    results, images = tmp_path / "results", tmp_path / "images"
    images.mkdir()
    for name in names[:6]:
        Image.new("RGB", (16, 8)).save(images / f"{name}.png")
    (images / f"{names[5]}.png").write_bytes(b"no image")
    write(results / f"{names[1]}.png", np.zeros((8, 15)))
    write(results / f"{names[2]}.png", np.full((8, 16), 230))
    write(results / f"{names[3]}.png", np.zeros((8, 16)))
    write(results / "more" / f"{names[3]}.png", np.zeros((8, 16)))
    Image.new("RGB", (16, 8), (1, 2, 3)).save(results / f"{names[4]}.png")
    write(results / f"{names[5]}.png", np.zeros((8, 16)))
    write(results / f"{names[7]}.png", np.zeros((8, 16)))
    write(results / "strange.png", np.zeros((8, 16)))
    out = tmp_path / "stuff_val2017_x_results.zip"
    assert console.run(submission.main, [server, str(results), "--images", str(images), "-o",
                                         str(out)]) == 3
    err = " ".join(capsys.readouterr().err.split())
    for text in (f"{names[0]}: no prediction", f"{names[1]}.png: is 8x15, the image 8x16",
                 "holds 230, which is not a class", f"a second prediction for {names[3]}",
                 f"{names[4]}.png: ", f"{names[7]}.png: no such image in", "strange.png: not named",
                 *([f"{names[5]}.png: "] if size is None else [])):
        assert text in err, (text, err)
    assert not out.exists()


def test_coco_stuff_gets_one_mask_for_each_category_and_other_for_things(tmp_path, monkeypatch,
                                                                        capsys):
    monkeypatch.setitem(submission.SERVERS, "coco_stuff",
                        submission.SERVERS["coco_stuff"]._replace(count=2))
    ids = submission.SERVERS["coco_stuff"].ids
    rng, truth = np.random.default_rng(0), {}
    (tmp_path / "images").mkdir()
    for number in (7, 25):
        name, values = f"{number:012}", rng.choice([0, 79, 80, 170], (6, 9))
        Image.new("RGB", (9, 6)).save(tmp_path / "images" / f"{name}.jpg")
        write(tmp_path / "results" / f"{name}.png", values)
        truth[number] = np.array([183, 183, 92, 182])[np.searchsorted([0, 79, 80, 170], values)]
    assert [ids[0], ids[79], ids[80], ids[170]] == [0, 89, 91, 181]       # of the label files
    arguments = ["coco_stuff", str(tmp_path / "results"), "--images", str(tmp_path / "images"),
                 "-o"]
    out = tmp_path / "stuff_test-dev2017_mine_results.zip"
    assert console.run(submission.main, [*arguments, str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["stuff_test-dev2017_mine_results.json"]
        entries = json.loads(archive.read(archive.namelist()[0]))
    assert len(entries) == sum(len(np.unique(one)) for one in truth.values())
    for number, values in truth.items():
        found = np.zeros((6, 9), int)
        for one in entries:
            if one["image_id"] == number:
                assert one["segmentation"]["size"] == [6, 9]
                found += one["category_id"] * decoded(one["segmentation"]["counts"], (6, 9))
        assert np.array_equal(found, values)
    with pytest.raises(SystemExit):
        console.run(submission.main, [*arguments, str(tmp_path / "mine.zip")])
    assert "stuff_TESTSET_NAME_results.zip" in capsys.readouterr().err


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
