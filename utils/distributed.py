"""Several processes: start, agree, reduce, stop.

`torchrun --nproc_per_node=N train.py …` starts the ranks itself; `n_gpu: N` in
the config makes a plain `python train.py` start the same thing. GPUs talk
through NCCL, CPUs through gloo. Everything here works, and does nothing, in a
single process.
"""
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from datetime import timedelta

from utils.errors import ConfigError

RANK_TIMEOUT = 600.0      # seconds
_watcher = None
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
    for name in _LAUNCHER_VARIABLES:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise ConfigError(f"{name} is {os.environ[name]!r}, which is no number",
                              "environment", "start with torchrun, or unset the variables")
    return True


def relaunch(processes: int, argv: list[str]):
    """Run torch's elastic launcher with `processes` ranks of this program, and end with the
    status of the first rank that failed."""
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = ["--standalone", f"--nproc-per-node={processes}", os.path.abspath(sys.argv[0]), *argv]
    try:
        launcher.run(launcher.parse_args(command))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # Negative: the signal that ended it, which a shell counts from 128.
        raise SystemExit(failure.exitcode if failure.exitcode > 0
                         else 128 - failure.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    raise SystemExit(0)


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


def start(device: str | None = None, timeout: float = RANK_TIMEOUT):
    """Join the process group if there is one; returns this process's torch.device.

    timeout: seconds after which a collective that some rank does not reach fails.
    """
    import torch
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not launched():
        return require_device(device)
    import torch.distributed as dist
    if device == "cuda":
        device = f"cuda:{int(os.environ['LOCAL_RANK'])}"
    device = require_device(device, "start no more processes than there are GPUs, or use "
                                    "--device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if os.environ["RANK"] == "0" and not _store_of_launcher():
            _require_free(int(os.environ["MASTER_PORT"]))
        with _chatter_on_stderr():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                    timeout=timedelta(seconds=timeout),
                                    **_place_of_attempt(timeout))
    if world_size() > 1:
        _watch(timeout)
    return device


@contextlib.contextmanager
def _chatter_on_stderr():
    """The gloo of older torch tells stdout of its connections, where results are expected."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def require_device(name, fix: str = "use --device cpu"):
    """The torch.device called `name`; ConfigError where it is not there."""
    import torch
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is no device", "--device", "write cpu, cuda or cuda:N") \
            from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device} is not there: {torch.cuda.device_count()} GPU(s) are "
                          "visible", "--device", fix)
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


@contextlib.contextmanager
def one_voice():
    """Around everything that several ranks do: an error is told once, by the rank it happened
    on, and first; the others say which rank they stop for. Leaves the process group."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if world_size() == 1 and int(os.environ.get("WORLD_SIZE") or 1) == 1:
            raise
        raise SystemExit(_tell(error)) from None
    stop()


def at(place: str):
    """Note what this rank is about to do; ranks pass the same places in the same order. A rank
    that does not get there in time is named with the last place it was seen at."""
    if _watcher:
        _watcher.at(place)


def restarts() -> int:
    """How often torchrun --max-restarts has started the ranks again."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def remember(key: str, value: str):
    """Keep a text for the processes that torchrun starts if these fail (rank 0)."""
    if _store_of_launcher() and is_main():
        from utils.rank_watch import connect
        connect().set(f"segwright/{key}", value)


def recall(key: str) -> str | None:
    """What a predecessor of this process asked to remember."""
    if not _store_of_launcher():
        return None
    from utils.rank_watch import connect
    store = connect()
    key = f"segwright/{key}"
    return store.get(key).decode() if store.check([key]) else None


def _store_of_launcher():
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launched()


def _place_of_attempt(timeout):
    """Where in the launcher's store the ranks find each other: after a restart torch would find
    the addresses of dead ranks there."""
    if not _store_of_launcher():
        return {}
    import torch.distributed as dist
    from utils.rank_watch import connect
    return {"store": dist.PrefixStore(f"segwright/attempt {restarts()}", connect(timeout)),
            "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def _require_free(port):
    # Torch may take half of a port that another program listens on, and wait for ranks there.
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {port} is in use", "MASTER_PORT",
                          "choose another with --master-port, or let torchrun --standalone find "
                          "a free one") from None


def _watch(timeout):
    global _watcher
    from utils.rank_watch import RankWatch
    if _watcher is None:
        _watcher = RankWatch(rank(), world_size(), timeout)


def _tell(error):
    """Report an error of one of several ranks; the exit status of this one."""
    from utils import console
    from utils.rank_watch import LAST_WORDS, RankWatch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)     # the launcher ends ranks that linger
    if isinstance(error, (console.Interrupted, KeyboardInterrupt)):
        # All ranks agreed to stop, or all were told to.
        status = console.report(error) if os.environ["RANK"] == "0" else \
            getattr(error, "status", 130)
        stop()
        return status
    watcher = _watcher or RankWatch(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]),
                                    store=_store_of_launcher())
    status = watcher.tell(error)
    # Whatever else is still under way, in threads or in collectives, does not hold it up.
    end = threading.Timer(LAST_WORDS, os._exit, (status,))
    end.daemon = True
    end.start()
    return status


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


def highest(number: int, device) -> int:
    """The greatest `number` of all ranks, on all of them (waits for the slowest rank)."""
    dist = _dist()
    if not dist:
        return number
    import torch
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.item())


def any_rank(flag: bool, device) -> bool:
    """True on all ranks when `flag` is true on one (waits for the slowest rank)."""
    return bool(highest(int(flag), device))


def gather(value) -> list:
    """Every rank's `value` (plain types), in the order of the ranks."""
    dist = _dist()
    if not dist:
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _dist():
    """torch.distributed when a group of several processes is running, else None.
    A program that has not imported torch yet is certainly alone."""
    if "torch" not in sys.modules:
        return None
    import torch.distributed as dist
    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 \
        else None
