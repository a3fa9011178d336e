"""Several datasets of the same classes as one training set."""
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.pixel_cache import use_cache
from dataloader.samplers import drawn, stream
from utils.cli.console import notice, warn
from utils.config.build import split_args
from utils.config.registry import components, lookup
from utils.config.schema import Components, section_callables
from utils.errors import ConfigError, DataError, listed
from utils.images.types import Image, Labels

MAX_EPOCH = 10 ** 8     # images; a larger number is a typing error
_DRAWS = ("times", "images", "of_first")
_STREAM = 0x6D6978      # separates the draws of parts from other uses of the seed


def part_entry(times: float | None = None, images: int | None = None,
               of_first: float | list[float] | None = None, last_epoch: int | None = None,
               centroid_classes: list[int] | None = None,
               ignore_classes: list[int | str] | None = None):
    """The keys of one part of a mixture, in addition to "type" and "args".

    At most one of the first three; without them an epoch shows the part once.
    times: how often an epoch shows each image; 0.5: half of them, others each epoch.
    images: how many images of the part an epoch shows. of_first: the same number, as a
    multiple of the images of the first part; [first, last]: it changes evenly from the
    first epoch to last_epoch, and the epochs keep their length, because images of the first
    part take the places that this part leaves. centroid_classes: the classes that
    class-uniform sampling may draw from this part; null: all. ignore_classes: ids or names of
    classes whose pixels are ignored in this part, as if its labels left them open.
    """


class Mixture(BaseDataset):
    """Several datasets of the same classes as one training set.

    parts: sections {"type", "args"} of datasets, each with the amount that an epoch
        shows: {"times": 2}, {"images": 500} or {"of_first": 1}. Less than a whole
        part is drawn without replacement, again for every epoch. The args may
        contain options of the augmentation that differ from the mixture's.
    weights: the share of each part in an epoch, in place of times, images and of_first.
    epoch_images: number of images in an epoch with weights; null: as many as the parts have.

    All fine images of Cityscapes and equally many auto-labeled ones, others each
    epoch (PaddleSeg and NVIDIA, Cityscapes test mIoU 87 %):
        "parts": [{"type": "CityScapes", "args": {...}},
                  {"type": "Cityscapes_autolabelled", "args": {...}, "of_first": 1}]

    Names, colors, mean and std are those of the first part. An id that occurs in
    several parts gets the number of its part as a prefix: "1/aachen_000000_000019".
    Evaluation visits every image of every part once.
    """

    def __init__(self, parts: Annotated[list, Components("datasets", part_entry, "parts")],
                 weights: list[float] | None = None, epoch_images: int | None = None,
                 ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        problems = self.check_settings({"parts": parts, "weights": weights,
                                        "epoch_images": epoch_images})
        if problems:
            raise ConfigError("; ".join(problems))
        self.parts = [_opened(section, number, ignore_index, seed, augmentation)
                      for number, section in enumerate(parts)]
        first = self.parts[0]
        for number, part in enumerate(self.parts):
            _require_same_classes(first, part, number)
            if not len(part):
                raise DataError(f"{_name(part, number)} has no images")
        self._tell_ignored()
        self.num_classes, self.class_names = first.num_classes, first.class_names
        self.palette, self.mean, self.std = first.palette, first.mean, first.std
        self.white, self.bands = first.white, first.bands
        for part in self.parts:
            part.mean = self.mean       # pads images; all parts are normalized by this mean
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.centroid_classes = [section.get("centroid_classes") for section in parts]
        self._counts = _counts(parts, [len(part) for part in self.parts], weights, epoch_images)
        self._changes = _changes(parts, self._counts[0])
        self.counts = self.counts_in(1)
        if sum(self.counts) > MAX_EPOCH:
            raise ConfigError(f"an epoch would show {sum(self.counts)} images; the limit is "
                              f"{MAX_EPOCH}", "parts", "draw fewer images")
        split = " + ".join(f"{type(part).__name__} {part.split}" for part in self.parts)
        super().__init__("", split, ignore_index, seed, augmentation)
        self.root = first.root
        if self.counts != list(map(len, self.parts)):
            notice("an epoch of training shows " + self._shown_in(1))
        for last in sorted({change.last_epoch for change in self._changes.values()}):
            notice(f"from epoch {last} on it shows {self._shown_in(last)}")

    def _tell_ignored(self):
        """Say which classes of parts are ignored; warn of those that no part has."""
        names = self.parts[0].class_names
        for number, part in enumerate(self.parts):
            if part.ignored_classes:
                notice(f"{_name(part, number)}: pixels of "
                       f"{listed([names[k] for k in part.ignored_classes], 8)} are ignored")
        nowhere = set.intersection(*(set(part.ignored_classes) for part in self.parts))
        if nowhere:
            warn(f"all parts ignore {listed([names[k] for k in sorted(nowhere)], 8)}: no pixel of "
                 "the mixture has such a class")

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """Mistakes that can be found without opening the data, as "key: text"."""
        parts, weights = settings["parts"], settings["weights"]
        if not parts:
            return ["parts: expected at least one dataset"]
        problems = _problems_of_changes(parts)
        problems += [f"parts[{number}]: a Mixture cannot be part of another; list its parts here"
                    for number, part in enumerate(parts)
                    if components("datasets").get(part.get("type")) is Mixture]
        for number, part in enumerate(parts):
            given = [key for key in _DRAWS if part.get(key) is not None]
            if len(given) > 1:
                problems.append(f"parts[{number}]: {' and '.join(given)} contradict each other")
            if weights is not None and given:
                problems.append(f"parts[{number}].{given[0]}: has no effect with weights")
            problems += [f"parts[{number}].{key}: expected more than 0, found {part[key]}"
                         for key in given if not isinstance(part[key], list) and part[key] <= 0]
        if parts[0].get("of_first") is not None:
            problems.append("parts[0].of_first: this is the first part; use times or images")
        if weights is not None and (len(weights) != len(parts) or min(weights) < 0
                                    or not 0 < sum(weights) < math.inf):
            problems.append(f"weights: expected {len(parts)} numbers of at least 0, one per part, "
                            f"found {weights}")
        if settings.get("cache") is not None:
            problems.append("cache: a mixture has no cache; set \"cache\" in the args of its parts")
        if settings.get("sampler", ...) is None:
            problems += [f"parts[{number}].centroid_classes: has an effect only with the sampler "
                         "ClassUniform" for number, part in enumerate(parts)
                         if part.get("centroid_classes") is not None]
        images = settings["epoch_images"]
        if images is not None and weights is None:
            problems.append("epoch_images: has an effect only with weights; or set \"images\" of a "
                            "part")
        elif images is not None and not 1 <= images <= MAX_EPOCH:
            problems.append(f"epoch_images: expected 1 to {MAX_EPOCH}, found {images}")
        return problems

    def find_samples(self) -> Iterator[Sample]:
        parts_with = {}     # id -> numbers of the parts that contain it
        for number, part in enumerate(self.parts):
            for sample in part.samples:
                parts_with.setdefault(sample.id, set()).add(number)
        for number, part in enumerate(self.parts):
            for sample in part.samples:
                yield sample if len(parts_with[sample.id]) == 1 else \
                    sample._replace(id=f"{number}/{sample.id}")

    def check(self) -> None:
        """Checks nothing: every part checked its files when it was opened."""

    def normalize_by(self, section: Mapping[str, Any] | None) -> None:
        for dataset in (super(), *self.parts):      # a part pads its own images
            dataset.normalize_by(section)

    def add_void(self, train_void: bool = False, training: bool = False) -> None:
        for dataset in (super(), *self.parts):
            dataset.add_void(train_void, training)

    def owner(self, index: int) -> tuple[BaseDataset, int]:
        """The part that a sample comes from, and its index there."""
        number = self.part_of(index)
        return self.parts[number], int(index - self._starts[number])

    def part_of(self, index: int | np.ndarray) -> Any:
        """The number of the part that a sample comes from; for indices (N,) an array (N,)."""
        return np.searchsorted(self._starts, index, side="right") - 1

    def counts_in(self, epoch: int) -> list[int]:
        """The number of images that an epoch, from 1, shows of each part; the sum never changes."""
        counts = list(self._counts)
        for number, change in self._changes.items():
            counts[number] = change.images(epoch)
            counts[0] += change.most - counts[number]
        return counts

    def _shown_in(self, epoch):
        return ", ".join(f"{count} of {len(part)} ({type(part).__name__} {part.split})"
                         for count, part in zip(self.counts_in(epoch), self.parts, strict=True))

    def draw_epoch(self, epoch: int) -> np.ndarray:
        """The indices (N,) that a training epoch visits, before they are shuffled."""
        draws = []
        counts = self.counts_in(epoch)
        for number, (part, count) in enumerate(zip(self.parts, counts, strict=True)):
            rng = stream(self.seed, epoch, _STREAM, number)
            draws.append(self._starts[number] + drawn(count, len(part), rng))
        return np.concatenate(draws)

    def may_center(self, class_id: int, indices: np.ndarray) -> np.ndarray:
        """Bool (N,): whether the parts of the samples (N,) allow the class as a centroid."""
        classes = [one is None or class_id in one for one in self.centroid_classes]
        return np.array(classes)[self.part_of(indices)]

    def load(self, index: int) -> tuple[Image, Labels]:
        """The image, uint8 (H, W, 3), and its label as stored, (H, W)."""
        part, index_there = self.owner(index)
        return (part.cache or part).load(index_there)

    def load_label(self, index: int) -> Labels:
        """The label as stored, (H, W)."""
        part, index_there = self.owner(index)
        return part.load_label(index_there)

    def read_label(self, path: Path) -> Labels:
        """A label as the part that it belongs to stores it, (H, W)."""
        return next(part for part in self.parts for sample in part.samples
                    if sample.label == path).read_label(path)

    def describe(self, index: int) -> str:
        """The image file or id of a sample, for messages."""
        part, index_there = self.owner(index)
        return part.describe(index_there)


class _Change(NamedTuple):
    """The images of a part, which change evenly from the first epoch to last_epoch."""

    first: float        # images, not rounded
    last: float
    last_epoch: int

    @property
    def most(self) -> int:
        return round(max(self.first, self.last))

    def images(self, epoch: int) -> int:
        done = min((epoch - 1) / (self.last_epoch - 1), 1.0)
        return round(self.first + (self.last - self.first) * done)


def _changes(parts, images):
    """number of a part -> its _Change. images: that the first part shows in an epoch."""
    return {number: _Change(part["of_first"][0] * images, part["of_first"][1] * images,
                            part["last_epoch"])
            for number, part in enumerate(parts) if isinstance(part.get("of_first"), list)}


def _problems_of_changes(parts):
    """The mistakes in a changing of_first, as "key: text"."""
    problems = []
    for number, part in enumerate(parts):
        range_, last = part.get("of_first"), part.get("last_epoch")
        if not isinstance(range_, list):
            if last is not None:
                problems.append(f"parts[{number}].last_epoch: has an effect only with of_first as "
                                "[first, last]")
        elif len(range_) != 2 or min(range_) < 0 or not any(range_):
            problems.append(f"parts[{number}].of_first: expected a number or [first, last] of at "
                            f"least 0, not both 0, found {range_}")
        elif last is None or last < 2:
            problems.append(f"parts[{number}].last_epoch: expected the epoch, from 2, in which "
                            f"of_first is {range_[1]:g}, found {last}")
    return problems


def _opened(section, number, ignore_index, seed, augmentation):
    """Build the dataset of one part."""
    cls = lookup(section["type"], components("datasets"), f"parts[{number}].type")
    dataset_args, cache_args, options = split_args(section, *section_callables("parts", cls))
    try:
        if options and augmentation is not None:
            augmentation = augmentation.changed(**options)
        part = use_cache(cls(**dataset_args, ignore_index=ignore_index, seed=seed,
                             augmentation=augmentation), **cache_args)
    except ConfigError as error:
        key = f".{error.where}" if error.where else ""
        raise ConfigError(error.what, f"parts[{number}].args{key}", error.fix) from None
    try:
        part.ignore(section.get("ignore_classes") or ())
    except ConfigError as error:
        raise ConfigError(error.what, f"parts[{number}].{error.where}", error.fix) from None
    return part


def _require_same_classes(first, part, number):
    """Raise ConfigError if part `number` has other classes than the first part."""
    if part.num_classes != first.num_classes:
        raise ConfigError(f"{_name(part, number)} has {part.num_classes} classes, "
                          f"{_name(first, 0)} has {first.num_classes}", f"parts[{number}]",
                          "mix datasets of the same classes")
    if part.bands != first.bands:
        raise ConfigError(f"{_name(part, number)} and {_name(first, 0)} have images of different "
                          "bands, types or values without data", f"parts[{number}]",
                          "mix datasets of the same bands")
    names = zip(part.class_names, first.class_names, strict=True)
    for class_id, (name, expected) in enumerate(names):
        if name != expected:
            raise ConfigError(f"class {class_id} is {name!r} in {_name(part, number)} and "
                              f"{expected!r} in {_name(first, 0)}", f"parts[{number}]",
                              "mix datasets of the same classes in the same order (a Folder takes "
                              "class_names and label_map)")


def _name(part, number):
    return f"parts[{number}] ({type(part).__name__} {part.split})"


def _counts(parts, sizes, weights, epoch_images):
    """The number of images of each part in an epoch."""
    if weights is not None:
        return _shares(weights, sum(sizes) if epoch_images is None else epoch_images)
    counts = []
    for part, size in zip(parts, sizes, strict=True):
        if part.get("images") is not None:
            counts.append(part["images"])
        elif isinstance(part.get("of_first"), list):
            counts.append(0)        # by epoch: see counts_in
        elif part.get("of_first") is not None:
            counts.append(round(part["of_first"] * counts[0]))
        else:
            counts.append(round((1 if part.get("times") is None else part["times"]) * size))
    return counts


def _shares(weights, total):
    """`total` divided in proportion to the weights, in whole numbers (largest remainders)."""
    exact = np.array(weights, float) * total / sum(weights)
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[:total - counts.sum()]] += 1
    return counts.tolist()
