"""Which files `train.py --init` takes for images and labels, and what it says about the others."""
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dataloader.loader import make_loader
from utils.config.first_config import make_config
from utils.config.load import load_config
from utils.config.pair_search import place_of
from utils.config.schema import resolve_config
from utils.errors import DataError
from utils.files.jsonc import read_jsonc

COUNT = 8
RNG = np.random.default_rng(0)


def scene(number, size=(24, 32)):
    """(photo (H, W, 3) with noise, label (H, W) of classes 0 to 2 with its number in a corner)."""
    label = np.zeros(size, np.uint8)
    label[4:14, 3 + number:15 + number] = 1
    label[12:20, 6:12] = 2
    label[0, :number + 1] = 1
    colors = np.array([[90, 90, 90], [60, 160, 60], [200, 60, 60]])
    photo = colors[label] + RNG.integers(-20, 21, (*size, 3))
    return photo.clip(0, 255).astype(np.uint8), label


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write(root, image, label, count=COUNT, change=lambda label: label):
    """Writes pairs under the names that `image` and `label` make of (number, split)."""
    for number in range(count):
        part = ("train", "train", "val", "test")[number % 4]
        photo, values = scene(number)
        save(root / image.format(i=number, part=part), photo)
        save(root / label.format(i=number, part=part), change(values))


def loaders(images, labels, name="my.json"):
    make_config(str(images), str(labels), name)
    config = resolve_config(load_config(name))
    return {key[:-7]: make_loader(config[key], ignore_index=config["ignore_index"],
                                  training=key == "train_loader")
            for key in ("train_loader", "val_loader", "test_loader") if config.get(key)}


def samples(found):
    return [sample for loader in found.values() for sample in loader.dataset.samples]


def numbers(found):
    """The numbers of the scenes that the datasets hold; each label must be its image's."""
    result = []
    for sample in samples(found):
        label = np.array(Image.open(sample.label).convert("L"))
        number = int((label[0] > 0).sum()) - 1
        photo = np.array(Image.open(sample.image).convert("RGB"))
        assert len(np.unique(photo.reshape(-1, 3), axis=0)) > 100, "a mask is no image"
        expected = scene(number)[1] > 0
        assert np.abs(np.median(photo[~expected], 0) - 90).max() < 8, "the label of another image"
        result.append(number)
    return sorted(result)


LAYOUTS = {
    "ending": ("d", "d", "img_{i}.jpg", "img_{i}_mask.png"),
    "extension": ("d", "d", "{i:03}.jpg", "{i:03}.png"),
    "extension of a lossless image": ("d", "d", "{i:03}.tif", "{i:03}.png"),
    "blanks and brackets": ("d", "d", "case ({i}).png", "case ({i})_mask.png"),
    "prefix": ("d", "d", "{i}.png", "mask_{i}.png"),
    "two prefixes": ("d", "d", "img-{i}.png", "seg-{i}.png"),
    "infix": ("d", "d", "cam_{i}_rgb_left.png", "cam_{i}_seg_left.png"),
    "added infix": ("d", "d", "cam_{i}_left.png", "cam_{i}_seg_left.png"),
    "glued": ("d", "d", "{i:04}.png", "{i:04}mask.png"),
    "folder of each pair": ("d", "d", "case{i}/image.png", "case{i}/mask.png"),
    "sub-folders": ("d", "d", "images/{i}.jpg", "masks/{i}.png"),
    "sub-folders and endings": ("d", "d", "{part}/images/{i}.png", "{part}/masks/{i}_mask.png"),
    "sub-folders and prefixes": ("d", "d", "{part}/img/img_{i}.png", "{part}/gt/gt_{i}.png"),
    "deep sub-folders": ("d", "d", "a/{part}/rgb/s{i}/{i}.png", "a/{part}/sem/s{i}/{i}.png"),
    "names of CamVid": ("d", "d", "{part}/{i}.png", "{part}annot/{i}.png"),
    "names with the split": ("d", "d", "{part}_images/{i}.jpg", "{part}_masks/{i}.png"),
    "split inside": ("d", "d", "images/{part}/{i}.jpg", "annotations/{part}/{i}.png"),
    "labels below the images": ("d", "d/masks", "{i}.png", "masks/{i}.png"),
    "labels below the images, both named": ("d", "d", "{i}.png", "masks/{i}_mask.png"),
    "images below the labels": ("d/photos", "d", "photos/{i}.png", "{i}.png"),
    "two folders": ("d/im", "d/lab", "im/{i}.jpg", "lab/{i}.png"),
    "two folders, prefixes": ("d/im", "d/lab", "im/img_{i}.jpg", "lab/label_{i}.png"),
    "two folders, another depth": ("d/im", "d/lab", "im/{i}.jpg", "lab/{i}/mask.png"),
    "two folders, extension in the name": ("d/im", "d/lab", "im/{i}.jpg", "lab/{i}.jpg.png"),
    "capital extension": ("d", "d", "{i}.JPG", "{i}_gt.PNG"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_found_in_every_layout(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels, image, label = LAYOUTS[layout]
    write(tmp_path / "d", image, label)
    found = loaders(images, labels)
    assert numbers(found) == list(range(COUNT))
    if "{part}" in image:
        for part, loader in found.items():
            assert {re.search("train|val|test", str(s.image.relative_to("d")))[0]
                    for s in loader.dataset.samples} == {part}
        assert found.keys() == {"train", "val", "test"}


def test_numbers_that_begin_anew_in_each_folder_are_no_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        folder = tmp_path / "d" / ("train", "val")[number // 4]
        save(folder / f"images/{number % 4}.png", photo)
        save(folder / f"masks/{number % 4}_mask.png", label)
    assert numbers(loaders("d", "d")) == list(range(COUNT))


def test_gray_photos_and_gray_masks_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"a_{number}_x.png", photo[..., 0])
        save(tmp_path / f"a_{number}_y.png", label * 100)
    found = loaders(tmp_path, tmp_path)
    assert all(sample.image.stem.endswith("x") for sample in samples(found))


def test_files_that_look_alike_are_refused_with_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a_{i}_x.png", "a_{i}_y.png")
    for number in range(COUNT):
        save(tmp_path / f"a_{number}_x.png", scene(number)[1] * 50)
    with pytest.raises(DataError, match="unclear which files are images.*a_0_[xy].png, .*a_0_[xy]"):
        make_config(str(tmp_path), str(tmp_path), "my.json")
    assert not list(tmp_path.glob("my*"))


def test_patterns_say_what_is_unclear(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"d/{number}_rgb.png", photo)
        save(tmp_path / f"d/{number}_nir.png", photo[..., 0])
        save(tmp_path / f"d/{number}_gt.png", label)
    with pytest.raises(DataError, match="8 labels fit several images"):
        loaders("d", "d")
    found = loaders("d/*_nir.png", "d/*_gt.png")
    assert {sample.image.name[2:] for sample in samples(found)} == {"nir.png"}
    found = loaders("d/*_rgb.png", "d/*_gt.png", "other.json")
    assert numbers(found) == list(range(COUNT))


SEVERAL = {
    "a folder of each image": ("{i:03}/mask_1.png", "{i:03}/mask_2.png"),
    "an ending for each class": ("{i:03}_box.png", "{i:03}_ball.png"),
    "a folder for each class": ("box/{i:03}.png", "ball/{i:03}.png"),
    "numbers": ("{i:03}_0.png", "{i:03}_1.png"),
    "one without an ending": ("{i:03}.png", "{i:03}_2.png"),
}


OF_CLASSES = ["an ending for each class", "a folder for each class"]


@pytest.mark.parametrize("layout, one_folder", [
    (layout, one_folder) for layout in SEVERAL for one_folder in (False, True)
    if one_folder or layout not in OF_CLASSES])
def test_several_masks_of_one_picture_are_refused(layout, one_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = tmp_path if one_folder else tmp_path / "labels"
    images = tmp_path if one_folder else tmp_path / "images"
    for number in range(COUNT):
        photo, label = scene(number)
        save(images / f"{number:03}.jpg", photo)
        for value, name in enumerate(SEVERAL[layout], 1):
            save(labels / name.format(i=number), np.uint8(label == value) * 255)
    with pytest.raises(DataError, match="8 of 8 images have several label files: 00.*00.*, .*00"):
        make_config(str(images), str(labels), "my.json")


@pytest.mark.parametrize("layout", OF_CLASSES)
def test_masks_named_after_classes_are_used(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"im/{number:03}.jpg", photo)
        for value, name in enumerate(SEVERAL[layout], 1):
            save(tmp_path / "lab" / name.format(i=number), np.uint8(label == value) * 255)
    make_config("im", "lab", "my.json")
    printed = capsys.readouterr().out
    assert "one mask for each class" in printed and "ball (" in printed and "box (" in printed


def test_masks_with_names_of_their_own_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"im/{number:03}.jpg", photo)
        for value in (1, 2):
            save(tmp_path / f"lab/{number:03}/{'qwertzui'[number]}{value * 37 + number}.png",
                 np.uint8(label == value) * 255)
    with pytest.raises(DataError, match="up to 2: 00"):
        make_config("im", "lab", "my.json")


def test_one_kind_of_several_masks_can_be_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"im/{number}.jpg", photo)
        save(tmp_path / f"lab/{number}_box.png", np.uint8(label == 1) * 255)
        save(tmp_path / f"lab/{number}_ball.png", np.uint8(label == 2) * 255)
    found = loaders("im", "lab/*_box.png")
    assert {sample.label.name[2:] for sample in samples(found)} == {"box.png"}
    printed = capsys.readouterr()
    assert "8 pictures below" in printed.err and "_ball.png" in printed.err


def test_colored_copies_of_the_labels_are_no_second_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    write(tmp_path / "d", "im/{i}.jpg", "lab/{i}_color.png", change=lambda label: colors[label])
    write(tmp_path / "d", "im/{i}.jpg", "lab/{i}_labelIds.png")
    found = loaders("d/im", "d/lab")
    assert all(sample.label.name.endswith("_labelIds.png") for sample in samples(found))
    assert "8 label files are not used: lab/0_color.png, lab/1_color.png" in capsys.readouterr().out


def test_photos_with_the_label_over_them_are_no_second_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.jpg", "lab/{i}.png")
    for number in range(COUNT):
        save(tmp_path / f"lab/{number}_overlay.png", scene(number)[0])
    assert numbers(loaders("im", "lab")) == list(range(COUNT))
    printed = capsys.readouterr().out
    assert "8 label files are not used: lab/0_overlay.png" in printed and "look much" not in printed


def test_label_maps_in_place_of_images_are_remarked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "photos/{i}.png", "lab/{i}.png")
    for number in range(COUNT):
        save(tmp_path / f"im/{number}.png", scene(number)[1])
    make_config("im", "lab", "my.json")
    assert "the images look much like the labels" in capsys.readouterr().out


def test_files_that_are_left_out_are_counted_with_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.jpg", "lab/{i}.png")
    (tmp_path / "lab/2.png").unlink()
    (tmp_path / "im/5.jpg").unlink()
    save(tmp_path / "lab/3.png", np.zeros((3, 3), np.uint8))
    save(tmp_path / "lab/overlay/x.jpg", scene(0)[0])
    loaders("im", "lab")
    printed = capsys.readouterr().out
    assert "5 pairs of image and label; left out: 2 images without a usable label" in printed
    assert "1 pair cannot be used: 3.jpg is 24x32, its label 3x3" in printed
    assert "1 image has no label: im/2.jpg" in printed
    assert "2 label files are not used: lab/5.png, overlay/x.jpg" in printed


def test_a_test_folder_becomes_the_test_loader(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{part}/{i}.jpg", "lab/{part}/{i}.png")
    found = loaders("im", "lab")
    assert [sample.id for sample in found["test"].dataset.samples] == ["test/3", "test/7"]
    assert "4 train, 2 val, 2 test, by the sub-folders" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "im/val")
    found = loaders("im", "lab", "other.json")
    assert {name: len(loader.dataset) for name, loader in found.items()} == {
        "train": 3, "val": 1, "test": 2}


def test_pairs_outside_the_folders_of_a_split_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{part}/{i}.jpg", "lab/{part}/{i}.png")
    for kind in ("im", "lab"):
        (tmp_path / kind / "val").rename(tmp_path / kind / "extra")
    with pytest.raises(DataError, match="2 of 8 pairs are in no folder train, val or test: extra"):
        loaders("im", "lab")


@pytest.mark.parametrize("store, text", [
    (lambda path, label: save(path.with_suffix(".jpg"), label * 100), "the 8 labels are .jpg.*PNG"),
    (lambda path, label: np.save(path.with_suffix(".npy"), label), "only 8 .npy.*gray PNG"),
    (lambda path, label: path.with_suffix(".json").write_text("{}"), "only 8 .json.*own_data.md"),
])
def test_labels_of_another_kind_are_named(store, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    for number in range(COUNT):
        photo, label = scene(number)
        save(tmp_path / f"im/{number}.jpg", photo)
        store(tmp_path / f"lab/{number}", label)
    with pytest.raises(DataError, match=re.compile(text, re.DOTALL)):
        loaders("im", "lab")


def test_a_file_in_place_of_the_label_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.jpg", "lab/{i}.png")
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(DataError, match="is a file, not a folder(.|\n)*own_data.md"):
        loaders("im", "annotations.json")


def test_one_pair_alone_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.jpg", "lab/{i}.png", count=1)
    with pytest.raises(DataError, match="only one pair of image and label: im/0.jpg, lab/0.png"):
        loaders("im", "lab")


def test_a_mistyped_folder_gets_the_nearest_name(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=f"did you mean {tmp_path / 'photos'}") as caught:
        place_of(str(tmp_path / "photo"), "--images")
    assert caught.value.where == "--images"
    with pytest.raises(DataError, match="give a folder, or a pattern"):
        place_of(str(tmp_path / "none" / "masks"), "--labels")


def test_exchanged_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.png", "lab/{i}.png")
    with pytest.raises(DataError, match="exchanged"):
        loaders("lab", "im")


@pytest.mark.parametrize("name", ["runs/new/mine", "runs/new/mine.json"])
def test_the_ending_and_missing_folders_are_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "im/{i}.jpg", "lab/{i}.png")
    make_config("im", "lab", name)
    assert json.loads(json.dumps(read_jsonc("runs/new/mine.json")))["name"] == "mine"
    assert sorted(path.name for path in (tmp_path / "runs/new").iterdir()) == [
        "mine.classes.json", "mine.json", "mine.train.txt", "mine.val.txt"]


def test_files_whose_names_differ_in_spelling_are_named_together(tmp_path, capsys):
    write(tmp_path, "im/{i}.png", "lab/{i}_mask.png")
    photo, label = scene(3)
    for image, other in (("Photo_A", "photo_a"), ("Blu\u0308te", "Bl\u00fcte")):
        save(tmp_path / f"im/{image}.png", photo)
        save(tmp_path / f"lab/{other}_mask.png", label)
    make_config(str(tmp_path / "im"), str(tmp_path / "lab"), str(tmp_path / "my.json"))
    printed = capsys.readouterr().out
    assert "8 pairs of image and label" in printed
    assert "2 pairs would fit but for the spelling" in printed
    assert "Photo_A.png and photo_a_mask.png" in printed
