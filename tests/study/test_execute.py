"""tools.study as a user runs it: trainings, kills, failures, tables, the report."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.study.test_slurm import stub_cluster
from tests.support.places import ROOT
from tests.support.run_program import SMALL, environment, kill_group, program, start


def study(folder, seeds=1, epochs=1, extra=(), **content):
    """A study of two networks on tiny Shapes, whose runs lie in `folder`."""
    overrides = [*SMALL, f"trainer.epochs={epochs}", "trainer.val_per_epochs=1",
                 f"trainer.save_dir={folder / 'runs'}", *extra]
    path = folder / "small.json"
    path.write_text(json.dumps({
        "config": str(ROOT / "config.json"), "overrides": overrides, "seeds": seeds,
        "axes": {"loss": {"weighted": [], "plain": "loss=CrossEntropyLoss2d"}},
        "baseline": "plain", **content}))
    return path


def finished(folder, *options):
    """The table of a study without what depends on the time."""
    done = program("-m", "tools.study", folder / "small.json", "--devices", "cpu",
                   "-o", folder / "out", "--no-pictures", *options, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "out" / "study.json").read_text())
    return [(row["title"], row["scores"], row["classes"]) for row in summary["rows"]], \
        summary["comparisons"]


@pytest.mark.slow       # two trainings, and what is made of them
def test_a_study_ends_with_its_tables_and_repeats_nothing(tmp_path):
    path = study(tmp_path)
    done = program("-m", "tools.study", path, "--devices", "cpu", "-o", tmp_path / "out",
                   timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# small\n") and "| weighted |" in done.stdout
    out = tmp_path / "out"
    assert done.stdout.strip() == (out / "table.md").read_text().strip()
    assert r"\toprule" in (out / "table.tex").read_text()
    row = json.loads((out / "study.json").read_text())["rows"][0]
    assert row["parameters"] > 1e5 and row["flops"] > 1e6 and row["size"] == [48, 64]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 8 and "http" not in re.sub(
        r"data:[^\"]+", "", page)
    checkpoints = {one: one.stat().st_mtime_ns for one in (tmp_path / "runs").rglob("*.pth")}
    again = program("-m", "tools.study", path, "--devices", "cpu", "-o", out)
    assert "2 runs, 0 left" in again.stderr and again.stdout == done.stdout
    assert checkpoints == {one: one.stat().st_mtime_ns
                           for one in (tmp_path / "runs").rglob("*.pth")}


@pytest.mark.slow       # two trainings, twice
@pytest.mark.timeout(900)
def test_a_study_that_is_killed_three_times_has_the_table_of_an_undisturbed_one(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        study(tmp_path / name, epochs=3, extra=["trainer.save_every=4"])
    expected = finished(tmp_path / "whole")
    for count, signum in ((1, signal.SIGKILL), (1, signal.SIGTERM), (2, signal.SIGKILL)):
        process = start("-m", "tools.study", tmp_path / "killed" / "small.json", "--devices", "cpu",
                        "-o", tmp_path / "killed" / "out")
        try:
            _wait_for_checkpoints(tmp_path / "killed" / "runs", count, process)
        finally:
            kill_group(process, signum)
            process.wait(60)
    assert finished(tmp_path / "killed") == expected


def _wait_for_checkpoints(runs, count, process):
    end = time.monotonic() + 300
    while len(list(runs.rglob("last.pth"))) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow       # a training that fails, one that does not
def test_a_run_that_fails_does_not_end_the_others_and_is_named_at_the_end(tmp_path):
    path = study(tmp_path, axes={"lr": {
        "good": [], "bad": ["optimizer.args.lr=1e30", "trainer.amp=false"]}}, baseline="good")
    done = program("-m", "tools.study", path, "--devices", "cpu", "-o", tmp_path / "out",
                   "--no-pictures", timeout=300)
    assert done.returncode == 5, done.stderr
    assert "| good |" in done.stdout and "Without a result: bad (seed 0)" in done.stdout
    assert "small_bad_s0-" in (last := done.stderr[done.stderr.index("written:"):])
    assert "loss is nan at epoch 1" in last and "study.log" in last
    assert json.loads((tmp_path / "out" / "study.json").read_text())["failed"][0]["run"] \
        .startswith("small_bad_s0-")


@pytest.mark.slow       # programs start, but nothing is trained
def test_wrong_cells_are_all_named_before_the_first_run(tmp_path):
    path = study(tmp_path, axes={"arch": {
        "a": "arch.type=ENte", "b": "trainer.epoch=2", "c": [], "d": "trainer.epochs=1",
        "e": "trainer.finetune_from=nowhere.pth", "f": {"test": ["--mode", "wide"]},
        "g": {"test": ["--predict", "all"]}, "h": {"test": ["--protocol", "all"]}}}, baseline="c")
    done = program("-m", "tools.study", path, "--devices", "cpu")
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    for said in ("Did you mean 'ENet'?", "Did you mean 'epochs'?", "d: is the same run and test",
                 "nowhere.pth does not exist", "invalid choice: 'wide'", "an axis of the rules",
                 "an axis of the protocols"):
        assert said in done.stderr, said


@pytest.mark.slow       # opens the data of two rows
def test_rows_of_other_classes_cannot_stand_in_one_table(tmp_path):
    for name, classes in (("x", 2), ("y", 3)):
        folder = tmp_path / name
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        _write_pair(folder, classes)
    levels = {name: {"overrides": [
        f"{loader}.type=Folder" for loader in ("train_loader", "val_loader")] + [
        f'{loader}.args={json.dumps(_folder_args(tmp_path / name, classes))}'
        for loader in ("train_loader", "val_loader")]} for name, classes in (("x", 2), ("y", 3))}
    path = study(tmp_path, axes={"images": levels}, baseline=None, overrides=[
        "loss=CrossEntropyLoss2d", f"trainer.save_dir={tmp_path / 'runs'}"])
    done = program("-m", "tools.study", path, "--devices", "cpu")
    assert done.returncode == 2, done.stderr
    assert "y: is scored on 3 classes" in done.stderr and not (tmp_path / "runs").exists()


def _write_pair(folder, classes):
    import numpy as np

    from utils.images.image_io import write_image, write_label
    write_image(folder / "images" / "a.png", np.zeros((32, 32, 3), np.uint8))
    write_label(folder / "labels" / "a.png",
                (np.arange(1024) % classes).astype(np.uint8).reshape(32, 32), [])


def _folder_args(folder, classes):
    return {"data_dir": str(folder), "batch_size": 1,
            "num_classes": classes}


@pytest.mark.slow       # a task of an array job, stopped by Slurm's signal and requeued
def test_an_array_job_trains_every_run_and_continues_what_was_requeued(tmp_path):
    path = study(tmp_path, epochs=12, axes={}, cells=[{"label": "one"}], baseline=None)
    env = {**environment(), **stub_cluster(tmp_path)}
    job = subprocess.Popen(
        [sys.executable, "-m", "tools.study", path, "--devices", "cpu", "-o", tmp_path / "out",
         "--slurm=--time=1:00", "--submit"], cwd=ROOT, env=env, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_checkpoints(tmp_path / "runs", 1, job)
    assert job.poll() is None, job.communicate()
    tasks = subprocess.run(["pgrep", "-s", str(job.pid), "-f", "array.sh"], text=True,
                           capture_output=True).stdout.split()
    os.kill(int(tasks[-1]), signal.SIGUSR1)
    out, err = job.communicate(timeout=200)
    assert "Submitted batch job 7" in out, err
    assert (tmp_path / "ended").read_text().splitlines() == ["0 75", "0 0"], \
        (tmp_path / "output").read_text()
    rows, _ = finished(tmp_path, "--table")
    assert len(rows[0][1]["Mean_IoU"]["values"]) == 1


@pytest.mark.slow       # reads two runs that a study has made
def test_runs_that_exist_become_a_table_with_from(tmp_path):
    study(tmp_path, seeds=2)
    rows, _ = finished(tmp_path)
    scores = json.dumps({"dataset": "Shapes", "class_names": ["a"], "Class_IoU": [0.5],
                         "Mean_IoU": 0.5, "image": {"Mean_IoU": 0.4}})
    (tmp_path / "theirs.json").write_text(scores)
    done = program("-m", "tools.study", "--from", tmp_path / "runs", tmp_path / "theirs.json",
                   "-o", tmp_path / "made", "--baseline", "small_plain", "--no-pictures")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "made" / "study.json").read_text())
    means = {row["title"]: row["scores"]["Mean_IoU"]["mean"] for row in made["rows"]}
    assert means["theirs"] == 0.5
    assert means["small_plain"] == pytest.approx(dict(
        (title, scores["Mean_IoU"]["mean"]) for title, scores, _ in rows)["plain"])
    compared = {one["row"]: one for one in made["comparisons"]}
    assert compared["small_weighted"]["seeds"]["paired"]
    assert compared["small_weighted"]["images"]["runs"] == 2
    assert compared["theirs"]["images"] is None


@pytest.mark.slow       # builds two networks and trains a few steps
def test_a_dry_run_prints_every_run_with_its_time_and_starts_none(tmp_path):
    done = program("-m", "tools.study", study(tmp_path), "--devices", "cpu", "--dry-run",
                   timeout=300)
    assert done.returncode == 0, done.stderr
    assert "small_weighted_s0-" in done.stdout and "to do" in done.stdout
    assert "2 runs, 2 left: about" in done.stderr and not list(tmp_path.rglob("last.pth"))


def test_the_same_seed_shows_the_same_samples_in_the_same_order_to_every_network():
    from dataloader.loader import make_loader
    from utils.config.load import load_config
    from utils.config.schema import resolve_config
    seen = []
    for arch in ("ENet", "LRASPP"):
        config = resolve_config(load_config(ROOT / "config.json", [
            *SMALL, f"arch.type={arch}", "seed=3", "train_loader.args.num_workers=0"]))
        loader = make_loader(config["train_loader"], ignore_index=255, seed=config["seed"],
                             training=True)
        seen.append([(batch["id"], batch["image"].sum().item()) for batch in loader])
    assert seen[0] == seen[1] and len(seen[0]) > 1


def test_help_names_the_ways_to_use_it():
    done = program("-m", "tools.study", "--help")
    assert done.returncode == 0 and "--slurm" in done.stdout and "--from" in done.stdout


@pytest.mark.parametrize("arguments,said", [
    ([], "a study or --from"), (["--from", "x", "--dry-run"], "nothing to run"),
    (["--from", "x", "--no-pictures", "--devices", "cpu"], "--devices has no effect"),
    (["a.json", "--submit"], "only with --slurm"), (["a.json", "--score", "x"], "no effect"),
    (["a.json", "--table", "--dry-run"], "give only one"),
    (["a.json", "--devices", "cpu,cuda:0"], "give GPUs or cpu"),
    (["a.json", "--devices", "cuda:0,cuda:0"], "one run at a time")])
def test_wrong_command_lines_are_refused(arguments, said, capsys):
    from tools.study import parse
    with pytest.raises(SystemExit):
        parse(arguments)
    assert said in capsys.readouterr().err
