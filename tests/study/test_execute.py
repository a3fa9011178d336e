"""tools.study and what it starts: which runs, on which devices, and what becomes of failures.

Made-up programs stand in for train.py and test.py, so that a run takes a tenth of a second.
"""
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.studies import made_up_programs, wait_for, wait_until, write_study
from tools import study
from utils.cli import console
from utils.study import execute, plan, rehearsal, results
from utils.study.execute import Executor, exit_status, launch
from utils.study.plan import make_plan
from utils.study.study_file import read_study

PLAIN = 'loss=CrossEntropyLoss2d'


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The folder of the made-up programs."""
    folder = tmp_path / "programs"
    made_up_programs(folder)
    monkeypatch.setattr(execute, "ROOT", folder)
    monkeypatch.setattr(rehearsal, "ROOT", folder)
    monkeypatch.setattr(execute, "_PAUSE", 0.01)
    return folder


def run(folder, *options, devices="cpu"):
    """The exit status of a study in `folder`, whose tables go to `folder`/out."""
    return console.run(study.main, [str(folder / "small.json"), "--devices", devices, "-o",
                                    str(folder / "out"), "--no-pictures", *options])


def planned(folder):
    return make_plan(read_study(folder / "small.json"), study._test_arguments)


def summary(folder):
    return json.loads((folder / "out" / "study.json").read_text())


def trainings(folder):
    """How often each run was trained, by name."""
    return {path.parent.parent.name: path.read_text().count("\n")
            for path in (folder / "runs").glob("*/*/trainings")}


def test_a_study_ends_with_its_tables_and_repeats_nothing(programs, tmp_path, capsys):
    write_study(tmp_path, seeds=2)
    assert run(tmp_path, devices="cpu,cpu") == 0
    done = capsys.readouterr()
    assert done.out.startswith("# small\n") and "| better |" in done.out
    assert "4 runs, 4 left" in done.err and "Mean_IoU 60.00" in done.err and "4 of 4" in done.err
    out = tmp_path / "out"
    assert done.out.strip() == (out / "table.md").read_text().strip()
    assert {path.name for path in out.iterdir()} == {
        "table.md", "table.tex", "table.csv", "table.png", "study.json", "report.html"}
    better, plain = summary(tmp_path)["rows"]
    assert better["scores"]["Mean_IoU"]["values"] == [0.6, 0.61] and better["seconds"] == 30
    assert [run["seed"] for run in plain["runs"]] == [0, 1]
    assert all(re.search("threads [12]", path.read_text().splitlines()[0])
               for path in (tmp_path / "runs").glob("*/*/trainings"))
    assert run(tmp_path) == 0
    again = capsys.readouterr()
    assert "4 runs, 0 left" in again.err and again.out == done.out
    assert set(trainings(tmp_path).values()) == {1} and len(trainings(tmp_path)) == 4


@pytest.mark.parametrize("faults, status, said", [
    ({"train": [5]}, 5, "it went wrong"),
    ({"train": ["silent"]}, 3, "exit status 3"),
    ({"train": ["killed"]}, 1, "killed by signal 9, perhaps for lack of memory"),
    ({"train": ["no checkpoint"]}, 1, "the training ended without a checkpoint to test"),
    ({"test": [4]}, 4, "it went wrong"),
    ({"test": ["nothing"]}, 3, "the test ended without a complete result"),
    ({"test": ["no scores"]}, 3, "has no score"),
    ({"test": ["no table"]}, 3, "not a table of image scores")])
def test_a_run_that_fails_does_not_end_the_others_and_is_named_at_the_end(
        programs, tmp_path, capsys, faults, status, said):
    write_study(tmp_path, axes={"a": {"bad": PLAIN, "good": "trainer.epochs=9"}}, baseline="good")
    made_up_programs(programs, {"bad": faults})
    assert run(tmp_path) == status
    done = capsys.readouterr()
    assert "| good |" in done.out and "Without a result: bad (seed 0)" in done.out
    last = done.err[done.err.index("written:"):]
    assert "small_bad_s0-" in last and said in last and "study.log" in last
    assert summary(tmp_path)["failed"][0]["run"].startswith("small_bad_s0-")
    # Once the cause is gone, only that run goes on.
    made_up_programs(programs)
    for path in (tmp_path / "runs").glob("small_bad*/*/tests"):
        shutil.rmtree(path)         # as the message says
    assert run(tmp_path) == 0
    assert "Without a result" not in capsys.readouterr().out
    assert all(count <= 1 + ("train" not in faults or "no checkpoint" in faults["train"])
               for count in trainings(tmp_path).values())


def test_a_run_that_has_trained_is_only_tested(programs, tmp_path, monkeypatch, capsys):
    write_study(tmp_path)
    assert run(tmp_path) == 0
    for path in (tmp_path / "runs").glob("*/*/tests"):
        shutil.rmtree(path)
    monkeypatch.setattr(execute, "stage_is_finished", lambda stage: "plain" in stage.name)
    capsys.readouterr()
    assert run(tmp_path) == 0
    said = capsys.readouterr().err
    assert re.search(r"small_plain_s0-\w+: testing on cpu", said)
    assert re.search(r"small_better_s0-\w+: training on cpu", said)
    assert sorted(trainings(tmp_path).values()) == [1, 2]


def test_a_damaged_result_says_how_its_test_is_repeated(programs, tmp_path, capsys):
    write_study(tmp_path)
    assert run(tmp_path) == 0
    table, = (tmp_path / "runs").glob("small_plain*/*/tests/plain/scores.csv")
    table.write_text("id\n")
    assert run(tmp_path, "--table") == 3
    assert f"fix: delete {table.parent} and start the study again" in capsys.readouterr().err


def test_a_run_whose_folder_cannot_be_made_fails_alone(programs, tmp_path, capsys):
    write_study(tmp_path)
    first, _ = planned(tmp_path).runs
    first.folder.parent.mkdir()
    first.folder.write_text("a file")
    assert run(tmp_path) == 3
    assert "File exists" in capsys.readouterr().err and len(summary(tmp_path)["failed"]) == 1


def test_a_run_whose_log_cannot_be_written_fails_alone(programs, tmp_path, capsys):
    write_study(tmp_path)
    first, _ = planned(tmp_path).runs
    (first.folder / execute.LOG).mkdir(parents=True)
    assert run(tmp_path) == 3
    assert "Is a directory" in capsys.readouterr().err and len(summary(tmp_path)["failed"]) == 1


def test_a_study_without_any_result_says_what_failed(programs, tmp_path, capsys):
    write_study(tmp_path)
    assert run(tmp_path, "--table") == 3
    assert "no run has a result yet" in capsys.readouterr().err
    made_up_programs(programs, {"": {"train": [5]}})
    assert run(tmp_path) == 3
    assert "no run has a result: small_better" in capsys.readouterr().err


def test_a_failure_of_several_kinds_has_the_status_1(programs, tmp_path):
    write_study(tmp_path)
    made_up_programs(programs, {"better": {"train": [5]}, "plain": {"train": [4]}})
    executor = Executor(planned(tmp_path), ["cpu"])
    assert exit_status(executor.run(planned(tmp_path).runs)) == 1
    assert exit_status([]) == 0


def test_each_gpu_has_one_run_and_a_run_of_two_gets_two(programs, tmp_path, monkeypatch):
    write_study(tmp_path, axes={"gpus": {"one": [], "two": ["n_gpu=2", PLAIN]}}, baseline=None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    made = planned(tmp_path)
    with pytest.raises(study_error(), match="trains on 2 GPUs"):
        plan.require_devices(made, ["cuda:0"])
    plan.require_devices(made, ["cuda:0", "cuda:1"])
    assert Executor(made, ["cuda:0", "cuda:1"]).run(made.runs) == []
    seen = {path.parent.parent.name[:9]: path.read_text()
            for path in (tmp_path / "runs").glob("*/*/trainings")}
    assert "GPUs 5\n" in seen["small_one"] and "GPUs 5,6\n" in seen["small_two"]
    log, = (tmp_path / "runs").glob("small_two*/study.log")
    first, second = [line for line in log.read_text().splitlines() if line.startswith("$")]
    assert "--device" not in first and second.endswith("--device cuda")


def study_error():
    from utils.errors import ConfigError
    return ConfigError


def test_a_run_that_another_program_works_on_is_waited_for(programs, tmp_path, monkeypatch):
    write_study(tmp_path)
    first, _ = planned(tmp_path).runs
    lock, = execute._take(first) or ()
    told = []

    def release(text):
        told.append(text)
        if "another program works on it; waiting" in text:
            lock.close()
    monkeypatch.setattr(execute, "notice", release)
    assert run(tmp_path) == 0
    assert told[0].startswith(first.name) and "waiting" in told[0] and len(told) == 5


def test_a_run_that_the_other_program_has_finished_is_not_repeated(programs, tmp_path):
    write_study(tmp_path)
    made = planned(tmp_path)
    assert run(tmp_path) == 0
    executor = Executor(made, ["cpu"])      # it was unfinished when this one looked
    assert executor.run(made.runs) == [] and set(trainings(tmp_path).values()) == {1}


def test_rows_that_train_the_same_share_their_run_and_each_way_of_testing(programs, tmp_path):
    write_study(tmp_path, axes={}, baseline=None, cells=[
        {"label": "max"}, {"label": "dice", "test": ["--predict", "rankdice"]}])
    made = planned(tmp_path)
    assert len(made.runs) == 1 and len(made.tests) == 2
    assert run(tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "runs").glob("*/*/tests/*")) == \
        sorted({test.code for test in made.tests})


def test_a_run_without_validation_is_tested_at_its_last_checkpoint(programs, tmp_path):
    write_study(tmp_path, axes={}, baseline=None,
                cells=[{"overrides": ["trainer.val=false", "trainer.monitor=off"]}])
    one, = planned(tmp_path).runs
    assert run(tmp_path) == 0
    found = results.checkpoint_to_test(one)
    assert found and found.name == "last.pth"


def chain(folder, **content):
    """A study of a chain of three stages whose first one is a row of its own."""
    (folder / "one.json").write_text(json.dumps({"extends": str(ROOT / "config.json"),
                                                 "name": "one"}))
    (folder / "chain.json").write_text(json.dumps({
        "extends": str(ROOT / "config.json"), "name": "chain", "stages": [
            {"extends": "one.json"}, {"name": "coarse", "trainer": {"epochs": 7}},
            {"trainer": {"epochs": 8, "finetune_from": "run:coarse/last.pth"}}]}))
    write_study(folder, axes={}, baseline="one", cells=[
        {"label": "chain", "config": str(folder / "chain.json")},
        {"label": "one", "config": str(folder / "one.json")}], **content)


def test_a_chain_is_one_run_and_shares_a_stage_with_the_row_that_trains_it(programs, tmp_path,
                                                                           capsys):
    chain(tmp_path)
    one, last = planned(tmp_path).runs
    assert (one.name[:9], last.name[:11]) == ("small_one", "small_chain")
    first, second = last.earlier
    assert (first.name, first.key) == (one.name, one.key) and last.stages == (first, second, last)
    assert second.name.startswith("small_chain_stage2_s0-") and last.gpus == 1
    assert last.config["trainer"]["epochs"] == 8 and second.config["trainer"]["epochs"] == 7
    assert last.naming[-1] == f"stages[2].trainer.finetune_from=run:{second.name}/last.pth"
    assert run(tmp_path) == 0
    assert "training 3 stages on cpu" in capsys.readouterr().err
    rows = {row["label"]: row for row in summary(tmp_path)["rows"]}
    assert rows["chain"]["seconds"] == 90 and rows["one"]["seconds"] == 30
    log = (last.folder / execute.LOG).read_text()
    assert f"stages[0].name={one.name}" in log and f"stages[2].name={last.name}" in log
    shutil.rmtree(second.folder)            # no time without the log of a stage
    assert run(tmp_path, "--table") == 0
    rows = {row["label"]: row for row in summary(tmp_path)["rows"]}
    assert rows["chain"]["seconds"] is None and rows["chain"]["scores"]["Mean_IoU"]["mean"]


def test_the_names_of_train_py_are_those_of_the_plan_and_every_start_is_a_stage(tmp_path):
    from utils.config.load import load_stages
    from utils.training.stages import resolve_stages
    chain(tmp_path)
    last = planned(tmp_path).runs[-1]
    _, _, *overrides = last.config_arguments()
    stages = resolve_stages(load_stages(last.path, overrides), "chain")
    assert [one["name"] for one in stages] == [one.name for one in last.stages]
    assert [one["trainer"]["finetune_from"] for one in stages] == \
        [one.config["trainer"]["finetune_from"] for one in last.stages]
    assert stages[1] == last.stages[1].config and stages[2] == last.config


def test_a_changed_stage_changes_the_key_of_what_follows_it(tmp_path):
    chain(tmp_path)
    before = planned(tmp_path).runs[-1]
    text = (tmp_path / "chain.json").read_text().replace('"epochs": 7', '"epochs": 6')
    (tmp_path / "chain.json").write_text(text)
    after = planned(tmp_path).runs[-1]
    assert before.stages[0].key == after.stages[0].key
    assert before.stages[1].key != after.stages[1].key and before.key != after.key


def test_a_stage_is_locked_until_it_is_finished(programs, tmp_path, monkeypatch):
    chain(tmp_path)
    one, last = planned(tmp_path).runs
    held = execute._take(one)
    assert held and execute._take(last) is None
    monkeypatch.setattr(execute, "stage_is_finished", lambda stage: True)
    taken = execute._take(last)
    assert taken and len(taken) == 2        # of the stages that the chain still writes
    for lock in (*held, *taken):
        lock.close()


def test_a_stage_is_finished_by_its_newest_checkpoint(tmp_path):
    import torch
    chain(tmp_path)
    stage = planned(tmp_path).runs[-1].earlier[1]
    assert not results.stage_is_finished(stage)
    place = stage.folder / "11-29_08-00-00"
    place.mkdir(parents=True)
    (place / "last.pth").write_bytes(b"")
    assert not results.stage_is_finished(stage)
    for epoch, finished in ((7, False), (8, True)):
        torch.save({"format": 1, "model": {"w": torch.zeros(5)}, "ema": None, "config": {
            "name": "x", "trainer": {"epochs": 7}}, "class_names": [], "palette": [],
            "normalization": {}, "epoch": epoch}, place / "last.pth")
        assert results.stage_is_finished(stage) == finished


def in_a_moment(path, work):
    """Calls `work` as soon as a file exists."""
    def wait():
        wait_for(path)
        work()
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_sigusr1_lets_a_task_save_and_end_with_75_and_its_next_start_goes_on(programs, tmp_path,
                                                                             capsys):
    write_study(tmp_path, axes={}, cells=[{"label": "one"}], baseline=None)
    made_up_programs(programs, {"one": {"train": ["waits"]}})
    name = planned(tmp_path).runs[0].name
    ready = tmp_path / "runs" / name / "11-29_08-00-00" / "ready"
    thread = in_a_moment(ready, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert run(tmp_path, "--only", name) == 75
    thread.join()
    assert "trainer.requeue=true" in (tmp_path / "runs" / name / execute.LOG).read_text()
    made_up_programs(programs)
    assert run(tmp_path, "--only", name) == 0
    assert run(tmp_path, "--only", "smal") == 2
    told = capsys.readouterr().err
    assert "the study has changed since the job was written" in told
    assert run(tmp_path, "--table") == 0


def test_sigusr1_ends_a_task_that_waits_for_another_program(programs, tmp_path):
    chain(tmp_path)
    one, last = planned(tmp_path).runs
    lock, = execute._take(one) or ()
    executor = Executor(planned(tmp_path), ["cpu"], requeue=True)

    def waits():
        return last.key in executor._told
    thread = threading.Thread(target=lambda: (wait_until(waits),
                                              os.kill(os.getpid(), signal.SIGUSR1)), daemon=True)
    thread.start()
    assert exit_status(executor.run([last]), executor) == 75 and not trainings(tmp_path)
    thread.join()
    lock.close()


def test_two_chains_wait_only_for_the_stage_that_they_share(programs, tmp_path, monkeypatch):
    shared = {"name": "shared", "trainer": {"epochs": 5}}
    for name, epochs in (("first", 7), ("second", 8)):
        (tmp_path / f"{name}.json").write_text(json.dumps({
            "extends": str(ROOT / "config.json"), "name": name, "stages": [
                shared, {"trainer": {"epochs": epochs}}]}))
    write_study(tmp_path, axes={}, baseline=None, cells=[
        {"label": name, "config": str(tmp_path / f"{name}.json")} for name in ("first", "second")])
    made = planned(tmp_path)
    first, second = made.runs
    assert first.earlier[0].key == second.earlier[0].key
    held = execute._take(first)             # another program trains it
    assert held and execute._take(second) is None
    finished = []
    monkeypatch.setattr(execute, "stage_is_finished",
                        lambda stage: stage.key == first.earlier[0].key and bool(finished))
    told = []

    def shared_stage_ends(text):
        told.append(text)
        finished.extend(["yes"] * ("works on it; waiting" in text))
    monkeypatch.setattr(execute, "notice", shared_stage_ends)
    assert Executor(made, ["cpu"]).run([second]) == []      # while the first goes on
    assert "waiting" in told[0] and execute._take(first) is None
    for lock in held:
        lock.close()


def test_sigusr1_stops_a_test_which_is_repeated(programs, tmp_path):
    write_study(tmp_path, axes={}, cells=[{"label": "one"}], baseline=None)
    executor = Executor(planned(tmp_path), ["cpu"], requeue=True)
    code = programs / "test.py"
    ready = tmp_path / "testing"
    code.write_text(f"import time\nopen({str(ready)!r}, 'w').close()\ntime.sleep(60)\n")
    thread = in_a_moment(ready, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    failures = executor.run(executor.plan.runs)
    thread.join()
    assert exit_status(failures, executor) == 75 and executor.signaled


def test_an_interrupt_ends_the_programs_of_the_runs(programs, tmp_path, monkeypatch, capsys):
    write_study(tmp_path, axes={}, cells=[{"label": "one"}], baseline=None)
    code = programs / "train.py"
    monkeypatch.setattr(execute, "_PATIENCE", 0.3)
    for number, deaf in enumerate(("", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n")):
        ready = tmp_path / f"training{number}"
        code.write_text(f"import os, signal, time\n{deaf}open({str(ready)!r}, 'w').write("
                        "str(os.getpid()))\ntime.sleep(60)\n")
        thread = in_a_moment(ready, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            Executor(planned(tmp_path), ["cpu"]).run(planned(tmp_path).runs)
        thread.join()
        assert "start the study again to go on" in capsys.readouterr().err
        process = int(ready.read_text() or 0)
        end = time.monotonic() + 10
        while process and Path(f"/proc/{process}").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert not Path(f"/proc/{process}").exists() or not process


def test_a_program_sees_the_module_path_of_this_one_and_no_variables_of_torchrun(tmp_path,
                                                                                 monkeypatch):
    import sys
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    process, start = launch([sys.executable, "-c",
                             "import os, utils; print(os.environ.get('RANK'), "
                             "os.environ['CUDA_VISIBLE_DEVICES'])"], tmp_path / "log", ["cuda:1"])
    assert process.wait() == 0
    assert (tmp_path / "log").read_text()[start:].splitlines()[-1] == "None 1"


def test_slurm_writes_a_task_for_each_unfinished_run(programs, tmp_path, capsys, monkeypatch):
    from tests.study.test_slurm import stub_cluster
    write_study(tmp_path)
    monkeypatch.setenv("PATH", stub_cluster(tmp_path)["PATH"])
    assert run(tmp_path, "--slurm=--time=1:00") == 0
    text = (tmp_path / "out" / "array.sh").read_text()
    assert "#SBATCH --array=0-1" in text and "--devices cpu" in text
    assert "2 tasks" in capsys.readouterr().err and not trainings(tmp_path)
    assert run(tmp_path) == 0
    assert run(tmp_path, "--slurm=--time=1:00", "--submit") == 0
    assert "nothing to send" in capsys.readouterr().err


def test_runs_that_exist_become_a_table_with_from(programs, tmp_path, capsys):
    write_study(tmp_path, seeds=2)
    assert run(tmp_path) == 0
    (tmp_path / "theirs.json").write_text(json.dumps({
        "dataset": "Shapes", "class_names": ["road", "sky"], "Class_IoU": [0.5, 0.5],
        "Mean_IoU": 0.5, "image": {"Mean_IoU": 0.4}}))
    places = [str(tmp_path / "runs"), str(tmp_path / "theirs.json")]
    made = ["--from", *places, "-o", str(tmp_path / "made"), "--no-pictures", "--baseline"]
    assert console.run(study.main, [*made, "small_plain"]) == 0
    rows = json.loads((tmp_path / "made" / "study.json").read_text())["rows"]
    means = {row["title"]: row["scores"]["Mean_IoU"]["mean"] for row in rows}
    assert means == pytest.approx({"small_better": 0.605, "small_plain": 0.505, "theirs": 0.5})
    assert console.run(study.main, [*made, "plain"]) == 2
    assert console.run(study.main, [*made, "theirs", "--score", "Mean_IuO"]) == 2
    assert run(tmp_path, "--from", str(tmp_path / "theirs.json"), "--baseline", "theirs") == 0
    assert summary(tmp_path)["baseline"] == "theirs"
    assert run(tmp_path, "--baseline", "plian") == 2
    told = capsys.readouterr().err
    assert "Did you mean 'plain'" in told and "Did you mean 'Mean_IoU'" in told


def test_a_dry_run_prints_every_run_with_its_state_and_time_and_starts_none(programs, tmp_path,
                                                                            capsys):
    write_study(tmp_path)
    assert run(tmp_path, "--dry-run") == 0
    done = capsys.readouterr()
    assert re.search(r"small_better_s0-\w+ +to do +\d+ s", done.out)
    assert "2 runs, 2 left: about" in done.err and not trainings(tmp_path)
    assert run(tmp_path) == 0
    capsys.readouterr()
    assert run(tmp_path, "--dry-run") == 0
    done = capsys.readouterr()
    assert re.search(r"small_plain_s0-\w+ +finished +30 s", done.out)
    assert "2 runs, 0 left: about 0 s" in done.err


def test_a_dry_run_names_the_rows_that_cannot_start(programs, tmp_path, capsys):
    write_study(tmp_path)
    made_up_programs(programs, {"plain": {"try": [4]}, "better": {"measure": [1]}})
    assert run(tmp_path, "--dry-run") == 2
    done = capsys.readouterr()
    assert "1 mistakes; nothing was started" in done.err and "it went wrong" in done.err
    made_up_programs(programs, {"better": {"measure": [1]}, "plain": {"try": ["silent"]}})
    assert run(tmp_path, "--dry-run") == 2
    made_up_programs(programs, {"better": {"measure": [1]}})
    assert run(tmp_path, "--dry-run") == 0
    done = capsys.readouterr()
    assert "without 1 whose steps could not be measured" in done.err
    assert re.search(r"small_better_s0-\w+ +to do +-", done.out)


def test_a_dry_run_counts_the_stages_of_a_chain_and_a_shared_one_once(programs, tmp_path, capsys,
                                                                      monkeypatch):
    chain(tmp_path)
    monkeypatch.setattr(rehearsal, "_measured", lambda stage, steps, *_: 100.0 * steps)
    train = (programs / "train.py").read_text()
    (programs / "train.py").write_text(train.replace(
        'print(f"ENet', 'print("".join("2 epochs, %d steps, on cpu\\n" % k for k in (1, 2, 3)) '
        'if any("stages" in one for one in sys.argv) else f"ENet').replace("{values.get('steps', "
                                                                          "8)}", "1"))
    assert run(tmp_path, "--dry-run") == 0
    done = capsys.readouterr()
    assert re.search(r"small_chain_s0-\w+ +to do +10 min", done.out)
    assert "2 runs, 2 left: about 10 min" in done.err       # 100 s once, 200 s, 300 s
    one, last = planned(tmp_path).runs
    monkeypatch.setattr(rehearsal, "stage_is_finished", lambda stage: stage.key == one.key)
    assert run(tmp_path, "--dry-run") == 0
    done = capsys.readouterr()
    assert re.search(r"small_chain_s0-\w+ +1 of 3 stages finished", done.out)
    assert "about 8 min" in done.err


def test_wrong_cells_are_all_named_before_the_first_run(tmp_path, capsys):
    write_study(tmp_path, axes={"arch": {
        "a": "arch.type=ENte", "b": "trainer.epoch=2", "c": [], "d": [],
        "e": "trainer.finetune_from=nowhere.pth", "f": {"test": ["--mode", "wide"]},
        "g": {"test": ["--predict", "all"]}, "h": {"test": ["--protocol", "all"]},
        "i": {"test": ["--segf=x"]}, "j": {"test": ["-oelsewhere"]}}}, baseline="c")
    assert run(tmp_path) == 2
    told = capsys.readouterr().err
    for said in ("Did you mean 'ENet'?", "Did you mean 'epochs'?", "nowhere.pth does not exist",
                 "d: is the same run and test as 'c'", "invalid choice: 'wide'",
                 "an axis of the rules", "an axis of the protocols",
                 "unrecognized arguments: --segf=x", "names options in full",
                 "--output is set by the study", "nothing was started"):
        assert said in told, said
    assert not (tmp_path / "runs").exists()


def test_the_same_seed_shows_the_same_samples_in_the_same_order_to_every_network():
    from dataloader.loader import make_loader
    from tests.support.run_program import SMALL
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


def test_help_names_the_ways_to_use_it(capsys):
    with pytest.raises(SystemExit):
        study.parse(["--help"])
    told = capsys.readouterr().out
    assert "--slurm" in told and "--from" in told


@pytest.mark.parametrize("arguments,said", [
    ([], "a study or --from"), (["--from", "x", "--dry-run"], "nothing to run"),
    (["--from", "x", "--no-pictures", "--devices", "cpu"], "--devices has no effect"),
    (["a.json", "--submit"], "only with --slurm"), (["a.json", "--score", "x"], "no effect"),
    (["a.json", "--table", "--dry-run"], "give only one"),
    (["a.json", "--devices", "cpu,cuda:0"], "give GPUs or cpu"),
    (["a.json", "--devices", "cuda:0,cuda:0"], "one run at a time")])
def test_wrong_command_lines_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        study.parse(arguments)
    assert said in capsys.readouterr().err


def test_a_study_of_several_data_sets_scores_and_printed_numbers_shows_all_of_them(programs,
                                                                                   tmp_path):
    write_study(tmp_path, seeds=2, scores=["Mean_IoU", "mDice_I"], note="Of <two> data sets.",
                baseline="plain", margin=5, axes={
                    "loss": {"better": [], "plain": PLAIN, "third": "trainer.epochs=7"},
                    "data": {"A": [], "C & D": "trainer.clip_grad_norm=3"}},
                published={"plain on A": {"mean": 51, "runs": [50, 51, 52]},
                           "better on C & D": {"mDice_I": 70}})
    made_up_programs(programs, {"third_on_C_D_s1": {"train": [5]}})
    assert run(tmp_path, devices="cpu,cpu,cpu,cpu") == 5
    out, content = tmp_path / "out", summary(tmp_path)
    ranks = content["ranks"]
    assert ranks["labels"][ranks["mean"].index(1)] == "better"
    assert len(content["rows"]) == 6 and len(content["failed"]) == 1
    table = (out / "table.md").read_text()
    for said in ("Of <two> data sets.", "51.00 (50.00, 51.00, 52.00)", "third on C & D (seed 1)",
                 "small_third_on_C_D_s1", "| data | row |", "p (Holm)", "(Friedman)"):
        assert said in table, said
    latex = (out / "table.tex").read_text()
    assert r"C \& D" in latex and latex.count(r"\begin{tabular}") == 3 and r"\textbf{" in latex
    lines = (out / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 * 2 and lines[0].startswith("row,data,score,mean,sd,runs,run 1")
    page = (out / "report.html").read_text()
    assert "&lt;two&gt;" in page and page.count("<polyline") == 11 and "mean rank" in page
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
