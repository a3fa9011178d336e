"""Supervisely: holes, bitmaps and their place, rectangles, and hostile projects."""
import base64
import json
import zlib

import numpy as np
import pytest

from tests.support import exports
from tests.support.png import chunk, png
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import format_of, read_annotations
from utils.annotations.rasterize import region_masks
from utils.errors import DataError

SIZE = (20, 30)
META = {"classes": [{"title": "cat", "color": "#C81E28", "shape": "any"}, {"title": "dog"}]}
SQUARE = [[2, 2], [18, 2], [18, 18], [2, 18]]


def written(folder, *objects, meta=META, name="ds/ann/a.jpg.json", size=SIZE):
    exports.put(folder / "meta.json", json.dumps(meta))
    exports.put(folder / name, json.dumps({
        "objects": objects, "size": {"height": size[0], "width": size[1]}}))
    return folder


def found_in(folder):
    findings = Findings()
    return read_annotations(folder, findings), findings


def pixels(folder, *objects):
    found, findings = found_in(written(folder, *objects))
    assert not findings.wrong
    mask, = region_masks(found.images[0].regions(SIZE), SIZE)
    return mask


def polygon(exterior, *interior):
    return exports.supervisely_object(points={"exterior": exterior, "interior": list(interior)})


def bitmap(data, origin=(0, 0), compress=True, **more):
    text = base64.b64encode(zlib.compress(data) if compress else data).decode()
    return exports.supervisely_object(bitmap={"data": text, "origin": list(origin)}, **more)


def test_whole_coordinates_are_pixels_and_a_polygon_has_its_line(tmp_path):
    """As the SDK of Supervisely draws them; the line of a hole belongs to the hole."""
    expected = np.zeros(SIZE, bool)
    expected[2:19, 2:19] = True
    expected[4:9, 4:11] = expected[10:13, 12:15] = False
    np.testing.assert_array_equal(pixels(tmp_path, polygon(
        SQUARE, [[4, 4], [10, 4], [10, 8], [4, 8]], [[12, 10], [14, 10], [14, 12], [12, 12]])),
        expected)


def test_fractions_are_points_between_pixels(tmp_path):
    expected = np.zeros(SIZE, bool)
    expected[2:18, 2:18] = True
    square = [[x + 0.25, y + 0.25] for x, y in SQUARE]
    np.testing.assert_array_equal(pixels(tmp_path, polygon(square)), expected)


@pytest.mark.parametrize("exterior, rows, columns", [
    ([[-5, -5], [40, -5], [40, 40], [-5, 40]], (0, 20), (0, 30)),
    ([[25, 3], [10 ** 6, 3], [10 ** 6, 5], [25, 5]], (3, 6), (25, 30)),
    ([[-10 ** 6, 15], [4, 15], [4, 10 ** 6], [-10 ** 6, 10 ** 6]], (15, 20), (0, 5)),
    ([[30, 0], [40, 0], [40, 5]], (0, 0), (0, 0)), ([[3, 3], [9, 9]], (0, 0), (0, 0))])
def test_the_part_of_a_polygon_in_the_image_is_drawn(tmp_path, exterior, rows, columns):
    expected = np.zeros(SIZE, bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(pixels(tmp_path, polygon(exterior)), expected)


@pytest.mark.parametrize("corners, rows, columns", [
    ([[5, 3], [9, 7]], (3, 8), (5, 10)), ([[9, 7], [5, 3]], (3, 8), (5, 10)),
    ([[5, 3], [5, 3]], (3, 4), (5, 6)), ([[5.2, 3.2], [9.2, 7.2]], (3, 7), (5, 9))])
def test_a_rectangle_has_the_pixels_of_its_corners(tmp_path, corners, rows, columns):
    expected = np.zeros(SIZE, bool)
    expected[slice(*rows), slice(*columns)] = True
    one = polygon(corners) | {"geometryType": "rectangle"}
    np.testing.assert_array_equal(pixels(tmp_path, one), expected)


@pytest.mark.parametrize("values", [
    lambda mask: np.uint8(mask) * 255, lambda mask: np.uint8(mask),
    lambda mask: np.dstack([np.full(mask.shape, 255, np.uint8)] * 3 + [np.uint8(mask) * 255])])
def test_a_bitmap_lies_at_its_origin(tmp_path, values):
    mask = np.random.default_rng(0).random((6, 9)) < 0.5
    expected = np.zeros(SIZE, bool)
    expected[4:10, 7:16] = mask
    data = exports.png_bytes(values(mask))
    np.testing.assert_array_equal(pixels(tmp_path, bitmap(data, (7, 4))), expected)
    np.testing.assert_array_equal(pixels(tmp_path, bitmap(data, (7, 4), compress=False)), expected)


def test_an_alpha_mask_counts_from_half_on(tmp_path):
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    one = bitmap(exports.png_bytes(values)) | {"geometryType": "alpha_mask"}
    assert np.argwhere(pixels(tmp_path, one)).tolist() == [[0, 3], [0, 4]]


def test_datasets_lie_anywhere_in_a_project_also_zipped(tmp_path):
    project = written(tmp_path / "p", polygon(SQUARE), name="a/datasets/b/ann/x.png.json")
    found, _ = found_in(exports.zipped(project, tmp_path / "p.zip", "project/"))
    assert [image.image for image in found.images] == ["project/a/datasets/b/img/x.png"]
    assert [category.color for category in found.categories] == [[200, 30, 40], None]


def test_geometries_without_an_area_are_counted(tmp_path):
    objects = [{"geometryType": kind, "classTitle": "cat", "points": {"exterior": [[1, 1]]}}
               for kind in ("point", "line", "point")]
    found, findings = found_in(written(tmp_path, polygon(SQUARE), *objects))
    assert len(found.images[0].regions(SIZE)) == 1
    assert {what: len(places) for what, places in findings.left_out.items()} == {
        "geometry 'point', which has no area": 2, "geometry 'line', which has no area": 1}


@pytest.mark.parametrize("one, message", [
    ({**polygon(SQUARE), "classTitle": "cta"}, "the class 'cta' is not in meta.json"),
    ({**polygon(SQUARE), "classTitle": 3}, "the class 3 is not"), ("x", "it is 'x'")])
def test_a_wrong_object_is_a_finding(tmp_path, one, message):
    _, findings = found_in(written(tmp_path, polygon(SQUARE), one))
    assert len(findings.wrong) == 1
    assert findings.wrong[0].startswith(f"{tmp_path}/ds/ann/a.jpg.json: objects[1]: {message}")


@pytest.mark.parametrize("size", [(0, 30), (True, 30), ("20", 30), (10 ** 9, 10 ** 9), (None, 3)])
def test_a_wrong_size_is_a_finding(tmp_path, size):
    found, findings = found_in(written(tmp_path, size=size))
    assert not found.images and len(findings.wrong) == 1


@pytest.mark.parametrize("meta", [{}, {"classes": {}}, {"classes": ["cat"]}, [], 3])
def test_other_projects_are_not_taken_for_it(tmp_path, meta):
    assert format_of(written(tmp_path, meta=meta)) is None


WHITE = exports.png_bytes(np.full((6, 9), 255, np.uint8))
HUGE = png(40000, 40000, chunk(b"IDAT", zlib.compress(b"\0" * 100)), bits=1, color_type=0)


@pytest.mark.parametrize("one, message", [
    (bitmap(WHITE, (22, 0)), "is not within the image of 20x30"),
    (bitmap(WHITE, (0, 15)), "is not within"), (bitmap(WHITE, (-1, 0)), "origin is"),
    (bitmap(WHITE, (0.5, 0)), "origin is"), (bitmap(WHITE, (1, 2, 3, 4)), "origin is"),
    (bitmap(WHITE, ("1", 0)), "a coordinate is '1'"), (bitmap(WHITE, (1e300, 0)), "a coordinate"),
    (bitmap(HUGE), "a mask of 40000x40000 pixels"), (bitmap(WHITE[:40]), "the PNG cannot be read"),
    (bitmap(b""), "it is empty"), (bitmap(b"hello"), "the PNG cannot be read"),
    (bitmap(b"hello", compress=False), "not compressed by zlib"),
    (bitmap(b"\0" * (1 << 25)), "data has more than"),
    (exports.supervisely_object(bitmap={"data": "é", "origin": [0, 0]}), "not base64"),
    (exports.supervisely_object(bitmap={"data": "abc", "origin": [0, 0]}), "not base64"),
    (exports.supervisely_object(bitmap={"data": 3, "origin": [0, 0]}), "expected \"bitmap\""),
    (bitmap(exports.png_bytes(np.zeros((3, 3, 3), np.uint8))), "without transparency"),
    (polygon([[1, 2], [3]]), "not a pair"), (polygon("x"), "an outline is 'x'"),
    (polygon(SQUARE, "x"), "an outline is 'x'"), (polygon([[1, True]] * 3), "is True"),
    (exports.supervisely_object(points=3), "points are 3"),
    (exports.supervisely_object(points={"exterior": SQUARE, "interior": 3}), "interior is 3"),
    (polygon(SQUARE) | {"geometryType": "rectangle"}, "a rectangle has 4 points"),
])
def test_a_wrong_shape_is_refused_with_its_number(tmp_path, one, message):
    found, findings = found_in(written(tmp_path, polygon(SQUARE), one))
    assert not findings.wrong
    with pytest.raises(DataError, match=message) as caught:
        found.images[0].regions(SIZE)
    assert caught.value.where == f"{tmp_path}/ds/ann/a.jpg.json: objects[1]"


def test_deep_json_is_a_finding(tmp_path):
    project = written(tmp_path)
    exports.put(project / "ds/ann/b.jpg.json", "[" * 10 ** 6)
    found, findings = found_in(project)
    assert len(found.images) == 1 and "nested too deep" in findings.wrong[0]


def test_a_geometry_that_is_unknown_is_not_said_to_have_no_area(tmp_path):
    findings = Findings()
    path = exports.supervisely(tmp_path, exports.scenes(1))
    file = next(tmp_path.rglob("ann/*.json"))
    content = json.loads(file.read_text())
    content["objects"] = [{"classTitle": "cat", "geometryType": kind}
                          for kind in ("point", "blob", None, [])]
    file.write_text(json.dumps(content))
    read_annotations(path, findings)
    assert [what.partition(", which ")[2] for what in findings.left_out] == [
        "has no area", "is unknown", "is unknown", "is unknown"]
