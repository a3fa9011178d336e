"""RunLogger: log.txt and metrics.jsonl."""
import json
import os

import numpy as np
import pytest
import torch

from tests.support.limits import files_limited_to
from utils.training.run_log import RunLogger


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_is_one_line_of_plain_json(tmp_path):
    log = RunLogger(tmp_path, tensorboard=False)
    log.record("train", 3, loss=torch.tensor(0.5), counts=np.array([1, 2]), norm=float("nan"))
    assert lines(tmp_path) == [
        {"kind": "train", "step": 3, "loss": 0.5, "counts": [1, 2], "norm": None}]


def test_a_resumed_run_deletes_later_and_incomplete_lines(tmp_path):
    log = RunLogger(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.record("train", step)
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "tr')
    RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_for_the_user_is_printed_and_kept(tmp_path, capsys):
    RunLogger(tmp_path, tensorboard=False).say("epoch 1 done")
    assert "epoch 1 done" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text().endswith(" epoch 1 done\n")


def test_a_log_that_cannot_be_written_costs_one_warning(tmp_path, capsys):
    log = RunLogger(tmp_path, tensorboard=False)
    (tmp_path / "metrics.jsonl").mkdir()
    log.record("train", 1)
    log.record("train", 2)
    assert capsys.readouterr().err.count("metrics.jsonl can no longer be written") == 1


def test_pictures_are_only_written_for_tensorboard(tmp_path):
    log = RunLogger(tmp_path, tensorboard=False)
    assert not log.draws
    log.image("val/examples", np.zeros((2, 2, 3), np.uint8), 1)     # does nothing
    log.close()


@pytest.mark.parametrize("bad", [b"5", b"[1]", b"null", b'{"step": null}', b'{"step": "x"}',
                                 b'{"kind": "train"}', b'"text"', b"\xff\xfe", b"[" * 100_000,
                                 b'{"step": 1.5}', b'{"step": true}', b"1" * 5000])
def test_lines_that_are_no_entries_are_moved_aside_and_counted(tmp_path, capsys, bad):
    log = RunLogger(tmp_path, tensorboard=False)
    log.record("train", 1)
    with open(tmp_path / "metrics.jsonl", "ab") as stream:
        stream.write(bad + b"\n")
    log.record("train", 2)
    RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert (tmp_path / "metrics.jsonl.unreadable").read_bytes() == bad + b"\n"
    assert "1 lines are no entries of this log (line 2)" in capsys.readouterr().err


def test_a_resume_on_a_full_disk_cuts_the_log_and_loses_no_line(tmp_path, monkeypatch, capsys):
    log = RunLogger(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.record("train", step)
    with files_limited_to(0):
        RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert not capsys.readouterr().err


def test_a_log_that_cannot_be_rewritten_stays_as_it_was(tmp_path, capsys):
    """A line to delete lies between others, and there is no room for a new file."""
    log = RunLogger(tmp_path, tensorboard=False)
    for step in (1, 9, 2):
        log.record("train", step)
    with files_limited_to(5):
        RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 9, 2]
    assert "keeps its lines after step 2, which will occur twice" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_without_room_leaves_no_part_and_is_counted(tmp_path, capsys):
    log = RunLogger(tmp_path, tensorboard=False)
    log.record("train", 1)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with files_limited_to(len(whole) + 7):
        log.record("train", 2)
        log.record("train", 3)
    log.record("train", 4)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 4]
    assert "metrics.jsonl lacks 2 lines, which could not be written" in capsys.readouterr().err


def test_the_target_of_a_link_is_cut_and_the_link_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere" / "log")
    log = RunLogger(tmp_path, tensorboard=False)
    for step in (1, 9, 2):
        log.record("train", step)
    RunLogger(tmp_path, tensorboard=False, first_step=2)
    assert (tmp_path / "metrics.jsonl").is_symlink()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_folder_whose_name_tensorboard_cannot_write_costs_a_warning(tmp_path, capsys):
    """As with the locale C, in which names are not UTF-8."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "\udce9"
    folder.mkdir()
    log = RunLogger(folder)
    log.scalars({"loss": 1.0}, 1)
    log.record("train", 1)
    log.close()
    assert "warning" in capsys.readouterr().err and len(lines(folder)) == 1
