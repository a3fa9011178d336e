"""tools.study with the real programs, as a user runs it: kills, and Slurm's signal."""
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.reliability.test_kill_resume import TINY
from tests.study.test_slurm import stub_cluster
from tests.support.places import ROOT
from tests.support.run_program import SMALL, environment, kill_group, program
from tests.support.warm_start import until


def write(folder):
    """A study of one run of 40 steps of a tenth of a second, in `folder`/runs."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps({
        "config": str(ROOT / "config.json"), "cells": [{"label": "one"}], "overrides": [
            *SMALL, *TINY, "trainer.epochs=20", "trainer.val_per_epochs=10",
            "trainer.save_every=1", "trainer.log_per_iter=1", "train_loader.args.num_workers=0",
            f"trainer.save_dir={folder / 'runs'}"]}))
    return ["-m", "tools.study", folder / "tiny.json", "--devices", "cpu", "-o", folder / "out",
            "--no-pictures"]


def table(folder, *options):
    """The rows of the finished study, without what depends on the time."""
    done = program(*write(folder), *options, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "out" / "study.json").read_text())
    return [(row["title"], row["scores"], row["classes"]) for row in summary["rows"]]


def log_of_run(folder):
    """The path of the log of the run, as soon as there is one."""
    until_there = until(folder / "log", "training on cpu")
    name = next(line.split(":")[0] for line in until_there.splitlines() if "training on" in line)
    return folder / "runs" / name / "study.log"


@pytest.mark.slow       # a training and a test, twice; the second one is killed three times
@pytest.mark.timeout(900)
def test_a_study_that_is_killed_three_times_has_the_table_of_an_undisturbed_one(tmp_path):
    expected = table(tmp_path / "whole")
    killed = tmp_path / "killed"
    command = write(killed)
    for moment, signum in (("step 1/", signal.SIGKILL), ("resuming from", signal.SIGTERM),
                           ("test.py -r", signal.SIGKILL)):
        with open(killed / "log", "w") as log:
            process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=log,
                                       stderr=log, env=environment(), start_new_session=True)
        try:
            until(log_of_run(killed), moment, 200)
        finally:
            kill_group(process, signum)
            process.wait(60)
    assert table(killed) == expected
    said = next((killed / "runs").glob("*/study.log")).read_text()
    assert said.count("$ ") >= 5 and len(list((killed / "runs").glob("*/*/last.pth"))) == 1


@pytest.mark.slow       # a task of an array job, stopped by Slurm's signal and requeued
def test_an_array_job_trains_every_run_and_continues_what_was_requeued(tmp_path):
    command = write(tmp_path)
    job = subprocess.Popen(
        [sys.executable, *map(str, command), "--slurm=--time=1:00", "--submit"], cwd=ROOT,
        env={**environment(), **stub_cluster(tmp_path)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(tmp_path / "output", "training on cpu", 100)
    log, = (tmp_path / "runs").glob("*/study.log")
    until(log, "step 1/", 100)
    tasks = subprocess.run(["pgrep", "-s", str(job.pid), "-f", "array.sh"], text=True,
                           capture_output=True).stdout.split()
    os.kill(int(tasks[-1]), signal.SIGUSR1)
    out, err = job.communicate(timeout=200)
    assert "Submitted batch job 7" in out, err
    assert (tmp_path / "ended").read_text().splitlines() == ["0 75", "0 0"], \
        (tmp_path / "output").read_text()
    row, = table(tmp_path, "--table")
    assert len(row[1]["Mean_IoU"]["values"]) == 1
