"""COCO JSON: what is drawn, what is left out and said, and what is refused."""
import json

import numpy as np
import pytest

from tests.support.exports import coco_text
from utils.annotations.annotation_set import Findings
from utils.annotations.coco import read, recognizes
from utils.annotations.rasterize import draw
from utils.errors import DataError
from utils.images.run_lengths import compressed_runs, run_lengths

BOX = [2, 2, 8, 2, 8, 8, 2, 8]          # 36 pixels
SIZE = 20, 30


def item(segmentation, category=3, image=1, **more):
    return {"id": 1, "image_id": image, "category_id": category, "iscrowd": 0,
            "segmentation": segmentation, **more}


def opened(tmp_path, text):
    """(the AnnotationSet, its Findings) of the text of a file."""
    path = tmp_path / "a.json"
    path.write_text(text)
    findings = Findings()
    return read(path, findings), findings


def pixels(found, image=0):
    """{name: its number of pixels} in the label map of an image."""
    drawn = draw(found.images[image].regions(SIZE), range(1, len(found.categories) + 1), SIZE, 0,
                 found.overlap)
    values, counts = np.unique(drawn, return_counts=True)
    return {found.categories[value - 1].name: count
            for value, count in zip(values.tolist(), counts.tolist(), strict=True) if value}


def test_several_outlines_of_one_object_and_several_objects_of_several_images(tmp_path):
    images = [{"id": key, "file_name": f"{key}.jpg", "height": 20, "width": 30}
              for key in (9, 4, 7)]
    found, findings = opened(tmp_path, coco_text(
        [item([BOX, [12, 2, 14, 2, 14, 4, 12, 4]], image=9), item([BOX], 8, image=7),
         item([[10, 10, 12, 10, 12, 12, 10, 12]], 13, image=9)], images))
    assert [image.image for image in found.images] == ["9.jpg", "4.jpg", "7.jpg"]
    assert pixels(found) == {"cat": 40, "tree": 4}
    assert pixels(found, 1) == {} and pixels(found, 2) == {"dog": 36}
    assert findings.wrong == [] and findings.lines() == []


def test_the_smaller_of_two_overlapping_objects_is_on_top(tmp_path):
    found, _ = opened(tmp_path, coco_text(
        [item([[4, 4, 6, 4, 6, 6, 4, 6]], 8), item([BOX])]))
    assert pixels(found) == {"cat": 32, "dog": 4}


def test_a_ring_in_a_ring_is_a_hole(tmp_path):
    found, _ = opened(tmp_path, coco_text([item([BOX, [4, 4, 6, 4, 6, 6, 4, 6]])]))
    assert pixels(found) == {"cat": 32}


@pytest.mark.parametrize("crowd", [0, 1])
def test_run_lengths_as_text_and_as_numbers(tmp_path, crowd):
    mask = np.random.default_rng(0).random(SIZE) < 0.3
    for counts in (compressed_runs(mask), run_lengths(mask).tolist()):
        found, _ = opened(tmp_path, coco_text(
            [item({"size": list(SIZE), "counts": counts}, iscrowd=crowd)]))
        region, = found.images[0].regions(SIZE)
        assert pixels(found) == {"cat": mask.sum()} and region.place == "a.json: annotations[0]"


def test_one_ring_without_a_list_around_it_is_an_outline(tmp_path):
    found, _ = opened(tmp_path, coco_text([item(BOX)]))
    assert pixels(found) == {"cat": 36}


def test_categories_of_one_name_are_one_class_and_this_is_said(tmp_path):
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    found, findings = opened(tmp_path, coco_text([item([BOX], 1)], categories=categories))
    assert [category.name for category in found.categories] == ["cat", "dog"]
    assert pixels(found) == {"cat": 36}
    assert findings.lines() == ["1 used: a second category 'cat' is the same class "
                                "(a.json: categories[1])"]


def test_colors_of_categories_are_read(tmp_path):
    categories = [{"id": 1, "name": "a", "color": [1, 2, 3]}, {"id": 2, "name": "b",
                  "color": "#0a0B0c"}, {"id": 3, "name": "c", "color": [True, 2, 300]}]
    found, _ = opened(tmp_path, coco_text([], categories=categories))
    assert [category.color for category in found.categories] == [[1, 2, 3], [10, 11, 12], None]


@pytest.mark.parametrize("annotation,what", [
    (item([BOX], image=77), "annotations of images that are not in the list \"images\""),
    (item([]), "annotations without an outline or a mask"),
    (item(None), "annotations without an outline or a mask"),
    (item([[]]), "annotations without an outline or a mask"),
    (item([[2, 2, 8, 2]]), "outlines of fewer than three points"),
    (item([[40, 2, 48, 2, 48, 8]]), "outlines outside their image"),
    (item([[2, -9, 8, -9, 8, -1]]), "outlines outside their image"),
])
def test_what_cannot_be_drawn_is_left_out_and_said(tmp_path, annotation, what):
    found, findings = opened(tmp_path, coco_text([item([BOX]), annotation]))
    assert findings.wrong == [] and findings.left_out == {what: ["a.json: annotations[1]"]}
    assert pixels(found) == {"cat": 36}


def test_a_short_ring_among_others_leaves_the_others(tmp_path):
    found, findings = opened(tmp_path, coco_text([item([[1, 1, 2, 2], BOX]), item([[3, 3]], 8)]))
    assert len(findings.left_out["outlines of fewer than three points"]) == 2
    assert pixels(found) == {"cat": 36}


def test_an_outline_that_reaches_far_beyond_its_image_is_drawn_and_said(tmp_path):
    found, findings = opened(tmp_path, coco_text([item([[25, 2, 60, 2, 60, 8, 25, 8]])]))
    assert pixels(found) == {"cat": 30}
    assert findings.remarks == {"outlines more than 2 pixels beyond their image":
                                ["a.json: annotations[0]"]}


MASK = {"size": [20, 30], "counts": [600]}


@pytest.mark.parametrize("annotation,said", [
    ("x", "expected an object, found 'x'"),
    (item([BOX], 4), "there is no category 4"),
    (item([BOX], "3"), "there is no category '3'"),
    (item([BOX], True), "there is no category True"),
    (item([BOX], [[[]]]), "there is no category a list of 1"),
    (item("poly"), "\"segmentation\" is 'poly'"),
    (item([BOX, 7]), "an outline is 7"),
    (item([[1, 2, 3, 4, 5]]), "5 numbers"),
    (item([[1, 2, 3, 4, 5, "6"]]), "a coordinate is '6'"),
    (item([[1, 2, 3, 4, 5, True]]), "a coordinate is True"),
    (item([[1, 2, 3, 4, 5, None]]), "a coordinate is None"),
    (item([[1, 2, 3, 4, 5, 1e300]]), "a coordinate is 1e+300"),
    (item([[1, 2, 3, 4, 5, 10 ** 400]]), "larger than any number"),
    (item({**MASK, "size": [20, 31]}), "the mask is 20x31, its image 20x30"),
    (item({**MASK, "size": [10 ** 9, 10 ** 9]}), "the limit is"),
    (item({**MASK, "size": [-1, 5]}), "the height is -1"),
    (item({**MASK, "size": 600}), "\"size\" of the mask is 600"),
    (item({**MASK, "counts": [601]}), "have 601 pixels, its image 600"),
    (item({**MASK, "counts": [700, -100]}), "a run length of the mask is negative"),
    (item({**MASK, "counts": [600.0]}), "\"counts\" of the mask is a list of 1"),
    (item({**MASK, "counts": [10 ** 400]}), "a number of more than 40 digits pixels"),
    (item({**MASK, "counts": 5}), "\"counts\" of the mask is 5"),
])
def test_a_wrong_annotation_is_named_with_its_number(tmp_path, annotation, said):
    _, findings = opened(tmp_path, coco_text([item([BOX]), annotation, item([BOX])]))
    line, = findings.wrong
    assert line.startswith("a.json: annotations[1]: ") and said in line and len(line) < 160


@pytest.mark.parametrize("text,said", [
    ("0OO", "a run is negative"), ("é", "a character"), ("o" * 99, "within a number"),
    ("ooooooooooooooooooooo1", "a number is too large"), ("", "have 0 pixels"),
    ("Q", "within a number"), ("oooo0oooo0", "pixels, its image 600")])
def test_damaged_run_lengths_in_a_text_are_refused_when_they_are_drawn(tmp_path, text, said):
    found, _ = opened(tmp_path, coco_text([item({**MASK, "counts": text})]))
    with pytest.raises(DataError, match=said) as caught:
        pixels(found)
    assert caught.value.where == "a.json: annotations[0]"


@pytest.mark.parametrize("images,said", [
    ([{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}],
     "images[1]: the id 1 is used before, in a.json: images[0]"),
    ([{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}],
     "images[1]: the name 'a.jpg' is used before, in a.json: images[0]"),
    ([{"id": 1, "file_name": "../../etc/passwd"}], "leaves the folder of the images"),
    ([{"id": 1, "file_name": "a\\..\\..\\b.jpg"}], "leaves the folder of the images"),
    ([{"id": 1, "file_name": 5}], "5 is not the name of an image"),
    ([{"id": 1, "file_name": "a\0.jpg"}], "a NUL character"),
    ([{"id": 1, "file_name": "a.jpg", "height": 10 ** 9, "width": 10 ** 9}], "the limit is"),
    ([{"id": 1, "file_name": "a.jpg", "height": "20", "width": 30}], "the height is '20'"),
    ([{"id": 1, "file_name": "a.jpg", "height": 20}], "the width is None"),
    ([{"id": 1.5, "file_name": "a.jpg"}], "expected an object with an \"id\""),
    ([7], "expected an object with an \"id\""),
])
def test_a_wrong_image_is_named_with_its_number(tmp_path, images, said):
    _, findings = opened(tmp_path, coco_text([], images))
    line, = findings.wrong
    assert said in line and line.startswith("a.json: images[")


@pytest.mark.parametrize("categories,said", [
    ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "categories[1]: the id 1 is used before"),
    ([{"id": "1", "name": "a"}], "categories[0]: expected an object"),
    ([{"id": 1, "name": ""}], "categories[0]: expected an object"), (["a"], "expected an object")])
def test_a_wrong_category_is_named_with_its_number(tmp_path, categories, said):
    _, findings = opened(tmp_path, coco_text([], categories=categories))
    line, = findings.wrong
    assert said in line


@pytest.mark.parametrize("text,said", [
    ("[" * 10 ** 6, "nested too deep"),
    ('{"a":' * 10 ** 5, "nested too deep"),
    ("{}", "'images' is None; expected a list"),
    ('{"images": {}}', "'images' is an object; expected a list"),
    ("[1]", "the file contains a list of 1; expected an object"),
    ('{"images": NaN}', "NaN is not a number of JSON"),
    ('{"images": -Infinity}', "-Infinity is not a number"),
    ('{"images": ' + "1" * 5000 + "}", "this is not JSON"),
    ('{"images": [', "this is not JSON"),
    ("", "this is not JSON"),
    ("\xff", "is not JSON"),
    (coco_text([{"segments_info": []}]), "this is a panoptic file"),
])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, text)
    assert said in caught.value.what and "\n" not in caught.value.in_one_line


def test_a_folder_with_one_file_is_that_file_and_with_several_it_says_so(tmp_path):
    (tmp_path / "train.json").write_text(coco_text([item([BOX])]))
    assert recognizes(tmp_path) and len(read(tmp_path, Findings()).images) == 1
    (tmp_path / "val.json").write_text(coco_text([]))
    with pytest.raises(DataError, match="2 JSON files: train.json, val.json"):
        read(tmp_path, Findings())


def test_other_json_is_not_recognized(tmp_path):
    for name, text in (("a.json", "[]"), ("b.json", '{"shapes": []}'), ("c.json", ""),
                       ("d.json", json.dumps([{"annotations": [], "images": []}]))):
        (tmp_path / name).write_text(text)
        assert not recognizes(tmp_path / name)
    assert not recognizes(tmp_path / "missing.json")
