"""YOLO segmentation: names in data.yaml, where texts and images lie, boxes, and wrong lines."""
import zipfile

import numpy as np
import pytest

from tests.support import exports
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import format_of, read_annotations
from utils.annotations.rasterize import region_masks
from utils.annotations.yaml_names import yaml_names
from utils.errors import DataError

SIZE = (20, 40)
SQUARE = "0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6"
YAML = "train: images\nnc: 2\nnames: [cat, dog]\n"


def found_in(path):
    findings = Findings()
    return read_annotations(path, findings), findings


def names_of(text):
    return list(yaml_names(text.encode(), "data.yaml").values())


@pytest.mark.parametrize("text, names", [
    ("names: [cat, \"dog, big\", 'it''s']  # all\n", ["cat", "dog, big", "it's"]),
    ("nc: 2\nnames:\n  0: a cat   # first\n  1: 'c: d'\ntrain: x\n", ["a cat", "c: d"]),
    ("names:\n- a\n- \"b#\"\n", ["a", "b#"]), ("names:\n  - a\n\n  - b\ntrain: x", ["a", "b"]),
    ("names: {0: a, 1: b}\r\n", ["a", "b"]), ("names: [a,\n  b,\n  c]\nnc: 3", ["a", "b", "c"]),
    ("\ufeffnames: ['Stra\u00dfe', \"\\u00fc\"]", ["Stra\u00dfe", "\u00fc"]),
])
def test_the_names_are_read_as_tools_write_them(text, names):
    assert names_of(text) == names


@pytest.mark.parametrize("text, message", [
    ("names: a", "names are 'a'; expected a list"), ("names: []", "names is empty"),
    ("names: [a, [b]]", "'\\[b\\]\\]' where a name was"), ("names: [a\n", "a comma or \\] was"),
    ("names:\n  a: 0\n", "'a: 0' is not a name in a list"),
    ("names: [a]\nnc: 2", "nc is 2, and there are 1 names"), ("x: 1", "no lines begin"),
    ("names: [a]\nnames: [b]", "2 lines begin"), ("names:\n  0: a\n  0: b", "two names"),
    ("names:\n  - &a b\n", "'&a b' is not a name"), ("names: " + "[" * 10 ** 5, "where a name"),
    ("names: [" + "'" * 10 ** 5, "names"), ("names: [" + " " * 10 ** 5 + "[", "where a name"),
    ("names: [" + "a'" * 10 ** 5, "a comma or"), ("names: [\"\\q\"]", "cannot be read"),
])
def test_other_names_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        names_of(text)


@pytest.mark.parametrize("text, image, given", [
    ("labels/train/a.txt", "images/train/a", "."), ("train/labels/a.txt", "train/images/a", "."),
    ("labels/a.txt", "images/a", "data.yaml"), ("labels/train/a.txt", "train/a", "labels"),
    ("labels/train/a.txt", "a", "labels/train"), ("obj/a.txt", "obj/a", "."),
])
def test_the_image_of_a_text_has_its_path_with_images(tmp_path, text, image, given):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "train.txt", "images/train/a.jpg\n")
    exports.put(tmp_path / text, f"1 {SQUARE}\n")
    found, findings = found_in(tmp_path / given)
    assert [one.image for one in found.images] == [image] and not findings.wrong
    assert [category.name for category in found.categories] == ["cat", "dog"]
    region, = found.images[0].regions(SIZE)
    expected = np.zeros(SIZE, bool)
    expected[2:12, 4:20] = True
    np.testing.assert_array_equal(region_masks([region], SIZE)[0], expected)
    assert region.category == 1


def test_an_empty_text_is_an_image_without_objects(tmp_path):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "labels/a.txt", "")
    found, findings = found_in(tmp_path)
    assert found.images[0].regions(SIZE) == [] and not findings.wrong


def test_texts_without_names_have_numbers_for_names(tmp_path):
    exports.put(tmp_path / "deep/er/labels/a.txt", f"0 {SQUARE}\n2 {SQUARE}\n")
    found, _ = found_in(tmp_path / "deep/er/labels")
    assert [category.name for category in found.categories] == ["class 0", "class 1", "class 2"]


def test_numbers_of_classes_may_have_gaps(tmp_path):
    exports.put(tmp_path / "data.yaml", "train: x\nnames: {5: dog, 2: cat}\n")
    exports.put(tmp_path / "labels/a.txt", f"5 {SQUARE}\n")
    found, _ = found_in(tmp_path)
    assert [category.name for category in found.categories] == ["cat", "dog"]
    assert found.images[0].regions(SIZE)[0].category == 1


def test_boxes_are_counted_and_nothing_but_boxes_is_refused(tmp_path):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "labels/a.txt", f"0 {SQUARE}\n1 0.5 0.5 0.1 0.1\n\n0 0.5 0.5 0.2 0.1\n")
    found, findings = found_in(tmp_path)
    assert len(found.images[0].regions(SIZE)) == 1
    assert findings.left_out == {"a box, which has no outline": [
        f"{tmp_path}/labels/a.txt:2", f"{tmp_path}/labels/a.txt:4"]}
    exports.put(tmp_path / "labels/a.txt", "1 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="all 1 lines are boxes"):
        found_in(tmp_path)


def test_keypoints_are_refused(tmp_path):
    exports.put(tmp_path / "data.yaml", YAML + "kpt_shape: [17, 3]\n")
    exports.put(tmp_path / "labels/a.txt", f"0 {SQUARE}\n")
    with pytest.raises(DataError, match="labels of keypoints"):
        found_in(tmp_path)


@pytest.mark.parametrize("line, message", [
    (f"2 {SQUARE}", "class 2 has no name; there are 2 names"),
    (f"-1 {SQUARE}", "the class is '-1'"), (f"1.0 {SQUARE}", "the class is '1.0'"),
    (f"cat {SQUARE}", "the class is 'cat'"), ("0 0.1 0.2 0.3", "3 numbers follow"),
    (f"0 {SQUARE} 0.1", "9 numbers follow"), ("0", "0 numbers follow")])
def test_a_wrong_line_is_a_finding(tmp_path, line, message):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "labels/a.txt", f"0 {SQUARE}\n{line}\n")
    _, findings = found_in(tmp_path)
    assert findings.wrong[0].startswith(f"{tmp_path}/labels/a.txt:2: {message}")


@pytest.mark.parametrize("number", ["nan", "inf", "1e300", "x", "1e9"])
def test_a_wrong_coordinate_is_refused_with_its_line(tmp_path, number):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "labels/a.txt", f"0 0.1 0.2 {number} 0.4 0.5 0.6\n")
    found, _ = found_in(tmp_path)
    with pytest.raises(DataError, match="coordinate") as caught:
        found.images[0].regions(SIZE)
    assert caught.value.where == f"{tmp_path}/labels/a.txt:1"


@pytest.mark.parametrize("files", [
    {"a.txt": "hello world"}, {"a.txt": "0 1 2"}, {"a.yaml": "names: [a]"}, {"a.png": "0 1 1 1 1"},
    {"a.txt": ""}, {"labels/a.txt": "a list of files"}])
def test_other_folders_are_not_taken_for_it(tmp_path, files):
    for name, content in files.items():
        exports.put(tmp_path / name, content)
    assert format_of(tmp_path) is None


@pytest.mark.parametrize("place, given", [("classes.txt", "."), ("labels/classes.txt", "."),
                                          ("classes.txt", "labels"), ("labels/classes.txt",
                                                                      "labels")])
def test_names_without_data_yaml_are_those_of_classes_txt(tmp_path, place, given):
    exports.put(tmp_path / place, "\ufeffcat\r\nbig dog\r\n")
    exports.put(tmp_path / "labels/a.txt", f"1 {SQUARE}\n")
    found, findings = found_in(tmp_path / given)
    assert [category.name for category in found.categories] == ["cat", "big dog"]
    assert len(found.images) == 1 and not findings.wrong


def test_classes_txt_beside_the_texts_is_no_label_and_test_txt_may_be_one(tmp_path):
    exports.put(tmp_path / "data.yaml", YAML)
    exports.put(tmp_path / "labels/classes.txt", "cat\ndog\n")
    exports.put(tmp_path / "labels/test.txt", f"0 {SQUARE}\n")
    found, findings = found_in(tmp_path)
    assert [one.image for one in found.images] == ["images/test"] and not findings.wrong


def test_two_classes_of_one_name_in_classes_txt_are_refused(tmp_path):
    exports.put(tmp_path / "classes.txt", "cat\ncat\n")
    exports.put(tmp_path / "labels/a.txt", f"1 {SQUARE}\n")
    with pytest.raises(DataError, match="cat"):
        found_in(tmp_path)


def test_the_lists_of_init_beside_the_texts_are_no_labels(tmp_path):
    exports.put(tmp_path / "my.train.txt", "a\n")
    exports.put(tmp_path / "texts/a.txt", f"1 {SQUARE}\n")
    exports.put(tmp_path / "texts/my.val.txt", "a\n")
    for given in (".", "texts"):
        found, findings = found_in(tmp_path / given)
        assert len(found.images) == 1 and not findings.wrong


def test_a_zip_with_classes_txt_is_recognized(tmp_path):
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as file:
        file.writestr("classes.txt", "cat\ndog\n")
        file.writestr("labels/a.txt", f"1 {SQUARE}\n")
        file.writestr("notes.json", "{}")
    assert [one.name for one in found_in(tmp_path / "project.zip")[0].categories] == ["cat", "dog"]


def test_coordinates_outside_the_image_or_no_numbers_are_said(tmp_path):
    exports.put(tmp_path / "data.yaml", "names: [cat]\ntrain: x\n")
    exports.put(tmp_path / "labels/a.txt", "0 0.1 0.1 0.9 0.1 1.005 0.9\n0 10 10 200 20 30 300\n"
                                           "0 0.1 0.1 0.9 0.1 1.5 0.9\n0 1_0 1 2 2 3 3\n"
                                           "0 x 1 2 2 3 3\n0 nan 1 2 2 3 3\n")
    findings = Findings()
    read_annotations(tmp_path, findings)
    assert [line.partition("a.txt:")[2][0] for line in findings.wrong] == ["4", "5", "6"]
    outside, = findings.left_out.items()
    assert outside[0].startswith("outlines outside") and outside[1][0].endswith(":2")
    beyond, = findings.remarks.items()
    assert beyond[0].startswith("outlines more than 1 %") and beyond[1][0].endswith(":3")
