"""Side-by-side CPU timing: candidates interleaved in one process, medians, ratios.

The yardstick is CPU time of the process, because machines are shared; ratios
are taken round by round, so a machine whose speed drifts does not tilt them.
"""
import statistics
import time
from collections.abc import Callable

from utils.progress import forget_peak, resident


def interleaved(candidates: dict[str, Callable], rounds: int = 5, warmup: int = 1) \
        -> dict[str, list[float]]:
    """CPU seconds of every call: name -> one number a round. Candidates take turns A B A B …"""
    for _ in range(warmup):
        for call in candidates.values():
            call()
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            before = time.process_time()
            call()
            seconds[name].append(time.process_time() - before)
    return seconds


def ratio(seconds: dict[str, list[float]], of: str, over: str) -> float:
    """Median over the rounds of time `of` / time `over`."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[over]))


def peak_of(work: Callable) -> int:
    """Bytes by which the resident memory rose above where it was (Linux)."""
    forget_peak()
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def table(title: str, rows: list[tuple]):
    """Print rows of (name, value, …) as a plain table on stdout."""
    print(f"\n{title}")
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)))
