"""How fast a loop runs, how long it waits for data, how much memory it holds."""
import sys
import time
from collections.abc import Iterable, Iterator


class StepClock:
    """Measures a loop over `waiting(batches)`.

    batch_size: images of one micro-batch, over all ranks.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0

    def waiting(self, groups: Iterable) -> Iterator:
        """The items of `groups`, with the time spent on getting each of them noted."""
        groups = iter(groups)
        while True:
            before = time.perf_counter()
            group = next(groups, None)
            self._waited += time.perf_counter() - before
            if group is None:
                return
            self._batches += len(group)
            yield group

    def lap(self) -> tuple[float, float]:
        """(images per second, share of the time spent waiting for data) since the last lap."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        result = self._batches * self.batch_size / elapsed, self._waited / elapsed
        self._start, self._waited, self._batches = now, 0.0, 0
        return result


def memory_in_use(device) -> float:
    """Peak memory in GB: the device's for a GPU, the process's own for a CPU."""
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_memory() / 1e9


def peak_memory() -> int:
    """The most bytes of memory that this program has held."""
    peak = resident("VmHWM")
    if peak is None:
        # This one begins with what the program's parent held.
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024)
    return peak


def resident(field: str) -> int | None:
    """Bytes of this program in main memory, now ("VmRSS") or at most ("VmHWM"); None elsewhere
    than on Linux."""
    return _kilobytes("/proc/self/status", field)


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None elsewhere than on Linux."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def forget_peak():
    """Start the peak of the memory anew, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:                         # then it includes what came before
        pass


def _kilobytes(path, field):
    """Bytes, of a line "field: N kB" in a file of the kernel; None where there is none."""
    try:
        with open(path) as stream:
            return next(1024 * int(line.split()[1]) for line in stream if line.startswith(field))
    except (OSError, StopIteration):
        return None
