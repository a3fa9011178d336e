"""tools.compare_models: what is written and printed, also if a network fails."""
import json

import numpy as np
import pytest
from PIL import Image

from models.lraspp import LRASPP
from tests.evaluation.test_model_costs import JOB
from tools import compare_models
from tools.compare_models import BAR, draw, main, parse
from utils.errors import UserError


def fake_runs(monkeypatch, rows):
    rows = iter(rows)
    monkeypatch.setattr(compare_models, "_in_a_process", lambda job: {
        "name": job.title, **next(rows)})


def test_one_failure_does_not_stop_the_rest(monkeypatch, capsys, tmp_path):
    fake_runs(monkeypatch, [{"parameters": 2e6, "infer_seconds": 0.25}, {"error": "killed"},
                            {"error": "no", "refused": True}])
    path = tmp_path / "all.json"
    assert main(["ENet", "PSPNet", "--backbones", "resnet18", "vgg11", "--json", str(path),
                 "--device", "cpu"]) == 1
    lines, messages = capsys.readouterr()
    assert lines.splitlines()[1].split() == ["ENet", "2", "-", "250", "-", "-", "-"]
    assert "PSPNet resnet18: killed" in messages
    stored = json.loads(path.read_text())
    assert [row["name"] for row in stored["networks"]] == ["ENet", "PSPNet resnet18",
                                                           "PSPNet vgg11"]
    assert stored["size"] == [512, 1024] and stored["device"] == "cpu"


@pytest.mark.parametrize("files, measured", [(True, 2), (False, 0)])
def test_a_lost_reader_stops_the_work_only_if_no_file_is_wanted(monkeypatch, tmp_path, files,
                                                               measured):
    def gone(_):
        raise BrokenPipeError

    jobs = []
    monkeypatch.setattr(compare_models, "_in_a_process",
                        lambda job: jobs.append(job) or {"name": job.title, "parameters": 1.0})
    monkeypatch.setattr("utils.cli.console.output", gone)
    path = tmp_path / "x.json"
    with pytest.raises(BrokenPipeError):        # the program ends with status 0
        main(["ENet", "UNet", "--device", "cpu", *(["--json", str(path)] if files else [])])
    assert len(jobs) == measured and path.exists() is files


def test_what_was_measured_before_an_interrupt_is_written(monkeypatch, tmp_path):
    def run(job):
        if job.type == "UNet":
            raise KeyboardInterrupt
        return {"name": "ENet", "parameters": 1e6}
    monkeypatch.setattr(compare_models, "_in_a_process", run)
    with pytest.raises(KeyboardInterrupt):
        main(["ENet", "UNet", "--json", str(tmp_path / "x.json"), "--device", "cpu"])
    assert len(json.loads((tmp_path / "x.json").read_text())["networks"]) == 1


def test_the_program_writes_table_json_and_picture(tmp_path, capsys):
    """Takes some seconds: each network runs in a separate process, which imports torch."""
    table, picture = tmp_path / "m.json", tmp_path / "m.png"
    assert main(["LRASPP", "--backbones", "mobilenet_v3_small", "--size", "32x32", "--repeats",
                 "1", "--infer-only", "--threads", "1", "--device", "cpu", "--json", str(table),
                 "--png", str(picture)]) == 0
    [row] = json.loads(table.read_text())["networks"]
    ours = LRASPP(num_classes=19, backbone="mobilenet_v3_small")
    assert row["parameters"] == sum(p.numel() for p in ours.parameters()) and row["flops"] > 0
    assert capsys.readouterr().out.splitlines()[1].startswith("LRASPP mobilenet_v3_small")
    assert Image.open(picture).size[0] > 400


def test_a_process_that_is_killed_is_an_error_of_its_row(monkeypatch):
    import subprocess
    dead = subprocess.CompletedProcess([], -9, '{"parameters": 5}\n', "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: dead)
    row = compare_models._in_a_process(JOB)
    assert row["parameters"] == 5 and "signal 9" in row["error"]


def test_bars_are_as_long_as_their_numbers():
    rows = [{"name": "half", "parameters": 1e6}, {"name": "whole", "parameters": 2e6}]
    picture = np.array(draw(rows, "title"))
    lengths = [(picture[y] == BAR).all(-1).sum() for y in (62, 82)]
    assert lengths[1] - lengths[0] == pytest.approx(52, abs=3)      # of 104 pixels at most


@pytest.mark.parametrize("arguments", [["--size", "512x"], ["--size", "0x8"], ["--batch", "0"]])
def test_senseless_numbers_are_refused(arguments):
    with pytest.raises(SystemExit):
        parse(arguments)


@pytest.mark.parametrize("arguments, message", [
    (["ENett"], "Did you mean 'ENet'"), (["PSPNet", "--backbones", "resnet51"], "resnet50"),
    (["ENet", "--json", "/nowhere/x.json"], "no such folder")])
def test_mistakes_are_reported_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)
