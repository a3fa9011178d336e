"""Test whether two results differ by more than chance, from the scores of the single images.

examples:
  python -m tools.compare_results saved/a/results.json saved/b/results.json
  python -m tools.compare_results saved/a/results.json saved/a/results.json --rule max rankdice
  python -m tools.compare_results saved/a/results.json --list
  python -m tools.compare_results saved/a/results.json saved/a/results.json --run 1 3
  python -m tools.compare_results a_image_scores.csv b_image_scores.csv --json

Reads results.json, which names a CSV file of image scores in the same folder, or such a CSV file.
The two results must share images; only those count. Results of different evaluation protocols are
refused without --across-protocols. p comes from a paired randomization test, the interval from the
jackknife (docs/metrics.md); few images cannot show a difference.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import at_least, command_parser

if TYPE_CHECKING:
    from utils.evaluation.results_file import Entry
    from utils.metrics.confidence import Difference
    from utils.metrics.image_scores import ImageScores

SHOWN = 8           # differences between the settings of two results


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.compare_results", __doc__)
    add = parser.add_argument
    add("first", help="results.json or image scores (CSV)")
    add("second", nargs="?", help="the result to compare with it")
    add("--list", action="store_true", help="print the results that the files hold, with numbers")
    add("--rule", nargs="+", metavar="RULE",
        help="rule to take from each results.json (one for both, or two)")
    add("--run", nargs="+", metavar="N", type=at_least(1),
        help="number of the result to take from each results.json, as --list prints it "
             "(one for both, or two; default: the newest)")
    add("--across-protocols", action="store_true",
        help="compare results of different evaluation protocols: the difference is then also that "
             "of the protocols")
    add("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    add("--draws", type=at_least(100), default=2000,
        help="random exchanges for p, if there are too many to try all (default 2000)")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_intermixed_args(argv)
    if args.second is None and not args.list:
        parser.error("two results are needed to compare (or --list)")
    if args.rule and args.run:
        parser.error("--rule and --run both choose a result: give one of them")
    for option in ("rule", "run"):
        if len(getattr(args, option) or ()) > 2:
            parser.error(f"--{option} takes one or two values")
    if not 0 < args.level < 1:
        parser.error("--level must lie between 0 and 1")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    if args.list:
        console.output("\n".join(line for path in (args.first, args.second) if path
                                 for line in _listed(path)))
        return
    from utils.errors import listed
    from utils.evaluation.results_file import differences
    from utils.metrics.confidence import compare
    rules, numbers = args.rule or [None], args.run or [None]
    first, first_entry = open_scores(args.first, rules[0], numbers[0])
    second, second_entry = open_scores(args.second, rules[-1], numbers[-1])
    if first_entry and second_entry and not args.across_protocols:
        _require_one_protocol(args, first_entry, second_entry)
    table = compare(first, second, args.level, args.draws, args.seed)
    images = len(set(first.ids) & set(second.ids))
    if images < max(len(first.ids), len(second.ids)):
        console.warn(f"only the {images} images in both results are compared "
                     f"(they have {len(first.ids)} and {len(second.ids)})")
    _warn_of_few_images(table, images, args.level)
    _tell_without_dataset_level(first, second)
    apart = differences(first_entry, second_entry) if first_entry and second_entry else []
    if args.json:
        console.output(json.dumps(_as_json(table, images, apart), allow_nan=False))
        return
    lines = [f"first:  {_title(args.first, first_entry)}",
             f"second: {_title(args.second, second_entry)}",
             *([f"they differ in {listed(apart, SHOWN, '; ')}"] if apart else []),
             f"{images} images, percent, difference = second - first", "",
             *_rows(table, args.level)]
    console.output("\n".join(lines))


def _require_one_protocol(args, first: "Entry", second: "Entry"):
    """Raise ConfigError if two results were measured under different evaluation protocols."""
    from utils.errors import ConfigError
    from utils.evaluation.results_file import protocol_of
    one, two = protocol_of(first), protocol_of(second)
    # Nothing says how a program predicted label files.
    if one != two and "predictions" not in first and "predictions" not in second:
        raise ConfigError(f"the results were measured under different protocols: {one} / {two}",
                          f"{args.first}, {args.second}",
                          "score both with the same --protocol of test.py, or compare them all "
                          "the same with --across-protocols")


def open_scores(path: str | Path, rule: str | None = None, number: int | None = None) \
        -> "tuple[ImageScores, Entry | None]":
    """(image scores, entry) of a results.json, or (image scores, None) of a CSV file.

    rule: the newest result of this rule in a results.json. number: of the result, from 1; None
    takes the newest. Raises DataError if the file has no such result.
    """
    from utils.errors import DataError, shown
    from utils.evaluation.results_file import image_scores_of, read_results
    from utils.metrics.image_scores import read_image_scores
    path = Path(path)
    if path.suffix.lower() != ".json":
        return read_image_scores(path), None
    newest, runs = read_results(path)
    chosen = [run for run in [newest, *reversed(runs)]
              if rule in (None, run.get("procedure"))]
    if number is not None:
        chosen = runs[number - 1:number]
    if not chosen:
        known = ", ".join(sorted({str(run.get("procedure")) for run in [newest, *runs]}))
        raise DataError(f"has no result of rule {rule!r}; it has {known}" if number is None else
                        f"has no result {number}; it has {len(runs)}", shown(path),
                        "see --list")
    entry = chosen[0]
    scores = image_scores_of(entry, path)
    if scores is None:
        raise DataError("does not name a file of image scores", shown(path), "run test.py again")
    if number is None and len(chosen) > 2:      # the newest is also among the runs
        console.notice(f"{shown(path)} holds {len(chosen) - 1} results"
                       + (f" of rule {rule}" if rule else "")
                       + "; the newest is taken (--list shows them, --run chooses)")
    return scores, entry


def _listed(path):
    from utils.evaluation.results_file import read_results, title_of
    from utils.metrics.table import percent
    yield path
    for number, run in enumerate(read_results(Path(path))[1], start=1):
        score = run.get("Mean_IoU")
        yield f"  {number}  mean IoU {percent(score):>6}  {title_of(run)}"


def _title(path, entry):
    from utils.errors import shown
    from utils.evaluation.results_file import title_of
    return f"{shown(path)}: {title_of(entry)}" if entry else shown(path)


def _warn_of_few_images(table: "dict[str, Difference]", images: int, level: float):
    from utils.metrics.confidence import least_images
    least = least_images(level)
    if images < least:
        console.warn(f"{images} images are too few to tell whether two results differ: at level "
                     f"{level:g} at least {least} are needed, and some dozens to find a small "
                     "difference")
        return
    few = [name for name, one in table.items() if not one.enough]
    if few:
        console.warn(f"fewer than {least} images have a value of {', '.join(few)}: too few to tell")


def _tell_without_dataset_level(first: "ImageScores", second: "ImageScores"):
    """Say why only image-level scores are compared, if so."""
    from utils.metrics.confidence import same_counts
    if not same_counts([first, second]):
        reason = ("scores as the RankDice code computes them count no pixels"
                  if first.pixels is None or second.pixels is None else
                  f"one averages classes {first.classes_of_interest}, the other "
                  f"{second.classes_of_interest}")
        console.notice(f"only image-level scores are compared: {reason}")


def _as_json(table: "dict[str, Difference]", images: int, apart: list[str]) -> dict[str, Any]:
    from utils.files.json_values import plain_json
    return plain_json({"images": images, "settings": apart, "metrics": {
        name: {"first": one.first, "second": one.second, "difference": one.value, "low": one.low,
               "high": one.high, "p": one.p, "enough_images": one.enough, "differs": one.differs}
        for name, one in table.items()}})


def _rows(table: "dict[str, Difference]", level: float) -> list[str]:
    """The lines of the table."""
    from utils.metrics.table import aligned, bounds_text, p_text, percent, signed_percent
    rows = [("", "first", "second", "difference", f"{100 * level:g} % interval", "p", "")]
    for name, one in table.items():
        verdict = ("too few images to tell" if not one.enough else
                   "differ" if one.differs else "no clear difference")
        rows.append((name, percent(one.first), percent(one.second), signed_percent(one.value),
                     bounds_text(one.low, one.high, signed_percent), p_text(one.p), verdict))
    return aligned(rows, (0, 6))


if __name__ == "__main__":
    sys.exit(console.run(main))
