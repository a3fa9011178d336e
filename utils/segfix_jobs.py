"""Many files, one after another: what cannot be done is one line each, the rest is done."""
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from utils.console import warn
from utils.errors import DataError


@dataclass
class Outcome:
    """done: what the work gave for each file. failed: (name, one line) of the others."""

    done: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    skipped: int = 0

    def summary(self, what: str) -> str:
        """"12 WHAT, 3 there already, 1 failed"."""
        parts = [f"{len(self.done)} {what}"]
        if self.skipped:
            parts.append(f"{self.skipped} there already")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)

    @property
    def status(self) -> int:
        """The exit status: 3 where a file failed."""
        return 3 if self.failed else 0


def work_through(jobs: Sequence, work: Callable, workers: int = 1, title: str = "",
                 skip_existing: bool = False) -> Outcome:
    """work(job) for every job, in threads; a DataError is that job's failure and is said at once.

    jobs: (name, ...) tuples. title: before the bar on stderr.
    skip_existing: leave out those whose second entry, the file to write, is there.
    """
    from tqdm import tqdm
    wanted = [job for job in jobs if not (skip_existing and os.path.exists(job[1]))]
    outcome, jobs = Outcome(skipped=len(jobs) - len(wanted)), wanted

    def attempt(job):
        try:
            return work(job), None
        except DataError as error:
            return None, error

    with ThreadPoolExecutor(workers) as pool, \
            tqdm(total=len(jobs), desc=title, unit="file", leave=False, disable=None) as bar:
        for job, (result, error) in zip(jobs, pool.map(attempt, jobs), strict=True):
            bar.update()
            if error is None:
                outcome.done.append(result)
                continue
            outcome.failed.append((job[0], error.in_one_line))
            warn(error.in_one_line)
    return outcome
