"""Is this dataset whole? Opens every image and label of a split and reports on all of them.

examples:
  python -m tools.check_dataset --type ADE20K --args '{"data_dir": "ADE", "split": "training"}'
  python -m tools.check_dataset --type CityScapes --args '{"data_dir": "cs", "split": "val"}' \\
      --json val.json

Reported are missing, unreadable and truncated files, sizes and modes, label values that are no
class, images without label and labels without image, names that occur twice and files of the
same content. Exit status 3 says that something is wrong; notes alone do not.
"""
import json
import os
import sys
from typing import NamedTuple

from utils import console
from utils.arguments import at_least, command_parser, require_folder

SHOWN = 50             # problems printed; the JSON file has all of them
SHOWN_NAMES = 5


def parse(argv):
    parser = command_parser("python -m tools.check_dataset", __doc__)
    add = parser.add_argument
    add("--type", required=True, metavar="NAME", help="a dataset of `train.py --list datasets`")
    add("--args", required=True, metavar="JSON",
        help="its arguments, as in a config; those of the augmentation and the loader may stay")
    add("--json", metavar="FILE",
        help="write the samples: image, label, size, pixels of each train id")
    add("--ignore-index", type=int, default=255, help="train id of ignored pixels (default 255)")
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), help="reading threads")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    require_folder(args.json)
    from utils.image_io import write_bytes
    from utils.jsonc import parse_jsonc
    given = parse_jsonc(args.args, "--args")
    report = check(args.type, given, args.ignore_index, args.workers)
    if args.json:
        write_bytes(args.json, json.dumps(report.as_json(), indent=1).encode() + b"\n")
    # A file name may hold bytes that are no text: show them escaped, never fail.
    encoding = sys.stdout.encoding or "utf-8"
    print(report.as_text().encode(encoding, "backslashreplace").decode(encoding))
    return 3 if report.problems else 0


def check(name: str, given: dict, ignore_index: int = 255, workers: int = 1) -> "Report":
    """Open every file of the dataset `name` with the arguments `given`.

    ConfigError: an unknown dataset or unusable arguments.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm
    dataset, problems = open_unchecked(name, given, ignore_index)
    if dataset is None:
        return Report(name, given, {}, [], problems, [])
    with ThreadPoolExecutor(workers) as pool:
        findings = list(tqdm(pool.map(lambda index: examine(dataset, index), range(len(dataset))),
                             desc="checking", total=len(dataset), unit="image", leave=False,
                             dynamic_ncols=True, disable=None))
    given = {**given, "split": dataset.split}
    problems = [*problems, *dataset.problems, *(p for found in findings for p in found.problems)]
    names = {}
    for sample in dataset.samples:
        names[sample.id] = names.get(sample.id, 0) + 1
    problems += [f"{sample}: sample occurs {count} times"
                 for sample, count in names.items() if count > 1]
    if not len(dataset) and not problems:
        problems.append(f"{dataset.root}: no images of split {dataset.split!r}")
    return Report(name, given, _summary(dataset, findings),
                  [found.entry for found in findings if found.entry], problems,
                  list(_notes(dataset, findings)))


class Report(NamedTuple):
    """What was found. samples: one entry for each that could be read whole."""

    name: str
    given: dict
    summary: dict
    samples: list
    problems: list
    notes: list

    def as_json(self) -> dict:
        root = os.path.expanduser(self.given.get("data_dir", ""))
        return {"name": self.name, "root": _absolute(root), "split": self.given.get("split"),
                "summary": self.summary, "notes": self.notes, "problems": self.problems,
                "samples": self.samples}

    def as_text(self) -> str:
        lines = [f"{self.name} {self.given.get('split', '')} in {self.given.get('data_dir', '')}"]
        lines += [f"  {key:13} {value}" for key, value in self.summary.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems[:SHOWN]]
        more = len(self.problems) - SHOWN
        lines += [f"and {more} more problems"] if more > 0 else []
        count = len(self.problems)
        lines.append("nothing is wrong" if not count else
                     f"{count} {'problem' if count == 1 else 'problems'}")
        return "\n".join(lines)


class Finding(NamedTuple):
    """What one sample's files hold; `entry` is None where they cannot be read."""

    entry: dict | None
    problems: list
    image_mode: str | None
    label_mode: str | None
    turned: bool
    digest: bytes | None


def open_unchecked(name: str, given: dict, ignore_index: int):
    """(dataset, problems): the dataset without its own checks; None where a list is missing."""
    from utils.config import split_args
    from utils.config_schema import section_callables
    from utils.errors import ConfigError, DataError
    from utils.registry import components, lookup
    from utils.signature import fields, value_name
    cls = lookup(name, components("datasets"), "--type")
    section = {"type": name, "args": given}
    if not isinstance(given, dict):
        raise ConfigError(f"expected an object, found {value_name(given)}", "--args")
    own, *_ = split_args(section, *section_callables("datasets", cls))
    for key, field in fields(cls).items():
        if field.required and key not in own:
            raise ConfigError(f"{name} needs the argument {key!r}", "--args")
        if key in own and not field.fits(given[key]):
            raise ConfigError(f"{key}: expected {field.expected}, found {value_name(given[key])}",
                              "--args")
    # Under its own name, which messages show.
    unchecked = type(cls.__name__, (cls,), {"check": lambda self: None})
    try:
        return unchecked(**own, ignore_index=ignore_index), []
    except DataError as error:
        return None, [error.in_one_line]


def examine(dataset, index: int) -> Finding:
    """Read one sample as training would, without augmentation."""
    from utils.errors import DataError
    from utils.image_io import UnreadableFile, shown
    sample, problems, entry = dataset.samples[index], [], None
    try:
        label = dataset[index]["label"].numpy()
        entry = {"id": sample.id, "split": dataset.split, "image": _absolute(sample.image),
                 "label": _absolute(sample.label), "size": list(label.shape[::-1]),
                 "hist": _histograms(dataset, label) if sample.label or not sample.image else {}}
    except DataError as error:
        problems.append(error.in_one_line)
        if isinstance(error, UnreadableFile) and sample.label \
                and error.where != shown(sample.label):
            try:
                dataset.read_label(sample.label)
            except DataError as second:
                problems.append(second.in_one_line)
    image_mode, turned, digest = _look_at(sample.image)
    return Finding(entry, problems, image_mode, _look_at(sample.label)[0], turned, digest)


def _histograms(dataset, label):
    """{number of classes: {train id: pixels}}; ignored pixels under "ignore"."""
    import numpy as np
    if label.dtype == np.uint8:
        counts = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(label, return_counts=True)
    named = {"ignore" if value == dataset.ignore_index else str(value): count
             for value, count in zip(values.tolist(), counts.tolist())}
    return {str(dataset.num_classes): named}


def _look_at(path):
    """(format and mode, whether it has an EXIF orientation, digest of the bytes)."""
    import hashlib
    import io
    import warnings

    from PIL import Image

    from utils.image_io import FORMATS, read_header
    if path is None or not path.is_file():
        return None, False, None
    try:
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if path.suffix.lower() == ".mat":
            return "MATLAB", False, digest
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                mode = f"{image.format} {image.mode}"
        return mode, read_header(path).orientation != 1, digest
    except Exception:                   # whatever is wrong with it was reported when it was read
        return None, False, None


def _summary(dataset, findings):
    from collections import Counter
    whole = [found.entry for found in findings if found.entry]
    images = Counter(found.image_mode for found in findings if found.image_mode)
    labels = Counter(found.label_mode for found in findings if found.label_mode)
    result = {"samples": f"{len(dataset)}, {len(whole)} of them read whole",
              "images": _counted(images), "labels": _counted(labels)}
    if whole:
        widths, heights = zip(*(entry["size"] for entry in whole))
        result["sizes"] = (f"{min(widths)} to {max(widths)} wide, {min(heights)} to "
                           f"{max(heights)} high, {len(set(zip(widths, heights)))} different")
    pixels = _pixels(whole)
    if total := sum(pixels.values()):
        seen = sum(key != "ignore" for key in pixels)
        result["classes"] = (f"{seen} of {dataset.num_classes} occur, "
                             f"{100 * pixels.get('ignore', 0) / total:.2f} % of the pixels are "
                             "ignored")
    return result


def _notes(dataset, findings):
    """What is worth knowing without being wrong."""
    published = dataset.split_sizes.get(dataset.split)
    if published and 0 < len(dataset) != published:
        yield f"{len(dataset)} samples, {published} in the published split"
    turned = [found.entry["image"] for found in findings if found.turned and found.entry]
    if turned:
        yield f"{len(turned)} images are turned by their EXIF tag: {_some(turned)}"
    same = {}
    for sample, found in zip(dataset.samples, findings):
        if found.digest:
            same.setdefault(found.digest, set()).add(str(sample.image))
    for paths in same.values():
        if len(paths) > 1:
            yield f"{len(paths)} image files have the same content: {_some(sorted(paths))}"
    labelled = [found.entry for found in findings if found.entry and found.entry["hist"]]
    empty = [entry["label"] or entry["image"] for entry in labelled
             if set(_pixels([entry])) == {"ignore"}]
    if empty:
        yield f"{len(empty)} labels hold ignored pixels only: {_some(empty)}"
    pixels = _pixels(labelled)
    absent = [name for i, name in enumerate(dataset.class_names) if str(i) not in pixels]
    if labelled and absent:
        yield f"{len(absent)} classes do not occur: {_some(absent)}"
    for kind in ("image", "label"):
        used = {path for sample in dataset.samples if (path := getattr(sample, kind))}
        folders = {path.parent for path in used}
        others = sum(entry.is_file() for folder in folders if folder.is_dir()
                     for entry in os.scandir(folder)) - sum(path.is_file() for path in used)
        if others > 0:
            yield f"{others} other files are in the {kind} folders"


def _pixels(entries):
    """Pixels of each train id, over all entries."""
    total = {}
    for entry in entries:
        for counts in entry["hist"].values():
            for key, count in counts.items():
                total[key] = total.get(key, 0) + count
    return total


def _counted(counter):
    return ", ".join(f"{count} {key}" for key, count in counter.most_common()) or "none"


def _some(names):
    from utils.image_io import shown
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(shown(name) for name in names[:SHOWN_NAMES]) + more


def _absolute(path):
    return os.path.abspath(path) if path else None


if __name__ == "__main__":
    sys.exit(console.run(main))
