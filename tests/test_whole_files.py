"""Files appear whole or not at all, with the permissions of any new file."""
import os

import numpy as np
import pytest

from utils import image_io
from utils.config import save_config
from utils.errors import DataError
from utils.png_strips import PngStrips


def write_png(path):
    with PngStrips(path, 2, 3, "rgb") as file:
        file.write(np.zeros((2, 3, 3), np.uint8))


def write_film(path):
    pytest.importorskip("cv2")
    from utils.video import VideoWriter
    with VideoWriter(str(path), 5.0) as film:
        film.write(np.zeros((16, 16, 3), np.uint8))


def write_unfinished(path):
    with image_io.unfinished(path, ".onnx") as temporary:
        temporary.write_bytes(b"graph")


WRITERS = {"config.json": lambda path: save_config({"a": 1}, path), "strips.png": write_png,
           "film.mp4": write_film, "graph.onnx": write_unfinished,
           "bytes": lambda path: image_io.write_bytes(path, b"bytes")}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_touches_the_umask_which_all_threads_share(tmp_path, name, monkeypatch):
    """Asking for it means setting it: two threads at once can leave the program with none."""
    plain = tmp_path / "plain"
    plain.touch()

    def touched(mask):
        raise AssertionError("the umask was set")
    monkeypatch.setattr(os, "umask", touched)
    WRITERS[name](tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", name}
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupt_leaves_the_old_file_and_nothing_beside_it(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / name)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"


def test_what_cannot_be_written_is_a_data_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"cannot write: No such file(.|\n)*none/a.png"):
        image_io.write_bytes(tmp_path / "none" / "a.png", b"")
