"""CVAT for images: each kind of shape, what is left out, and files that are hostile."""
import struct
import zipfile

import numpy as np
import pytest

from tests.support import exports
from utils.annotations import cvat, file_tree
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import format_of, read_annotations
from utils.annotations.rasterize import region_masks
from utils.errors import DataError

SIZE = (30, 40)


def written(folder, shapes, size=SIZE, more="", name="a.jpg"):
    return exports.put(folder / "x.xml", exports.cvat_text([(name, size, shapes)], more))


def only_image(path):
    """(the one image of a file, what was found in reading)."""
    findings = Findings()
    image, = read_annotations(path, findings).images
    return image, findings


def pixels(path):
    """The pixels of the one shape of a file."""
    image, findings = only_image(path)
    assert not findings.wrong
    mask, = region_masks(image.regions(SIZE), SIZE)
    return mask


def test_a_box_has_the_pixels_between_its_sides(tmp_path):
    found = pixels(written(tmp_path, '<box label="cat" xtl="3" ytl="5" xbr="13" ybr="9"/>'))
    expected = np.zeros(SIZE, bool)
    expected[5:9, 3:13] = True
    np.testing.assert_array_equal(found, expected)


def test_a_box_turns_about_its_center(tmp_path):
    found = pixels(written(
        tmp_path, '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'))
    expected = np.zeros(SIZE, bool)
    expected[7:17, 13:17] = True
    np.testing.assert_array_equal(found, expected)


def test_an_ellipse_has_its_area_and_turns_clockwise(tmp_path):
    place = '<ellipse label="cat" cx="20" cy="15" rx="12" ry="4" rotation="{}"/>'
    level, turned = (pixels(written(tmp_path, place.format(turn))) for turn in (0, 30))
    assert abs(level.sum() - np.pi * 48) < 8 and abs(turned.sum() - np.pi * 48) < 8
    assert level[15, 9] and not level[10, 11] and turned[10, 11] and turned[20, 29]


def test_the_runs_of_a_mask_go_row_by_row_in_its_box(tmp_path):
    # A disk of 13 x 15 pixels as CVAT writes it; its rows worked out by hand.
    runs = ("3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, "
            "7, 7, 5, 3")
    found = pixels(written(tmp_path, f'<mask label="cat" rle="{runs}" left="20" top="4" '
                                     'width="13" height="15" z_order="0"/>'))
    rows = [(3, 8), (2, 9), (1, 10), (0, 11), (0, 11), (0, 12), (0, 12), (0, 13), (0, 13)]
    for number, (first, last) in enumerate(rows):
        assert np.flatnonzero(found[4 + number]).tolist() == list(range(20 + first, 20 + last))
    assert found.sum() == 5 + 7 + 9 + 11 + 11 + 12 + 12 + 26 + 12 + 12 + 11 + 9 + 7 + 5


def test_shapes_without_an_area_are_left_out_by_kind_with_their_lines(tmp_path):
    shapes = ('<polyline label="cat" points="1,1;2,2"/>\n<points label="cat" points="1,1"/>\n'
              '<points label="cat" points="1,1"/>\n<tag label="cat"/>\n'
              '<skeleton label="cat"><points label="cat" points="1,1"/></skeleton>\n'
              '<polygon label="cat" points="1,1;9,1;9,9"/>\n')
    path = written(tmp_path, shapes)
    image, findings = only_image(path)
    assert len(image.regions(SIZE)) == 1
    first = path.read_text().splitlines().index('<polyline label="cat" points="1,1;2,2"/>') + 1
    assert findings.left_out == {
        "<polyline>, which has no area": [f"{path}:{first}"],
        "<points>, which has no area": [f"{path}:{first + 1}", f"{path}:{first + 2}"],
        "<tag>, which has no area": [f"{path}:{first + 3}"],
        "<skeleton>, which has no area": [f"{path}:{first + 4}"]}


def test_an_unknown_label_is_named_with_its_line(tmp_path):
    path = written(tmp_path, '<polygon label="cta" points="1,1;9,1;9,9"/>')
    _, findings = only_image(path)
    assert len(findings.wrong) == 1
    assert "Did you mean 'cat'?" in findings.wrong[0] and findings.wrong[0].startswith(f"{path}:")


def test_labels_of_points_and_of_tags_are_not_classes(tmp_path):
    text = exports.cvat_text([]).replace("<type>any</type>", "<type>points</type>", 1)
    found = read_annotations(exports.put(tmp_path / "a.xml", text), Findings())
    assert [category.name for category in found.categories] == ["dog", "tree"]


def test_tracks_of_a_video_are_refused(tmp_path):
    track = ('<track id="0" label="cat"><box frame="0" xtl="1" ytl="1" xbr="9" ybr="9" '
             'outside="0"/></track>')
    path = exports.put(tmp_path / "a.xml", exports.cvat_text([], track))
    with pytest.raises(DataError, match="1 tracks of a video.*\n.*\n.*CVAT for images 1.1"):
        read_annotations(path, Findings())


@pytest.mark.parametrize("shape, message", [
    ('<polygon label="cat" points="1,1;2"/>', "points are '1,1;2'"),
    ('<polygon label="cat" points="1,nan;2,2;3,3"/>', "points are"),
    ('<polygon label="cat" points="1e300,1;2,2;3,3"/>', "a coordinate is 1e\\+300"),
    ('<polygon label="cat"/>', "points are ''"),
    ('<box label="cat" xtl="1" ytl="1" xbr="9"/>', "ybr is None"),
    ('<box label="cat" xtl="1" ytl="1" xbr="9" ybr="1_0"/>', "ybr is '1_0'"),
    ('<ellipse label="cat" cx="1" cy="1" rx="inf" ry="2"/>', "rx is 'inf'"),
    ('<mask label="cat" rle="1, 3" left="0" top="0" width="2" height="3"/>', "have 4 pixels"),
    ('<mask label="cat" rle="1, 9999999999" left="0" top="0" width="2" height="3"/>',
     "have 10000000000 pixels"),
    ('<mask label="cat" rle="1, -3" left="0" top="0" width="2" height="3"/>', "rle is"),
    ('<mask label="cat" rle="" left="0" top="0" width="2" height="3"/>', "rle is ''"),
    ('<mask label="cat" rle="1" left="0" top="0" width="1000000000" height="1000000000"/>',
     "is not within the image of 30x40"),
    ('<mask label="cat" rle="6" left="-1" top="0" width="2" height="3"/>', "is not within"),
    ('<mask label="cat" rle="6" left="0.5" top="0" width="2" height="3"/>', "left is '0.5'"),
    ('<mask label="cat" rle="6" left="0" top="0" width="1e99" height="3"/>', "width is '1e99'"),
])
def test_a_wrong_shape_is_refused_with_its_line(tmp_path, shape, message):
    path = written(tmp_path, shape)
    image, findings = only_image(path)
    assert not findings.wrong
    with pytest.raises(DataError, match=message) as caught:
        image.regions(SIZE)
    line = path.read_text().splitlines().index(shape + "</image>") + 1
    assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize("old, new, message", [
    ('name="a.jpg"', 'name="../a.jpg"', "leaves the folder of the images"),
    ('name="a.jpg"', 'name=" "', "is not the name of an image"),
    ('width="40"', 'width="0"', "the width is 0"), ('width="40"', 'width="-3"', "the width is -3"),
    ('width="40"', 'width="1e10"', "an image of"), ('width="40"', "", "width is None"),
    ('width="40"', 'width="nan"', "width is 'nan'"),
])
def test_a_wrong_image_is_a_finding(tmp_path, old, new, message):
    path = written(tmp_path, "")
    path.write_text(path.read_text().replace(old, new))
    findings = Findings()
    assert read_annotations(path, findings).images == []
    assert len(findings.wrong) == 1 and message in findings.wrong[0]


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha" * 50}">' for i in range(12))


@pytest.mark.parametrize("head", [
    f"<!DOCTYPE annotations [{LAUGHS}]>", '<!DOCTYPE annotations SYSTEM "file:///etc/passwd">',
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "<!DOCTYPE annotations>",
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://localhost/x"> %p;]>'])
def test_xml_that_declares_entities_is_refused(tmp_path, head):
    text = exports.cvat_text([("a.jpg", SIZE, '<tag label="&l11;"/>')])
    path = exports.put(tmp_path / "a.xml", text.replace("?>\n", f"?>\n{head}\n", 1))
    with pytest.raises(DataError, match="declares a document type"):
        read_annotations(path, Findings())


@pytest.mark.parametrize("text, message", [
    ("<annotations>" + "<a>" * 100000, "nested more than 50 levels"),
    ("<annotations><image", "not XML"), ("<annotations></b>", "mismatched tag"),
    ("<annotations>&x;</annotations>", "undefined entity"),
    ('<?xml version="1.0" encoding="x-no"?><annotations/>', "not XML: unknown encoding"),
    ("<annotations a='1' a='2'/>", "duplicate attribute")])
def test_what_is_not_cvats_xml_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        cvat.read(exports.put(tmp_path / "a.xml", text), Findings())


def zip_of(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "images/../../a.jpg", "C:/a.jpg",
                                  "..\\a.jpg", "\\\\host\\a.jpg"])
def test_a_zip_with_names_that_leave_its_folder_is_refused(tmp_path, name):
    path = zip_of(tmp_path / "a.zip", ("annotations.xml", exports.cvat_text([])), (name, b""))
    with pytest.raises(DataError, match="would leave the folder"):
        cvat.read(path, Findings())
    with pytest.raises(DataError, match="would leave the folder"):
        format_of(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(cvat, "MOST_BYTES", 1 << 20)
    text = exports.cvat_text([]).replace("</annotations>", " " * (1 << 22) + "</annotations>")
    path = zip_of(tmp_path / "a.zip", ("annotations.xml", text))
    assert path.stat().st_size < 20000
    with pytest.raises(DataError, match="larger than 1 MiB"):
        read_annotations(path, Findings())


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("annotations.xml", exports.cvat_text([])))
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    path.write_bytes(data[:at + 24] + struct.pack("<I", 10) + data[at + 28:])
    with pytest.raises(DataError, match="a.zip"):
        cvat.read(path, Findings())


def test_a_zip_with_two_files_of_one_name_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zip_of(tmp_path / "a.zip", *[("annotations.xml", exports.cvat_text([]))] * 2)
    with pytest.raises(DataError, match="have the names of others"):
        cvat.read(path, Findings())


def test_a_file_that_only_looks_like_a_zip_is_refused(tmp_path):
    path = exports.put(tmp_path / "a.zip", b"PK\3\4" + b"\0" * 100)
    with pytest.raises(DataError, match="the zip cannot be read"):
        cvat.read(path, Findings())
    assert not cvat.recognizes(path) and not file_tree.is_zip(tmp_path)


def test_copies_of_macos_and_hidden_files_of_a_zip_are_left_alone(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("__MACOSX/._annotations.xml", b"x"), (".DS_Store", b"x"),
                  ("job/annotations.xml", exports.cvat_text([("b.png", SIZE, "")])))
    assert [image.image for image in read_annotations(path, Findings()).images] == ["b.png"]
