import os

import numpy as np
import pytest

from base.dataset_files import (
    Sample,
    first_folder,
    header_problem,
    images_only,
    listed_file,
    pair_by_stem,
    read_list,
    read_stems,
)
from utils.errors import DataError
from utils.images.headers import read_header
from utils.images.image_io import write_image, write_label


@pytest.fixture
def problems():
    return []


@pytest.mark.parametrize("data", [
    b"a\nb.c\n", b"a\r\n\r\n b.c \r\n", b"a\rb.c\r", b"\xef\xbb\xbfa\nb.c",
    "a\r\nb.c\r\n".encode("utf-16"), b"\xfe\xff" + "a\nb.c".encode("utf-16-be")])
def test_a_list_may_have_any_line_ends_and_byte_order_mark(data, tmp_path, problems):
    (tmp_path / "list.txt").write_bytes(data)
    lines = read_list(tmp_path / "list.txt", problems.append)
    assert [text for _, text in lines] == ["a", "b.c"] and not problems


def test_undecodable_bytes_of_a_list_are_kept(tmp_path, problems):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfea\x00b")
    assert len(read_list(tmp_path / "list.txt", problems.append)) == 1
    (tmp_path / "list.txt").write_bytes(b"a\xff\n")
    assert read_list(tmp_path / "list.txt", problems.append) == [(1, "a\udcff")]


def test_an_empty_list_is_a_problem_and_a_missing_one_an_error(tmp_path, problems):
    (tmp_path / "list.txt").write_bytes(b"\n \n")
    assert read_list(tmp_path / "list.txt", problems.append) == []
    assert problems == [f"{tmp_path / 'list.txt'}: the list is empty"]
    with pytest.raises(DataError, match="split file cannot be read"):
        read_list(tmp_path / "none.txt", problems.append)


def test_stems_lose_only_the_extension_of_an_image(tmp_path, problems):
    (tmp_path / "list.txt").write_text("a.JPG\n\nb.c\n")
    assert read_stems(tmp_path / "list.txt", problems.append) == [
        (f"{tmp_path / 'list.txt'}:1", "a"), (f"{tmp_path / 'list.txt'}:3", "b.c")]


def test_the_first_existing_folder_is_returned(tmp_path, problems):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert first_folder(tmp_path, ("a", "b", "c"), problems.append) == tmp_path / "b"
    assert not problems
    assert first_folder(tmp_path, ("x", "y"), problems.append) is None
    assert first_folder(tmp_path / "none", ("x",), problems.append) is None
    assert "no folder x or y" in problems[0] and "(data_dir)" in problems[1]


def test_a_listed_file_may_have_another_extension(tmp_path, problems):
    (tmp_path / "a.PNG").write_bytes(b"")
    place = tmp_path / "list.txt"
    assert listed_file(tmp_path, "/a.jpg", place, 1, problems.append) == tmp_path / "a.PNG"
    assert listed_file(tmp_path, "b.jpg", place, 2, problems.append) is None
    assert problems == [f"{place}:2: no such file: b.jpg"]


def test_endings_listed_stems_and_exclusions_select_the_pairs(tmp_path, problems):
    for name in ("images/a_rgb.png", "images/b_rgb.png", "images/c.png", "labels/a_id.png",
                 "labels/b_id.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folders = tmp_path / "images", tmp_path / "labels"
    pairs = list(pair_by_stem(*folders, problems.append, (".png",), "_rgb", "_id"))
    assert [pair.id for pair in pairs] == ["a", "b"]
    assert pairs[0] == Sample("a", folders[0] / "a_rgb.png", folders[1] / "a_id.png")
    assert [pair.id for pair in pair_by_stem(*folders, problems.append, (".png",), "_rgb", "_id",
                                             without=("a",))] == ["b"]
    assert not problems
    list(pair_by_stem(*folders, problems.append, (".png",), "_rgb", "_id", [("list:1", "z")]))
    assert problems == [f"list:1: no image z in {folders[0]}"]


def test_images_without_labels_are_samples_with_none(tmp_path, problems):
    assert list(images_only(tmp_path, problems.append)) == []
    assert problems == [f"{tmp_path}: no images"]
    (tmp_path / "a.png").write_bytes(b"")
    assert list(images_only(tmp_path, problems.append)) == [Sample("a", tmp_path / "a.png", None)]


def test_header_problem_separates_unreadable_files_from_wrong_sizes(tmp_path):
    image, label = tmp_path / "image.png", tmp_path / "label.png"
    write_image(image, np.zeros((4, 6, 3), np.uint8))
    write_label(label, np.zeros((4, 6), np.uint8), [])
    assert header_problem(image, label, read_header) == (None, False)
    write_label(label, np.zeros((4, 5), np.uint8), [])
    text, unreadable = header_problem(image, label, read_header)
    assert "image.png is 4x6 (height x width) but its label" in text and not unreadable
    image.write_bytes(b"")
    assert header_problem(image, None, read_header)[1]
    image.unlink()
    os.mkfifo(image)
    assert header_problem(image, None, read_header) == (f"{image}: not a regular file", True)
