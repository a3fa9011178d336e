"""Files appear complete or not at all, with the permissions of any new file."""
import os
import stat

import numpy as np
import pytest

from utils.checkpoint.write import write_bytes as write_checkpoint_bytes
from utils.config.load import save_config
from utils.errors import DataError
from utils.files import whole_file
from utils.images.png_strips import PngStrips


def write_png(path):
    with PngStrips(path, 2, 3, "rgb") as file:
        file.write(np.zeros((2, 3, 3), np.uint8))


def write_film(path):
    pytest.importorskip("cv2")
    from utils.inference.video_files import VideoWriter
    with VideoWriter(str(path), 5.0) as film:
        film.write(np.zeros((16, 16, 3), np.uint8))


def write_unfinished(path):
    with whole_file.unfinished(path, ".onnx") as temporary:
        temporary.write_bytes(b"graph")


WRITERS = {"config.json": lambda path: save_config({"a": 1}, path), "strips.png": write_png,
           "film.mp4": write_film, "graph.onnx": write_unfinished,
           "last.pth": lambda path: write_checkpoint_bytes(path, b"state"),
           "bytes": lambda path: whole_file.write_bytes(path, b"bytes")}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_touches_the_umask_which_all_threads_share(tmp_path, name, monkeypatch):
    """Reading the umask means setting it: two threads at once can leave the program with none."""
    plain = tmp_path / "plain"
    plain.touch()

    def touched(mask):
        raise AssertionError("the umask was set")
    monkeypatch.setattr(os, "umask", touched)
    WRITERS[name](tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", name}
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupt_leaves_the_old_file_and_no_other(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / name)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"


def test_a_durable_file_is_flushed_before_the_rename_and_its_folder_after_it(tmp_path,
                                                                             monkeypatch):
    steps, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(
        "flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else
        f"flush {os.fstat(descriptor).st_size} bytes"))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    with whole_file.WholeFile(tmp_path / "a", durable=True) as temporary:
        temporary.write_bytes(b"12345")
    assert steps == ["flush 5 bytes", "rename", "flush folder"]


def test_an_error_is_not_hidden_by_a_file_that_cannot_be_removed(tmp_path, monkeypatch):
    def refused(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(DataError, match="cannot write: No space left"):
        with whole_file.unfinished(tmp_path / "a") as temporary:
            monkeypatch.setattr(type(temporary), "unlink", refused)
            raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_a_data_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"cannot write: No such file(.|\n)*none/a.png"):
        whole_file.write_bytes(tmp_path / "none" / "a.png", b"")
