"""Runs the programs as a user does, each in a new process."""
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.places import ROOT

# A training of a few seconds: 4 epochs of 8 steps.
SMALL = ["arch.type=ENet", "train_loader.args.length=32", "train_loader.args.batch_size=4",
         "train_loader.args.size=[48,64]", "train_loader.args.num_workers=1",
         "val_loader.args.length=5", "val_loader.args.batch_size=2",
         "val_loader.args.size=[48,64]", "val_loader.args.num_workers=0",
         "trainer.epochs=4", "trainer.val_per_epochs=2", "trainer.tensorboard=false",
         "trainer.log_per_iter=4"]


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS` in the root folder of the project and waits for its end.

    options: of subprocess.run; timeout: 120 seconds by default.
    """
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=options.pop("timeout", 120), env=environment(),
                          **options)


def start(*arguments: object) -> subprocess.Popen:
    """Starts `python ARGUMENTS` as the leader of a new process group."""
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
                            start_new_session=True)


def kill_group(process: subprocess.Popen, signum: int = signal.SIGKILL):
    """Sends a signal to a started program and to all processes in its group."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        pass


def environment() -> dict[str, str]:
    """The environment of a test program: one thread, no colors, no variables of torchrun.

    The number of threads changes the order of sums, so it must not depend on the machine. On a
    busy machine, two threads would also wait for each other.
    """
    clean = {k: v for k, v in os.environ.items()
             if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    return {**clean, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def digest(path: str | Path) -> str:
    """The SHA-256 of the weights of a checkpoint, in the order of their names, as hex digits."""
    import hashlib

    from utils.checkpoint.read import read_checkpoint
    state = read_checkpoint(path)["model"]
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(key.encode())
        sha.update(state[key].contiguous().numpy().tobytes())
    return sha.hexdigest()
