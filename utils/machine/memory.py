"""How much memory this process uses, and how much is free."""
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOGIT_MAPS = 3      # of logits that exist at once: the network's, a rule's, a copy


def memory_in_use(device: "torch.device") -> float:
    """Peak memory in GB: that of the device for a GPU, that of this process for a CPU."""
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_memory() / 1e9


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    peak = resident("VmHWM")
    if peak is None:
        # Less exact: this peak includes what the parent process held at the start.
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024)
    return peak


def resident(field: str) -> int | None:
    """Main memory of this process in bytes: now ("VmRSS") or its peak ("VmHWM").

    None on systems other than Linux.
    """
    return _kilobytes("/proc/self/status", field)


def free_memory() -> int | None:
    """Bytes of memory available without swapping; None on systems other than Linux."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def logits_too_large(images: int, classes: int, height: int, width: int,
                     device: "torch.device", parts: int = 1) -> str | None:
    """Why the logits of so many images do not fit into the memory of a CPU; None if they do.

    parts: how many maps of logits a rule may take (utils.decision.ensemble).
    """
    needed = (LOGIT_MAPS + parts - 1) * 4 * images * classes * height * width
    free = free_memory() if device.type == "cpu" and needed >= 1 << 30 else None
    if free is None or needed <= free:
        return None
    return (f"the logits of {height}x{width} pixels need {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} are free")


def forget_peak():
    """Reset the peak of `peak_memory`, if the system can; otherwise it keeps counting."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        pass


def _kilobytes(path, field):
    """The number in a line "field: N kB" of a kernel file, in bytes; None if there is no line."""
    try:
        with open(path) as stream:
            return next(1024 * int(line.split()[1]) for line in stream if line.startswith(field))
    except (OSError, StopIteration):
        return None
