"""Processes many files in threads. A failure is reported in one line; the others are done.

`work_through` does any work on each file. `convert` makes files from others, as the prepare_*
commands do: it leaves out what is up to date, so an interrupted command resumes where it stopped
and a second run does nothing.
"""
import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser
from utils.errors import DataError, listed, shown
from utils.files.whole_file import make_folder

SHOWN = 20        # lines printed at most: targets of a dry run, and problems


class Outcome(NamedTuple):
    """The results of many jobs.

    done: what the work returned, in the order of the jobs.
    skipped: the number of jobs left out. failed: the errors of the others.
    """

    done: list[Any]
    skipped: int
    failed: list[DataError]

    def summary(self, what: str) -> str:
        """Returns "12 WHAT, 3 exist already, 1 failed"."""
        parts = [f"{len(self.done)} {what}"]
        if self.skipped:
            parts.append(f"{self.skipped} exist already")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)

    @property
    def status(self) -> int:
        """The exit status: 3 if a job failed, else 0."""
        return DataError.exit_status if self.failed else 0


def work_through(jobs: Iterable[Any], work: Callable[[Any], Any], workers: int = 1,
                 title: str = "", skip: Callable[[Any], bool] | None = None,
                 report: Callable[[str], None] | None = None) -> Outcome:
    """Call work(job) for every job, in threads, and collect the results.

    A DataError means that this job failed; any other error ends the work.
    title: text before the progress bar on stderr.
    skip: returns True for a job to leave out.
    report: called with one line for each failed job, at once.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm
    jobs = list(jobs)
    todo = [job for job in jobs if not (skip and skip(job))]
    outcome = Outcome([], len(jobs) - len(todo), [])

    def attempt(job):
        try:
            return work(job), None
        except DataError as error:
            return None, error

    with ThreadPoolExecutor(max(1, workers)) as pool, \
            tqdm(total=len(todo), desc=title, unit="file", leave=False, dynamic_ncols=True,
                 disable=None) as bar:
        try:
            for result, error in pool.map(attempt, todo):
                bar.update()
                if error is None:
                    outcome.done.append(result)
                    continue
                outcome.failed.append(error)
                if report:
                    report(error.in_one_line)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcome


class Job(NamedTuple):
    """Files to make from others. write: makes the targets in their order, or raises DataError."""

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]
    write: Callable[[], None]


def conversion_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that every conversion has."""
    parser = command_parser(f"python -m tools.{name}", text)
    add = parser.add_argument
    add("data_dir", type=Path, help="folder of the dataset, as in a config")
    add("--dry-run", action="store_true", help="print what would be written, write nothing")
    add("--force", action="store_true", help="write existing files again")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="threads")
    return parser


def convert(jobs: Iterable[Job], args: argparse.Namespace, problems: Iterable[str] = ()) -> Outcome:
    """Run the jobs whose targets are not up to date, and print the result.

    args: from a `conversion_parser`.
    problems: one line for each thing that is known to be wrong already; they count as failed.
    """
    def skip(job):
        return not args.force and is_done(job)

    def make(job):
        for target in job.targets:
            make_folder(target.parent, "choose another place with --output")
        job.write()

    if args.dry_run:
        outcome, done = _would_write(list(jobs), skip), "to write"
    else:
        outcome, done = work_through(jobs, make, args.workers, "writing", skip), "written"
    outcome.failed[:0] = map(DataError, problems)
    if outcome.failed:
        console.notice(listed(outcome.failed, SHOWN, "\n",
                              lambda error: f"problem: {error.in_one_line}"))
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    print(f"{len(outcome.done)} {done}, {outcome.skipped} exist already{failed}")
    return outcome


def is_done(job: Job) -> bool:
    """Whether all targets exist and the last one, which is made last, is older than no source."""
    try:
        if not all(target.is_file() for target in job.targets):
            return False
        finished = os.stat(job.targets[-1]).st_mtime_ns
        return finished >= max(os.stat(source).st_mtime_ns for source in job.sources)
    except OSError:
        return False        # the job reports which source is missing


def _would_write(jobs, skip):
    """Print the targets of a dry run. `done` of the outcome holds the jobs to do."""
    todo = [job for job in jobs if not skip(job)]
    targets = [target for job in todo for target in job.targets]
    if targets:
        print(listed(targets, SHOWN, "\n", lambda target: f"would write {shown(target)}"))
    return Outcome(todo, len(jobs) - len(todo), [])
