"""Train and score every cell of a study, and make the table.

examples:
  python -m tools.study configs/studies/shapes_demo.json
  python -m tools.study STUDY.json --dry-run
  python -m tools.study STUDY.json --devices cuda:0,cuda:1
  python -m tools.study STUDY.json --slurm="--time=8:00:00 --gres=gpu:1" --submit
  python -m tools.study --from saved/a saved/b other/results.json --baseline a -o comparison

A study names configs, changes and seeds (docs/studies.md). Each run is an ordinary run of train.py
and test.py. What is done is read from the folders of the runs: kill the command, repeat it, or add
to the study; finished work is never repeated. Runs that fail are named at the end.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import command_parser, one_action
from utils.cli.arguments import device as device_name

if TYPE_CHECKING:
    from utils.study.execute import Failure
    from utils.study.plan import Plan
    from utils.study.results import RunResult
    from utils.study.study_file import Study


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.study", __doc__)
    add = parser.add_argument
    add("study", nargs="?", metavar="STUDY.json", help="the study")
    add("further", nargs="*", help=argparse.SUPPRESS)
    add("--devices", type=_devices, metavar="LIST",
        help="one run at a time on each: cuda:0,cuda:1 or cpu (default: all GPUs, or cpu); cpu,cpu "
             "are two runs at a time. The images of the report are predicted on the first")
    add("--dry-run", action="store_true",
        help="check config, network and data of every cell, print the plan and the time that it "
             "takes, and stop")
    add("--table", action="store_true", help="start no run: only the table of what is finished")
    add("--slurm", metavar="OPTIONS",
        help="write a Slurm array job with these options of sbatch, one task for each run")
    add("--submit", action="store_true", help="with --slurm: also send it")
    add("--only", metavar="RUN", help="work on one run (a task of the array job) and make no table")
    add("--from", nargs="+", dest="places", metavar="PLACE", default=[],
        help="folders of runs that exist already, or results files: rows of the table as well, or "
             "without STUDY all of it")
    add("--group", metavar="REGEX",
        help="with --from: results in whose paths the expression has the same text in its "
             "parentheses are one row (default: runs whose configs differ only in the seed)")
    add("--baseline", metavar="ROW", help="the row that others are compared with")
    add("--score", metavar="NAME", action="append",
        help="without STUDY: a score of results.json (repeat it for several columns)")
    add("--across-protocols", action="store_true",
        help="compare rows of different evaluation protocols: a difference is then also that of "
             "the protocols")
    add("-o", "--output", type=Path, metavar="DIR",
        help="folder for the tables and the report (default: saved/studies/NAME)")
    add("--no-pictures", action="store_true",
        help="leave images and FLOPs out, for which each network is opened once more")
    add("--pictures", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(argv)
    if args.pictures:
        return args
    if args.further:
        parser.error(f"{args.further[0]!r}: changes of the config stand in the study, as "
                     f"\"overrides\": [{json.dumps(args.further[0])}]"
                     if "=" in args.further[0] else
                     f"one study at a time, found {args.further[0]!r} too")
    one_action(parser, {"--dry-run": args.dry_run, "--table": args.table, "--slurm": args.slurm,
                        "--only": args.only}, {}, ())
    if not args.study and not args.places:
        parser.error("a study or --from is needed")
    if not args.study and (args.dry_run or args.slurm or args.only):
        parser.error("without a study there is nothing to run")
    if not args.study and args.devices and args.no_pictures:
        parser.error("--devices has no effect: nothing runs but what --no-pictures leaves out")
    if args.study and args.score:
        parser.error("--score has no effect with a study, which names its scores")
    if args.group is not None and not args.places:
        parser.error("--group has an effect only with --from")
    if args.submit and args.slurm is None:
        parser.error("--submit has an effect only with --slurm")
    return args


def _devices(text: str) -> list[str]:
    names = [device_name(part.strip()) for part in text.split(",")]
    if "mps" in names or len({name == "cpu" for name in names}) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give GPUs or cpu")
    if names[0] != "cpu" and len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: a GPU takes one run at a time")
    return names


def main(argv: list[str] | None = None) -> int | None:
    args = parse(argv)
    if args.pictures:
        from dataloader.loader import split_loader
        from utils.study.pictures import picture_process
        picture_process(json.loads(args.pictures), split_loader, _test_arguments)
        return 0
    from functools import partial

    from utils.study.comparable import note_incomparable, require_comparable
    from utils.study.plan import make_plan, require_devices
    study = _study(args)
    opened = {"test_arguments": _test_arguments,
              "class_names": None if args.table else _class_names}
    plan = make_plan(study, _test_arguments, None if args.only or args.dry_run else
                     partial(note_incomparable, **opened))
    if args.only:
        return _work_on_one(plan, args)
    devices = args.devices or _all_devices()
    if not args.slurm:
        require_devices(plan, devices)
    folder = args.output or Path("saved/studies") / study.name
    if args.dry_run:
        from utils.study.rehearsal import rehearse
        return rehearse(plan, devices, partial(require_comparable, study, plan.tests, **opened))
    failures: list[Failure] = []
    if plan.runs and not args.table:
        from utils.study.execute import Executor, unfinished
        left = unfinished(plan)
        console.notice(f"{study.name}: {len(plan.runs)} runs, {len(left)} left")
        if args.slurm is not None:
            return _slurm(plan, [run.name for run in left], args, folder)
        failures = Executor(plan, devices).run(left)
    return _deliver(plan, failures, folder, devices, not args.no_pictures)


def _study(args) -> "Study":
    """The study of the command line, with the rows of --from."""
    import dataclasses

    from utils.errors import ConfigError, unknown
    from utils.study.existing import find_results
    from utils.study.study_file import of_results, read_study
    if not args.study:
        from utils.metrics.scores import NUMBERS
        scores = tuple(args.score or ("Mean_IoU",))
        for name in scores:
            if name not in NUMBERS:
                raise ConfigError(unknown("score", name, NUMBERS), "--score")
        name = args.output.name if args.output else "comparison"
        study = of_results(find_results(map(Path, args.places), args.group), name, scores,
                           args.baseline)
        return dataclasses.replace(study, across_protocols=args.across_protocols)
    study = read_study(args.study, keep_mistakes=True)
    if args.across_protocols:
        study = dataclasses.replace(study, across_protocols=True)
    if args.places:
        more = of_results(find_results(map(Path, args.places), args.group), study.name,
                          study.scores, None)
        study = dataclasses.replace(study, cells=(*study.cells, *more.cells))
    if args.baseline:
        labels = dict.fromkeys(cell.label for cell in study.cells)
        if args.baseline not in labels:
            raise ConfigError(unknown("row", args.baseline, labels), "--baseline")
        study = dataclasses.replace(study, baseline=args.baseline)
    return study


def _test_arguments(arguments: list[str]) -> argparse.Namespace:
    """The arguments of test.py in a cell; options are looked up by their full names."""
    from utils.errors import ConfigError
    from utils.evaluation.arguments import parse as parse_test
    args = parse_test(["-r", "model_best.pth", *arguments], abbreviations=False)
    if len(args.checkpoint) > 1:
        raise ConfigError(f"{args.checkpoint[1]} is a second checkpoint: -r is set by the study",
                          "test", "score an ensemble with test.py, and add its results.json to "
                                  "the table with --from")
    return args


def _class_names(config: dict, split: str | None) -> list[str]:
    """The classes of the data that test.py would score."""
    from dataloader.loader import split_loader
    return list(split_loader(config, split, own_size=True)[2].dataset.class_names)


def _all_devices() -> list[str]:
    import torch
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _work_on_one(plan: "Plan", args) -> int:
    """Train and test one run, as a task of an array job."""
    from utils.errors import ConfigError, unknown
    from utils.study.execute import Executor, exit_status, unfinished
    runs = [run for run in plan.runs if run.name == args.only]
    if not runs:
        raise ConfigError(unknown("run", args.only, [run.name for run in plan.runs]), "--only",
                          "the study has changed since the job was written: write it again")
    devices = args.devices or _all_devices()
    executor = Executor(plan, devices, requeue=True)
    executor.run(unfinished(plan, runs))
    for failure in executor.failures:
        console.fail(f"{failure.run.name}: {failure.message}")
    return exit_status(executor.failures, executor)


def _slurm(plan: "Plan", names: list[str], args, folder: Path) -> int:
    from utils.errors import shown
    from utils.files.whole_file import write_bytes
    from utils.study.slurm import array_script, submit
    if not names:
        console.notice("every run is finished: there is nothing to send")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    devices = ["--devices", ",".join(args.devices)] if args.devices else []
    script = folder / "array.sh"
    text = array_script(plan.study.name, names, [str(Path(args.study).absolute()), *devices],
                        args.slurm, folder.absolute())
    write_bytes(script, text.encode())
    console.notice(f"{len(names)} tasks: {shown(script)}")
    if args.submit:
        console.output(submit(script))
    console.notice("when they have ended, run the study again without --slurm for the table")
    return 0


def _deliver(plan: "Plan", failures: "list[Failure]", folder: Path, devices: list[str],
             pictures: bool) -> int:
    """Write the tables and the report, and print the table. Returns the exit status."""
    from utils.errors import DataError, shown
    from utils.files.whole_file import write_bytes
    from utils.images.sheet import png_bytes
    from utils.study import tables
    from utils.study.chart import draw
    from utils.study.execute import exit_status
    from utils.study.html_report import html_report
    from utils.study.summary import summarize
    results = _results(plan, failures)
    if not results:
        if failures:
            raise DataError("no run has a result: " + "; ".join(
                f"{one.run.name}: {one.message}" for one in failures), str(failures[0].log))
        raise DataError("no run has a result yet", plan.study.name, "run it without --table")
    folder.mkdir(parents=True, exist_ok=True)
    shown_images = {}
    if pictures:
        from utils.study.pictures import picture_results
        shown_images = picture_results(results, devices[0], folder)
    summary = summarize(plan.study, results, [(one.run.name, one.message) for one in failures])
    text, chart = tables.markdown(summary), png_bytes(draw(summary))
    page = html_report(summary, chart, shown_images)
    for name, data in (("study.json", json.dumps(summary, indent=1, allow_nan=False) + "\n"),
                       ("table.md", text), ("table.tex", tables.latex(summary)),
                       ("table.csv", tables.csv_text(summary)), ("report.html", page)):
        write_bytes(folder / name, data.encode("utf-8", "backslashreplace"))
    write_bytes(folder / "table.png", chart)
    console.notice(f"written: {shown(folder)}/table.md, .tex, .csv, .png, study.json, report.html")
    console.output(text.rstrip())
    for failure in failures:
        console.fail(f"{failure.run.name}: {failure.message}\n  log: {shown(failure.log)}")
    return exit_status(failures)


def _results(plan: "Plan", failures: "list[Failure]") -> "list[RunResult]":
    """All results that there are. A run whose result cannot be read is added to the failures."""
    from utils.errors import DataError
    from utils.study.execute import LOG, Failure
    from utils.study.results import read_existing, read_test
    found, failed = [], {failure.run.key for failure in failures}
    for test in plan.tests:
        try:
            found.append(read_test(test))
        except DataError as error:
            if test.run.key not in failed:
                failed.add(test.run.key)
                failures.append(Failure(test.run, error.exit_status, str(error),
                                        test.run.folder / LOG))
    return [*(one for one in found if one is not None), *read_existing(plan.study.cells)]


if __name__ == "__main__":
    sys.exit(console.run(main))
