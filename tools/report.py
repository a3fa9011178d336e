"""Write report.html, a page for a browser that explains a result, from a results.json.

examples:
  python -m tools.report saved/camvid/results.json
  python -m tools.report saved/camvid/results.json --pictures       # predicts 12 images again
  python -m tools.report scores/results.json --run 1 3 -o page.html

Shows the newest result and those of the other rules that were scored in the same way; --run chooses
others, by the numbers that tools.compare_results --list prints. `test.py --report` writes the same
page with everything on it. What the file does not hold is said on the page.
"""
import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import at_least, command_parser, device

if TYPE_CHECKING:
    from utils.evaluation.result_page import RuleResult, ShownImages
    from utils.evaluation.results_file import Entry


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.report", __doc__)
    add = parser.add_argument
    add("results", type=Path, help="results.json of test.py, tools.evaluate_labels or tools.decide")
    add("--run", nargs="+", metavar="N", type=at_least(1),
        help="numbers of the results to show, as tools.compare_results --list prints them")
    add("--pictures", action="store_true",
        help="open the checkpoint and its data once more, and show the worst and the best images")
    add("-d", "--device", type=device,
        help="with --pictures: cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("-o", "--output", type=Path, metavar="HTML",
        help="the page (default: report.html beside the results)")
    args = parser.parse_intermixed_args(argv)
    if args.device and not args.pictures:
        parser.error("--device has no effect without --pictures")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    from utils.cli.arguments import require_folder
    from utils.errors import ConfigError, DataError, shown
    from utils.evaluation.page_of_test import NAME
    from utils.evaluation.result_page import result_page
    from utils.evaluation.results_file import read_results
    from utils.files.whole_file import write_bytes
    output = args.output or args.results.parent / NAME
    require_folder(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError("a page is a file NAME.html", f"--output {shown(output)}",
                          "give such a name, so that no results are overwritten")
    newest, runs = read_results(args.results)
    entries = _chosen(args, newest, runs)
    results = [_with_images(entry, args.results) for entry in entries]
    pictures = _pictures(args, results) if args.pictures else "results.json holds none; " + (
        "test.py --report shows them" if "ensemble" in entries[0] else
        "--pictures adds them where the checkpoint and its data are still there")
    try:
        page = result_page(results, None, pictures)
    except RecursionError:
        raise DataError("is nested too deeply for a results file", shown(args.results)) from None
    had_pictures = not args.pictures and output.is_file() and b"data:image" in output.read_bytes()
    write_bytes(output, page.encode())
    left = len(runs) - len(entries)
    others = f"; {left} of {len(runs)} results are not on it (--run chooses)" if left > 0 else ""
    console.notice(f"written: {shown(output)} ({len(page.encode()) / 1e3:,.0f} kB){others}")
    if had_pictures:
        console.notice("the page that it replaces had pictures; --pictures shows them again")


def _pictures(args, results: "list[RuleResult]") -> "ShownImages":
    from dataloader.loader import split_loader
    from utils.evaluation.repeat_result import pictures_again
    from utils.machine import distributed
    try:
        return pictures_again(results, args.results, distributed.start(args.device), split_loader)
    finally:
        distributed.stop()


def _chosen(args, newest: "Entry", runs: "list[Entry]") -> "list[Entry]":
    """The results of --run, or the newest one with those of the other rules of its setting."""
    from utils.errors import DataError, shown
    from utils.evaluation.results_file import same_but_for_the_rule
    if not args.run:
        others = [one for one in runs if same_but_for_the_rule(one, newest)]
        return others or [newest]
    wrong = [number for number in args.run if number > len(runs)]
    if wrong:
        raise DataError(f"has no result {wrong[0]}; it has {len(runs)}", shown(args.results),
                        "python -m tools.compare_results RESULTS --list")
    return [runs[number - 1] for number in dict.fromkeys(args.run)]


def _with_images(entry: "Entry", path: Path) -> "RuleResult":
    """An entry with the scores of its images; a file that is gone or damaged is a reason."""
    from utils.errors import DataError
    from utils.evaluation.result_page import RuleResult
    from utils.evaluation.results_file import image_scores_of
    try:
        images = image_scores_of(entry, path)
    except DataError as error:
        console.warn(f"no scores of images: {error.in_one_line}")
        return RuleResult(entry, None, error.in_one_line)
    return RuleResult(entry, images)


if __name__ == "__main__":
    sys.exit(console.run(main))
