"""Faults K01-K16: checkpoints are complete, found again, and never execute anything."""
import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import train
from tests.checkpoint.test_checkpoint import Hostile, Net
from tests.programs.test_trainer import make
from tests.reliability.test_run_files import unreadable
from tests.support.limits import files_limited_to
from tests.support.places import ROOT
from tests.support.run_program import SMALL, digest, environment
from utils.checkpoint import read, run_checkpoints
from utils.checkpoint.find import newest_training
from utils.checkpoint.load import load_exact, load_foreign, unwrap
from utils.checkpoint.read import read_checkpoint, read_weights
from utils.checkpoint.run_checkpoints import RunCheckpoints
from utils.checkpoint.write import SaveError, write_checkpoint
from utils.cli import console
from utils.errors import CheckpointError
from utils.files.whole_file import UNFINISHED, WholeFile
from utils.training.monitor import Monitor
from utils.training.run_folder import RUNNING, claimed

TINY = ["-c", "config.json", *SMALL, "train_loader.args.num_workers=0", "trainer.epochs=2",
        "train_loader.args.size=[24,32]", "train_loader.args.length=8",
        "val_loader.args.size=[24,32]", "val_loader.args.length=2"]


OFF = ["val_loader=null", "trainer.val=false"]


def fails(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))
    return call


def run(*arguments):
    return console.run(train.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A training of two epochs of two steps, with model_best, last and two periodic files."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(*TINY, "trainer.save_period=1", f"trainer.save_dir={folder}") == 0
    return next(folder.glob("shapes/*"))


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "runs" / "shapes" / finished.name)


def resume(trained, *more):
    return run(*TINY, f"trainer.save_dir={trained.parents[1]}", "-r", "auto", *more)


def numbered_state(step):
    return {"format": 1, "model": {"w": torch.full((100_000,), float(step))}, "config": {},
            "step": step}


def save_forever(folder, started):
    for step in range(10 ** 6):
        started.set()
        write_checkpoint(folder / "last.pth", numbered_state(step))


@pytest.mark.slow
def test_k01_fifty_kills_in_the_middle_of_saving_leave_a_whole_checkpoint(tmp_path):
    """Two seconds: fifty processes are forked, and each saves for up to 50 ms."""
    moments, fork = random.Random(1), multiprocessing.get_context("fork")
    write_checkpoint(tmp_path / "last.pth", numbered_state(0))
    for _ in range(50):
        started = fork.Event()
        saver = fork.Process(target=save_forever, args=(tmp_path, started))
        saver.start()
        started.wait()
        time.sleep(moments.uniform(0, 0.05))
        saver.kill()
        saver.join()
        state = read_checkpoint(tmp_path / "last.pth")
        assert (state["model"]["w"] == state["step"]).all()
    assert list(tmp_path.glob(f"{UNFINISHED}*")), "no kill hit a save: the test proves nothing"
    with claimed(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {"last.pth", RUNNING}
    assert os.listdir(tmp_path) == ["last.pth"]


def test_k01_the_next_run_clears_what_a_kill_left_in_another_run_folder(tmp_path):
    dead, alive, new = (tmp_path / name for name in ("dead", "alive", "new"))
    for folder in (dead, alive, new):
        folder.mkdir()
        (folder / ".last.pth.1.tmp").touch()
        WholeFile(folder / "config.json")
    (dead / RUNNING).touch()
    holder = subprocess.Popen(
        ["python3", "-c", "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 6); "
         "print('held', flush=True); sys.stdin.read()", str(alive / RUNNING)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with claimed(new):
        assert not os.listdir(dead) and os.listdir(new) == [RUNNING]
        assert len(os.listdir(alive)) == 3
    holder.communicate()


@contextlib.contextmanager
def full_disk(folder):
    """A file system of 1 MB at `folder`."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder],
                      capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_k02_a_full_disk_keeps_the_old_file_and_says_how_much_is_missing(tmp_path):
    with full_disk(tmp_path / "disk") as disk:
        write_checkpoint(disk / "last.pth", numbered_state(7))
        with pytest.raises(SaveError) as error:
            write_checkpoint(disk / "last.pth", {**numbered_state(8), "more": torch.ones(300_000)})
        assert re.search(r"no space left while writing \S+/last.pth \(needed 1.6 MB, free 0.6 MB\)",
                         str(error.value))
        assert "trainer.save_dir" in str(error.value) and error.value.exit_status == 1
        assert os.listdir(disk) == ["last.pth"]
        assert read_checkpoint(disk / "last.pth")["step"] == 7


def test_k02_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path):
    write_checkpoint(tmp_path / "last.pth", numbered_state(7))
    with files_limited_to(100_000), pytest.raises(SaveError, match="no space left"):
        write_checkpoint(tmp_path / "last.pth", numbered_state(8))
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 7
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("code, disk, said", [
    (errno.EDQUOT, (1000, 1000, 9, 9), "your quota is used up"),
    (errno.ENOSPC, (1000, 1000, 9, 0), "no free inodes"),
    (errno.ENOSPC, (1000, 2000, 0, 0), "needed 0.4 MB, free 2.0 MB"),   # counts no files, as Btrfs
    (errno.EFBIG, (1000, 2000, 9, 9), "larger than the largest file allowed here")])
def test_k02_the_message_says_what_is_used_up(tmp_path, monkeypatch, code, disk, said):
    def full(*_):
        raise OSError(code, os.strerror(code))
    size, free, files, free_files = disk
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(
        f_frsize=size, f_bavail=free, f_files=files, f_favail=free_files))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SaveError, match=said):
        write_checkpoint(tmp_path / "last.pth", numbered_state(1))


def test_k02_one_failed_save_is_a_warning_and_two_end_the_training(tmp_path, capsys):
    trainer = make(tmp_path, "trainer.save_every=3")       # saves after steps 3, 4, 6, 8, ...
    epoch, failing = trainer._train_epoch, [False]

    def with_a_full_disk(number):
        with files_limited_to(1000) if failing[0] else contextlib.nullcontext():
            epoch(number)
    trainer._train_epoch = with_a_full_disk
    failing[0] = True                      # the save at step 3 fails, the one at step 4 does not
    trainer._valid_epoch = lambda number: failing.clear() or failing.append(False) or {
        "Mean_IoU": .5}
    trainer.train()
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "the training continues" in said
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 12

    writer = RunCheckpoints(tmp_path)
    with files_limited_to(1000):
        writer.save(numbered_state(1), "last.pth")
        with pytest.raises(SaveError):
            writer.save(numbered_state(2), "last.pth")
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 12


def test_k02_the_last_save_of_a_run_may_not_fail(tmp_path):
    with files_limited_to(1000), pytest.raises(SaveError):
        RunCheckpoints(tmp_path).save(numbered_state(1), "last.pth", required=True)


def test_k02_a_save_of_two_files_fails_once(tmp_path, capsys):
    """It warns of both files and does not end the training; the next one does."""
    writer = RunCheckpoints(tmp_path)
    with files_limited_to(1000):
        writer.save(numbered_state(1), "model_best.pth", "last.pth")
        said = capsys.readouterr().err
        assert "model_best.pth" in said and "last.pth" in said and said.count("warning") == 2
        with pytest.raises(SaveError):
            writer.save(numbered_state(2), "last.pth")


def test_k02_a_save_that_misses_one_file_may_not_be_the_last_one(tmp_path):
    (tmp_path / "model_best.pth").mkdir()
    with pytest.raises(SaveError, match=r"model_best\.pth"):
        RunCheckpoints(tmp_path).save(numbered_state(1), "model_best.pth", "last.pth",
                                      required=True)
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.9999])
def test_k03_a_truncated_checkpoint_is_named_and_auto_takes_the_one_before(trained, capsys, size):
    """Seconds: a training is started again for each length."""
    data = (trained / "last.pth").read_bytes()
    cut = size if isinstance(size, int) else int(size * len(data))
    (trained / "last.pth").write_bytes(data[:cut])
    capsys.readouterr()
    assert run("-r", trained / "last.pth") == 4
    said = capsys.readouterr().err
    assert "checkpoint is damaged" in said and str(trained / "last.pth") in said
    assert "weights_only" not in said and "the newest undamaged checkpoint there" in said
    assert resume(trained, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "skipping" in said and re.search(r"resuming from \S+\.pth", said)


@pytest.mark.slow
def test_k04_a_flipped_bit_is_refused_and_auto_goes_on_to_the_same_weights(trained, capsys):
    """Seconds: a training is resumed and ends."""
    expected, path = digest(trained / "last.pth"), trained / "last.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert run("-r", path) == 4
    assert re.search(r"record \S*data/\d+ fails its checksum", capsys.readouterr().err)
    (trained / "checkpoint-epoch2.pth").unlink()
    (trained / "model_best.pth").unlink()
    assert resume(trained) == 0
    assert "resuming from" in capsys.readouterr().err
    assert digest(path) == expected


@pytest.mark.slow
def test_k04_a_damaged_last_checkpoint_of_a_finished_training_is_replaced(trained, capsys):
    """Seconds: a training is started again."""
    expected, path = digest(trained / "last.pth"), trained / "last.pth"
    path.write_bytes(path.read_bytes()[:-100])
    assert resume(trained) == 0
    assert re.search(r"resuming from \S+checkpoint-epoch\d\.pth", capsys.readouterr().err)
    assert digest(path) == expected


@pytest.mark.slow
def test_k15_a_kill_between_the_last_saves_of_a_training_leaves_no_older_last_checkpoint(
        trained, capsys):
    path = trained / "last.pth"
    expected, end = digest(path), max(trained.glob("checkpoint-epoch*.pth"))
    shutil.copy(min(trained.glob("checkpoint-epoch*.pth")), path)
    os.utime(path, (1, 1))
    assert digest(path) != expected
    assert resume(trained) == 0
    assert f"resuming from {end}" in capsys.readouterr().err
    assert digest(path) == expected


@pytest.mark.slow
def test_k04_a_finished_training_whose_last_checkpoint_stays_damaged_says_so(trained, capsys):
    path = trained / "last.pth"
    path.write_bytes(path.read_bytes()[:-100])
    with files_limited_to(100_000):
        assert resume(trained) == 1
    assert "no space left while writing" in capsys.readouterr().err


def test_k05_foreign_files_are_passed_over(trained, capsys):
    for path in trained.glob("*.pth"):
        path.unlink()
    torch.save({"state_dict": {}}, trained / "foreign.pth")
    (trained / "last.pth").write_text("no checkpoint at all")
    (trained / "gone.pth").symlink_to("nowhere")
    assert resume(trained, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "starting fresh" in said and said.count("skipping") == 2
    assert run("-r", trained / "missing.pth") == 4
    assert "foreign.pth, gone.pth, last.pth" in capsys.readouterr().err


def test_k06_another_architecture_is_told_in_one_line(finished, capsys):
    """Seconds: a second network is built and refused."""
    assert run(*TINY, "arch.type=UNet", "-r", finished / "last.pth") == 4
    said = capsys.readouterr().err
    assert re.search(r"saved by arch ENet, the config says UNet; 0 of \d+ tensors match", said)
    assert "finetune_from" in said


def test_k07_another_number_of_classes_resumes_never_and_fine_tunes_the_rest(tmp_path):
    torch.save(Net(19).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"head.weight is \(19, 8, 1, 1\).* \(5, 8, 1, 1\)"):
        load_exact(Net(5), Net(19).state_dict(), "Net", "w.pth")
    model = Net(5)
    model.rename_foreign, model.first_convolution = (lambda state: state), lambda: None
    assert "head.bias" in str(load_foreign(model, tmp_path / "w.pth"))
    model.body = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="only 0 of"):
        load_foreign(model, tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "ema"])
def test_k08_every_usual_wrapping_of_weights_loads(tmp_path, prefix, wrapper):
    state = {prefix + key: value for key, value in Net().state_dict().items()}
    torch.save({wrapper: state, "epoch": 1} if wrapper else state, tmp_path / "w.pth")
    load_exact(Net(), unwrap(read_weights(tmp_path / "w.pth")), "Net", "w.pth")


def test_k09_a_checkpoint_with_numpy_scalars_and_a_config_loads_safely(tmp_path):
    import numpy as np
    torch.save({"arch": "DataParallel", "epoch": 10, "monitor_best": np.float64(0.71),
                "state_dict": Net().state_dict(), "config": {"n_gpu": 1}}, tmp_path / "c.pth")
    assert read_weights(tmp_path / "c.pth")["monitor_best"] == 0.71


@pytest.mark.parametrize("form", ["zip", "legacy", *(f"protocol {n}" for n in range(6)), "renamed"])
def test_k10_k11_a_hostile_file_is_refused_with_what_it_asks_for(tmp_path, capsys, form):
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pth"
    payload = {"model": Hostile(sentinel)}
    if form in ("zip", "legacy"):
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "renamed":
        path = tmp_path / "evil.pdparams"
        path.write_bytes(pickle.dumps(payload))
    else:
        path.write_bytes(pickle.dumps(payload, protocol=int(form[-1])))
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    assert not sentinel.exists()
    assert "posix.system" in str(error.value)
    assert "weights_only" not in str(error.value) and "unsafe" not in str(error.value)
    if form != "renamed":
        assert run("-r", path) == 4 and not sentinel.exists()
        assert "refused: the file asks to run posix.system" in capsys.readouterr().err


def test_k11_a_benign_pdparams_loads_exactly(tmp_path):
    import numpy as np
    weights = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(weights, protocol=2))
    assert torch.equal(torch.as_tensor(read_weights(tmp_path / "w.pdparams")["conv.weight"]),
                       torch.from_numpy(weights["conv.weight"]))


def test_k12_a_giant_view_is_refused_without_taking_memory(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    giant = torch.zeros(1).expand(100_000, 100_000)          # 40 GB if it were copied
    for entry in ("model", "optimizer"):
        state = read_checkpoint(tmp_path / "last.pth")
        if entry == "model":
            state["model"]["head.1.weight"] = giant
        else:
            state["optimizer"]["state"][0]["momentum_buffer"] = giant
        write_checkpoint(tmp_path / "giant.pth", state)
        assert (tmp_path / "giant.pth").stat().st_size < 50_000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match=r"\(100000, 100000\)"):
            make(tmp_path, checkpoint=read_checkpoint(tmp_path / "giant.pth"))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000     # kB


def test_k12_integers_and_nan_for_weights_are_refused_by_name(tmp_path):
    state = Net().state_dict()
    with pytest.raises(CheckpointError, match="head.weight is .* torch.int32"):
        load_exact(Net(), {**state, "head.weight": state["head.weight"].int()}, "Net", "x")
    for name, tensor in state.items():
        with pytest.raises(CheckpointError, match=f"{name} is .* torch.complex64"):
            load_exact(Net(), {**state, name: tensor.to(torch.complex64)}, "Net", "x")
    with pytest.raises(CheckpointError, match="1 tensors hold NaN or Inf: head.bias"):
        load_exact(Net(), {**state, "head.bias": state["head.bias"] / 0}, "Net", "x")


@pytest.mark.parametrize("make_place", [
    lambda folder: (folder / "file").write_text("precious") and folder / "file",
    lambda folder: "/proc", lambda folder: "/proc/1/runs"])
def test_k13_a_save_dir_that_cannot_be_written_is_found_before_the_data_is_read(
        tmp_path, capsys, make_place):
    place = make_place(tmp_path)
    assert run("-c", "config.json", f"trainer.save_dir={place}", "train_loader.type=CamVid",
               "loss=CE", *OFF,
               'train_loader.args={"data_dir": "/none", "split": "train"}') == 2
    assert "trainer.save_dir" in capsys.readouterr().err
    assert place == tmp_path / "file" or not list(tmp_path.iterdir())
    assert place != tmp_path / "file" or place.read_text() == "precious"


def test_k13_a_name_with_spaces_and_unicode_works(tmp_path):
    place = tmp_path / "Läufe mit Ü" / "深い"
    assert run(*TINY, "trainer.epochs=1", "name=straße / ../x", f"trainer.save_dir={place}") == 0
    assert list(place.glob("straße*/*/last.pth"))


def test_k14_two_runs_of_one_name_in_one_moment_have_folders_of_their_own(tmp_path):
    from utils.training.run_folder import create_run_folder
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(create_run_folder(tmp_path, "x")))
               for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(folders)) == 8


@pytest.mark.slow
def test_k14_a_folder_in_which_another_process_trains_is_not_resumed(trained, capsys):
    """Another process holds the claim."""
    code = ("import sys, pathlib\nfrom utils.training.run_folder import claimed\n"
            "with claimed(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()")
    holder = subprocess.Popen(["python3", "-c", code, str(trained)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, cwd=ROOT, env=environment())
    holder.stdout.readline()
    assert run("-r", trained / "last.pth") == 4
    assert "another process trains in this folder" in capsys.readouterr().err
    holder.send_signal(signal.SIGKILL)     # the claim ends with it
    holder.wait()
    assert run("-r", trained / "last.pth") == 0


def test_k15_a_best_that_is_younger_than_last_is_not_replaced_by_a_worse_one(
        tmp_path, monkeypatch):
    scores = {1: .3, 2: .5, 3: .4}
    first = make(tmp_path)
    first._valid_epoch = lambda epoch: {"Mean_IoU": scores[epoch]}
    write = run_checkpoints.write_bytes

    def crash(path, data):
        write(path, data)
        if path.name == "model_best.pth" and first.progress.epoch == 3:
            raise KeyboardInterrupt       # after the best of epoch 2, before its last.pth
    monkeypatch.setattr(run_checkpoints, "write_bytes", crash)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    monkeypatch.undo()
    last = read_checkpoint(tmp_path / "last.pth")
    assert (last["monitor"]["best"], last["epoch"]) == (.3, 2)

    second = make(tmp_path, checkpoint=last)
    scores[2] = .45                       # the epoch is repeated, a little worse
    second._valid_epoch = lambda epoch: {"Mean_IoU": scores[epoch]}
    second.train()
    assert read_checkpoint(tmp_path / "model_best.pth")["monitor"]["best"] == .5
    last = read_checkpoint(tmp_path / "last.pth")
    assert last["monitor"] == {"best": .5, "epoch": 2, "step": None, "waited": 1}


def test_k15_the_best_repeated_after_a_crash_leaves_the_state_of_an_undisturbed_run():
    undisturbed, resumed = Monitor("max Mean_IoU", 5), Monitor("max Mean_IoU", 5)
    for epoch, value in enumerate((.3, .2, .5, .4), 1):
        undisturbed.update({"Mean_IoU": value}, epoch)
        if epoch < 3:
            resumed.update({"Mean_IoU": value}, epoch)
    assert resumed.adopt({"best": .5, "epoch": 3, "waited": 0})
    for epoch, value in ((3, .5), (4, .4)):
        assert not resumed.update({"Mean_IoU": value}, epoch)
    assert resumed.state_dict() == undisturbed.state_dict()


def test_k15_a_checkpoint_that_watched_another_metric_starts_the_best_anew(tmp_path):
    make(tmp_path).train()
    trainer = make(tmp_path, "trainer.monitor=min loss",
                   checkpoint=read_checkpoint(tmp_path / "last.pth"))
    assert trainer.monitor.best is None


def test_k16_differences_are_listed_and_harmless_ones_are_not(finished, capsys):
    assert run("-r", finished / "last.pth", "--dry-run", "trainer.clip_grad_norm=0.5",
               "trainer.log_per_iter=7", "train_loader.args.num_workers=1",
               "optimizer.args.foreach=false") == 0
    said = capsys.readouterr().err
    assert "differs from the checkpoint: trainer.clip_grad_norm was 0.0, is 0.5\n" in said
    assert not any(part in said for part in ("log_per_iter", "num_workers", "foreach"))


@pytest.mark.slow
@pytest.mark.parametrize("change, said", [
    ("train_loader.args.batch_size=2", "train_loader.args.batch_size was 4, is 2"),
    ("seed=5", "seed was 0, is 5"), ("trainer.accumulate=2", "trainer.accumulate was 1, is 2"),
    ('train_loader.args.sampler={"type": "ClassUniform", "args": {"classes": [0]}}',
     "train_loader.args.sampler was None, is"),
    ("optimizer.args.lr=0.5", "optimizer.args.lr was 0.005, is 0.5"),
    ("optimizer.args.weight_decay=0.5", "optimizer.args.weight_decay was 0.01, is 0.5"),
    ('optimizer={"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}',
     "optimizer.type was 'AdamW', is 'SGD'"),
    ("train_loader.args.length=6", "8 samples when the checkpoint was saved, 6 now")])
def test_k16_what_changes_the_order_or_the_optimizer_needs_to_be_allowed(finished, capsys, change,
                                                                         said):
    assert run("-r", finished / "last.pth", "--dry-run", change) == 2
    text = capsys.readouterr().err
    assert said in text and "--resume-allow-changes" in text
    assert f"trainer.finetune_from={finished / 'last.pth'}" in text or "8 samples when" in said
    assert run("-r", finished / "last.pth", "--dry-run", change, "--resume-allow-changes") == 0
    text = capsys.readouterr().err
    assert "8 samples when" in said or f"{said[:30]}" in text and "holds from here on" in text


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("place", ["auto", "path", "best"])
def test_a_stop_while_a_checkpoint_is_read_is_no_damage(trained, monkeypatch, number, status, place,
                                                        capsys):
    """Seconds: a training starts, up to the reading of its best checkpoint."""
    before = {path: path.read_bytes() for path in trained.iterdir()}
    load, seen = torch.load, []

    def stopped(path, **options):
        seen.append(path)
        if place != "best" or path.name == "model_best.pth":
            os.kill(os.getpid(), number)
        return load(path, **options)
    monkeypatch.setattr(torch, "load", stopped)
    how = ["-r", trained / "last.pth"] if place != "auto" else [
        *TINY, "-r", "auto", f"trainer.save_dir={trained.parents[1]}"]
    assert run(*how) == status
    said = capsys.readouterr().err
    assert seen and "interrupted: " in said and "skipping" not in said
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_newest_checkpoint_that_cannot_be_read_is_neither_left_out_nor_overwritten(
        trained, monkeypatch, capsys, error):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    monkeypatch.setattr(read, "WAITS", (0, 0))
    unreadable(monkeypatch, "last.pth", error)
    assert resume(trained) == 4
    assert "error: the checkpoint could not be read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.slow
def test_the_last_checkpoint_of_a_finished_training_is_read_once_when_it_resumes(
        trained, monkeypatch):
    opened, verify = [], read.verify_archive
    monkeypatch.setattr(read, "verify_archive", lambda path: (opened.append(path.name),
                                                              verify(path)))
    assert run("-r", trained / "last.pth") == 0
    assert opened == ["last.pth", "model_best.pth"]


def test_the_checkpoints_of_one_epoch_are_serialized_once_and_hold_the_same_bytes(
        tmp_path, monkeypatch):
    serialized, to_bytes = [], run_checkpoints.checkpoint_bytes
    monkeypatch.setattr(run_checkpoints, "checkpoint_bytes",
                        lambda state: serialized.append(state["epoch"]) or to_bytes(state))
    make(tmp_path, "trainer.epochs=1", "trainer.save_period=1").train()
    assert serialized == [2]
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    assert files.keys() == {"model_best.pth", "checkpoint-epoch1.pth", "last.pth"}
    assert len(set(files.values())) == 1


def test_a_save_in_the_background_fails_too_if_one_of_its_files_does(tmp_path, capsys):
    writer = RunCheckpoints(tmp_path, background=True)
    (tmp_path / "model_best.pth").mkdir()       # cannot be replaced by a file
    writer.save(numbered_state(1), "model_best.pth", "last.pth")
    writer.save(numbered_state(2), "last.pth")
    assert capsys.readouterr().err.count("the training continues") == 1
    writer.save(numbered_state(3), "model_best.pth", "last.pth")
    writer.finish()
    assert capsys.readouterr().err.count("the training continues") == 1     # not twice in a row
    writer.save(numbered_state(4), "model_best.pth", "last.pth")
    with pytest.raises(SaveError):
        writer.finish()
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 4


def test_keep_deletes_old_periodic_checkpoints_and_nothing_else(tmp_path):
    make(tmp_path, "trainer.save_period=1", "trainer.keep=2", "trainer.epochs=5").train()
    assert {p.name for p in tmp_path.glob("*.pth")} == {
        "model_best.pth", "last.pth", "checkpoint-epoch4.pth", "checkpoint-epoch5.pth"}


def test_old_checkpoints_are_verified_only_before_one_is_deleted(tmp_path, monkeypatch):
    verified = []
    monkeypatch.setattr(run_checkpoints, "verified",
                        lambda path: verified.append(path.name) or True)
    writer = RunCheckpoints(tmp_path, keep=2)
    for name in ("checkpoint-epoch1.pth", "last.pth", "checkpoint-epoch2.pth", "last.pth",
                 "model_best.pth"):
        writer.save(numbered_state(1), name)
    assert not verified
    writer.save(numbered_state(1), "checkpoint-epoch3.pth")
    writer.save(numbered_state(1), "last.pth")
    assert verified == ["checkpoint-epoch3.pth", "checkpoint-epoch2.pth"]


def test_keep_never_deletes_the_only_undamaged_file(tmp_path, monkeypatch):
    writer = RunCheckpoints(tmp_path, keep=1)
    writer.save(numbered_state(9), "checkpoint-epoch9.pth")
    write = run_checkpoints.write_bytes
    monkeypatch.setattr(run_checkpoints, "write_bytes",     # a disk that loses data
                        lambda path, data: write(path, bytes(data)[:1000]))
    writer.save(numbered_state(10), "checkpoint-epoch10.pth")
    assert (tmp_path / "checkpoint-epoch9.pth").exists()
    monkeypatch.undo()
    writer.save(numbered_state(11), "checkpoint-epoch11.pth")
    assert {p.name for p in tmp_path.glob("*.pth")} == {"checkpoint-epoch11.pth"}


def test_a_checkpoint_that_cannot_be_deleted_gives_a_warning(tmp_path, capsys, monkeypatch):
    writer = RunCheckpoints(tmp_path, keep=1)
    writer.save(numbered_state(1), "checkpoint-epoch1.pth")
    monkeypatch.setattr("pathlib.Path.unlink", fails(errno.EPERM))
    writer.save(numbered_state(2), "checkpoint-epoch2.pth")
    assert "could not be deleted" in capsys.readouterr().err


def test_background_saving_writes_the_same_bytes(tmp_path):
    for name, background in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        state = numbered_state(3)
        writer = RunCheckpoints(tmp_path / name, background=background)
        writer.save(state, "last.pth")
        state["model"]["w"].zero_()        # the training continues before the file is written
        writer.finish()
    assert (tmp_path / "a/last.pth").read_bytes() == (tmp_path / "b/last.pth").read_bytes()


def test_background_saving_never_has_two_writers(tmp_path, monkeypatch):
    busy, most, write = [], [], run_checkpoints.write_bytes

    def slow(path, data):
        busy.append(path)
        most.append(len(busy))
        time.sleep(0.02)
        write(path, data)
        busy.pop()
    monkeypatch.setattr(run_checkpoints, "write_bytes", slow)
    writer = RunCheckpoints(tmp_path, background=True)
    for step in range(10):
        writer.save(numbered_state(step), f"{step % 2}.pth")
    writer.finish()
    assert len(most) == 10 and max(most) == 1
    assert read_checkpoint(tmp_path / "1.pth")["step"] == 9


def test_background_saving_reports_errors(tmp_path, capsys):
    writer = RunCheckpoints(tmp_path / "vanished", background=True)
    writer.save(numbered_state(1), "last.pth")
    writer.save(numbered_state(2), "last.pth")
    assert "the training continues" in capsys.readouterr().err
    with pytest.raises(SaveError):
        writer.finish()


def test_background_saving_trains_the_same(tmp_path):
    for name, background in (("a", "false"), ("b", "true")):
        (tmp_path / name).mkdir()
        make(tmp_path / name, f"trainer.save_async={background}", "trainer.save_every=1").train()
    assert digest(tmp_path / "a/last.pth") == digest(tmp_path / "b/last.pth")


@pytest.mark.slow
def test_metrics_of_steps_that_are_repeated_are_written_once(trained):
    before = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").open()]
    for name in ("last.pth", "model_best.pth", "checkpoint-epoch2.pth"):
        (trained / name).unlink()
    assert resume(trained) == 0
    assert [json.loads(line)["step"] for line in (trained / "metrics.jsonl").open()] == before


@pytest.mark.slow
def test_the_newest_training_is_found_under_any_file_name(trained):
    _, path = newest_training(trained.parent)
    assert path == trained / "last.pth"
    assert newest_training(trained.parent / "nothing") is None
