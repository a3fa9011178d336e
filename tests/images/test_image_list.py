"""The images that a command line names, and the places of their results."""
import os

import pytest

from utils.errors import DataError
from utils.images.image_list import LONGEST_NAME, Source, find_images, plan_outputs, prepare_folder


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def relative(*inputs, **options):
    return [source.relative for source in find_images(list(inputs), **options)]


def outputs(*names, suffixes=(".png",)):
    return [list(one.values()) for one in
            plan_outputs([Source(f"in/{name}", name) for name in names], "out", list(suffixes))]


def test_a_folder_gives_the_images_below_it_and_its_files_come_first(tmp_path):
    folder = touch(tmp_path, "b/1.png", "a/2.JPG", "z.png", "notes.txt", "a/x.json")
    assert relative(folder) == ["z.png", "a/2.JPG", "b/1.png"]
    assert relative(folder, suffixes=("jpg",)) == ["a/2.JPG"]


def test_hidden_files_and_thumbnails_are_left_out(tmp_path):
    folder = touch(tmp_path, "a.png", ".b.png", ".git/c.png", "__MACOSX/d.png", "x/@eaDir/e.png")
    assert relative(folder) == ["a.png"]


def test_a_folder_of_results_is_left_out_below_an_input_and_not_as_an_input(tmp_path):
    folder = touch(tmp_path, "a.png", "out/a.png", "sub/b.png")
    os.symlink(tmp_path / "out", tmp_path / "sub" / "link")
    assert relative(folder, leave_out=str(tmp_path / "out")) == ["a.png", "sub/b.png"]
    assert relative(folder, leave_out=folder) == ["a.png", "out/a.png", "sub/b.png"]


def test_a_linked_folder_is_entered_once(tmp_path):
    folder = touch(tmp_path / "in", "a/1.png")
    touch(tmp_path / "other", "2.png")
    os.symlink(tmp_path / "other", tmp_path / "in" / "b")
    os.symlink(tmp_path / "other", tmp_path / "in" / "c")
    os.symlink(tmp_path / "in", tmp_path / "in" / "a" / "circle")
    assert relative(folder) == ["a/1.png", "b/2.png"]


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch):
    folder = touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refusing(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied(.|\n)*closed"):
        find_images([folder])


def test_an_image_named_twice_is_found_once_and_roots_are_shared(tmp_path):
    folder = touch(tmp_path, "in/a.png", "in/sub/b.png")
    assert relative(f"{folder}/in/a.png", f"{folder}/in/sub", f"{folder}/in/./a.png") == \
        ["a.png", "sub/b.png"]


@pytest.mark.parametrize("given,text", [("none", "no such file"), ("empty", "no image found"),
                                        ("empty/*.png", "no image found")])
def test_an_input_without_images_is_an_error(tmp_path, given, text):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=text):
        find_images([f"{tmp_path}/{given}"])


def test_results_with_the_same_name_keep_their_extensions():
    assert outputs("a.jpg", "a.png", "b.png") == [["out/a.jpg.png"], ["out/a.png.png"],
                                                  ["out/b.png"]]


def test_a_result_is_not_named_like_a_folder_of_results():
    assert outputs("a.png/x.jpg", "a.jpg") == [["out/a.png/x.png"], ["out/a.jpg.png"]]


def test_a_name_that_is_too_long_is_cut_and_stays_unique():
    (first,), (second,) = outputs("ä" * 126 + "1.png", "ä" * 126 + "2.png",
                                  suffixes=("_overlay.png",))
    assert first != second and first.endswith("_overlay.png")
    assert len(os.fsencode(os.path.basename(first))) <= LONGEST_NAME


def test_a_result_never_overwrites_a_file_in_a_folder_of_images(tmp_path):
    folder = touch(tmp_path, "a.jpg", "a.png")
    for source in ("a.png", "a.jpg"):
        with pytest.raises(DataError, match="would overwrite"):
            plan_outputs(find_images([f"{folder}/{source}"]), folder, [".png"])


def test_an_output_folder_that_cannot_be_written_is_an_error(tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(DataError, match="cannot write into the output folder"):
        prepare_folder(str(tmp_path / "file" / "out"))


def test_arrays_are_taken_from_a_folder_without_pictures(tmp_path, capsys):
    folder = touch(tmp_path, "a.npy", "sub/b.NPZ", "notes.txt")
    assert relative(folder) == ["a.npy", "sub/b.NPZ"] and not capsys.readouterr().err
    touch(tmp_path, "c.tif")
    assert relative(folder) == ["c.tif"]
    assert "2 arrays (.npy, .npz) beside 1 picture left out" in capsys.readouterr().err
    assert relative(f"{folder}/*.npy") == ["a.npy"] and not capsys.readouterr().err
