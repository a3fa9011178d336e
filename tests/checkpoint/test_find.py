"""Which checkpoint is the newest, and which one -r takes."""
import errno
import os

import pytest
import torch

from utils.checkpoint import read
from utils.checkpoint.find import (
    Peeked,
    find_checkpoint,
    later_than,
    newest_best,
    newest_peeked,
    newest_training,
    training_checkpoint,
)
from utils.checkpoint.read import UnreadableCheckpoint
from utils.errors import CheckpointError

NOON = "2026-11-28T12:00:00+00:00"


def write(path, step, time=NOON, file_time=None, **entries):
    """A checkpoint of a training with four steps per epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"format": 1, "model": {"w": torch.zeros(500)}, "ema": None,
                "config": {"name": "x"}, "class_names": [], "palette": [], "normalization": {},
                "optimizer": {"state": {}}, "scheduler": {}, "scaler": {},
                "monitor": {"best": None, "epoch": None, "waited": 0}, "step": step,
                "samples": step % 4, "epoch": 1 + step // 4, "versions": {"time": time},
                **entries}, path)
    if file_time is not None:
        os.utime(path, (file_time, file_time))
    return path


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(read, "WAITS", (0, 0))


def newest(folder):
    found = newest_training(folder)
    return found and str(found[1].relative_to(folder))


def test_within_a_run_the_last_step_is_the_newest_whatever_the_file_times_say(tmp_path):
    write(tmp_path / "r/last.pth", 18, file_time=5)
    write(tmp_path / "r/checkpoint-epoch4.pth", 16, file_time=90)
    write(tmp_path / "r/model_best.pth", 12, file_time=100)
    assert newest(tmp_path) == "r/last.pth"


def test_the_newest_one_is_found_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.checkpoint.find.read_training", None)
    assert newest_peeked(tmp_path) is None
    write(tmp_path / "r/last.pth", 18, file_time=5)
    write(tmp_path / "r/checkpoint-epoch4.pth", 16, file_time=90)
    write(tmp_path / "s/last.pth", 20, time="2026-11-28T11:00:00+00:00")
    write(tmp_path / "r/weights.pth", 30, optimizer=None)
    (tmp_path / "r/x.pth").write_bytes(b"no checkpoint")
    found = newest_peeked(tmp_path)
    assert found and found.path == tmp_path / "r/last.pth"
    found = newest_peeked(tmp_path, lambda content: content["step"] > 18)
    assert found and found.path == tmp_path / "s/last.pth"


def test_of_files_of_one_step_last_is_taken_and_later_samples_count(tmp_path):
    write(tmp_path / "r/model_best.pth", 16)
    write(tmp_path / "r/last.pth", 16)
    assert newest(tmp_path) == "r/last.pth"
    write(tmp_path / "r/other.pth", 16, samples=3)
    assert newest(tmp_path) == "r/other.pth"


def test_what_was_trained_after_going_back_is_newer_than_what_was_left_behind(tmp_path):
    write(tmp_path / "r/checkpoint-epoch6.pth", 24)
    write(tmp_path / "r/model_best.pth", 20)
    write(tmp_path / "r/last.pth", 9, lineage=[[1, 4]])
    assert newest(tmp_path) == "r/last.pth"
    write(tmp_path / "r/checkpoint-epoch2.pth", 8, lineage=[[1, 4], [2, 6]])
    assert newest(tmp_path) == "r/checkpoint-epoch2.pth"


@pytest.mark.parametrize("times", [(NOON, "2026-11-28T12:00:01+00:00"), (None, None)])
def test_between_runs_the_one_that_saved_last_is_newer(tmp_path, times):
    first, second = times
    write(tmp_path / "a/last.pth", 40, first, file_time=900 if first else 1)
    write(tmp_path / "b/last.pth", 4, second, file_time=2)
    assert newest(tmp_path) == "b/last.pth"


def test_of_hundreds_of_periodic_files_only_those_are_read_that_can_be_newer(tmp_path,
                                                                             monkeypatch):
    for epoch in range(1, 8):
        write(tmp_path / f"checkpoint-epoch{epoch}.pth", 4 * epoch)
    write(tmp_path / "last.pth", 28)
    looked, of = [], Peeked.of.__func__
    monkeypatch.setattr(Peeked, "of", classmethod(
        lambda cls, path: looked.append(path.name) or of(cls, path)))
    assert newest(tmp_path) == "last.pth"
    assert set(looked) == {"last.pth", "checkpoint-epoch7.pth"}


def test_a_damaged_last_file_is_passed_over_with_a_warning(tmp_path, capsys):
    write(tmp_path / "checkpoint-epoch1.pth", 4)
    write(tmp_path / "checkpoint-epoch2.pth", 8)
    last = write(tmp_path / "last.pth", 28)
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1           # in a tensor: the peek does not see it
    last.write_bytes(data)
    assert newest(tmp_path) == "checkpoint-epoch2.pth"
    assert f"skipping {last}: checkpoint is damaged (record" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["load", "_EndRecData"])
def test_a_file_that_cannot_be_read_is_never_passed_over(tmp_path, monkeypatch, name):
    write(tmp_path / "checkpoint-epoch1.pth", 4)
    write(tmp_path / "last.pth", 8)
    module = torch if name == "load" else read.zipfile
    real = getattr(module, name)

    def failing(source, *args, **kwargs):
        if "last" in str(getattr(source, "name", source)):
            raise OSError(errno.EIO, "Input/output error")
        return real(source, *args, **kwargs)
    monkeypatch.setattr(module, name, failing)
    with pytest.raises(UnreadableCheckpoint, match="Input/output error"):
        newest_training(tmp_path)


@pytest.mark.parametrize("find", [newest_training, newest_best])
def test_a_folder_that_cannot_be_listed_is_never_passed_over(tmp_path, monkeypatch, find):
    write(tmp_path / "a/model_best.pth", 4)
    write(tmp_path / "b/model_best.pth", 8)
    real = os.scandir

    def failing(path):
        if str(path).endswith("b"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)
    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UnreadableCheckpoint, match="Stale"):
        find(tmp_path)


def test_files_that_vanish_and_links_to_nowhere_are_passed_over(tmp_path):
    (tmp_path / "gone.pth").symlink_to("nowhere")
    write(tmp_path / "last.pth", 8)
    assert newest(tmp_path) == "last.pth"


def test_what_is_later_than_a_checkpoint_is_listed_from_the_last_step_on(tmp_path):
    for epoch in (1, 2, 3):
        write(tmp_path / f"checkpoint-epoch{epoch}.pth", 4 * epoch)
    write(tmp_path / "last.pth", 13)
    resumed = read.read_training(tmp_path / "checkpoint-epoch2.pth")
    assert [one.path.name for one in later_than(tmp_path, resumed)] == [
        "last.pth", "checkpoint-epoch3.pth"]
    assert not later_than(tmp_path, read.read_training(tmp_path / "last.pth"))


@pytest.mark.parametrize("own, step, run, expected", [
    ([], 8, [], True), ([], 8, [[1, 8]], True), ([], 9, [[1, 8]], False),
    ([[1, 8]], 30, [[1, 8]], True), ([[1, 8]], 9, [[1, 8], [2, 8]], False),
    ([[1, 8]], 9, [[2, 9]], False)])
def test_a_checkpoint_is_of_a_line_of_training_up_to_where_it_went_back(tmp_path, own, step, run,
                                                                       expected):
    one = Peeked.of(write(tmp_path / "c.pth", step, lineage=own))
    assert one.is_before(run) is expected


# What -r names.

def test_the_folder_of_a_run_means_its_best_for_predicting_and_its_last_for_training(tmp_path,
                                                                                     capsys):
    best, last = write(tmp_path / "model_best.pth", 4), write(tmp_path / "last.pth", 8)
    assert find_checkpoint(str(tmp_path)) == str(best)
    assert training_checkpoint(str(tmp_path)) == last
    assert capsys.readouterr().err == f"checkpoint {best}\nresuming from {last}\n"
    assert find_checkpoint("some/file.pth") == "some/file.pth"


def test_a_folder_of_runs_means_the_newest_best_in_it_and_auto_means_that_of_saved(tmp_path):
    write(tmp_path / "a/1/model_best.pth", 4, "2026-11-28T13:00:00+00:00", file_time=1)
    write(tmp_path / "b/2/model_best.pth", 8, file_time=2)
    assert find_checkpoint(str(tmp_path)) == find_checkpoint("auto", str(tmp_path)) \
        == str(tmp_path / "a/1/model_best.pth")


def test_a_folder_of_runs_means_the_newest_of_them_for_training(tmp_path, capsys):
    write(tmp_path / "11-28_09-00-00/last.pth", 8, "2026-11-28T09:00:00+00:00")
    newer = write(tmp_path / "2026-11-29_08-00-00/last.pth", 4, "2026-11-29T08:00:00+00:00")
    write(tmp_path / "2026-11-27_08-00-00/last.pth", 12, "2026-11-27T08:00:00+00:00")
    assert training_checkpoint(str(tmp_path)) == newer
    assert f"resuming from {newer}" in capsys.readouterr().err


def test_a_folder_without_the_file_says_what_it_contains(tmp_path):
    write(tmp_path / "run/last.pth", 8)
    write(tmp_path / "run/checkpoint-epoch2.pth", 8)
    with pytest.raises(CheckpointError, match="there is no model_best.pth") as error:
        find_checkpoint(str(tmp_path / "run"))
    assert "contains: checkpoint-epoch2.pth, last.pth" in error.value.fix
    (tmp_path / "empty" / "run").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no last.pth") as error:
        training_checkpoint(str(tmp_path / "empty"))
    assert "contains: run/" in error.value.fix
