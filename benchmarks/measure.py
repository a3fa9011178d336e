"""Measures the times of candidates that run in turns in one process, and peak memory.

CPU time of the process is measured by default, because machines are shared. Ratios are computed per
round, so a machine whose speed changes slowly does not bias them.
"""
import statistics
import time
from collections.abc import Callable

from utils.machine.memory import forget_peak, resident


def interleaved(candidates: dict[str, Callable], rounds: int = 5, warmup: int = 1,
                clock: Callable[[], float] = time.process_time) -> dict[str, list[float]]:
    """Seconds of every call: name -> one number per round. The candidates run in turns A B A B.

    The first `warmup` rounds are not measured. clock: read before and after every call.
    """
    for _ in range(warmup):
        for call in candidates.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            before = clock()
            call()
            seconds[name].append(clock() - before)
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, over: str) -> float:
    """The median over the rounds of the time of `of` / the time of `over`."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[over], strict=True))


def peak_of(work: Callable) -> int:
    """The most bytes by which resident memory grows while `work` runs (Linux)."""
    forget_peak()
    before = resident("VmRSS")
    work()
    peak = resident("VmHWM")
    assert before is not None and peak is not None, "reads /proc, which only Linux has"
    return peak - before


def table(title: str, rows: list[tuple]):
    """Prints rows of (name, value, ...) as a table on stdout."""
    print(f"\n{title}")
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(str(cell).ljust(width)
                               for cell, width in zip(row, widths, strict=True)))
