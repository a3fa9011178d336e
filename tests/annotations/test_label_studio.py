"""Label Studio: brush masks, shapes in per cent, which annotation counts, names, hostile files."""
import base64
import json

import numpy as np
import pytest

from tests.support import exports
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import read_annotations
from utils.annotations.rasterize import region_masks
from utils.errors import DataError

SIZE = (20, 40)
SQUARE = {"points": [[10, 10], [50, 10], [50, 60], [10, 60]]}


def task(*results, name="/data/upload/1/6a4f1e2b-a.jpg", **more):
    return {"id": 1, "data": {"image": name},
            "annotations": [{"id": 1, "result": list(results), "was_cancelled": False, **more}]}


def found_in(folder, *tasks):
    """(the AnnotationSet, what was found in reading)."""
    path = exports.put(folder / "p.json", json.dumps(tasks))
    findings = Findings()
    return read_annotations(path, findings), findings


def pixels(folder, value, **more):
    """The pixels of one shape."""
    found, findings = found_in(folder, task(exports.label_studio_result(SIZE, value, **more)))
    assert not findings.wrong
    mask, = region_masks(found.images[0].regions(SIZE), SIZE)
    return mask


def test_the_head_of_a_brush_mask_is_read_as_label_studio_writes_it():
    # The first bytes of a published export of an image of 3332 x 2527: the number of values, 8 bits
    # each, and lengths of 3, 4, 8 and 16 bits.
    assert int.from_bytes(bytes([2, 1, 233, 240]), "big") == 4 * 3332 * 2527
    assert exports.packed(np.zeros(4 * 3332 * 2527))[:6] == [2, 1, 233, 240, 57, 27]


@pytest.mark.parametrize("seed", range(6))
def test_a_brush_mask_has_the_pixels_it_was_packed_from(tmp_path, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(SIZE) < (0.02, 0.1, 0.5, 0.9, 0, 1)[seed]
    np.testing.assert_array_equal(pixels(tmp_path, exports.brush_value(mask)), mask)


def test_a_pixel_belongs_to_a_brush_mask_from_half_of_the_alpha_on(tmp_path):
    alpha = np.arange(800, dtype=np.uint32).reshape(SIZE).astype(np.uint8)
    picture = np.full((*SIZE, 4), 9, np.uint8)
    picture[..., 3] = alpha
    found = pixels(tmp_path, {"format": "rle", "rle": exports.packed(picture.ravel())})
    np.testing.assert_array_equal(found, alpha >= 128)


def test_coordinates_are_per_cent_of_the_image(tmp_path):
    expected = np.zeros(SIZE, bool)
    expected[2:12, 4:20] = True
    np.testing.assert_array_equal(pixels(tmp_path, SQUARE), expected)
    box = {"x": 10, "y": 10, "width": 40, "height": 50, "rotation": 0}
    np.testing.assert_array_equal(pixels(tmp_path, box), expected)


def test_a_rectangle_turns_about_its_upper_left_corner_in_pixels(tmp_path):
    box = {"x": 50, "y": 10, "width": 10, "height": 50, "rotation": 90}     # 4 x 10 at (20, 2)
    expected = np.zeros(SIZE, bool)
    expected[2:6, 10:20] = True
    np.testing.assert_array_equal(pixels(tmp_path, box), expected)


def test_an_ellipse_lies_around_its_center(tmp_path):
    found = pixels(tmp_path, {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0})
    rows, columns = np.nonzero(found)       # 8 pixels to each side, 4 up and down
    assert abs(found.sum() - np.pi * 32) < 6
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (12, 27, 6, 13)


def test_a_bit_mask_has_the_pixels_that_are_not_transparent(tmp_path):
    mask = np.random.default_rng(0).random(SIZE) < 0.3
    picture = np.zeros((*SIZE, 4), np.uint8)
    picture[mask, 3] = 255
    text = "data:image/png;base64," + base64.b64encode(exports.png_bytes(picture)).decode()
    result = exports.label_studio_result(SIZE, {})
    result["value"] = {"imageDataURL": text, "bitmasklabels": ["cat"]}
    found, _ = found_in(tmp_path, task(result))
    np.testing.assert_array_equal(region_masks(found.images[0].regions(SIZE), SIZE)[0], mask)


@pytest.mark.parametrize("name, expected, other", [
    ("/data/upload/1/6a4f1e2b-a b.jpg", "data/upload/1/6a4f1e2b-a b.jpg", "data/upload/1/a b.jpg"),
    ("/data/local-files/?d=photos%2Fa%20b.png", "photos/a b.png", None),
    ("s3://bucket/x/a.tif", "bucket/x/a.tif", None),
    ("https://host/x/a%20b.jpg?sig=1#2", "host/x/a b.jpg", None), ("a#1.jpg", "a#1.jpg", None)])
def test_the_name_of_an_image_is_found_in_the_addresses_of_label_studio(tmp_path, name, expected,
                                                                       other):
    found, findings = found_in(tmp_path, task(name=name))
    assert findings.wrong == [] and found.images[0].image == expected
    assert found.images[0].other_names == ((other,) if other else ())


@pytest.mark.parametrize("data, message", [
    ({"image": "/data/../x.jpg"}, "leaves the folder"), ({"text": "hello"}, "none of the values"),
    ({"left": "a.jpg", "right": "b.jpg"}, "2 of the values"), ([], "expected an object")])
def test_a_task_without_one_image_is_a_finding(tmp_path, data, message):
    found, findings = found_in(tmp_path, {**task(), "data": data})
    assert not found.images and len(findings.wrong) == 1 and message in findings.wrong[0]
    assert "p.json: [0]" in findings.wrong[0]


def test_the_ground_truth_counts_or_else_the_newest_that_is_not_cancelled(tmp_path):
    def annotation(label, **more):
        return {"result": [exports.label_studio_result(SIZE, SQUARE, label)], **more}

    def labels(*annotations):
        found, findings = found_in(tmp_path, {"data": {"image": "a.jpg"},
                                              "annotations": annotations})
        names = [found.categories[region.category].name for image in found.images
                 for region in image.regions(SIZE)]
        return names, {what.split(" of ")[0]: len(places)
                       for what, places in findings.left_out.items()}

    old, new = (annotation(name, updated_at=f"2026-01-0{day}") for name, day in
                (("old", 1), ("new", 2)))
    assert labels(new, old) == (["new"], {"an annotation": 1})
    assert labels({**old, "ground_truth": True}, new) == (["old"], {"an annotation": 1})
    assert labels(old, {**new, "was_cancelled": True}) == (["old"], {"a cancelled annotation": 1})
    assert labels({**old, "was_cancelled": True}) == (
        [], {"a cancelled annotation": 1, "a task without an annotation": 1})
    assert labels() == ([], {"a task without an annotation": 1})


def test_results_without_an_area_are_counted_by_type(tmp_path):
    results = [exports.label_studio_result(SIZE, SQUARE),
               {"type": "choices", "value": {"choices": ["a"]}, "from_name": "c"},
               {"type": "relation", "from_id": "a", "to_id": "b"},
               {"type": "polygon", "id": "a1", "value": SQUARE},       # again, with its label
               {"type": "polygon", "id": "b2", "value": SQUARE}]
    found, findings = found_in(tmp_path, task(*results))
    assert len(found.images[0].regions(SIZE)) == 1 and not findings.wrong
    assert {what: len(places) for what, places in findings.left_out.items()} == {
        "a result of type 'choices', which is no area": 1,
        "a result of type 'relation', which is no area": 1, "a shape without a label": 1}


def test_json_min_and_old_completions_are_read_too(tmp_path):
    shape = {**SQUARE, "polygonlabels": ["dog"], "original_width": 40, "original_height": 20}
    found, findings = found_in(tmp_path, {"image": "a.jpg", "id": 3, "label": [shape],
                                          "annotator": 1})
    assert not findings.wrong and found.images[0].size == SIZE
    assert [category.name for category in found.categories] == ["dog"]
    assert region_masks(found.images[0].regions(SIZE), SIZE)[0].sum() == 160
    old = task(exports.label_studio_result(SIZE, SQUARE))
    old["completions"] = old.pop("annotations")
    assert len(found_in(tmp_path, old)[0].images) == 1


@pytest.mark.parametrize("change, message", [
    ({"image_rotation": 90}, "turned in Label Studio"), ({"original_width": True}, "the width is"),
    ({"original_width": 10 ** 9, "original_height": 10 ** 9}, "the limit is"),
    ({"value": {**SQUARE, "polygonlabels": ["a", "b"]}}, "the labels of a shape are 'a, b'"),
    ({"original_height": 21}, "those of the results before are 40 and 20")])
def test_a_wrong_result_is_a_finding(tmp_path, change, message):
    results = [exports.label_studio_result(SIZE, SQUARE),
               {**exports.label_studio_result(SIZE, SQUARE), **change}]
    _, findings = found_in(tmp_path, task(*results))
    assert len(findings.wrong) == 1 and message in findings.wrong[0]
    assert "p.json: [0].annotations[0].result[1]: " in findings.wrong[0]


FULL = exports.brush_value(np.ones(SIZE, bool))["rle"]


@pytest.mark.parametrize("value, message", [
    ({"rle": FULL[:-3]}, "ends too early"), ({"rle": []}, "a brush mask of 0 values"),
    ({"rle": [0, 0, 1, 0, *FULL[4:]]}, "a brush mask of 256 values"),
    ({"rle": [255] * 4 + FULL[4:]}, "a brush mask of 4294967295 values"),
    ({"rle": [*FULL[:4], 255, *FULL[5:]]}, "values of 32 bits"),
    ({"rle": [*FULL[:6], 255, 255, *FULL[8:]]}, "runs over the 3200 values"),
    ({"rle": [256]}, "not 0 to 255"), ({"rle": [True]}, "expected a list of bytes"),
    ({"rle": "0101"}, "expected a list of bytes"), ({"points": [[1, 2], [3]]}, "not a pair"),
    ({"points": [[1, 1e300]] * 3}, "a coordinate is 1e\\+300"),
    ({"points": [[1, "2"]] * 3}, "a coordinate is '2'"),
    ({"x": 1, "y": 1, "width": None, "height": 2}, "a coordinate is None"),
    ({"x": 1, "y": 1, "width": 2, "height": 2, "rotation": "1"}, "a coordinate is '1'"),
    ({"x": 1, "y": 1, "radiusX": 1e9, "radiusY": 2}, "a coordinate is"),
])
def test_a_wrong_shape_is_refused_with_its_number(tmp_path, value, message):
    found, findings = found_in(tmp_path, task(exports.label_studio_result(SIZE, value)))
    assert not findings.wrong
    with pytest.raises(DataError, match=message) as caught:
        found.images[0].regions(SIZE)
    assert caught.value.where == f"{tmp_path}/p.json: [0].annotations[0].result[0]"


def test_annotations_of_one_task_in_several_files_are_put_together(tmp_path):
    old, new = (exports.label_studio_result(SIZE, SQUARE, label) for label in ("cat", "dog"))
    for number, (result, time) in enumerate(((new, "2026-02"), (old, "2026-01"))):
        exports.put(tmp_path / f"{number}.json", json.dumps({
            "id": number, "updated_at": time, "result": [result],
            "task": {"id": 5, "data": {"image": "a.jpg"}}}))
    exports.put(tmp_path / "other.json", "{}")
    findings = Findings()
    found = read_annotations(tmp_path, findings)
    assert [image.image for image in found.images] == ["a.jpg"]
    assert [category.name for category in found.categories] == ["dog"]
    assert sum(map(len, findings.left_out.values())) == 2       # the older one, and the other file
