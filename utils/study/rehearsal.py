"""Checks every cell of a study before anything runs, and estimates the time (--dry-run)."""
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.cli.console import fail, notice, output
from utils.errors import UserError
from utils.metrics.table import aligned
from utils.study.execute import CPU, ROOT, run_program, unfinished
from utils.study.plan import Plan, PlannedRun
from utils.study.results import attempts, stage_is_finished, training_seconds
from utils.study.tables import duration
from utils.training.earlier_runs import RUN


@dataclass
class _Try:
    """What trying a row showed: an error, or the seconds that each of its stages takes.

    A stage whose seconds could not be measured has None.
    """

    error: str | None = None
    seconds: Sequence[float | None] = ()


def rehearse(plan: Plan, devices: Sequence[str], check: Callable[[], None]) -> int:
    """Try every training of the plan (train.py --dry-run, one seed each) and print the plan.

    check: raises a UserError if rows cannot stand in one table. The time of a run, or of a stage
    of it, is that of a finished run which differs only in its seed, or else is measured with a few
    steps. Returns the exit status: 2 if something is wrong; all of it is printed.
    """
    wrong = []
    try:
        check()
    except UserError as error:
        wrong.append(str(error))
    left = {run.key for run in unfinished(plan)}
    done = {stage.key for run in plan.runs for stage in run.stages
            if run.key not in left or stage is not run and stage_is_finished(stage)}
    tries: dict[tuple, _Try] = {}
    for run in plan.runs:
        if _kind(run) not in tries:
            tries[_kind(run)] = _tried(plan, run, devices[0], done)
    wrong += [f"{run.name}: {tries[_kind(run)].error}" for run in _one_of_each(plan)
              if tries[_kind(run)].error]
    lines, total, unknown = [("run", "state", "time")], 0.0, 0
    counted = set(done)             # a stage that several runs share is trained once
    for run in plan.runs:
        seconds = tries[_kind(run)].seconds
        for stage, taken in zip(run.stages, seconds, strict=False):
            if stage.key not in counted:
                counted.add(stage.key)
                total, unknown = total + (taken or 0.0), unknown + (taken is None)
        whole = None if not seconds or None in seconds else sum(filter(None, seconds))
        lines.append((run.name, _state(run, left, done), duration(whole)))
    output("\n".join(aligned(lines, (0, 1))))
    for text in wrong:
        fail(text)
    if wrong:
        notice(f"{len(wrong)} mistakes; nothing was started")
        return 2
    busy = max(1, len(devices) // max(run.gpus if devices[0] != CPU else 1 for run in plan.runs)) \
        if plan.runs else 1
    without = f", without {unknown} whose steps could not be measured" if unknown else ""
    notice(f"{len(plan.runs)} runs, {len(left)} left: about {duration(total / busy)} on "
           f"{', '.join(devices)} (training alone, by a few measured steps{without}); nothing was "
           "started")
    return 0


def _state(run: PlannedRun, left: set[str], done: set[str]) -> str:
    """What a run still needs, by the keys of the unfinished runs and of the finished stages."""
    if run.key not in left:
        return "finished"
    finished = sum(stage.key in done for stage in run.earlier)
    if finished:
        return f"{finished} of {len(run.stages)} stages finished"
    return "to continue" if any(map(attempts, run.stages)) else "to do"


def _kind(run: PlannedRun) -> tuple:
    """Equal for runs that differ only in their seed."""
    return (run.path, run.overrides)


def _one_of_each(plan: Plan) -> list[PlannedRun]:
    return list({_kind(run): run for run in reversed(plan.runs)}.values())[::-1]


def _tried(plan: Plan, run: PlannedRun, device: str, done: set[str]) -> _Try:
    """Start train.py: its --dry-run, and then a few steps if no finished run tells the time."""
    notice(f"trying {run.name}")
    with TemporaryDirectory() as folder:
        status, text, _ = _finished([*run.config_arguments(), "--dry-run"], Path(folder), device)
        if status:
            return _Try(error=_error(text, status))
        steps = [int(count) for count in re.findall(r"(\d+) steps, on", text)]
        return _Try(seconds=[
            _known(plan, run, number, done) or _measured(stage, steps[number], Path(folder), device)
            for number, stage in enumerate(run.stages)])


def _known(plan: Plan, run: PlannedRun, number: int, done: set[str]) -> float | None:
    """The mean time of a stage in the runs that differ from this one only in their seed."""
    stages = [other.stages[number] for other in plan.runs if _kind(other) == _kind(run)]
    known = [seconds for stage in stages if stage.key in done for attempt in attempts(stage)[:1]
             if (seconds := training_seconds(attempt / "log.txt"))]
    return sum(known) / len(known) if known else None


def _measured(stage: PlannedRun, steps: int, folder: Path, device: str) -> float | None:
    """The seconds of a training, from two short ones of different length; None if one fails."""
    trainer = stage.config["trainer"]
    start = trainer["finetune_from"]
    if start and start.startswith(RUN):     # the run may not exist yet; its weights take no time
        start = None
    short = folder / "short.json"
    short.write_text(json.dumps({**stage.config, "trainer": {
        **trainer, "finetune_from": start, "epochs": None, "val": False, "monitor": "off",
        "tensorboard": False, "log_to": [], "save_dir": str(folder)}}))
    taken = []
    for count in (2, 12):
        status, _, seconds = _finished(["-c", str(short), f"trainer.iterations={count}"], folder,
                                       device)
        if status:
            return None
        taken.append(seconds)
    return taken[0] + max(0.0, taken[1] - taken[0]) / 10 * steps


def _finished(arguments: list[str], folder: Path, device: str) -> tuple[int, str, float]:
    """(exit status, output, seconds) of train.py."""
    log, began = folder / "log", time.monotonic()
    status, start = run_program([sys.executable, str(ROOT / "train.py"), *arguments, "--device",
                                 CPU if device == CPU else "cuda"], log, [device])
    text = log.read_bytes()[start:].decode("utf-8", "replace")
    return status, text, time.monotonic() - began


def _error(text: str, status: int) -> str:
    at = text.rfind("error: ")
    return text[at + 7:].strip() if at >= 0 else \
        (text.strip().splitlines() or [f"exit status {status}"])[-1]
