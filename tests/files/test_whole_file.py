"""Files appear complete or not at all, with the permissions of any new file."""
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.places import ROOT
from utils.checkpoint.write import SaveError
from utils.checkpoint.write import write_bytes as write_checkpoint_bytes
from utils.config.load import save_config
from utils.errors import DataError
from utils.files import locks, whole_file
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


# File systems that lack something, or fail for a while

@pytest.fixture
def quick(monkeypatch):
    """Does not wait between tries, and forgets which notices were printed."""
    monkeypatch.setattr(whole_file, "_WAITS", (0, 0, 0))
    locks._told.clear()
    yield
    locks._told.clear()


def failing(real, code, times, after=False):
    """`real`, raising an OSError for the first calls. after: they do their work before."""
    left = [times]

    def call(*args):
        left[0] -= 1
        if left[0] >= 0:
            if after:
                real(*args)
            raise OSError(code, os.strerror(code))
        return real(*args)
    return call


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EBUSY, errno.EAGAIN])
def test_an_error_that_passes_is_tried_again(tmp_path, monkeypatch, quick, code):
    monkeypatch.setattr(os, "replace", failing(os.replace, code, 3))
    monkeypatch.setattr(os, "fsync", failing(os.fsync, code, 3))
    write_checkpoint_bytes(tmp_path / "last.pth", b"state")
    assert (tmp_path / "last.pth").read_bytes() == b"state" and len(os.listdir(tmp_path)) == 1


def test_a_rename_whose_answer_was_lost_counts_as_done(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(os, "replace", failing(os.replace, errno.ESTALE, 1, after=True))
    whole_file.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("code, fix", [
    (errno.EXDEV, "cannot rename or flush files"), (errno.ESTALE, "network drive has failed"),
    (errno.EIO, "the disk or the network drive has failed"), (errno.EROFS, "that you can write to"),
    (errno.EDQUOT, "is there a quota")])
def test_a_rename_that_fails_keeps_the_old_file_and_names_a_remedy(tmp_path, monkeypatch, quick,
                                                                  code, fix):
    (tmp_path / "last.pth").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", failing(os.replace, code, 99))
    with pytest.raises(SaveError, match=fix) as caught:
        write_checkpoint_bytes(tmp_path / "last.pth", b"new")
    assert "the previous checkpoint is unchanged" in str(caught.value)
    with pytest.raises(DataError, match=fix):
        whole_file.write_bytes(tmp_path / "last.pth", b"new")
    assert os.listdir(tmp_path) == ["last.pth"]
    assert (tmp_path / "last.pth").read_bytes() == b"old"


def only_for(folders, code):
    """os.fsync, failing for folders or for files."""
    real = os.fsync

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(code, os.strerror(code))
        real(descriptor)
    return flush


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS])
def test_a_folder_that_cannot_be_flushed_costs_one_notice(tmp_path, monkeypatch, quick, capsys,
                                                          code):
    monkeypatch.setattr(os, "fsync", only_for(True, code))
    for name in ("a.pth", "b.pth"):
        write_checkpoint_bytes(tmp_path / name, b"state")
    said = capsys.readouterr().err
    assert said.count("cannot flush a folder") == 1 and os.strerror(code) in said


def test_a_file_system_without_flushing_costs_one_notice(tmp_path, monkeypatch, quick, capsys):
    monkeypatch.setattr(os, "fsync", only_for(False, errno.EINVAL))
    for name in ("a.pth", "b.pth"):
        write_checkpoint_bytes(tmp_path / name, b"state")
    assert capsys.readouterr().err.count("cannot flush a file") == 1


def test_content_that_does_not_reach_the_disk_is_an_error(tmp_path, monkeypatch, quick):
    (tmp_path / "last.pth").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", only_for(False, errno.EIO))
    with pytest.raises(SaveError, match="the previous checkpoint is unchanged"):
        write_checkpoint_bytes(tmp_path / "last.pth", b"new")
    assert (tmp_path / "last.pth").read_bytes() == b"old"


def test_an_error_after_the_rename_does_not_claim_that_the_old_file_is_there(tmp_path, monkeypatch,
                                                                             quick):
    (tmp_path / "last.pth").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", only_for(True, errno.EIO))
    with pytest.raises(SaveError, match="may not survive a power failure"):
        write_checkpoint_bytes(tmp_path / "last.pth", b"new")
    assert (tmp_path / "last.pth").read_bytes() == b"new"


# What killed programs leave

WRITES = """
import sys, time
from utils.files.whole_file import WholeFile
file = WholeFile(sys.argv[1] + "/film", ".mp4")
file.temporary.write_bytes(b"begun")      # opened and closed again, as writers of others do
print(file.temporary, flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A program that is writing a file in tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline().startswith(str(tmp_path))
    yield process
    process.kill()
    process.communicate()


def parts(folder):
    return [name for name in os.listdir(folder) if name.startswith(whole_file.UNFINISHED)]


def test_the_unfinished_file_of_a_living_program_stays_and_of_a_killed_one_goes(tmp_path, writer):
    """Also if the living program is suspended for a long time."""
    os.kill(writer.pid, signal.SIGSTOP)
    part = tmp_path / parts(tmp_path)[0]
    os.utime(part, (1, 1))
    for claimed in (False, True):
        whole_file.remove_abandoned(tmp_path, claimed)
        assert part.exists()
    writer.kill()
    writer.wait()
    whole_file.write_bytes(tmp_path / "next", b"")      # the next program that writes there
    assert os.listdir(tmp_path) == ["next"]


@pytest.mark.parametrize("locks_exist", [True, False])
def test_unfinished_files_of_other_hosts_go_after_a_day(tmp_path, monkeypatch, locks_exist):
    if not locks_exist:
        def missing(*_):
            raise OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", missing)
    names = [".part-0123456789abcdef", ".part-ffffffff-0123456789abcdef.mp4"]
    if not locks_exist:         # then even a file of this host proves nothing
        names.append(f".part-{whole_file._host()}-0123456789abcdef")
    for name in names:
        (tmp_path / name).touch()
    whole_file.remove_abandoned(tmp_path)
    assert sorted(parts(tmp_path)) == sorted(names)
    day_ago = time.time() - 25 * 3600
    for name in names:
        os.utime(tmp_path / name, (day_ago, day_ago))
    whole_file.remove_abandoned(tmp_path)
    assert not os.listdir(tmp_path)


def test_only_own_regular_files_are_taken_for_abandoned(tmp_path):
    mine = f".part-{whole_file._host()}-0123456789abcde"
    (tmp_path / "target").touch()
    (tmp_path / f"{mine}0").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / f"{mine}1")
    (tmp_path / f"{mine}2").mkdir()
    for name in (".part-thing", ".part-0123456789abcdef0", "a.part-0123456789abcdef"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    before = sorted(os.listdir(tmp_path))
    whole_file.remove_abandoned(tmp_path, claimed=True)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_keeps_no_descriptor_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        whole_file.write_bytes(tmp_path / "a", b"")
        with pytest.raises(ZeroDivisionError), whole_file.unfinished(tmp_path / "a"):
            raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before
