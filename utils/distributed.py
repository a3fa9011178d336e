"""Several processes: start, agree, reduce, stop.

`torchrun --nproc_per_node=N train.py …` starts the ranks itself; `n_gpu: N` in
the config makes a plain `python train.py` start the same thing. GPUs talk
through NCCL, CPUs through gloo. Everything here works, and does nothing, in a
single process.
"""
import os
import sys
from datetime import timedelta

from utils.errors import ConfigError

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """True in a process that torchrun (or a cluster's launcher) started."""
    present = [name for name in _LAUNCHER_VARIABLES if os.environ.get(name)]
    if not {"RANK", "WORLD_SIZE"} & set(present):
        return False
    missing = [name for name in _LAUNCHER_VARIABLES if name not in present]
    if missing:
        raise ConfigError(f"{present[0]} is set, but {', '.join(missing)} is not",
                          "environment", "start with torchrun, or unset the variables")
    return True


def relaunch(processes: int, argv: list[str]):
    """Replace this process by torch's elastic launcher with `processes` ranks of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", os.path.abspath(sys.argv[0]), *argv]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.execv(sys.executable, command)


def choose_processes(n_gpu: int | None) -> int:
    """How many processes the config asks for on this machine.

    None: one per visible GPU, or one on the CPU. A config written for one GPU
    runs on a machine without any, with a notice.
    """
    import torch
    from utils.console import notice
    available = torch.cuda.device_count()
    if n_gpu is None:
        return max(1, available)
    if n_gpu > max(1, available):
        raise ConfigError(f"n_gpu is {n_gpu}, but {available} GPU(s) are visible", "n_gpu",
                          f"set n_gpu={max(1, available)}, or use torchrun for processes on CPUs")
    if n_gpu == 1 and not available:
        notice("no GPU is visible: running on the CPU")
    return max(1, n_gpu)


def start(device: str | None = None, timeout: float = 1800.0):
    """Join the process group if there is one; returns this process's torch.device.

    timeout: seconds after which a collective that some rank does not reach fails.
    """
    import torch
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not launched():
        return torch.device(device)
    import torch.distributed as dist
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo",
                                timeout=timedelta(seconds=timeout))
    return torch.device(device)


def stop():
    """Leave the process group."""
    if world_size() > 1:
        import torch.distributed as dist
        dist.destroy_process_group()


def world_size() -> int:
    dist = _dist()
    return dist.get_world_size() if dist else 1


def rank() -> int:
    dist = _dist()
    return dist.get_rank() if dist else 0


def is_main() -> bool:
    """Rank 0 alone writes files and speaks."""
    return rank() == 0


def all_reduce_(tensor):
    """Sum `tensor` over the ranks, in place; returns it."""
    dist = _dist()
    if dist:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value):
    """Rank 0's `value` (plain types), on every rank."""
    dist = _dist()
    if not dist:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(module):
    """Give every rank rank 0's buffers (the running statistics of batch norms)."""
    dist = _dist()
    if dist:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(flag: bool, device) -> bool:
    """True on all ranks when `flag` is true on one (waits for the slowest rank)."""
    if world_size() == 1:
        return flag
    import torch
    return bool(all_reduce_(torch.tensor(float(flag), device=device)).item())


def _dist():
    """torch.distributed when a group of several processes is running, else None.
    A program that has not imported torch yet is certainly alone."""
    if "torch" not in sys.modules:
        return None
    import torch.distributed as dist
    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 \
        else None
