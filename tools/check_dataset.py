"""Open every image and label of a dataset and report what is wrong.

examples:
  python -m tools.check_dataset -c my.json
  python -m tools.check_dataset --type ADE20K --args '{"data_dir": "ADE", "split": "training"}'
  python -m tools.check_dataset --type CityScapes --args '{"data_dir": "cs", "split": "val"}' \\
      --json val.json

Reported are missing, unreadable and truncated files, sizes and modes, label values that are not a
class, images without label and labels without image, names that occur twice and files with the
same content. With -c every loader of the config is checked, with --loader one. Exit status 3
means that something is wrong; notes alone do not count.
"""
import argparse
import contextlib
import json
import sys

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser, require_folder
from utils.config.dataset_arguments import (
    add_dataset_arguments,
    dataset_configs,
    parse_dataset_arguments,
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.check_dataset", __doc__)
    add = parser.add_argument
    add_dataset_arguments(parser, every_loader=True)
    add("--json", metavar="FILE",
        help="write the samples: image, label, size, pixels of each train id")
    add("--ignore-index", type=int, help="train id of ignored pixels (default: that of the config, "
                                         "or 255)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="reading threads")
    args = parse_dataset_arguments(parser, argv)
    if args.json and args.config and not args.loader:
        parser.error("--json writes the samples of one loader: choose it with --loader")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    require_folder(args.json)
    from dataloader.dataset_report import check_dataset, files_of, open_unchecked
    from utils.errors import DataError
    from utils.files.whole_file import write_bytes
    wrong = False
    datasets, files = _datasets(args), {}
    for number, one in enumerate(datasets):
        with contextlib.suppress(DataError):        # its report says why it cannot be opened
            files[number] = files_of(open_unchecked(*one))
    for number, (name, arguments, ignore_index) in enumerate(datasets):
        others = frozenset().union(*(files[k] for k in files if k != number))
        report = check_dataset(name, arguments, ignore_index, args.workers, others)
        if args.json:
            write_bytes(args.json, json.dumps(report.as_json(), indent=1).encode() + b"\n")
        # A file name may contain bytes that are not text: show them escaped, never fail.
        encoding = sys.stdout.encoding or "utf-8"
        print(report.as_text().encode(encoding, "backslashreplace").decode(encoding))
        wrong |= bool(report.problems)
    return 3 if wrong else 0


def _datasets(args):
    """(type, arguments, ignore_index) of each dataset to check."""
    if args.type:
        from utils.files.jsonc import parse_jsonc
        found = [({"type": args.type, "args": parse_jsonc(args.args, "--args")},
                  {"ignore_index": 255})]
    else:
        found = dataset_configs(args)
    return [(section["type"], section["args"], config["ignore_index"]
             if args.ignore_index is None else args.ignore_index) for section, config in found]


if __name__ == "__main__":
    sys.exit(console.run(main))
