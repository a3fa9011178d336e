import json

import cv2
import numpy as np
import pytest
from PIL import Image

from dataloader.augmentation.transforms import Augmentation
from dataloader.folder import Folder, _label_map
from tests.support.tiff import tiff
from utils.errors import ConfigError, DataError
from utils.images.image_io import write_image, write_label

RNG = np.random.default_rng(0)
PALETTE = [[0, 0, 0], [200, 10, 10], [10, 200, 10]]


def put(root, stem, label=0, size=(6, 8), folders=("images", "labels"), ending=""):
    label = np.full(size, label, np.uint8) if np.isscalar(label) else np.asarray(label, np.uint8)
    image, target = root / folders[0] / f"{stem}.jpg", root / folders[1] / f"{stem}{ending}.png"
    for path in (image, target):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(image, RNG.integers(0, 255, (*label.shape[:2], 3), dtype=np.uint8))
    if label.ndim == 3:
        write_image(target, label)
    else:
        write_label(target, label, [])


def ids(dataset):
    return [sample.id for sample in dataset.samples]


def test_pairs_are_found_in_sub_folders(tmp_path):
    for stem in ("b", "a", "city/c d", "ünï"):
        put(tmp_path, stem)
    assert ids(Folder(str(tmp_path), num_classes=2)) == ["a", "b", "city/c d", "ünï"]


def test_splits_are_sub_folders(tmp_path):
    for stem in ("train/a", "train/b", "val/c"):
        put(tmp_path, stem)
    assert ids(Folder(str(tmp_path), "train", num_classes=2)) == ["a", "b"]
    assert ids(Folder(str(tmp_path), "val", num_classes=2)) == ["c"]


def test_splits_are_lists_of_names_with_or_without_extension(tmp_path):
    for stem in ("a", "b b", "sub/c", "d.1"):
        put(tmp_path, stem)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfb b  \r\n\r\nsub/c.jpg\r\nd.1")
    (tmp_path / "other.txt").write_text("./a\n")
    assert ids(Folder(str(tmp_path), "train", num_classes=2)) == ["b b", "sub/c", "d.1"]
    assert ids(Folder(str(tmp_path), "val", num_classes=2, list_file="other.txt")) == ["a"]


def test_a_listed_name_without_files_is_named_with_its_line(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "train.txt").write_text("a\n\nnone\n/abs/b.jpg\n")
    with pytest.raises(DataError) as caught:
        Folder(str(tmp_path), "train", num_classes=2)
    assert "train.txt:3: no image none" in str(caught.value)
    assert "train.txt:4: no image /abs/b.jpg" in str(caught.value)


def test_a_name_listed_twice_is_an_error(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "train.txt").write_text("a\na.jpg\n")
    with pytest.raises(DataError, match="occurs twice"):
        Folder(str(tmp_path), "train", num_classes=2)


def test_a_missing_split_is_an_error_that_names_the_list_and_the_folder(tmp_path):
    put(tmp_path, "a")
    with pytest.raises(DataError, match="neither .*val.txt nor .*images/val"):
        Folder(str(tmp_path), "val", num_classes=2)
    with pytest.raises(DataError, match="no such folder"):
        Folder(str(tmp_path), num_classes=2, label_dir="masks")


def test_image_and_label_may_have_other_endings_and_folders(tmp_path):
    put(tmp_path, "x/a", folders=("left", "right/gt"), ending="_gt")
    put(tmp_path, "x/a", folders=("unused", "right/gt"), ending="_other")
    dataset = Folder(str(tmp_path), num_classes=2, image_dir="left",
                     label_dir=str(tmp_path / "right" / "gt"), label_ending="_gt")
    assert ids(dataset) == ["x/a"]


def test_classes_are_read_from_a_json_file(tmp_path):
    put(tmp_path, "a", [[7, 8, 11, 0, 9]])
    (tmp_path / "classes.json").write_text("""{
        // comments are welcome
        "names": ["road", "rest"], "palette": [[1, 2, 3], [4, 5, 6]],
        "label_ids": [7, [8, 11]], "ignore_ids": [0, 9], "mean": [0.1, 0.2, 0.3],
    }""")
    dataset = Folder(str(tmp_path), classes="classes.json")
    assert (dataset.num_classes, dataset.class_names) == (2, ["road", "rest"])
    assert dataset.palette == [[1, 2, 3], [4, 5, 6]] and dataset.mean == [0.1, 0.2, 0.3]
    assert dataset[0]["label"].tolist() == [[0, 1, 1, 255, 255]]


def test_data_is_called_like_its_class_file_of_init_or_its_folder(tmp_path):
    put(tmp_path / "data", "a")
    for name in ("leaves.classes.json", "classes.json"):
        (tmp_path / name).write_text('{"names": ["x", "y"]}')
    title = {name: Folder(str(tmp_path / "data"), classes=str(tmp_path / name)).title
             for name in ("leaves.classes.json", "classes.json")}
    assert title == {"leaves.classes.json": "leaves all", "classes.json": "data all"}


def test_stored_values_that_the_class_file_does_not_name_are_errors(tmp_path):
    put(tmp_path, "a", [[7, 8, 1]])
    (tmp_path / "classes.json").write_text('{"names": ["a", "b"], "label_ids": [7, 8]}')
    with pytest.raises(DataError, match=r"value 1 \(1 pixel\)"):
        Folder(str(tmp_path), classes="classes.json")


@pytest.mark.parametrize("label_map, expected", [
    ({"255": 1}, [0, 1]), ({"255": "ignore"}, [0, 255]), ({"*": "ignore", "0": 1}, [1, 255]),
    ({"*": 0, "255": 1}, [0, 1]),
])
def test_a_label_map_maps_stored_values_to_classes(label_map, expected, tmp_path):
    put(tmp_path, "a", [[0, 255]])
    dataset = Folder(str(tmp_path), num_classes=2, label_map=label_map)
    assert dataset[0]["label"].tolist() == [expected]


def test_a_value_whose_id_a_mapped_value_uses_is_an_error(tmp_path):
    put(tmp_path, "a", [[0, 1, 255]])
    with pytest.raises(DataError, match=r"value 1 \(1 pixel\)"):
        Folder(str(tmp_path), num_classes=2, label_map={"255": 1})


def test_binary_masks_without_a_label_map_get_a_hint(tmp_path):
    put(tmp_path, "a", [[0, 255]])
    with pytest.raises(DataError, match="label_map"):
        Folder(str(tmp_path), num_classes=2)


def test_color_labels_are_read_by_the_palette(tmp_path):
    truth = RNG.integers(0, 3, (6, 8))
    put(tmp_path, "a", np.array(PALETTE)[truth])
    dataset = Folder(str(tmp_path), class_names=["a", "b", "c"], palette=PALETTE)
    np.testing.assert_array_equal(dataset[0]["label"].numpy(), truth)


def test_colors_without_a_class_are_ignored(tmp_path):
    put(tmp_path, "a", [[[0, 0, 0], [200, 10, 10], [9, 9, 9]]])
    (tmp_path / "c.json").write_text(json.dumps({
        "names": ["red"], "palette": [[200, 10, 10]], "ignore_colors": [[0, 0, 0], [9, 9, 9]]}))
    assert Folder(str(tmp_path), classes="c.json")[0]["label"].tolist() == [[255, 0, 255]]


def test_index_labels_do_not_need_a_palette(tmp_path):
    put(tmp_path, "a", [[0, 1, 2]])
    dataset = Folder(str(tmp_path), class_names=["a", "b", "c"], palette=PALETTE)
    assert dataset[0]["label"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("options, text", [
    ({}, "num_classes"), ({"num_classes": 3, "class_names": ["a"]}, "1 class names"),
    ({"num_classes": 2, "palette": PALETTE}, "3 colors for 2 classes"),
    ({"num_classes": 2, "label_map": {"x": 1}}, "'x'"),
    ({"num_classes": 2, "label_map": {"1": 2}}, "expected 0 to 1"),
    ({"num_classes": 2, "label_map": {"1": True}}, "expected 0 to 1"),
    ({"classes": "none.json"}, "no such file"), ({"num_classes": 2, "list_file": "x"}, "no such"),
])
def test_contradictions_are_config_errors(options, text, tmp_path):
    put(tmp_path, "a")
    with pytest.raises(ConfigError, match=text):
        Folder(str(tmp_path), **options)


@pytest.mark.parametrize("content", ['{"names": "road"}', '{"names": ["a"], "colour": []}',
                                     '{"names": ["a"], "palette": [[0, 0, 256]]}',
                                     '{"names": ["a"], "label_ids": [1, 2]}', '["a"]', "{"])
def test_a_wrong_class_file_is_named(content, tmp_path):
    put(tmp_path, "a")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        Folder(str(tmp_path), classes="classes.json")
    assert "classes.json" in str(caught.value)


def test_names_that_are_not_utf_8_can_be_trained_on(tmp_path):
    import os
    name = os.fsdecode(b"latin\xe9 \n1")
    put(tmp_path, name, [[0, 1]])
    dataset = Folder(str(tmp_path), num_classes=2)
    assert dataset[0]["id"] == name and dataset[0]["label"].tolist() == [[0, 1]]
    put(tmp_path, name, [[0, 9]])
    with pytest.raises(DataError) as caught:
        Folder(str(tmp_path), num_classes=2)
    str(caught.value).encode("utf-8")
    assert r"latin\udce9 \n1" in str(caught.value)


def deep(root, bits=12, count=3):
    """Pictures of a few bits in files of 16; returns their values by name."""
    values = {}
    for k in range(count):
        put(root, str(k), label=1)
        (root / "images" / f"{k}.jpg").unlink()
        values[str(k)] = RNG.integers(0, 2 ** bits, (6, 8, 3)).astype(np.uint16)
        values[str(k)][0, 0] = 2 ** bits - 1
        write_image(root / "images" / f"{k}.png", values[str(k)])
    return values


def test_a_range_that_is_not_used_is_one_notice_and_white_uses_it(tmp_path, capsys):
    values = deep(tmp_path)
    dark = Folder(str(tmp_path), num_classes=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path.name} all: 3 images have more than 8 bits")
    assert "reach only 4095 of 65535, which gives 17 of 256 gray levels" in lines[0]
    bright = Folder(str(tmp_path), num_classes=2, white=4095)
    assert capsys.readouterr().err == ""
    (tmp_path / "c.json").write_text(json.dumps({"names": ["a", "b"], "white": 4095}))
    by_file = Folder(str(tmp_path), classes="c.json")
    for name, stored in values.items():
        index = int(name)
        assert dark[index]["image"].max() == 16
        expected = np.floor(stored.astype(float) * 255 / 4095 + 0.5).transpose(2, 0, 1)
        np.testing.assert_array_equal(bright[index]["image"], expected)
        np.testing.assert_array_equal(by_file[index]["image"], expected)


def test_white_without_effect_or_sense_is_refused(tmp_path):
    put(tmp_path, "a")
    with pytest.raises(ConfigError, match="white has no effect: none of the 1 images") as caught:
        Folder(str(tmp_path), num_classes=2, white=4095)
    assert caught.value.where == "white"
    for wrong in (0, -1.0, float("inf")):
        with pytest.raises(ConfigError, match="expected a number above 0"):
            Folder(str(tmp_path), num_classes=2, white=wrong)
    (tmp_path / "c.json").write_text(json.dumps({"names": ["a", "b"], "white": "4095"}))
    with pytest.raises(ConfigError, match="expected a number above 0, found '4095'"):
        Folder(str(tmp_path), classes="c.json")


def test_pictures_without_a_range_stop_the_program_at_the_start(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "images" / "a.jpg").unlink()
    values = RNG.random((6, 8)).astype(np.float32)
    (tmp_path / "images" / "a.tif").write_bytes(tiff(values, kind=3))
    with pytest.raises(DataError, match='32 bits have no fixed range; say with "white"'):
        Folder(str(tmp_path), num_classes=2)
    image = Folder(str(tmp_path), num_classes=2, white=1)[0]["image"]
    assert abs(image[1].numpy() - values * 255).max() <= 0.51


@pytest.mark.parametrize("options, words", [
    ({"palette": [[300, -1, 0], [1, 2, 3]]}, "color of 'a' is .300, -1, 0.; expected"),
    ({"palette": [[1, 2, 3], [1, 2, 3, 4]]}, "color of 'b'"),
    ({"palette": [[1, 2], [1, 2]]}, "color of 'a'"),
    ({"mean": [0.1, 0.2]}, "three numbers from 0 to 1, found"),
    ({"mean": [123.0, 117.0, 104.0]}, "divided by 255"),
    ({"std": [0.0, 0.1, 0.1]}, "three numbers from 0.0001 to 1"),
    ({"std": [1e-320, 0.1, 0.1]}, "three numbers from 0.0001 to 1"),
])
def test_colors_and_statistics_out_of_range_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        Folder(str(tmp_path), class_names=["a", "b"], **options)


def test_two_classes_of_one_color_are_said(tmp_path, capfd):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError):
        Folder(str(tmp_path), class_names=["a", "b"], palette=[[1, 2, 3], [1, 2, 3]])
    assert "the classes a, b have the same color [1, 2, 3]" in capfd.readouterr().err


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""], ["a", "b\u202e"], ["a", "b\n"]])
def test_class_names_that_reports_cannot_show_are_refused(names, tmp_path):
    put(tmp_path, "x")
    (tmp_path / "c.json").write_text(json.dumps({"names": names}))
    for given in ({"class_names": names}, {"classes": "c.json"}):
        with pytest.raises(ConfigError, match="class 1|classes 0 and 1") as caught:
            Folder(str(tmp_path), **given)
        assert caught.value.where == "class_names"


@pytest.mark.parametrize("other, text", [
    ({"class_names": ["b", "a"]}, "class 0 is 'a' and 'b'"),
    ({"class_names": ["a", "B"]}, "class 1 is 'b' and 'B'"),
    ({"class_names": ["a", "b", "c"], "palette": PALETTE}, "there are 2 and 3 classes"),
    ({"class_names": ["a", "b"], "palette": PALETTE[1:]}, "class 0, 'a', has the color [0, 0, 0] "
                                                          "and [200, 10, 10]")])
def test_classes_of_training_and_validation_must_agree(other, text, tmp_path):
    put(tmp_path, "x")
    train = Folder(str(tmp_path), class_names=["a", "b"], palette=PALETTE[:2])
    train.require_same_classes(Folder(str(tmp_path), class_names=["a", "b"], palette=PALETTE[:2]))
    with pytest.raises(ConfigError) as caught:
        train.require_same_classes(Folder(str(tmp_path), **other))
    assert caught.value.what == f"the classes of training and validation differ: {text}"


def flat(root, image="{}.jpg", label="{}_mask.png", count=3):
    """Writes images and labels into one folder, under the names that the patterns make."""
    for number in range(count):
        write_image(root / image.format(number), RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        write_label(root / label.format(number), np.full((6, 8), number, np.uint8), [])


def one_folder(root, **options):
    return Folder(str(root), num_classes=3, image_dir=".", label_dir=".", **options)


@pytest.mark.parametrize("image, label, options", [
    ("{}.jpg", "{}_mask.png", {"label_ending": "_mask"}),
    ("{}.png", "{}_mask.png", {"label_ending": "_mask"}),
    ("{}_rgb.png", "{}_gt.png", {"image_ending": "_rgb", "label_ending": "_gt"}),
    ("{}.jpg", "{}.png", {}),
    ("{}.tif", "{}.png", {"label_pattern": "*.png"}),
    ("{}.png", "mask_{}.png", {"label_pattern": "mask_*"}),
    ("a{}_rgb_l.png", "a{}_gt_l.png", {"image_pattern": "*_rgb_*", "label_pattern": "*_gt_*"}),
])
def test_images_and_labels_of_one_folder_are_told_apart(image, label, options, tmp_path):
    flat(tmp_path, image, label)
    dataset = one_folder(tmp_path, **options)
    assert [(s.image.name, s.label.name) for s in dataset.samples] == [
        (image.format(i), label.format(i)) for i in range(3)]
    assert [dataset[i]["label"].unique().tolist() for i in range(3)] == [[0], [1], [2]]


def test_labels_may_lie_below_the_images(tmp_path):
    (tmp_path / "masks").mkdir()
    flat(tmp_path, "{}.png", "masks/{}.png")
    dataset = Folder(str(tmp_path), num_classes=3, image_dir=".", label_dir="masks")
    assert [(s.id, s.label.parent.name) for s in dataset.samples] == [
        ("0", "masks"), ("1", "masks"), ("2", "masks")]


def test_files_that_may_be_images_or_labels_are_refused(tmp_path):
    flat(tmp_path, "{}.png")
    with pytest.raises(DataError, match="6 files may be images or labels: .*0.png(.|\n)*pattern"):
        one_folder(tmp_path)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_is_never_its_own_label(link, tmp_path):
    put(tmp_path, "a")
    image = tmp_path / "images" / "b.png"
    write_image(image, np.zeros((6, 8), np.uint8))
    getattr(tmp_path / "labels" / "b.png", link)(image)
    with pytest.raises(DataError, match="b.png: image and label are one file"):
        Folder(str(tmp_path), num_classes=2)


def test_pictures_that_fit_no_pattern_are_counted_once(tmp_path, capsys):
    from dataloader import folder
    folder.say_once.cache_clear()
    flat(tmp_path, "{}.jpg", "{}_box.png")
    flat(tmp_path, "{}.jpg", "{}_ball.png")
    for _ in range(2):
        one_folder(tmp_path, image_pattern="*.jpg", label_pattern="*_box.png")
    printed = capsys.readouterr().err
    assert printed.count("3 pictures below") == 1 and "_ball.png" in printed
    assert "neither *.jpg nor *_box.png" in printed


def test_an_ending_and_a_pattern_for_the_same_names_are_refused(tmp_path):
    put(tmp_path, "a")
    with pytest.raises(ConfigError, match="label_pattern and label_ending"):
        Folder(str(tmp_path), num_classes=2, label_ending="_x", label_pattern="*_x")
    with pytest.raises(ConfigError, match="'_x' is not a pattern"):
        Folder(str(tmp_path), num_classes=2, label_pattern="_x")


@pytest.mark.parametrize("line, stem", [
    ("{root}/images/sub/c.jpg", "sub/c"), ("{root}/images/sub/c", "sub/c"),
    ("images/sub/c.jpg", "sub/c"), ("images/sub/c", "sub/c"), ("sub\\c.jpg", "sub/c"),
    ("sub\\c", "sub/c"), (".\\sub\\c", "sub/c"), ("images\\sub\\c.jpg", "sub/c"),
    ("b b", "b b"), ("b b.jpg", "b b"), ("b b.png", "b b"), ("/images/b b.jpg", "b b"),
    ("sub/c.jpg sub/c.png", "sub/c"), ("sub/c.jpg\tsub/c.png", "sub/c"), ("sub/c,sub/c", "sub/c"),
    ("images/sub/c.jpg, labels/sub/c.png", "sub/c"), ("b b.jpg b b.png", "b b"),
    ("b b b b", "b b"), ('"b b.jpg","b b.png"', "b b"), ("images\\b b.jpg\tlabels\\b b.png", "b b"),
    ("{root}/images/b b.jpg {root}/labels/b b.png", "b b"),
    ("/images/b b.jpg /labels/b b.png", "b b"), ("d.1", "d.1"), ("d.1.jpg;d.1.png", "d.1"),
])
def test_a_line_of_a_list_may_name_the_files_in_many_ways(line, stem, tmp_path):
    for name in ("a", "b b", "sub/c", "d.1"):
        put(tmp_path, name)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\n" + line.format(root=tmp_path).encode())
    dataset = Folder(str(tmp_path), "train", num_classes=2)
    assert [(s.id, s.image, s.label) for s in dataset.samples] == [
        (name, tmp_path / f"images/{name}.jpg", tmp_path / f"labels/{name}.png")
        for name in ("a", stem)]


def test_a_list_may_name_labels_of_other_names_and_places(tmp_path):
    flat(tmp_path, "p{}.jpg", "q{}.png", count=2)
    (tmp_path / "train.txt").write_text(f"p0.jpg q1.png\n{tmp_path}/p1.jpg,{tmp_path}/q0.png\n")
    dataset = Folder(str(tmp_path), "train", num_classes=3)
    assert [(s.id, s.label.name) for s in dataset.samples] == [("p0", "q1.png"), ("p1", "q0.png")]


@pytest.mark.parametrize("line, text", [
    ("a.jpg none.png", "train.txt:1: no label none.png"),
    ("none.jpg a.png", "train.txt:1: no image none.jpg"),
    ("a.jpg other.jpg", "is not a label(.|\n)*fix: JPEG changes label values"),
    ("a.jpg a.png 1", "no label a.png 1(.|\n)*fix: a line is the name of an image"),
    ("{root}/other.jpg", "other.jpg is no image of .*its label must follow in the same line"),
    ("{root}/nowhere.jpg", "no image .*/nowhere.jpg in"),
    ("images/a.jpg images/a.jpg.png", "image and label are one file"),
    ("x" * 300, "no image xxx"),        # longer than a file name can be
])
def test_what_is_wrong_with_a_line_is_said(line, text, tmp_path):
    put(tmp_path, "a")
    write_image(tmp_path / "other.jpg", np.zeros((6, 8), np.uint8))
    (tmp_path / "images" / "a.jpg.png").symlink_to("a.jpg")
    (tmp_path / "train.txt").write_text(line.format(root=tmp_path))
    with pytest.raises(DataError, match=text):
        Folder(str(tmp_path), "train", num_classes=2)


@pytest.mark.parametrize("suffix, text", [
    (".jpg", "a.png, only a.jpg\n(.|\n)*fix: JPEG changes label values"),
    (".npy", "a.png, only a.npy\n(.|\n)*fix: labels are pictures: store the array"),
    (".json", "a.png, only a.json\n(.|\n)*fix: labels are pictures, or what a tool"),
    (".xcf", "no label .*a.png\n(.|\n)*fix: add the missing labels"),
])
def test_a_label_of_another_kind_is_named(suffix, text, tmp_path):
    put(tmp_path, "a")
    (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / f"a{suffix}")
    with pytest.raises(DataError, match=text):
        Folder(str(tmp_path), num_classes=2)


def test_the_remedy_fits_the_cause(tmp_path):
    put(tmp_path, "train/a")
    with pytest.raises(DataError, match='fix: set split to train or "all"'):
        Folder(str(tmp_path), "trian", num_classes=2)
    with pytest.raises(DataError, match="fix: set data_dir to an existing folder"):
        Folder(str(tmp_path / "nowhere"), num_classes=2)
    with pytest.raises(DataError, match="fix: set label_dir to a folder below data_dir"):
        Folder(str(tmp_path), num_classes=2, label_dir="masks")
    put(tmp_path, "train/b", size=(3, 3))
    write_image(tmp_path / "images/train/b.jpg", np.zeros((6, 8), np.uint8))
    (tmp_path / "labels/train/a.png").unlink()
    with pytest.raises(DataError) as caught:
        Folder(str(tmp_path), num_classes=2)
    assert "add the missing labels" in caught.value.fix


def smooth(root, stem, top=255):
    """Replaces a label by a blurred mask of 0 and `top`."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = top
    put(root, stem, mask)
    write_image(root / f"labels/{stem}.png", cv2.GaussianBlur(mask, (0, 0), 1.5))


def test_smoothed_labels_cause_a_warning_with_numbers(tmp_path, capsys):
    for stem in "abc":
        put(tmp_path, stem, np.zeros((40, 60)))
    smooth(tmp_path, "a")
    smooth(tmp_path, "b")
    Folder(str(tmp_path), num_classes=256, ignore_index=-1)
    printed = capsys.readouterr().err
    assert "2 of 3 labels look smoothed or stored as JPEG" in printed
    assert "values along borders only" in printed and "without smoothing" in printed


def test_values_out_of_range_of_a_smoothed_label_get_that_remedy(tmp_path):
    smooth(tmp_path, "a")
    with pytest.raises(DataError, match="fix: the label was smoothed, or stored as JPEG"):
        Folder(str(tmp_path), num_classes=2, label_map={"255": 1})


def put_mask(root, stem, inside, suffix=".jpg"):
    """An image and a mask as JPEG, with white where `inside`."""
    put(root, stem, np.zeros(inside.shape))
    (root / "labels" / f"{stem}.png").unlink()
    mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert("RGB")
    mask.save(root / "labels" / f"{stem}{suffix}", quality=60)


MASKS = {"class_names": ["background", "polyp"], "label_threshold": 128}


def test_masks_stored_as_jpeg_are_read_with_a_threshold(tmp_path, capsys):
    inside = np.zeros((40, 56), bool)
    inside[8:24, 16:40] = True      # on the blocks of the JPEG
    put_mask(tmp_path, "a", inside)
    put_mask(tmp_path, "b", np.flip(inside, 1), ".JPEG")
    dataset = Folder(str(tmp_path), **MASKS)
    for index, expected in enumerate((inside, np.flip(inside, 1))):
        label = dataset[index]["label"].numpy()
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(dataset.load_label(index), expected)
    np.testing.assert_array_equal(dataset.read_train_ids(tmp_path / "labels" / "a.jpg"), inside)
    assert "smoothed" not in capsys.readouterr().err


def test_the_threshold_itself_is_class_1_and_borders_are_ignored(tmp_path):
    label = np.full((6, 8), 128, np.uint8)
    label[:, :3] = 127
    put(tmp_path, "a", label)
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), label)
    dataset = Folder(str(tmp_path), **MASKS, augmentation=Augmentation(
        crop_size=10, augment=True, scale=False))
    found = dataset[0]["label"].numpy()
    np.testing.assert_array_equal(found[:6, :8], label == 128)
    assert (found[6:] == 255).all() and (found[:, 8:] == 255).all()


@pytest.mark.parametrize("args, text", [
    ({"num_classes": 3}, "makes two classes; there are 3"),
    ({"num_classes": 2, "label_map": {"255": 1}}, "both say what stored values mean"),
    ({"num_classes": 2, "label_threshold": 0}, "expected 1 to 255, found 0")])
def test_a_threshold_that_contradicts_other_arguments_is_refused(tmp_path, args, text):
    put(tmp_path, "a")
    with pytest.raises(ConfigError, match=text):
        Folder(str(tmp_path), **{"label_threshold": 128, **args})


def test_a_label_as_jpeg_without_a_threshold_names_it(tmp_path):
    put_mask(tmp_path, "a", np.ones((8, 8), bool))
    with pytest.raises(DataError, match="label_threshold"):
        Folder(str(tmp_path), num_classes=2)


def test_color_labels_without_a_palette_are_refused_before_the_training(tmp_path):
    for folder, values in (("images", np.zeros((4, 6), np.uint8)),
                           ("labels", np.full((4, 6, 3), (0, 0, 200), np.uint8))):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", values)
    with pytest.raises(DataError, match="the label is a color picture"):
        Folder(str(tmp_path), num_classes=2)


def test_an_ignored_value_that_is_a_class_is_told(capsys):
    _label_map(None, {"names": ["a", "b"], "ignore_ids": [1, 7]}, 2)
    assert "the value 1 is ignored, so class 1 (b) cannot occur" in capsys.readouterr().err
    _label_map(None, {"names": ["c"], "label_ids": [[4, 5]], "ignore_ids": [0]}, 1)
    assert not capsys.readouterr().err
