"""Starts the entry points as a user would, in processes of their own."""
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A training of a few seconds: 4 epochs of 8 steps.
SMALL = ["train_loader.args.length=32", "train_loader.args.batch_size=4",
         "train_loader.args.size=[48,64]", "train_loader.args.num_workers=1",
         "val_loader.args.length=5", "val_loader.args.batch_size=2",
         "val_loader.args.size=[48,64]", "val_loader.args.num_workers=0",
         "trainer.epochs=4", "trainer.val_per_epochs=2", "trainer.tensorboard=false",
         "trainer.log_per_iter=4"]


def program(*arguments, **options) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` in the project's root and wait for it."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=options.pop("timeout", 120), env=environment(),
                          **options)


def start(*arguments) -> subprocess.Popen:
    """Start `python ARGUMENTS` as the leader of a process group of its own."""
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
                            start_new_session=True)


def kill_group(process, signum=signal.SIGKILL):
    """Send a signal to a started program and everything it started."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        pass


def environment():
    """One thread whatever the machine: the number of threads decides the order of sums, and on a
    busy machine two of them wait for each other."""
    clean = {k: v for k, v in os.environ.items()
             if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    return {**clean, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def digest(path) -> str:
    """sha256 over the weights of a checkpoint, in the order of their names."""
    import hashlib

    from utils.checkpoint import read_checkpoint
    state = read_checkpoint(path)["model"]
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode())
        found.update(state[key].contiguous().numpy().tobytes())
    return found.hexdigest()
