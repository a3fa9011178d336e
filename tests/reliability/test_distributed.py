"""Faults K24-K31, on two gloo processes of this machine.

All slow: most start two or more processes that import torch, and some wait for a time-out.
"""
import json
import os
import re
import signal
import socket
import time

import pytest

from dataloader.samplers import BatchPlan, EpochOrder
from tests.reliability.test_signals import AT_STEP_3
from tests.support.places import ROOT
from tests.support.ranks import free_port
from tests.support.run_program import SMALL, digest, program
from tests.support.warm_start import left_of_group, until
from utils.errors import ConfigError
from utils.machine import distributed

TINY = ["-c", "config.json", *SMALL, "train_loader.args.size=[24,32]", "trainer.log_per_iter=1",
        "train_loader.args.batch_size=2", "train_loader.args.length=16", "trainer.amp=false",
        "val_loader.args.size=[24,32]", "val_loader.args.length=3", "trainer.epochs=2",
        "train_loader.args.num_workers=0"]
END = 15      # seconds in which all ranks are gone

# One warm process and many short trainings of two ranks.
pytestmark = pytest.mark.slow


class Ranks:
    """Two ranks of a training; `fault` is Python code that a rank runs first."""

    def __init__(self, warm, folder, *more, fault="", faults=None, world=2):
        self.warm, port = warm, free_port()
        faults = faults or {1: fault}
        self.logs = [folder / f"rank{rank}.log" for rank in range(world)]
        self.processes = [
            warm.start(log, *TINY, f"trainer.save_dir={folder}", *more, fault=faults.get(rank, ""),
                       RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            for rank, log in enumerate(self.logs)]

    def wait(self):
        """(exit statuses, output of each rank)."""
        statuses = [self.warm.wait(process) for process in self.processes]
        assert not any(left_of_group(process) for process in self.processes)
        return statuses, [log.read_text() for log in self.logs]


def errors_of(said):
    return re.findall(r"^error: (.*)", said, re.MULTILINE)


def test_k24_one_rank_raises_and_its_error_is_told_once_and_first(warm, tmp_path):
    fault = AT_STEP_3.format("from utils.errors import DataError; "
                             "raise DataError('the scanner is on fire', 'img_7.png')")
    ranks = Ranks(warm, tmp_path, fault=fault)
    until(ranks.logs[1], "on fire")
    failed = time.monotonic()
    statuses, (zero, one) = ranks.wait()
    assert time.monotonic() - failed < END
    assert statuses == [1, 3]
    assert errors_of(one) == ["the scanner is on fire"] and "where: img_7.png" in one
    assert errors_of(zero) == ["[rank 0] stopped because rank 1 failed: the scanner is on fire"]
    assert "Traceback" not in zero + one
    assert ranks.logs[1].stat().st_mtime <= ranks.logs[0].stat().st_mtime


def test_k24_an_error_of_ours_shows_its_traceback_once(warm, tmp_path):
    statuses, (zero, one) = Ranks(warm, tmp_path, fault=AT_STEP_3.format("1 / 0")).wait()
    assert statuses == [1, 1]
    assert one.count("Traceback") == 1 and "ZeroDivisionError" in one and "Traceback" not in zero
    assert errors_of(zero) == ["[rank 0] stopped because rank 1 failed: division by zero"]


def test_k24_a_mistake_that_all_ranks_find_is_told_once(warm, tmp_path):
    statuses, said = Ranks(warm, tmp_path, "val_loader.args.split=train",
                           "train_loader.type=CamVid", "loss=CE", "val_loader=null",
                           'train_loader.args={"data_dir": "/none", "split": "train"}',
                           "trainer.val=false").wait()
    assert 3 in statuses
    told = [error for text in said for error in errors_of(text)]
    assert len(told) == 2 and sum("stopped because rank" in error for error in told) == 1


def test_k25_a_killed_rank_is_named_with_the_place_of_the_others(warm, tmp_path):
    ranks = Ranks(warm, tmp_path, fault=AT_STEP_3.format("os.kill(os.getpid(), 9)"))
    until(ranks.logs[0], "step 3/")
    killed = time.monotonic()
    statuses, (zero, _) = ranks.wait()
    assert time.monotonic() - killed < END
    assert statuses == [1, -9]
    error, = errors_of(zero)
    assert re.search(r"rank 1 is gone \(killed\? short of memory\?\); rank 0 was at epoch 1 step "
                     r"3: (count|exchange)", error), error
    assert "Traceback" not in zero


def test_k25_the_rank_that_holds_the_store_may_be_the_one_that_is_killed(warm, tmp_path):
    ranks = Ranks(warm, tmp_path, faults={0: AT_STEP_3.format("os.kill(os.getpid(), 9)")})
    until(ranks.logs[0], "step 3/")
    killed = time.monotonic()
    statuses, (_, one) = ranks.wait()
    assert time.monotonic() - killed < END and statuses == [-9, 1]
    assert re.search("rank 0.* is gone", errors_of(one)[0])


def test_k26_a_rank_that_stands_still_is_named_with_collective_and_step(warm, tmp_path):
    """Waits for a timeout of four seconds."""
    ranks = Ranks(warm, tmp_path, "trainer.rank_timeout=4",
                  fault=AT_STEP_3.format("import time; time.sleep(100)"))
    until(ranks.logs[0], "step 3/")
    hung = time.monotonic()
    statuses, said = ranks.wait()
    assert time.monotonic() - hung < END and all(statuses)
    told = [error for text in said for error in errors_of(text)]
    named = [error for error in told if "rank 1 did not reach epoch 1 step 3: count of "
             "labeled pixels within 4 s (trainer.rank_timeout)" in error]
    assert named and len(told) == 2, told
    assert re.search(r"rank 1 is still at epoch 1 step 3: \w+ data, in faulty", named[0])


def test_ranks_that_are_suspended_together_for_longer_than_the_timeout_go_on(warm, tmp_path):
    """Suspended for two timeouts of three seconds."""
    ranks = Ranks(warm, tmp_path, "trainer.rank_timeout=3", "trainer.epochs=8")
    until(ranks.logs[0], "step 3/")
    signal_all(ranks, signal.SIGSTOP)
    time.sleep(7)
    signal_all(ranks, signal.SIGCONT)
    statuses, said = ranks.wait()
    assert statuses == [0, 0], said
    assert not errors_of(said[0] + said[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_suspended_alone_is_waited_for_and_named(warm, tmp_path, rank):
    """Suspended for two timeouts of three seconds."""
    ranks = Ranks(warm, tmp_path, "trainer.rank_timeout=3", "trainer.epochs=8")
    until(ranks.logs[0], "step 3/")
    os.kill(ranks.processes[rank], signal.SIGSTOP)
    time.sleep(7)
    os.kill(ranks.processes[rank], signal.SIGCONT)
    statuses, said = ranks.wait()
    assert statuses == [0, 0], said
    if rank == 1:               # notices are of rank 0
        assert f"rank {ranks.processes[1]} is suspended" in said[0]


def test_ranks_that_wait_for_each_other_at_the_same_place_are_a_hang(warm, tmp_path):
    """Each receives from the other and none sends. Waits for a timeout of four seconds."""
    fault = AT_STEP_3.format("import torch; torch.distributed.recv(torch.zeros(1), "
                             "1 - int(os.environ['RANK']))")
    ranks = Ranks(warm, tmp_path, "trainer.rank_timeout=4", faults={0: fault, 1: fault})
    until(ranks.logs[0], "step 3/")
    hung = time.monotonic()
    statuses, said = ranks.wait()
    assert time.monotonic() - hung < 2 * END and statuses == [1, 1]
    told = errors_of(said[0] + said[1])
    assert any(re.search(r"no rank has moved from epoch 1 step \d.* for 4 s \(trainer.rank_timeout"
                         r"\): rank 0 in recv .*; rank 1 in recv", error) for error in told), told


def test_a_rank_that_never_starts_is_named(warm, tmp_path):
    """Waits for a timeout of three seconds."""
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}",
                         "trainer.rank_timeout=3", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2",
                         MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    assert warm.wait(process) == 2
    said = (tmp_path / "log").read_text()
    assert "rank 1 did not start within 3 s (trainer.rank_timeout)" in said


def signal_all(ranks, number):
    for process in ranks.processes:
        os.killpg(process, number)


def test_k27_a_port_in_use_is_named_with_what_to_do(warm, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}", RANK="0",
                             LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                             MASTER_PORT=str(port))
        assert warm.wait(process) == 2
    said = (tmp_path / "log").read_text()
    assert f"error: port {port} is in use" in said
    assert "--master-port" in said and "--standalone" in said


def test_k28_seven_images_on_two_ranks_train_and_score_without_a_hang(warm, tmp_path):
    """tests/machine/test_distributed.py checks that the score equals that of one process."""
    statuses, said = Ranks(warm, tmp_path, "train_loader.args.length=7", "val_loader.args.length=7",
                           "train_loader.args.drop_last=false").wait()
    assert statuses == [0, 0], said
    line = [json.loads(line) for line in next(tmp_path.glob("shapes/*/metrics.jsonl")).open()][-1]
    assert line["images"] == 7


RECORD = """
import trainer
step = trainer.Trainer._step
def recorded(self, batches):
    with open("{}", "a") as stream:
        stream.writelines(name + "\\n" for batch in batches for name in batch["id"])
    result = step(self, batches)
    {}
    return result
trainer.Trainer._step = recorded
"""


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_k29_another_number_of_ranks_goes_on_with_the_samples_that_are_left(
        warm, tmp_path, before, after):
    """Two trainings, one after the other."""
    def run(world, *more, stop=""):
        faults = {rank: RECORD.format(tmp_path / "seen", stop) for rank in range(world)}
        return Ranks(warm, tmp_path, "trainer.epochs=1", *more, faults=faults, world=world).wait()
    stop = "import os; self.progress.step == 2 and os.kill(os.getpid(), 15)"    # after step 3
    statuses, said = run(before, stop=stop)
    assert set(statuses) == {143}, said
    last, = tmp_path.glob("shapes/*/last.pth")
    weights = digest(last)
    statuses, said = run(after, "-r", str(last))
    assert set(statuses) == {0}, said
    assert "process(es), instead of" in said[0]
    seen = (tmp_path / "seen").read_text().split()
    assert sorted(seen) == sorted(set(seen)) and len(seen) == 16
    assert digest(last) != weights


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (4, 2), (3, 1), (2, 4)])
def test_k29_the_rest_of_an_epoch_is_the_same_multiset(before, after):
    order, seen = EpochOrder(48, True, 3), []
    for rank in range(before):
        plan = BatchPlan(order, 2, True, rank, before, True)
        plan.set_epoch(5)
        seen += [key[1] for number in range(3) for key in plan.batch(number)]
    done, skip = divmod(3 * 2 * before, 2 * after)
    for rank in range(after):
        plan = BatchPlan(order, 2, True, rank, after, True)
        plan.set_epoch(5, done, skip)
        seen += [key[1] for batch in plan for key in batch]
    assert sorted(seen) == list(range(48))


@pytest.mark.parametrize("name, value", [("RANK", "two"), ("MASTER_PORT", "-1")])
def test_k30_a_launcher_variable_that_is_no_number_is_named(monkeypatch, name, value):
    for key, good in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"),
                      ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(key, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
        distributed.launched()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_k30_half_set_variables_end_with_status_2(warm, tmp_path, name):
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path / 'runs'}",
                         **{name: "1"})
    assert warm.wait(process) == 2
    said = (tmp_path / "log").read_text()
    assert f"{name} is set, but" in said and "MASTER_ADDR" in said
    assert not (tmp_path / "runs").exists()


def test_k31_two_ranks_leave_the_files_of_one(warm, tmp_path):
    found = []
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        assert set(Ranks(warm, tmp_path / str(world), "trainer.save_period=1", world=world)
                   .wait()[0]) == {0}
        run, = (tmp_path / str(world)).glob("shapes/*")
        found.append(sorted(p.name for p in run.rglob("*")))
    assert found[0] == found[1]


def test_sigterm_to_one_rank_saves_once_and_ends_all(warm, tmp_path):
    ranks = Ranks(warm, tmp_path, fault=AT_STEP_3.format("os.kill(os.getpid(), signal.SIGTERM)"))
    statuses, (zero, one) = ranks.wait()
    assert statuses == [143, 143]
    assert zero.count("resume with") == 1 and "interrupted" not in one


WRAPPER = """
import os, sys
sys.path.insert(0, {root!r})
from utils.cli import console
import train
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    exec({fault!r}, {{}})
sys.exit(console.run(train.main))
"""


def launched(folder, *arguments, fault="", restarts=0):
    wrapper = folder / "wrapper.py"
    wrapper.write_text(WRAPPER.format(root=str(ROOT), fault=fault))
    return program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                   f"--max-restarts={restarts}", wrapper, *TINY, f"trainer.save_dir={folder}",
                   *arguments, timeout=280)


def test_max_restarts_goes_on_from_last_pth_by_itself(warm, tmp_path):
    """Seven processes import torch."""
    (tmp_path / "whole").mkdir()
    assert set(Ranks(warm, tmp_path / "whole").wait()[0]) == {0}
    result = launched(tmp_path, "trainer.save_every=1", restarts=1,
                      fault=AT_STEP_3.format("os.kill(os.getpid(), 9)"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"restart 1: resuming from \S+last.pth", result.stderr)
    last, = tmp_path.glob("shapes/*/last.pth")
    whole, = tmp_path.glob("whole/shapes/*/last.pth")
    assert digest(last) == digest(whole)


def test_k24_under_torchrun_the_error_comes_first(tmp_path):
    """Three processes import torch."""
    fault = AT_STEP_3.format("from utils.errors import DataError; raise DataError('on fire')")
    started = time.monotonic()
    result = launched(tmp_path, fault=fault)
    assert result.returncode != 0 and time.monotonic() - started < 200
    told = errors_of(result.stderr)
    assert told[0] == "on fire" and told.count("on fire") == 1
    assert all("stopped because rank 1 failed: on fire" in other for other in told[1:])
