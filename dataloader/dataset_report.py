"""Opens every image and label of a split and reports on all of them."""
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from base.base_dataset import BINARY_FIX, LOST_FOREGROUND, BaseDataset
from base.dataset_files import Problem, kind_of
from utils.config.build import split_args
from utils.config.registry import components, lookup
from utils.config.schema import section_callables
from utils.config.signature import fields, value_name
from utils.errors import ConfigError, DataError, counted, listed, shown
from utils.files.file_jobs import work_through
from utils.images.band_files import band_form
from utils.images.headers import Header, UnreadableFile, pillow_open
from utils.images.label_kind import mixing
from utils.images.types import Labels

SHOWN = 50             # lines on problems in the text; the JSON has all problems
SHOWN_OF_KIND = 3      # problems with the same text
SHOWN_NAMES = 5        # names in one note


class DatasetReport(NamedTuple):
    """The result for one split.

    args: arguments of the dataset. samples: one entry for each whose files are complete.
    title: its name in messages, if it could be opened.
    problems: lines on what is wrong. notes: lines on what may be intended.
    """

    name: str
    args: dict[str, Any]
    summary: dict[str, str]
    samples: list[dict[str, Any]]
    problems: list[str]
    notes: list[str]
    title: str = ""

    def as_json(self) -> dict[str, Any]:
        """The whole report as plain types."""
        root = os.path.expanduser(self.args.get("data_dir", ""))
        return {"name": self.name, "root": _absolute(root), "split": self.args.get("split"),
                "summary": self.summary, "notes": self.notes, "problems": self.problems,
                "samples": self.samples}

    def as_text(self) -> str:
        """The report in lines, with the first problems."""
        title = self.title or f"{self.name} {self.args.get('split', '')}"
        lines = [f"{title} in {self.args['data_dir']}" if "data_dir" in self.args else title]
        lines += [f"  {key:13} {value}" for key, value in self.summary.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.problems:
            lines.append(listed(list(_by_kind(self.problems)), SHOWN, "\n"))
        lines.append(counted(len(self.problems), "problem") if self.problems
                     else "nothing is wrong")
        return "\n".join(lines)


def check_dataset(name: str, args: dict[str, Any], ignore_index: int = 255,
                  workers: int = 1, elsewhere: frozenset[Path] = frozenset()) -> DatasetReport:
    """Open every file of the dataset `name` with the arguments `args`, in threads.

    elsewhere: files of other splits, which are not mentioned if they are in the same folders.
    Raises ConfigError for an unknown dataset or unusable arguments.
    """
    try:
        dataset = open_unchecked(name, args, ignore_index)
    except DataError as error:
        return DatasetReport(name, args, {}, [], [error.what], [])
    outcome = work_through(range(len(dataset)), lambda index: _examine(dataset, index), workers,
                           "checking")
    assert not outcome.failed, "_examine returns errors, it does not raise them"
    findings = outcome.done
    known = set(dataset.problems)       # of annotations: the label cannot be drawn either
    problems = [*dataset.problems, *(text for finding in findings for text in finding.problems
                                     if text not in known)]
    problems += [f"{sample}: sample occurs {count} times" for sample, count in
                 Counter(sample.id for sample in dataset.samples).items() if count > 1]
    if set(_pixels([finding.entry for finding in findings if finding.entry])) == {"0", "ignore"} \
            and dataset.num_classes > 1 and dataset.loses_foreground():
        problems.append(Problem(LOST_FOREGROUND, BINARY_FIX))
    if not len(dataset) and not problems:
        problems.append(f"{dataset.root}: no images of split {dataset.split!r}")
    return DatasetReport(name, {**args, "split": dataset.split}, _summary(dataset, findings),
                         [finding.entry for finding in findings if finding.entry], problems,
                         list(_notes(dataset, findings, elsewhere)), dataset.title)


def open_unchecked(name: str, args: dict[str, Any], ignore_index: int) -> BaseDataset:
    """The dataset without the checks of its constructor.

    Raises ConfigError for an unknown dataset or unusable arguments, and DataError, in one line and
    with data_dir as its place, if its files cannot be listed.
    """
    cls: type[BaseDataset] = lookup(name, components("datasets"), "--type")
    if not isinstance(args, dict):
        raise ConfigError(f"expected an object, found {value_name(args)}", "--args")
    own_args, *_ = split_args({"type": name, "args": args}, *section_callables("datasets", cls))
    for key, field in fields(cls).items():
        if field.required and key not in own_args:
            raise ConfigError(f"{name} needs the argument {key!r}", "--args")
        if key in own_args and not field.fits(args[key]):
            raise ConfigError(f"{key}: expected {field.expected}, found {value_name(args[key])}",
                              "--args")
    # The subclass keeps the name, which messages show.
    unchecked: Any = type(cls.__name__, (cls,), {"check": lambda self: None})
    try:
        return unchecked(**own_args, ignore_index=ignore_index)
    except DataError as error:
        raise DataError(error.in_one_line, shown(args.get("data_dir", ""))) from None


def files_of(dataset: BaseDataset) -> frozenset[Path]:
    """All images and labels of a dataset."""
    return frozenset(path for sample in dataset.samples for path in (sample.image, sample.label)
                     if path)


def _by_kind(problems: list[str]) -> Iterator[str]:
    """The lines of problems: of each kind the first ones, the number of the others, what to do."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(kind_of(problem), []).append(problem)
    for same in kinds.values():
        shown_ones = SHOWN_OF_KIND if len(same) > SHOWN_OF_KIND + 1 else len(same)
        yield from (f"problem: {problem}" for problem in same[:shown_ones])
        if len(same) > shown_ones:
            yield f"problem: … and {len(same) - shown_ones} more files with the same problem"
        fix = next(filter(None, (getattr(problem, "fix", None) for problem in same)), None)
        if fix:
            yield f"  fix: {fix}"


class _Finding(NamedTuple):
    """What the files of one sample contain.

    entry: the sample in the JSON, None if a file cannot be read. image, label: format and mode,
    and header, of each file. mixed: whether the label looks smoothed.
    """

    entry: dict[str, Any] | None
    problems: list[str]
    image: tuple[str, Header] | None
    label: tuple[str, Header] | None
    mixed: bool


def _problem(error, sample):
    """What is wrong with a sample, of the kind of all problems that differ in the files only."""
    kind = error.what
    for path in filter(None, (sample.image, sample.label)):
        kind = kind.replace(shown(path), "")
    return Problem(error.in_one_line, error.fix or "", kind_of(kind))


def _examine(dataset, index):
    """Read one sample as training would, without augmentation."""
    sample, problems, entry, mixed = dataset.samples[index], [], None, False
    whole = None
    try:
        label = dataset[index]["label"].numpy()
        if sample.label and sample.label.suffix.lower() == ".mat":      # it is read only as a whole
            whole = "MATLAB", Header(*label.shape[::-1])
        elif getattr(dataset, "drawing", None) is not None:
            whole = "drawn from annotations", Header(*label.shape[::-1])
        mixed = sample.label is not None and mixing(label.astype(np.uint16)) is not None
        entry = {"id": sample.id, "split": dataset.split, "image": _absolute(sample.image),
                 "label": _absolute(sample.label), "size": list(label.shape[::-1]),
                 "hist": _histograms(dataset, label) if sample.label or not sample.image else {}}
    except DataError as error:
        problems.append(_problem(error, sample))
        if isinstance(error, UnreadableFile) and sample.label \
                and error.where != shown(sample.label):
            try:
                dataset.read_label(sample.label)
            except DataError as second:
                problems.append(_problem(second, sample))
    return _Finding(entry, problems, _file_facts(sample.image, dataset.image_header),
                    whole or _file_facts(sample.label, dataset.label_header), mixed)


def _histograms(dataset: BaseDataset, label: Labels) -> dict[str, dict[str, int]]:
    """{number of classes: {train id: number of pixels}}; ignored pixels under "ignore"."""
    if label.dtype == np.uint8:
        counts = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(label, return_counts=True)
    named = {"ignore" if value == dataset.ignore_index else str(value): count
             for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
    return {str(dataset.num_classes): named}


def _file_facts(path: Path | None, header: Callable[[Path], Header]) -> tuple[str, Header] | None:
    """(format and mode, header) of a file, from its beginning; None if it cannot be read."""
    if path is None or not path.is_file():
        return None
    try:
        if path.suffix.lower() == ".mat":
            return "MATLAB", header(path)
        with pillow_open(path, path) as image:
            return f"{image.format} {image.mode}", header(path)
    except DataError:
        try:                            # bands that Pillow does not read
            form = band_form(path)
            return f"{path.suffix[1:].upper()} {form.bands} bands of {form.type}", header(path)
        except DataError:               # was reported when the sample was read
            return None


def _same_content(paths: Iterable[Path]) -> list[list[str]]:
    """The paths of files with the same content, together; only files of one size are read again."""
    by_size: dict[int, set[Path]] = {}
    for path in paths:
        try:
            by_size.setdefault(path.stat().st_size, set()).add(path)
        except OSError:                 # was reported when the sample was read
            continue
    same: dict[bytes, list[str]] = {}
    for group in by_size.values():
        for path in sorted(group) if len(group) > 1 else ():
            try:
                digest = hashlib.blake2b(path.read_bytes()).digest()
            except OSError:
                continue
            same.setdefault(digest, []).append(str(path))
    return sorted(group for group in same.values() if len(group) > 1)


def _summary(dataset, findings):
    entries = [finding.entry for finding in findings if finding.entry]
    images = Counter(finding.image[0] for finding in findings if finding.image)
    labels = Counter(finding.label[0] for finding in findings if finding.label)
    result = {"samples": f"{len(dataset)}, {len(entries)} of them read whole",
              "images": _counted(images), "labels": _counted(labels)}
    if entries:
        widths, heights = zip(*(entry["size"] for entry in entries), strict=True)
        sizes = len(set(zip(heights, widths, strict=True)))
        result["sizes"] = f"{heights[0]}x{widths[0]} (height x width), all of them" \
            if sizes == 1 else (f"height {min(heights)} to {max(heights)}, width {min(widths)} to "
                                f"{max(widths)}, {sizes} different sizes")
    pixels = _pixels(entries)
    if total := sum(pixels.values()):
        present = sum(key != "ignore" for key in pixels)
        result["classes"] = (f"{present} of {dataset.num_classes} occur, "
                             f"{100 * pixels.get('ignore', 0) / total:.2f} % of the pixels are "
                             "ignored")
    return result


def _notes(dataset: BaseDataset, findings: list[_Finding],
           elsewhere: frozenset[Path]) -> Iterator[str]:
    published = dataset.split_sizes.get(dataset.split)
    if published and 0 < len(dataset) != published:
        yield f"{len(dataset)} samples, {published} in the published split"
    headers = {kind: [(getattr(sample, kind), getattr(finding, kind)[1]) for sample, finding
                      in zip(dataset.samples, findings, strict=True) if getattr(finding, kind)]
               for kind in ("image", "label")}
    turned = [path for path, header in headers["image"] if header.orientation != 1]
    if turned:
        yield f"{_are(turned, 'image')} turned by their EXIF tag: {_some(turned)}"
    yield from dataset.unused_parts(headers["image"], headers["label"])
    for paths in _same_content(path for path, _ in headers["image"]):
        yield f"{len(paths)} image files have the same content: {_some(paths)}"
    mixed = [sample.label for sample, finding in zip(dataset.samples, findings, strict=True)
             if finding.mixed]
    if mixed:
        look = "looks" if len(mixed) == 1 else "look"
        yield (f"{counted(len(mixed), 'label')} {look} smoothed or stored as JPEG (many values "
               f"along borders only): {_some(mixed)}")
    labeled = [finding.entry for finding in findings if finding.entry and finding.entry["hist"]]
    empty = [entry["label"] or entry["image"] for entry in labeled
             if set(_pixels([entry])) == {"ignore"}]
    if empty:
        yield (f"{counted(len(empty), 'label')} {'has' if len(empty) == 1 else 'have'} ignored "
               f"pixels only: {_some(empty)}")
    pixels = _pixels(labeled)
    absent = [name for i, name in enumerate(dataset.class_names) if str(i) not in pixels]
    if labeled and absent:
        yield (f"{counted(len(absent), 'class')} {'does' if len(absent) == 1 else 'do'} not occur: "
               f"{_some(absent)}")
    # A file of annotations may lie among any others.
    drawn = getattr(dataset, "drawing", None) is not None
    for kind in ("image",) if drawn else ("image", "label"):
        folders = {path.parent for sample in dataset.samples if (path := getattr(sample, kind))}
        used = {path for path in files_of(dataset) | elsewhere if path.parent in folders}
        others = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()
                  if entry.is_file() and entry not in used]
        if others:
            yield f"{_are(others, 'other file')} in the {kind} folders: {_some(sorted(others))}"


def _pixels(entries):
    """{train id: number of pixels} over all entries."""
    total = Counter()
    for entry in entries:
        for counts in entry["hist"].values():
            total.update(counts)
    return total


def _counted(counter):
    return ", ".join(f"{count} {key}" for key, count in counter.most_common()) or "none"


def _are(some, noun):
    """ "1 image is", "2 images are"."""
    return f"{counted(len(some), noun)} {'is' if len(some) == 1 else 'are'}"


def _some(names):
    return listed(names, SHOWN_NAMES, text=shown)


def _absolute(path):
    return os.path.abspath(path) if path else None
