"""Many files made from many others: the work of the prepare_* commands.

A file is written whole or not at all, and one that is there and not older than what it is made
from is left alone. So a command that was interrupted goes on where it was, and a second run
does nothing.
"""
import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from utils import console
from utils.arguments import at_least, command_parser

SHOWN = 20        # targets of a dry run, and problems


class Job(NamedTuple):
    """What is made of what. write: makes the targets in their order; DataError if it cannot."""

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]
    write: Callable[[], None]


class Outcome(NamedTuple):
    """What became of the jobs. problems: one line each."""

    written: int
    there: int
    problems: list[str]


def conversion_parser(name: str, text: str) -> argparse.ArgumentParser:
    """A parser with the options that every conversion has."""
    parser = command_parser(f"python -m tools.{name}", text)
    add = parser.add_argument
    add("data_dir", type=Path, help="folder of the dataset, as in a config")
    add("--dry-run", action="store_true", help="say what would be written, write nothing")
    add("--force", action="store_true", help="write files anew that are there already")
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), help="threads")
    return parser


def convert(jobs: Iterable[Job], args: argparse.Namespace, problems: Iterable[str] = ()) -> Outcome:
    """Do what is left to do, and say it. args: of a conversion_parser.

    problems: what is known to be wrong already. A job that fails is noted; the others are done.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from utils.errors import UserError
    from utils.image_io import make_folder, shown
    jobs = list(jobs)
    todo = [job for job in jobs if args.force or not is_done(job)]
    if args.dry_run:
        targets = [target for job in todo for target in job.targets]
        for target in targets[:SHOWN]:
            print(f"would write {shown(target)}")
        if len(targets) > SHOWN:
            print(f"and {len(targets) - SHOWN} more")
        return _reported(Outcome(len(todo), len(jobs) - len(todo), list(problems)), "to write")

    def attempt(job):
        try:
            for target in job.targets:
                make_folder(target.parent, "choose another place with --output")
            job.write()
        except UserError as error:
            return error.in_one_line

    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        try:
            results = list(tqdm(pool.map(attempt, todo), desc="writing", total=len(todo),
                                unit="file", leave=False, dynamic_ncols=True, disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    failed = [text for text in results if text]
    return _reported(Outcome(len(todo) - len(failed), len(jobs) - len(todo),
                             [*problems, *failed]), "written")


def is_done(job: Job) -> bool:
    """Whether every target is there and the last one, made last, is older than no source."""
    try:
        if not all(target.is_file() for target in job.targets):
            return False
        finished = os.stat(job.targets[-1]).st_mtime_ns
        return finished >= max(os.stat(source).st_mtime_ns for source in job.sources)
    except OSError:
        return False        # the job will say which source is not there


def _reported(outcome, done):
    for text in outcome.problems[:SHOWN]:
        console.notice(f"problem: {text}")
    if len(outcome.problems) > SHOWN:
        console.notice(f"and {len(outcome.problems) - SHOWN} more problems")
    failed = f", {len(outcome.problems)} failed" if outcome.problems else ""
    print(f"{outcome.written} {done}, {outcome.there} there already{failed}")
    return outcome
