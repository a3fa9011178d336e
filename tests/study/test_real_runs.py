"""tools.study with the real programs, as a user runs it: kills, and Slurm's signal."""
import json
import os
import signal
import subprocess

import pytest

from tests.reliability.test_kill_resume import TINY
from tests.study.test_slurm import stub_cluster
from tests.support.places import ROOT
from tests.support.run_program import SMALL
from tests.support.warm_start import until

PROGRAM = "tools.study"


def write(folder):
    """A study of one run of 16 steps of a tenth of a second, in `folder`/runs."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps({
        "config": str(ROOT / "config.json"), "cells": [{"label": "one"}], "overrides": [
            *SMALL, *TINY, "trainer.epochs=8", "trainer.val_per_epochs=4",
            "trainer.save_every=1", "trainer.log_per_iter=1", "train_loader.args.num_workers=0",
            f"trainer.save_dir={folder / 'runs'}"]}))
    return [folder / "tiny.json", "--devices", "cpu", "-o", folder / "out", "--no-pictures"]


def table(warm, folder, *options):
    """The rows of the finished study, without what depends on the time."""
    log = folder.parent / f"{folder.name}.log"
    assert warm.wait(warm.start(log, *write(folder), *options, program=PROGRAM)) == 0, \
        log.read_text()
    summary = json.loads((folder / "out" / "study.json").read_text())
    return [(row["title"], row["scores"], row["classes"]) for row in summary["rows"]]


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory):
    return table(warm, tmp_path_factory.mktemp("undisturbed"))


def log_of_run(folder):
    """The path of the log of the run, as soon as there is one."""
    said = until(folder / "log", "training on cpu", 200)
    name = next(line.split(":")[0] for line in said.splitlines() if "training on" in line)
    return folder / "runs" / name / "study.log"


@pytest.mark.slow       # a training and a test, which start four times
@pytest.mark.timeout(900)
def test_a_study_that_is_killed_three_times_has_the_table_of_an_undisturbed_one(warm, undisturbed,
                                                                                tmp_path):
    killed = tmp_path / "killed"
    command = write(killed)
    for moment, signum in (("step 1/", signal.SIGKILL), ("resuming from", signal.SIGTERM),
                           ("test.py -r", signal.SIGKILL)):
        (killed / "log").write_text("")
        process = warm.start(killed / "log", *command, program=PROGRAM)
        try:
            until(log_of_run(killed), moment, 200)
        finally:
            os.killpg(process, signum)
            warm.wait(process)
    assert table(warm, killed) == undisturbed
    said = next((killed / "runs").glob("*/study.log")).read_text()
    assert said.count("$ ") >= 4 and len(list((killed / "runs").glob("*/*/last.pth"))) == 1


@pytest.mark.slow       # a task of an array job, stopped by Slurm's signal and requeued
def test_an_array_job_trains_every_run_and_continues_what_was_requeued(warm, undisturbed,
                                                                       tmp_path):
    said = tmp_path / "said"
    job = warm.start(said, *write(tmp_path), "--slurm=--time=1:00", "--submit", program=PROGRAM,
                     **stub_cluster(tmp_path))
    until(tmp_path / "output", "training on cpu", 100)
    log, = (tmp_path / "runs").glob("*/study.log")
    until(log, "step 1/", 100)
    tasks = subprocess.run(["pgrep", "-s", str(job), "-f", "array.sh"], text=True,
                           capture_output=True).stdout.split()
    os.kill(int(tasks[-1]), signal.SIGUSR1)
    assert warm.wait(job) == 0 and "Submitted batch job 7" in said.read_text()
    assert (tmp_path / "ended").read_text().splitlines() == ["0 75", "0 0"], \
        (tmp_path / "output").read_text()
    assert table(warm, tmp_path, "--table") == undisturbed
