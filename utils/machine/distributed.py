"""Several processes (ranks): start them, exchange values between them, stop them.

`torchrun --nproc_per_node=N train.py …` starts the ranks itself; with `n_gpu: N` in the config a
plain `python train.py` starts them the same way. GPUs communicate through NCCL, CPUs through gloo.
In a single process every function here works and communicates nothing.
"""
from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from utils.errors import ConfigError, first_line, listed

TYPE_CHECKING = False     # of typing, whose import would take a sixteenth of the time of --help
if TYPE_CHECKING:         # at run time only the functions that need torch import it
    from typing import Any, NoReturn

    import torch

    from utils.machine.rank_watch import RankWatch

RANK_TIMEOUT = 600.0      # seconds
_NO_TIMEOUT = 365         # days
_PAUSE = 0.05             # seconds between two looks whether all ranks have started
_watcher: RankWatch | None = None
_joined = False           # whether this process ever joined a process group
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun, or the launcher of a cluster, started this process.

    Raises ConfigError if only some of the launcher's variables are set, or one is not a number.
    """
    present = [name for name in _LAUNCHER_VARIABLES if os.environ.get(name)]
    if not {"RANK", "WORLD_SIZE"} & set(present):
        return False
    missing = [name for name in _LAUNCHER_VARIABLES if name not in present]
    if missing:
        raise ConfigError(f"{present[0]} is set, but {', '.join(missing)} is not",
                          "environment", "start with torchrun, or unset the variables")
    for name in _LAUNCHER_VARIABLES:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise ConfigError(f"{name} is {os.environ[name]!r}, which is not a number",
                              "environment", "start with torchrun, or unset the variables")
    return True


def relaunch(processes: int, argv: list[str]):
    """Run this program in `processes` ranks through torch's elastic launcher, and exit.

    The exit status is that of the first rank that failed, or 0.
    """
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = ["--standalone", f"--nproc-per-node={processes}", os.path.abspath(sys.argv[0]), *argv]
    try:
        launcher.run(launcher.parse_args(command))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A negative status is the signal that ended the rank; a shell reports it as 128 + signal.
        raise SystemExit(failure.exitcode if failure.exitcode > 0
                         else 128 - failure.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    raise SystemExit(0)


def choose_processes(n_gpu: int | None) -> int:
    """The number of processes to start on this machine for the config's `n_gpu`.

    None means one per visible GPU, or one on the CPU. A config written for one GPU
    also runs on a machine without a GPU, with a notice.
    """
    import torch

    from utils.cli.console import notice
    available = torch.cuda.device_count()
    if n_gpu is None:
        return max(1, available)
    if n_gpu > max(1, available):
        raise ConfigError(f"n_gpu is {n_gpu}, but {available} GPU(s) are visible", "n_gpu",
                          f"set n_gpu={max(1, available)}, or use torchrun for processes on CPUs")
    if n_gpu == 1 and not available:
        notice("no GPU is visible: running on the CPU")
    return max(1, n_gpu)


def start(device: str | None = None, timeout: float = RANK_TIMEOUT) -> torch.device:
    """Join the process group, if there is one, and return the device of this process.

    timeout: seconds that a rank waits for the other ranks before it fails, without those in which
        the job was suspended.
    """
    import torch
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not launched():
        return require_device(device)
    import torch.distributed as dist
    if device == "cuda":
        device = f"cuda:{int(os.environ['LOCAL_RANK'])}"
    chosen = require_device(device, "start no more processes than there are GPUs, or use "
                                    "--device cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        global _joined
        _joined = True
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = _meet(timeout, rank, world)
        if world > 1:
            _watch(timeout, rank, world)
        with _stdout_to_stderr():
            # The watch finds hangs. Torch would count time in which the job was suspended.
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store,
                                    rank=rank, world_size=world,
                                    timeout=timedelta(days=_NO_TIMEOUT))
    return chosen


@contextlib.contextmanager
def _stdout_to_stderr():
    """Send stdout to stderr: the gloo of older torch prints its connections to stdout, which is
    for results."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def require_device(name: str, fix: str = "use --device cpu") -> torch.device:
    """The torch.device called `name`. Raises ConfigError if it does not exist here."""
    import torch
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is not a device", "--device", "write cpu, cuda or cuda:N") \
            from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device} does not exist: {torch.cuda.device_count()} GPU(s) "
                          "are visible", "--device", fix)
    return device


def stop():
    """Leave the process group."""
    global _watcher
    if _watcher:
        _watcher.close()
        _watcher = None
    if world_size() > 1:
        import torch.distributed as dist
        dist.destroy_process_group()


def exit_after(run: Callable[[], int]) -> NoReturn:
    """Run the program and end this process with the status that `run` returns or exits with.

    A rank ends without the last phase of the interpreter, in which Python takes its objects apart:
    a thread of gloo that still frees a tensor of the last exchange would abort the process there
    ("terminate called without an active exception"), and a finished run would count as failed.
    """
    try:
        status = run()
    except SystemExit as error:
        if not isinstance(error.code, int):
            raise
        status = error.code
    if _joined:
        atexit._run_exitfuncs()     # worker processes end, events are written
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def reporting_once() -> Iterator[None]:
    """Run the block on every rank and report an error once.

    The rank that failed prints its error; the others name that rank. At the end of the block this
    rank leaves the process group.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if world_size() == 1 and int(os.environ.get("WORLD_SIZE") or 1) == 1:
            raise
        raise SystemExit(_report(error)) from None
    stop()


def mark_place(place: str):
    """Record the next step of this rank.

    All ranks record the same steps in the same order; if one is late, the error names the last
    step it recorded.
    """
    if _watcher:
        _watcher.mark(place)


def restarts() -> int:
    """How often torchrun --max-restarts has restarted the ranks."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def remember(key: str, value: str):
    """Store a text on rank 0 for the processes that torchrun starts after a failure."""
    if _store_of_launcher() and is_main():
        from utils.machine.rank_watch import connect
        connect().set(f"segwright/{key}", value)


def recall(key: str) -> str | None:
    """The text that a process before the last restart stored under `key`, or None."""
    if not _store_of_launcher():
        return None
    from utils.machine.rank_watch import connect
    store = connect()
    key = f"segwright/{key}"
    return store.get(key).decode() if store.check([key]) else None


def _store_of_launcher():
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launched()


def _meet(timeout, rank, world_size):
    """The store of the ranks, as soon as all have started. Raises ConfigError if one has not."""
    import torch.distributed as dist

    from utils.machine.rank_watch import STORE_TIMEOUT, connect
    from utils.machine.running_time import RunningClock
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = f"within {timeout:.0f} s (trainer.rank_timeout)"
    clock, store = RunningClock("rank"), None
    if rank == 0 and not _store_of_launcher():
        _require_free(port)
        store = dist.TCPStore(address, port, world_size, is_master=True, wait_for_workers=False,
                              multi_tenant=True)
    while store is None:
        try:
            store = connect(STORE_TIMEOUT)
        except RuntimeError as error:
            clock.advance(2 * STORE_TIMEOUT)
            if clock.seconds > timeout:
                raise ConfigError(f"rank {rank} did not reach rank 0 at {address}:{port} {limit}: "
                                  f"{first_line(error)}", "MASTER_ADDR, MASTER_PORT",
                                  "start rank 0, and let the machines reach each other") from None
    store.set_timeout(timedelta(seconds=timeout))
    # Each restart has its own part of the store: in the same part torch would find the addresses
    # of the ranks that have ended.
    store = dist.PrefixStore(f"segwright/attempt {restarts()}", store)
    keys = [f"started/{r}" for r in range(world_size)]
    store.set(keys[rank], "")
    while not store.check(keys):
        time.sleep(_PAUSE)
        clock.advance(_PAUSE)
        if clock.seconds > timeout:
            missing = [r for r, key in enumerate(keys) if not store.check([key])]
            raise ConfigError(f"rank {listed(missing, 8)} did not start {limit}", "WORLD_SIZE",
                              f"start {world_size} ranks in all, each with its own RANK")
    return store


def _require_free(port):
    # On a port that another program uses, torch may bind only IPv4 or IPv6 and wait forever.
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {port} is in use", "MASTER_PORT",
                          "choose another with --master-port, or let torchrun --standalone find "
                          "a free one") from None


def _watch(timeout, rank, world_size):
    global _watcher
    from utils.machine.rank_watch import RankWatch
    if _watcher is None:
        _watcher = RankWatch(rank, world_size, timeout)


def _report(error):
    """Report an error of one of several ranks; returns the exit status of this rank."""
    from utils.cli import console
    from utils.machine.rank_watch import LAST_WORDS, RankWatch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)     # the launcher sends it to slow ranks
    if isinstance(error, (console.Interrupted, KeyboardInterrupt)):
        # All ranks agreed to stop, or all got the signal.
        status = console.report(error) if os.environ["RANK"] == "0" else \
            getattr(error, "status", 130)
        stop()
        return status
    watcher = _watcher or RankWatch(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]),
                                    store=_store_of_launcher())
    status = watcher.report(error)
    # Threads or collectives that still run must not delay the end of the process.
    end = threading.Timer(LAST_WORDS, os._exit, (status,))
    end.daemon = True
    end.start()
    return status


def world_size() -> int:
    """The number of ranks."""
    dist = _dist()
    return dist.get_world_size() if dist else 1


def rank() -> int:
    """The number of this rank, from 0."""
    dist = _dist()
    return dist.get_rank() if dist else 0


def is_main() -> bool:
    """Whether this is rank 0, the only rank that writes files and messages."""
    return rank() == 0


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor`, of any shape and numeric dtype, over the ranks, in place; returns it."""
    dist = _dist()
    if dist:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value: Any) -> Any:
    """The `value` (of plain types) that rank 0 passed, on every rank."""
    dist = _dist()
    if not dist:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(compute: Callable[[], Any], *errors: type[Exception]) -> Any:
    """compute() of rank 0 (of plain types), on every rank; the other ranks do not call it.

    errors: those that are raised on every rank; any other one ends rank 0, and the others name it.
    """
    found = None
    if is_main():
        try:
            found = compute()
        except errors as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, errors):
        raise found
    return found


def broadcast_buffers(module: torch.nn.Module):
    """Copy the buffers of rank 0 (running statistics of batch norms) to every rank."""
    dist = _dist()
    if dist:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def max_over_ranks(number: int, device: torch.device) -> int:
    """The largest `number` of all ranks, on every rank. Waits for the slowest rank."""
    dist = _dist()
    if not dist:
        return number
    import torch
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true on any rank. Waits for the slowest rank."""
    return bool(max_over_ranks(int(flag), device))


def gather(value: Any) -> list:
    """The `value` (of plain types) of every rank, in the order of the ranks."""
    dist = _dist()
    if not dist:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_images(tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The tensors (N_i, ..., W) of all ranks as one (sum of N_i, ..., W), in their order.

    counts: N_i of every rank. The other sides must be the same on all ranks.
    """
    dist = _dist()
    if not dist:
        return tensor
    import torch
    # Neither gloo nor NCCL sends whole numbers of 16 bits: their bytes are sent.
    sent = tensor.contiguous().view(torch.uint8) \
        if tensor.dtype in (torch.int16, torch.uint16) else tensor
    padded = sent.new_zeros(max(counts), *sent.shape[1:])
    padded[:len(sent)] = sent
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]) \
        .view(tensor.dtype)


def _dist():
    """torch.distributed if there is a group of several processes, else None.

    Without torch imported there cannot be a group, and this function does not import it.
    """
    if "torch" not in sys.modules:
        return None
    import torch.distributed as dist
    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 \
        else None
