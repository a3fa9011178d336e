"""Masks in files: CVAT's segmentation mask, and one file for each class."""
from pathlib import Path

import numpy as np
import pytest

from tests.support import exports
from utils.annotations.annotation_set import Findings
from utils.annotations.class_masks import pattern_of
from utils.annotations.formats import followed_pattern, format_of, read_annotations
from utils.annotations.rasterize import draw
from utils.errors import DataError

SIZE = (12, 16)
MAP = "# label:color_rgb:parts:actions\nsky:10,0,0::\na b:0,0,200:body,head:run\n"
COLORS = np.array([[0, 0, 0], [10, 0, 0], [0, 0, 200]], np.uint8)


def found_in(path):
    findings = Findings()
    return read_annotations(path, findings), findings


def label_of(found, number=0):
    """The label map of an image: 0, or 1 + the category."""
    values = range(1, len(found.categories) + 1)
    return draw(found.images[number].regions(SIZE), values, SIZE, 0, found.overlap)


def cvat_masks(folder, mask, text=MAP):
    exports.put(folder / "labelmap.txt", text)
    exports.put(folder / "SegmentationClass/sub/a.b.png",
                mask if isinstance(mask, bytes) else exports.png_bytes(mask))
    return folder


LABEL = np.random.default_rng(1).integers(0, 3, SIZE)


def palette_png(label):
    from io import BytesIO

    from PIL import Image
    image = Image.fromarray(label.astype(np.uint8), "P")
    image.putpalette(COLORS.ravel().tolist())
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mask", [COLORS[LABEL], palette_png(LABEL),
                                  np.dstack([COLORS[LABEL], np.full(SIZE, 255, np.uint8)])])
def test_colors_are_the_classes_of_the_label_map(tmp_path, mask):
    found, findings = found_in(cvat_masks(tmp_path, mask))
    assert not findings.wrong and not findings.left_out
    assert found.images[0].image == "sub/a.b"
    assert [tuple(category) for category in found.categories] == [
        ("sky", [10, 0, 0]), ("a b", [0, 0, 200])]
    np.testing.assert_array_equal(label_of(found), LABEL)


def test_gray_masks_hold_the_numbers_of_the_lines(tmp_path):
    found, _ = found_in(cvat_masks(tmp_path, np.uint8(LABEL > 1)))
    np.testing.assert_array_equal(label_of(found), 1 + (LABEL > 1))


def test_the_folder_of_the_masks_may_be_given(tmp_path):
    cvat_masks(tmp_path / "x", COLORS[LABEL])
    assert len(found_in(tmp_path / "x" / "SegmentationClass")[0].images) == 1


def test_colors_without_a_class_are_refused_with_their_number(tmp_path):
    mask = COLORS[LABEL]
    mask[0, :3] = 7
    found, _ = found_in(cvat_masks(tmp_path, mask))
    with pytest.raises(DataError, match="3 pixels of colors that labelmap.txt does not name: "
                                        "\\(7, 7, 7\\)"):
        label_of(found)
    with pytest.raises(DataError, match="the mask is 12x16, its image 13x16"):
        found.images[0].regions((13, 16))


@pytest.mark.parametrize("line, message", [
    ("car", "'car' is not a class"), ("car:1,2:x", "is not a class"), (":1,2,3::", "not a class"),
    ("car:1,2,256::", "is not a class"), ("sky:1,2,3::", "the name of 'sky'"),
    ("car:10,0,0::", "the color of 'car'"), ("car:::", "is not a class")])
def test_a_wrong_line_of_the_label_map_is_a_finding(tmp_path, line, message):
    _, findings = found_in(cvat_masks(tmp_path, COLORS[LABEL], MAP + line + "\n"))
    assert len(findings.wrong) == 1 and message in findings.wrong[0]
    assert findings.wrong[0].startswith(f"{tmp_path}/labelmap.txt:4: ")


def test_images_of_the_lists_without_a_mask_are_counted(tmp_path):
    exports.put(tmp_path / "ImageSets/Segmentation/default.txt", "sub/a.b\nsub/c\n")
    _, findings = found_in(cvat_masks(tmp_path, COLORS[LABEL]))
    assert findings.left_out == {"the name of an image without a mask": [
        f"{tmp_path}/ImageSets/Segmentation/default.txt:2"]}


def masks(folder, **files):
    """One mask for each name, with the given pixels set."""
    for name, place in files.items():
        mask = np.zeros(SIZE, np.uint8)
        mask[place] = 255
        exports.put(folder / f"{name.replace('__', '/')}.png", exports.png_bytes(mask))
    return folder


TOP, LEFT, CORNER = np.s_[:6], np.s_[:, :8], np.s_[:3, :3]


@pytest.mark.parametrize("pattern, names", [
    ("{stem}_{class}.png", ("a_cat", "a_dog")), ("{class}/{stem}.png", ("cat__a", "dog__a")),
    ("{stem}/{class}", ("a__cat", "a__dog")), ("{stem}/{stem}-{class}", ("a__a-cat", "a__a-dog")),
    ("{stem}_by_*_{class}", ("a_by_x_cat", "a_by_y_dog"))])
def test_the_names_of_the_files_say_image_and_class(tmp_path, pattern, names):
    masks(tmp_path, **{names[0]: TOP, names[1]: CORNER})
    found, findings = found_in(tmp_path / pattern)
    assert not findings.wrong
    assert [category.name for category in found.categories] == ["cat", "dog"]
    assert [image.image for image in found.images] == ["a"]
    expected = np.zeros(SIZE, int)
    expected[TOP], expected[CORNER] = 1, 2
    np.testing.assert_array_equal(label_of(found), expected)
    (what, places), = findings.remarks.items()
    assert what.startswith("images whose masks overlap") and ": 9 of 192 pixels" in places[0]


def test_classes_whose_names_contain_the_sign_are_listed(tmp_path):
    masks(tmp_path, a_1_big_dog=TOP, a_1_dog=LEFT)
    found, _ = found_in(tmp_path / "{stem}_{class:dog|big_dog}.png")
    assert [category.name for category in found.categories] == ["big_dog", "dog"]
    assert [image.image for image in found.images] == ["a_1"]


def test_files_that_do_not_fit_and_doubles_are_said(tmp_path):
    masks(tmp_path, a_cat=TOP, b_cat=LEFT, other=TOP)
    exports.put(tmp_path / "a_cat.bmp", b"")
    _, findings = found_in(tmp_path / "{stem}_{class}")
    assert findings.wrong == [f"{tmp_path}/a_cat.png: a_cat.bmp is also the mask of cat of a"]
    assert findings.left_out["a file whose name does not fit the pattern"] == [
        f"{tmp_path}/other.png"]


def test_a_mask_of_several_values_is_refused(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[0, :3] = 1, 2, 3
    exports.put(tmp_path / "a_cat.png", exports.png_bytes(mask))
    found, _ = found_in(tmp_path / "{stem}_{class}.png")
    with pytest.raises(DataError, match="values 0, 1, 2, 3: this is not a mask of one class"):
        label_of(found)


@pytest.mark.parametrize("names, stems, pattern", [
    (["a_cat", "a_dog", "b_cat"], "ab", "{stem}_{class}"),
    (["a_1_cat", "a_1_dog", "b_cat"], ["a_1", "b"], "{stem}_{class}"),
    (["a_big_cat", "a_dog", "b_dog"], "ab", "{stem}_{class:big_cat|dog}"),
    (["cat__a", "dog__a", "dog__b"], "ab", "{class}/{stem}"),
    (["a_cat", "b_cat", "c_cat"], "abc", None),                 # one kind of masks
    (["a", "b", "a_cat"], "ab", None), (["a_cat", "a_dog", "c_cat"], "ab", None),
    (["a_1", "a_2", "a_3", "b_4"], "ab", None),                 # objects
    (["train__a", "val__b", "val__c"], "abc", None),
])
def test_the_pattern_of_a_folder_is_found_by_the_names_of_the_images(tmp_path, names, stems,
                                                                     pattern):
    masks(tmp_path, **{name: np.s_[number:number + 6] for number, name in enumerate(names)})
    assert pattern_of(tmp_path, stems) == pattern


def test_files_of_several_values_follow_no_pattern(tmp_path):
    masks(tmp_path, a_left=TOP, a_right=LEFT, b_left=TOP)
    assert followed_pattern(tmp_path, "ab") == tmp_path / "{stem}_{class}"
    exports.put(tmp_path / "b_left.png", exports.png_bytes(np.uint8(LABEL)))
    assert followed_pattern(tmp_path, "ab") is None


def test_copies_of_one_label_follow_no_pattern(tmp_path):
    masks(tmp_path, a_color=TOP, a_ids=TOP, b_color=TOP, b_ids=TOP)
    assert followed_pattern(tmp_path, "ab") is None


def test_a_pattern_needs_image_and_class(tmp_path):
    assert format_of(Path("masks/{class}.png")) is None
    assert format_of(Path("masks/{stem}.png")) is None
    with pytest.raises(DataError, match="no such folder"):
        found_in(tmp_path / "no" / "{stem}_{class}.png")
    with pytest.raises(DataError, match="no file fits the pattern"):
        found_in(tmp_path / "{stem}_{class}.png")
