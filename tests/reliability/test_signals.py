"""Faults K17-K23: signals, workers that die, files that block, streams that close."""
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image

import train
from tests.programs.test_train_py import camvid, on_camvid  # noqa: F401   a fixture
from tests.programs.test_trainer import Loader, Net, make, same, signal_at, weights
from tests.support.places import ROOT
from tests.support.run_program import SMALL, environment, program
from tests.support.warm_start import left_of_group
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.cli.console import Interrupted
from utils.cli.stop_signal import StopNow, StopSignal
from utils.images.image_io import read_image

TINY = ["-c", "config.json", *SMALL, "train_loader.args.size=[24,32]", "trainer.log_per_iter=1",
        "train_loader.args.batch_size=2", "train_loader.args.length=8", "trainer.amp=false",
        "val_loader.args.size=[24,32]", "val_loader.args.length=2",
        "train_loader.args.num_workers=2"]


def dropout():
    return Net(dropout=0.5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("undisturbed"), model=dropout)
    trainer.train()
    return weights(trainer)


def resumed(folder):
    trainer = make(folder, model=dropout, checkpoint=read_checkpoint(folder / "last.pth"))
    trainer.train()
    return weights(trainer)


def wait(*_):
    """A minute of waiting, during which this process gets a SIGTERM."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(60)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                            (signal.SIGHUP, 129)])
@pytest.mark.parametrize("step", [0, 6])
def test_k17_k19_k23_a_signal_in_a_step_finishes_it_saves_and_loses_nothing(
        tmp_path, undisturbed, number, status, step):
    trainer = signal_at(make(tmp_path, model=dropout), step, number)
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.status == status
    assert f"step {step + 1}; resume with" in str(stopped.value)
    assert read_checkpoint(tmp_path / "last.pth")["step"] == step + 1
    assert same(undisturbed, resumed(tmp_path))


class Waits(Loader):
    """Waits for one batch."""

    def __init__(self, *args, epoch=2, batch=1):
        super().__init__(*args)
        self.epoch, self.batch, self.now = epoch, batch, 0

    def set_epoch(self, epoch, *args):
        self.now = epoch
        super().set_epoch(epoch, *args)

    def __iter__(self):
        for number, batch in enumerate(super().__iter__(), self.start):
            if (self.now, number) == (self.epoch, self.batch):
                wait()
            yield batch


@pytest.mark.parametrize("batch, step", [(1, 5), (0, 4)])
def test_k17_sigterm_while_waiting_for_data_saves_at_once(tmp_path, undisturbed, batch, step):
    trainer = make(tmp_path, model=dropout, loader=Waits(batch=batch))
    started = time.monotonic()
    with pytest.raises(Interrupted):
        trainer.train()
    assert time.monotonic() - started < 30
    assert read_checkpoint(tmp_path / "last.pth")["step"] == step
    assert same(undisturbed, resumed(tmp_path))


def test_k17_sigterm_before_the_first_step_saves_the_start(tmp_path, undisturbed):
    trainer = make(tmp_path, model=dropout, loader=Waits(epoch=1, batch=0))
    with pytest.raises(Interrupted, match="epoch 1 step 0"):
        trainer.train()
    assert same(undisturbed, resumed(tmp_path))


def test_k17_sigterm_during_the_check_before_training_saves_the_start(tmp_path, undisturbed):
    trainer = make(tmp_path, model=dropout)
    trainer._check = wait
    with pytest.raises(Interrupted, match="epoch 1 step 0"):
        trainer.train()
    assert same(undisturbed, resumed(tmp_path))


@pytest.mark.parametrize("slow", ["data", "network"])
def test_k17_sigterm_during_validation_saves_and_repeats_it(tmp_path, undisturbed, slow):
    trainer = make(tmp_path, model=dropout)
    if slow == "data":
        trainer.val_loader = Waits(4, 2, epoch=0, batch=1)
    else:
        trainer.model.backbone.register_forward_pre_hook(
            lambda network, _: None if network.training else wait())
    with pytest.raises(Interrupted, match="epoch 1 step 4"):
        trainer.train()
    assert same(undisturbed, resumed(tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines.count('"validation"') == 3


def test_k17_sigterm_before_there_is_anything_to_save_ends_with_143(capsys):
    assert console.run(wait, []) == 143
    assert "before anything was saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_k18_sigusr1_saves_and_goes_on(tmp_path, undisturbed):
    trainer = signal_at(make(tmp_path, model=dropout), 5, signal.SIGUSR1)
    saved, save = [], trainer.save
    trainer.save = lambda *names, required=False: (
        saved.extend((name, trainer.progress.step) for name in names),
        save(*names, required=required))
    trainer.train()
    assert ("last.pth", 6) in saved
    assert same(undisturbed, weights(trainer))


def test_k18_sigusr1_with_requeue_saves_and_ends_with_75(tmp_path, undisturbed):
    trainer = signal_at(make(tmp_path, "trainer.requeue=true", model=dropout), 5, signal.SIGUSR1)
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.status == 75
    assert same(undisturbed, resumed(tmp_path))


def test_k19_a_second_ctrl_c_leaves_at_once_and_the_last_checkpoint_alone(tmp_path):
    trainer = signal_at(make(tmp_path), 6, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 4


def test_a_signal_that_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)      # as nohup does
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_several_ranks_are_not_torn_from_a_wait():
    with StopSignal(at_once=False) as stop, stop.idle():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == signal.SIGTERM
    with StopSignal() as stop, pytest.raises(StopNow), stop.idle():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.parametrize("method", ["load", "getexif"])
def test_a_stop_while_pillow_reads_a_picture_is_no_damage(tmp_path, monkeypatch, method):
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8)).save(path, compression="tiff_lzw")
    monkeypatch.setattr(Image.Image, method, wait)
    with StopSignal() as stop, pytest.raises(StopNow), stop.idle():
        read_image(path)


@pytest.mark.parametrize("method", ["load", "getexif"])
def test_short_memory_while_pillow_reads_a_picture_is_no_damage(tmp_path, monkeypatch, method):
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8)).save(path, compression="tiff_lzw")
    monkeypatch.setattr(Image.Image, method, short_of_memory)
    with pytest.raises(MemoryError):
        read_image(path)


def short_of_memory(*_):
    raise MemoryError


def test_k21_a_pipe_in_place_of_an_image_is_named(camvid, capsys):     # noqa: F811
    path = camvid / "train" / "2.png"
    path.unlink()
    os.mkfifo(path)
    assert console.run(train.main, on_camvid(camvid)) == 3
    assert "train/2.png" in capsys.readouterr().err


# Processes of their own, forked from one that has torch imported.

AT_STEP_3 = """
import os, signal, trainer
step = trainer.Trainer._step
def faulty(self, batches):
    if self.progress.step == 3:
        {}
    return step(self, batches)
trainer.Trainer._step = faulty
"""


@pytest.mark.slow      # a process that imports torch, once
def test_k19_ctrl_c_twice_leaves_no_worker_behind(warm, tmp_path):
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}",
                         "trainer.save_every=1",
                         fault=AT_STEP_3.format("[os.killpg(0, signal.SIGINT) for _ in '12']"))
    assert warm.wait(process) == 130
    said = (tmp_path / "log").read_text()
    assert "interrupted: at once" in said and "Traceback" not in said
    assert not left_of_group(process)
    assert read_checkpoint(next(tmp_path.glob("shapes/*/last.pth")))["step"] == 3
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow      # a process that imports torch, once
def test_k20_a_killed_worker_is_told_with_memory_and_files_and_the_others_end(warm, tmp_path):
    fault = AT_STEP_3.format("os.kill(self.train_loader._iterator._workers[0].pid, 9)")
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}", fault=fault)
    assert warm.wait(process) == 3
    said = (tmp_path / "log").read_text()
    for part in ("data worker died", "may have been reading", "memory free", "/dev/shm",
                 "num_workers"):
        assert part in said, part
    assert "Traceback" not in said and not left_of_group(process)


@pytest.mark.slow      # a process that imports torch, once
@pytest.mark.parametrize("fault", [
    "import os; r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(w); os.close(r)",
    "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None"])
def test_k22_streams_that_lost_their_reader_do_not_end_a_training(warm, tmp_path, fault):
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}", fault=fault)
    assert warm.wait(process) == 0
    assert (tmp_path / "log").read_text() == ""
    assert read_checkpoint(next(tmp_path.glob("shapes/*/last.pth")))["epoch"] == 5
    assert "best Mean_IoU" in next(tmp_path.glob("shapes/*/log.txt")).read_text()


BROKEN = """
import os
from utils.cli import console

def main(argv):
    {call}

raise SystemExit(console.run(main, []))
"""


@pytest.mark.parametrize("call, status", [
    ("print('x' * 100000)", 0), ("print('x')", 0), ("raise BrokenPipeError('of a worker')", 1)])
def test_k22_only_the_pipe_of_stdout_may_break_without_an_error(call, status):
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb") as stdout:
        if not status:
            reader.close()
        done = subprocess.run([sys.executable, "-c", BROKEN.format(call=call)], cwd=ROOT,
                              env=environment(), stdout=stdout, stderr=subprocess.PIPE,
                              text=True, timeout=60)
    assert done.returncode == status
    assert done.stderr.endswith("BrokenPipeError: of a worker\n") if status else not done.stderr


SWALLOWED = """
import os, time
from utils.cli import console

class Loader:
    def __del__(self):
        os.kill(os.getpid(), {number})

def main(argv):
    del argv[0]
    time.sleep(20)

raise SystemExit(console.run(main, [Loader()]))
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_k17_k19_a_signal_that_comes_in_a_destructor_is_not_lost(number, status):
    done = program("-c", SWALLOWED.format(number=int(number)), timeout=15)
    assert done.returncode == status
    assert done.stderr.startswith("interrupted: ") and done.stderr.count("\n") == 1


@pytest.mark.slow      # a process that imports torch, once
def test_k23_a_terminal_that_is_closed_saves_and_can_be_resumed(warm, tmp_path):
    process = warm.start(tmp_path / "log", *TINY, f"trainer.save_dir={tmp_path}",
                         fault=AT_STEP_3.format("os.killpg(0, signal.SIGHUP)"))
    assert warm.wait(process) == 129
    assert "train.py -r" in (tmp_path / "log").read_text() and not left_of_group(process)
    assert torch.load(next(tmp_path.glob("shapes/*/last.pth")), weights_only=True)["step"] == 4


IMPORTING = """
import os, sys, time, types
from utils.cli import console
sys.modules["torch"] = torch = types.ModuleType("torch")
torch.__spec__ = types.SimpleNamespace(_initializing=True)

def wait(argv):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(20)
    except BaseException as error:
        os._exit(1)       # torch's C++ part lets none through

console.run(wait, [])
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_no_signal_raises_an_exception_while_torch_is_imported(number, status):
    done = program("-c", IMPORTING.format(number=int(number)), timeout=60)
    assert (done.returncode, done.stderr) == (status, "interrupted: before anything was saved\n")
