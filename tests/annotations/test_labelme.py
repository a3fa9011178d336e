"""labelme JSON: what is drawn, what is left out and said, and what is refused."""
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.support.exports import labelme_mask, labelme_text
from utils.annotations.annotation_set import Findings
from utils.annotations.labelme import read, recognizes
from utils.annotations.rasterize import draw
from utils.errors import DataError

SIZE = 20, 30
BOX = [[2, 2], [8, 2], [8, 8], [2, 8]]          # 36 pixels


def shape(points, label="cat", kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def opened(tmp_path, shapes, **more):
    """(the AnnotationSet, its Findings) of one file."""
    path = tmp_path / "a.json"
    path.write_text(labelme_text(shapes, **more))
    findings = Findings()
    return read(path, findings), findings


def label_map(found):
    return draw(found.images[0].regions(SIZE), range(1, len(found.categories) + 1), SIZE, 0,
                found.overlap)


def test_shapes_are_drawn_in_their_order_and_classes_are_in_alphabetical_order(tmp_path):
    found, findings = opened(tmp_path, [shape(BOX, "dog"), shape([[4, 4], [6, 4], [6, 6], [4, 6]]),
                                        shape(BOX, "bird")])
    assert [category.name for category in found.categories] == ["bird", "cat", "dog"]
    assert np.unique(label_map(found), return_counts=True)[1].tolist() == [564, 36]
    assert findings.wrong == [] and findings.lines() == []


def test_a_rectangle_from_any_two_corners(tmp_path):
    for points in ([[2, 3], [8, 6]], [[8, 6], [2, 3]], [[2, 6], [8, 3]]):
        drawn = label_map(opened(tmp_path, [shape(points, kind="rectangle")])[0])
        assert drawn.sum() == 18 and drawn[3:6, 2:8].all()


def test_a_circle_of_a_center_and_a_point_on_it(tmp_path):
    drawn = label_map(opened(tmp_path, [shape([[15, 10], [15, 18]], kind="circle")])[0])
    rows, columns = np.mgrid[:20, :30] + 0.5
    distance = np.hypot(rows - 10, columns - 15)
    assert drawn[distance < 7.3].all() and not drawn[distance > 8.7].any()


def test_a_mask_lies_between_its_corners(tmp_path):
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    drawn = label_map(opened(tmp_path, [labelme_mask(mask, left=11, top=4)])[0])
    assert np.array_equal(drawn[4:9, 11:18], mask) and drawn.sum() == mask.sum()


def test_a_picture_in_the_file_is_not_decoded(tmp_path):
    found, _ = opened(tmp_path, [shape(BOX)], imageData="this is not base64" * 1000)
    assert label_map(found).sum() == 36
    found, _ = opened(tmp_path, [shape(BOX)], imageData='with a quote " in it')
    assert label_map(found).sum() == 36


@pytest.mark.parametrize("written", ["a.jpg", "..\\images\\a.jpg", "../../images/a.jpg",
                                     "C:\\data\\a.jpg", "/home/x/a.jpg"])
def test_the_image_is_the_last_name_of_its_path(tmp_path, written):
    found, _ = opened(tmp_path, [], image=written)
    assert found.images[0].image == "a.jpg"


def test_files_in_folders_name_images_in_the_same_folders(tmp_path):
    for name in ("x/a", "y/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(labelme_text([shape(BOX)]))
    (tmp_path / "classes.json").write_text("[]")
    findings = Findings()
    assert recognizes(tmp_path)
    assert [image.image for image in read(tmp_path, findings).images] == ["x/a.jpg", "y/a.jpg"]
    assert findings.lines() == ["1 left out: a JSON file without shapes (classes.json)"]


@pytest.mark.parametrize("kind", ["line", "linestrip", "point", "points"])
def test_lines_and_points_are_left_out_and_said(tmp_path, kind):
    found, findings = opened(tmp_path, [shape(BOX), shape([[1, 1], [2, 2]], kind=kind)])
    assert findings.left_out == {f"a {kind}, which has no area": ["a.json: shapes[1]"]}
    assert label_map(found).sum() == 36


def test_a_polygon_of_two_points_is_left_out_and_said(tmp_path):
    _, findings = opened(tmp_path, [shape([[1, 1], [2, 2]])])
    assert list(findings.left_out) == ["an outline of fewer than three points"]


@pytest.mark.parametrize("wrong,said", [
    (7, "it is 7; expected an object"),
    (shape(BOX, None), "\"label\" is None"),
    (shape(BOX, kind="spline"), "the shape 'spline' is not known"),
    (shape(BOX, kind=["polygon"]), "the shape a list of 1 is not known"),
    (shape("BOX"), "an outline is 'BOX'"),
    (shape([[1, 2, 3]] * 3), "not a pair"),
    (shape([[1, 2], [3, True], [4, 5]]), "a coordinate is True"),
    (shape([[1, 2], [3, 1e301], [4, 5]]), "a coordinate is 1e+301"),
    (shape(BOX[:3], kind="rectangle"), "a rectangle has 3 points"),
    (shape(BOX[:1], kind="circle"), "a circle has 1 points"),
    (shape(BOX[:2], kind="mask"), "\"mask\" is None"),
])
def test_a_wrong_shape_is_named_with_its_number(tmp_path, wrong, said):
    _, findings = opened(tmp_path, [shape(BOX), wrong])
    line, = findings.wrong
    assert line.startswith("a.json: shapes[1]: ") and said in line


def bomb():
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("mask,said", [
    (lambda: "no base64!", "not base64"), (lambda: base64.b64encode(b"GIF89a").decode(), "the PNG"),
    (lambda: labelme_mask(np.ones((5, 6)))["mask"], "corners say 7x7"),
    (bomb, "a mask of 9000x9000 pixels")])
def test_a_damaged_mask_is_refused_when_it_is_drawn(tmp_path, mask, said):
    found, _ = opened(tmp_path, [shape([[2, 2], [8, 8]], kind="mask", mask=mask())])
    with pytest.raises(DataError, match=said) as caught:
        label_map(found)
    assert caught.value.where == "a.json: shapes[0]"


@pytest.mark.parametrize("text,said", [
    ("[" * 10 ** 6, "nested too deep"), ("", "not JSON"),
    (json.dumps({"shapes": [], "imagePath": None}), "\"imagePath\" is None"),
    (json.dumps({"shapes": [], "imagePath": ".."}), "leaves the folder"),
    (json.dumps({"shapes": {}, "imagePath": "a.jpg"}), "\"shapes\" is an object"),
    (json.dumps({"shapes": [], "imagePath": "a.jpg", "imageHeight": -5, "imageWidth": 9}),
     "the height is -5"),
])
def test_one_unusable_file_is_one_line_and_the_others_are_read(tmp_path, text, said):
    (tmp_path / "a.json").write_text(labelme_text([shape(BOX)]))
    (tmp_path / "b.json").write_text(text)
    findings = Findings()
    assert len(read(tmp_path, findings).images) == 1
    line, = findings.wrong
    assert line.startswith("b.json: ") and said in line
