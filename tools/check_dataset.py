"""Open every image and label of a split of a dataset and report what is wrong.

examples:
  python -m tools.check_dataset --type ADE20K --args '{"data_dir": "ADE", "split": "training"}'
  python -m tools.check_dataset --type CityScapes --args '{"data_dir": "cs", "split": "val"}' \\
      --json val.json

Reported are missing, unreadable and truncated files, sizes and modes, label values that are not a
class, images without label and labels without image, names that occur twice and files with the
same content. Exit status 3 means that something is wrong; notes alone do not count.
"""
import argparse
import json
import sys

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser, require_folder


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.check_dataset", __doc__)
    add = parser.add_argument
    add("--type", required=True, metavar="NAME", help="a dataset of `train.py --list datasets`")
    add("--args", required=True, metavar="JSON",
        help="its arguments, as in a config; those of the augmentation and the loader are ignored")
    add("--json", metavar="FILE",
        help="write the samples: image, label, size, pixels of each train id")
    add("--ignore-index", type=int, default=255, help="train id of ignored pixels (default 255)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="reading threads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    require_folder(args.json)
    from dataloader.dataset_report import check_dataset
    from utils.files.jsonc import parse_jsonc
    from utils.files.whole_file import write_bytes
    report = check_dataset(args.type, parse_jsonc(args.args, "--args"), args.ignore_index,
                           args.workers)
    if args.json:
        write_bytes(args.json, json.dumps(report.as_json(), indent=1).encode() + b"\n")
    # A file name may contain bytes that are not text: show them escaped, never fail.
    encoding = sys.stdout.encoding or "utf-8"
    print(report.as_text().encode(encoding, "backslashreplace").decode(encoding))
    return 3 if report.problems else 0


if __name__ == "__main__":
    sys.exit(console.run(main))
