"""Which file an annotation means: folders of other machines, and other spellings of a name."""
from pathlib import Path

import pytest

from utils.annotations.annotation_set import AnnotatedImage
from utils.annotations.image_lookup import ImageLookup
from utils.images.name_pattern import FoundFile


def matched(names, *wanted, other_names=()):
    """(the names of the files of the annotations, what is said of other spellings)."""
    lookup = ImageLookup([FoundFile(name, name, Path(name)) for name in names])
    found = lookup.match([AnnotatedImage(name, None, "", lambda _: [], other_names)
                          for name in wanted])
    return [one if isinstance(one, str) else one.name for one in found], lookup.respelled


@pytest.mark.parametrize("name, file", [
    ("IMG_1.jpg", "img_1.JPG"), ("Blu\u0308te.png", "Bl\u00fcte.png"), ("a_b_1.jpg", "a b (1).jpg"),
    ("Scan_1", "scan_1.TIF"), ("C/fotos/a.jpg", "Fotos/A.jpg")])
def test_a_name_may_be_spelled_otherwise_and_it_is_said(name, file):
    assert matched([file], name) == ([file], [f"{name} is {file}"])


def test_a_name_as_it_is_goes_first():
    assert matched(["a.jpg", "A.jpg"], "A.jpg", "a.jpg") == (["A.jpg", "a.jpg"], [])


def test_a_file_that_an_annotation_names_is_not_that_of_another():
    assert matched(["A.jpg"], "A.jpg", "a.jpg") == (["A.jpg", "no image a.jpg"], [])


def test_two_files_that_a_spelling_fits_are_left_to_the_user():
    assert matched(["A b.jpg", "a B.jpg"], "a_b.jpg")[0] == ["no image a_b.jpg"]


def test_the_name_before_an_upload_may_have_had_spaces():
    assert matched(["my photo.jpg"], "upload/1/0a1b2c3d-my_photo.jpg",
                   other_names=("upload/1/my_photo.jpg",))[0] == ["my photo.jpg"]
