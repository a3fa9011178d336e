"""RunLogger: log.txt and metrics.jsonl."""
import json

import numpy as np
import torch

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
