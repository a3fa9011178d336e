"""Checks every cell of a study before anything runs, and estimates the time (--dry-run)."""
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from utils.cli.console import fail, notice, output
from utils.errors import UserError
from utils.metrics.table import aligned
from utils.study.execute import CPU, ROOT, run_program, unfinished
from utils.study.plan import Plan, PlannedRun, check_classes
from utils.study.results import attempts, training_seconds
from utils.study.tables import duration


@dataclass
class _Try:
    """What trying a row showed: an error, or the seconds that a run of it takes."""

    error: str | None = None
    seconds: float | None = None


def rehearse(plan: Plan, devices: Sequence[str], test_arguments: Callable[[list[str]], Any],
             class_names: Callable[[dict, str | None], list[str]]) -> int:
    """Try every training of the plan (train.py --dry-run, one seed each) and print the plan.

    The time of a run is that of a finished run which differs only in its seed, or else is measured
    with a few steps. Returns the exit status: 2 if something is wrong; all of it is printed.
    """
    wrong = []
    try:
        check_classes(plan, test_arguments, class_names)
    except UserError as error:
        wrong.append(str(error))
    left = {run.key for run in unfinished(plan)}
    tries: dict[tuple, _Try] = {}
    for run in plan.runs:
        if _kind(run) not in tries:
            tries[_kind(run)] = _tried(plan, run, devices[0])
    wrong += [f"{run.name}: {tries[_kind(run)].error}" for run in _one_of_each(plan)
              if tries[_kind(run)].error]
    lines, total = [("run", "state", "time")], 0.0
    for run in plan.runs:
        seconds = tries[_kind(run)].seconds
        if run.key in left:
            total += seconds or 0.0
        state = "finished" if run.key not in left else "to continue" if attempts(run) else "to do"
        lines.append((run.name, state, duration(seconds)))
    output("\n".join(aligned(lines, (0, 1))))
    for text in wrong:
        fail(text)
    if wrong:
        notice(f"{len(wrong)} mistakes; nothing was started")
        return 2
    busy = max(1, len(devices) // max(run.gpus if devices[0] != CPU else 1 for run in plan.runs)) \
        if plan.runs else 1
    notice(f"{len(plan.runs)} runs, {len(left)} left: about {duration(total / busy)} on "
           f"{', '.join(devices)} (training alone, by a few measured steps); nothing was started")
    return 0


def _kind(run: PlannedRun) -> tuple:
    """Equal for runs that differ only in their seed."""
    return (run.path, run.overrides)


def _one_of_each(plan: Plan) -> list[PlannedRun]:
    return list({_kind(run): run for run in reversed(plan.runs)}.values())[::-1]


def _tried(plan: Plan, run: PlannedRun, device: str) -> _Try:
    """Start train.py: its --dry-run, and then a few steps if no finished run tells the time."""
    notice(f"trying {run.name}")
    with TemporaryDirectory() as folder:
        base = [str(ROOT / "train.py"), "-c", str(run.path), *run.overrides, f"seed={run.seed}",
                f"name={run.name}", f"trainer.save_dir={folder}", "--device",
                CPU if device == CPU else "cuda"]
        status, text, _ = _finished([*base, "--dry-run"], Path(folder), device)
        if status:
            return _Try(error=_error(text, status))
        known = [seconds for other in plan.runs if _kind(other) == _kind(run)
                 and other.key not in {one.key for one in unfinished(plan)}
                 for attempt in attempts(other)[:1]
                 if (seconds := training_seconds(attempt / "log.txt"))]
        if known:
            return _Try(seconds=sum(known) / len(known))
        return _Try(seconds=_measured(base, run, Path(folder), device, text))


def _measured(base: list[str], run: PlannedRun, folder: Path, device: str, said: str) -> float:
    """The seconds of a training, from two short ones of different length."""
    import re
    steps = int((re.search(r"(\d+) steps, on", said) or [0, 1])[1])
    taken = []
    for count in (2, 12):
        status, _, seconds = _finished(
            [*base, "trainer.epochs=null", f"trainer.iterations={count}", "trainer.val=false",
             "trainer.monitor=off", "trainer.tensorboard=false"], folder, device)
        if status:
            return 0.0
        taken.append(seconds)
    start, per_step = taken[0], max(0.0, taken[1] - taken[0]) / 10
    return start + per_step * steps


def _finished(arguments: list[str], folder: Path, device: str) -> tuple[int, str, float]:
    """(exit status, output, seconds) of a program."""
    log, began = folder / "log", time.monotonic()
    status, start = run_program([sys.executable, *arguments], log, [device])
    text = log.read_bytes()[start:].decode("utf-8", "replace")
    return status, text, time.monotonic() - began


def _error(text: str, status: int) -> str:
    at = text.rfind("error: ")
    return text[at + 7:].strip() if at >= 0 else \
        (text.strip().splitlines() or [f"exit status {status}"])[-1]
