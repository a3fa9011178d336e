"""Disturbs trainings for N minutes and checks that each ends like an undisturbed one.

    python -m tests.soak 30 [--seed 0] [--only plain ema …]

Trains the default network on Shapes, written to image files, again and again, each time in one of
several ways (WAYS: a running average with skipped steps, Adafactor, a finished run that gets more
epochs, two ranks). Each training is disturbed at random moments: kill -9 of the process or of its
whole group, SIGTERM, SIGHUP, Ctrl-C, images that are truncated, emptied or deleted, checkpoints
that are truncated or have a flipped bit, files that cannot grow (RLIMIT_FSIZE, as on a full disk),
for a while or permanently, and the whole job suspended for longer than its timeouts. After each
disturbance the data is repaired and the training is resumed with `-r auto`, with a random number of
workers and with or without saving in the background, until it is finished. Its weights, average
and optimizer must then equal those of the undisturbed run bit for bit.

Also checked after every process: its exit status fits the disturbance, stderr contains no
traceback, and no process of its group is still running. Once a training is finished, neither its
folder nor the folder for temporary files nor the shared memory may contain files that it left
behind. (The socket folders that Python leaves in the folder for temporary files when it is killed
are accepted.)

Exit status: 0, or 1 with one line per fault.
"""
import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.places import ROOT
from tests.support.ranks import free_port
from tests.support.run_program import environment
from tests.support.warm_start import left_of_group

TRAIN, VAL, SIZE = 32, 6, (48, 64)
LONGEST = 300          # seconds after which a program counts as hanging
ORPHANS_END = 45       # seconds within which data workers must end after their program has ended
SIGNALS = {"SIGTERM": (143,), "SIGHUP": (129,), "SIGINT": (130,)}
HITS = [*SIGNALS, "kill", "kill group", "kill, checkpoint cut", "kill, bit flipped", "picture cut",
        "picture emptied", "picture deleted", "full disk for a while", "full disk", "suspended",
        "nothing"]
TIMEOUT = 8            # seconds, of the loader and of the ranks
SUSPENDED = 11         # seconds for which a job is suspended


class Way(NamedTuple):
    """A way to train. epochs: of the runs one after the other, each goes on from the one before.

    nan_steps: optimizer steps at which the outputs are not finite.
    """

    settings: tuple[str, ...] = ()
    epochs: tuple[int, ...] = (4,)
    ranks: int = 1
    nan_steps: str = ""


WAYS = {
    "plain": Way(),
    "ema": Way(("trainer.ema=0.9", "trainer.nonfinite=skip"), nan_steps="1,2,13"),
    "adafactor": Way(("optimizer.type=Adafactor", 'optimizer.args={"lr": 0.01}',
                      "lr_scheduler=Poly")),
    "more epochs": Way(epochs=(2, 4)),
    "two ranks": Way(("n_gpu=0", f"trainer.rank_timeout={TIMEOUT}"), ranks=2)}


class Reference(NamedTuple):
    """What an undisturbed training took and left."""

    seconds: float
    expected: str
    size: int


class Ranks:
    """The processes of one training, in one process group. Rank 0 leads it."""

    def __init__(self, command: list[str], ranks: int, **options):
        self.processes: list[subprocess.Popen] = []
        env, port = options.pop("env"), free_port() if ranks > 1 else 0
        for rank in range(ranks):
            if ranks > 1:
                env = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            leader = self.processes[0].pid if rank else 0
            self.processes.append(subprocess.Popen(
                command, env=env, preexec_fn=lambda leader=leader: os.setpgid(0, leader),
                **options))
        self.pid = self.processes[0].pid

    def poll(self) -> int | None:
        """The exit status as soon as all ranks have ended: that of the first one which failed."""
        statuses = [process.poll() for process in self.processes]
        if any(status is None for status in statuses):
            return None
        return next(filter(None, statuses), 0)

    def wait(self, seconds: float | None = None):
        """Wait for the end of all ranks. Raises TimeoutExpired."""
        end = None if seconds is None else time.monotonic() + seconds
        for process in self.processes:
            process.wait(end if end is None else max(0.0, end - time.monotonic()))


class Soak:
    """Runs the trainings and collects their faults (`faults`: one text each)."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(seed)
        self.data, self.scratch = folder / "data", folder / "tmp"
        self.scratch.mkdir()
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.pids: set[int] = set()
        self.trainings, self.starts, self.longest_orphan = 0, 0, 0.0
        _write_shapes(self.data)
        self.config = folder / "soak.json"
        self.config.write_text(_config(self.data))
        self.shared_memory = set(_shared_memory())
        self.references: dict[str, Reference] = {}
        self.caches: set[str] = set()

    def reference(self, name: str) -> Reference:
        """What the undisturbed training of a way leaves. Exits if it has a fault."""
        if name not in self.references:
            saves = self._undisturbed(name)
            for epochs in WAYS[name].epochs:
                began = time.monotonic()
                errors = self._end(self._start(saves, name, epochs, 1), (0,), "undisturbed")
                if self.faults:
                    raise SystemExit(f"{name}: {errors}")
            last = _checkpoints(saves)[-1]
            self.references[name] = Reference(time.monotonic() - began, _digest(last),
                                              last.stat().st_size)
            # torch keeps files for later runs (the cache of its compiler); they are not left over.
            self.caches |= {path.name for path in self.scratch.iterdir()}
        return self.references[name]

    def _undisturbed(self, name):
        return self.folder / f"undisturbed {name}"

    def training(self, name: str):
        """Runs one training of a way with all its disturbances until it is finished."""
        reference = self.reference(name)
        self.trainings += 1
        saves, hits = self.folder / f"training {self.trainings}", []
        for epochs in WAYS[name].epochs:
            for _ in range(40):
                hit = self.draw.choice(HITS)
                hits.append(hit)
                if self._disturbed(saves, name, epochs, hit) == 0:
                    break
            else:
                self.faults.append(f"{saves.name} ({name}): not finished after 40 starts")
                return
        if _digest(_checkpoints(saves)[-1]) != reference.expected:
            self.faults.append(f"{saves.name} ({name}): the weights are not those of the "
                               f"undisturbed run, after {'; '.join(hits)}: "
                               f"{self._first_difference(saves, name)}")
        self._check_leftovers(saves)
        shutil.rmtree(saves)

    def _disturbed(self, saves, name, epochs, hit):
        """Starts or resumes a training, disturbs it, waits for its end; returns its exit status."""
        self.starts += 1
        reference = self.references[name]
        process = self._start(saves, name, epochs, self.draw.choice([0, 1, 2]))
        self._wait(process, self.draw.uniform(0.1, 0.9) * reference.seconds)
        self.pids |= left_of_group(process.pid)
        allowed, repair = self._hit(process, saves, hit, reference)
        if WAYS[name].ranks > 1 and allowed != (0,):
            allowed = (*allowed, 1, 2)      # the other rank: this one stopped, or never started
        errors = self._end(process, allowed, hit)
        repair()
        if process.poll() == 3 and "where:" not in errors:
            self.faults.append(f"{hit}: the message names no file: {errors[-300:]}")
        return process.poll()

    def _hit(self, process, saves, hit, reference):
        """Disturbs a training; returns (the allowed exit statuses, the function that repairs)."""
        def nothing():
            pass

        if process.poll() is not None:
            return (0,), nothing       # the training was already finished
        self.counts[hit] += 1
        one = self.draw.choice([one for one in process.processes if one.poll() is None])
        if hit in SIGNALS:
            one.send_signal(getattr(signal, hit))
            # Before the first line of the program, the signal ends Python with its usual status.
            return (0, *SIGNALS[hit], -getattr(signal, hit)), nothing
        if hit.startswith("kill"):
            if hit == "kill group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                one.kill()
            self._wait(process, LONGEST)
            if process.poll() == 0:
                return (0,), nothing   # it was already exiting when the signal arrived
            if "," in hit:
                _damage(saves, hit, self.draw)
            return (-signal.SIGKILL,), self._clear_sockets
        if hit.startswith("picture"):
            return (0, 3), _spoil(self.data, hit, self.draw)
        if hit.startswith("full disk"):
            if process.processes[0].poll() is not None:
                return (0,), nothing
            limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (reference.size // 2, limits[1]))
            if hit.endswith("while"):
                self._wait(process, self.draw.uniform(0, 0.3) * reference.seconds)
                if process.processes[0].poll() is None:
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
            return (0, 1), nothing
        if hit == "suspended":
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for member in sorted(left_of_group(process.pid)):   # one after the other
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(member, number)
                if number == signal.SIGSTOP:
                    time.sleep(SUSPENDED)
        return (0,), nothing

    def _clear_sockets(self):
        """Deletes Python's socket folders, which a killed process cannot delete."""
        for path in self.scratch.glob("pymp-*"):
            shutil.rmtree(path)

    def _start(self, saves, name, epochs, workers):
        """Starts or resumes a training whose checkpoints are in `saves`."""
        way = WAYS[name]
        self.errors = open(self.folder / "stderr", "w+")
        program = ["-m", "tests.support.nan_steps", way.nan_steps] if way.nan_steps \
            else ["train.py"]
        return Ranks(
            [sys.executable, *program, "-c", str(self.config), "-r", "auto",
             f"trainer.save_dir={saves}", f"train_loader.args.num_workers={workers}",
             f"trainer.save_async={self.draw.choice(['true', 'false'])}",
             f"trainer.epochs={epochs}", *way.settings], way.ranks,
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self.errors,
            env={**environment(), "TMPDIR": str(self.scratch)})

    def _wait(self, process, seconds):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def _end(self, process, allowed, hit):
        """Waits for the end of the program and of its group; returns its stderr."""
        self._wait(process, LONGEST)
        if process.poll() is None:
            self.faults.append(f"{hit}: hangs")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        ended = time.monotonic()
        while alive := left_of_group(process.pid):
            self.pids |= alive
            if time.monotonic() - ended > ORPHANS_END:
                self.faults.append(f"{hit}: {len(alive)} processes are still running")
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.1)
        self.longest_orphan = max(self.longest_orphan, time.monotonic() - ended)
        self.errors.seek(0)
        with self.errors:
            errors = self.errors.read()
        statuses = {one.returncode for one in process.processes}
        if not statuses <= set(allowed):
            self.faults.append(f"{hit}: exit statuses {statuses}: {errors[-2000:]}")
        elif "Traceback" in errors and -signal.SIGINT not in statuses:
            self.faults.append(f"{hit}: a traceback: {errors[-2000:]}")
        return errors

    def _first_difference(self, saves, name):
        """The first step whose logged loss differs from that of the undisturbed run, as text."""
        expected = _losses(self._undisturbed(name))
        return next((f"step {step}: loss {loss} instead of {expected.get(step)}"
                     for step, loss in sorted(_losses(saves).items())
                     if loss != expected.get(step)), "no logged loss differs")

    def _check_leftovers(self, saves):
        """Adds a fault if the training left temporary files or shared memory behind."""
        rest = [str(path) for pattern in (".*", "*.tmp", "*.part*")
                for path in saves.rglob(pattern)]
        rest += [str(path) for path in self.scratch.iterdir() if path.name not in self.caches]
        rest += [name for name in set(_shared_memory()) - self.shared_memory
                 if any(f"_{pid}_" in name for pid in self.pids)]
        if rest:
            self.faults.append(f"{saves.name}: left behind: {', '.join(rest)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help=f"of {', '.join(WAYS)}")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak = Soak(Path(folder), args.seed)
        end = time.monotonic() + 60 * args.minutes
        while not soak.trainings or time.monotonic() < end:
            soak.training(args.only[soak.trainings % len(args.only)])
            print(f"{soak.trainings} trainings, {soak.starts} starts, "
                  f"{len(soak.faults)} faults", file=sys.stderr, flush=True)
    for name in HITS:
        print(f"{soak.counts[name]:5d}  {name}")
    undisturbed = ", ".join(f"{name} {reference.seconds:.0f} s"
                            for name, reference in soak.references.items())
    print(f"{soak.trainings} trainings finished after {soak.starts} starts "
          f"(undisturbed: {undisturbed}); the last "
          f"process of a group ended at most {soak.longest_orphan:.1f} s after its program")
    for fault in soak.faults:
        print(f"FAULT {fault}")
    return 1 if soak.faults else 0


def _config(data):
    """The text of the config of the trainings."""
    common = {"data_dir": str(data), "num_classes": 9}
    args = {**common, "split": "train", "batch_size": 4, "shuffle": True, "augment": True,
            "scale": [0.8, 1.3], "flip": True, "crop_size": list(SIZE), "timeout": TIMEOUT}
    return json.dumps({
        "extends": str(ROOT / "configs/base/shapes_enet.json"), "name": "soak", "train_loader":
        {"type": "Folder", "args": args}, "val_loader": {"type": "Folder", "args": {
            **common, "split": "val", "batch_size": 2, "num_workers": 0}},
        "trainer": {"epochs": 4, "val_per_epochs": 2, "save_every": 3, "save_period": 1,
                    "tensorboard": False, "log_per_iter": 1}})


def _write_shapes(folder):
    """Writes the images and labels of Shapes as files of the dataset Folder."""
    from dataloader.shapes import Shapes
    from utils.images.image_io import write_image, write_label
    for split, length in (("train", TRAIN), ("val", VAL)):
        dataset = Shapes(split=split, size=SIZE, length=length)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(length):
            image, label = dataset.load(index)
            write_image(folder / "images" / split / f"{index:03d}.png", np.ascontiguousarray(image))
            write_label(folder / "labels" / split / f"{index:03d}.png", label, dataset.palette)


def _spoil(data, hit, draw):
    """Damages one image; returns the function that repairs it."""
    path = draw.choice(sorted((data / "images").glob("*/*.png")))
    content = path.read_bytes()
    if hit == "picture deleted":
        path.unlink()
    else:
        path.write_bytes(content[:len(content) // 2] if hit == "picture cut" else b"")
    return lambda: path.write_bytes(content)


def _damage(saves, hit, draw):
    """Damages the newest checkpoint of a training."""
    checkpoints = _checkpoints(saves)
    if not checkpoints:
        return
    newest = checkpoints[-1]
    content = bytearray(newest.read_bytes())
    if hit == "kill, bit flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(len(content)):]
    newest.write_bytes(content)


def _checkpoints(saves: Path) -> list[Path]:
    """The last.pth of each run folder of a training, oldest first."""
    return sorted(saves.glob("soak/*/last.pth"), key=lambda path: path.stat().st_mtime_ns)


def _losses(saves):
    """step -> loss, from the run folder with the newest last.pth."""
    log = _checkpoints(saves)[-1].parent / "metrics.jsonl"
    entries = map(json.loads, log.read_text().splitlines())
    return {entry["step"]: entry["train/loss"] for entry in entries if entry["kind"] == "train"}


def _digest(path: Path) -> str:
    """The SHA-256 of all tensors of a checkpoint: weights, average and state of the optimizer."""
    from utils.checkpoint.read import read_checkpoint
    sha = hashlib.sha256()
    for place, tensor in _tensors(dict(read_checkpoint(path)), ""):
        sha.update(f"{place} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _tensors(value, place) -> Iterator[tuple]:
    """(place, tensor) of all tensors in nested dicts and lists, in the order of the places."""
    import torch
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _tensors(value[key], f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{place}/{number}")


def _shared_memory():
    """The names of the files in shared memory."""
    return [path.name for path in Path("/dev/shm").glob("*")]


if __name__ == "__main__":
    sys.exit(main())
