"""Test whether two results differ, by a paired bootstrap over the images.

examples:
  python -m tools.compare_results saved/a/results.json saved/b/results.json
  python -m tools.compare_results saved/a/results.json saved/a/results.json --rule max rankdice
  python -m tools.compare_results a_image_scores.csv b_image_scores.csv --json

Reads results.json, which names a CSV file of image scores in the same folder, or such a CSV file.
The two results must share images; only those count.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import at_least, command_parser

if TYPE_CHECKING:
    from utils.metrics.image_scores import ImageScores


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.compare_results", __doc__)
    add = parser.add_argument
    add("first", help="results.json or image scores (CSV)")
    add("second", help="the result to compare with it")
    add("--rule", nargs="+", metavar="RULE",
        help="rule to take from each results.json (one for both, or two)")
    add("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    add("--draws", type=at_least(100), default=2000, help="bootstrap samples (default 2000)")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)
    if args.rule and len(args.rule) > 2:
        parser.error("--rule takes one or two rules")
    if not 0 < args.level < 1:
        parser.error("--level must lie between 0 and 1")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    from utils.metrics.bootstrap import paired_bootstrap
    rules = args.rule or [None]
    first, first_title = open_scores(args.first, rules[0])
    second, second_title = open_scores(args.second, rules[-1])
    table = paired_bootstrap(first, second, args.level, args.draws, args.seed)
    images = len(set(first.ids) & set(second.ids))
    if images < max(len(first.ids), len(second.ids)):
        console.warn(f"only the {images} images in both results are compared "
                     f"(they have {len(first.ids)} and {len(second.ids)})")
    print(json.dumps(_as_json(table, images), allow_nan=False) if args.json
          else _as_text(table, images, first_title, second_title, args.level))


def open_scores(path: str | Path, rule: str | None = None) -> "tuple[ImageScores, str]":
    """(image scores, title) of a results.json or CSV file. Raises DataError if it has none.

    rule: the rule to take from a results.json; None takes the latest result.
    """
    from utils.errors import DataError
    from utils.metrics.image_scores import read_image_scores
    path = Path(path)
    if path.suffix.lower() != ".json":
        return read_image_scores(path), str(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        runs = [document] if rule is None else [
            run for run in [document, *reversed(document.get("runs", []))]
            if run.get("procedure") == rule]
        known = sorted({run["procedure"] for run in [document, *document.get("runs", [])]})
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", str(path)) from None
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"is not a results file: {error!r}", str(path)) from None
    if not runs:
        raise DataError(f"has no result of rule {rule!r}; it has {', '.join(known)}", str(path))
    if not runs[0].get("image_scores"):
        raise DataError("does not name a file of image scores", str(path), "run test.py again")
    scores = read_image_scores(path.parent / runs[0]["image_scores"])
    if runs[0].get("classes_of_interest"):
        scores.classes_of_interest = list(runs[0]["classes_of_interest"])
    return scores, f"{path} ({runs[0]['procedure']})"


def _as_json(table, images):
    return {"images": images, "metrics": {
        name: {"first": a, "second": b, "difference": interval.value, "low": interval.low,
               "high": interval.high, "p": interval.p}
        for name, (a, b, interval) in table.items()}}


def _as_text(table, images, first, second, level):
    from utils.metrics.table import aligned, percent
    rows = [("", "first", "second", "difference", f"{100 * level:g} % interval", "p", "")]
    for name, (a, b, interval) in table.items():
        clear = interval.low > 0 or interval.high < 0
        rows.append((name, percent(a), percent(b), f"{100 * interval.value:+.2f}",
                     f"{100 * interval.low:+.2f} .. {100 * interval.high:+.2f}",
                     f"{interval.p:.3f}", "differ" if clear else "no clear difference"))
    lines = [f"first:  {first}", f"second: {second}",
             f"{images} images, percent, difference = second - first", ""]
    return "\n".join([*lines, *aligned(rows, (0, 6))])


if __name__ == "__main__":
    sys.exit(console.run(main))
