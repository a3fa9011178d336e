"""Several datasets of the same classes as one training set."""
import math
from collections.abc import Callable
from typing import Annotated

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.pixel_cache import use_cache
from dataloader.samplers import drawn
from utils.config import split_args
from utils.config_schema import Components, section_callables
from utils.console import notice
from utils.errors import ConfigError, DataError
from utils.registry import components, lookup

MAX_EPOCH = 10 ** 8     # images; more is a slip of the keyboard
_DRAWS = ("times", "images", "of_first")
_STREAM = 0x6D6978      # keeps the draws of parts apart from every other use of the seed


def part_entry(times: float | None = None, images: int | None = None,
               of_first: float | None = None, centroid_classes: list[int] | None = None):
    """Keys beside "type" and "args" of one part of a mixture.

    At most one of the first three; without them an epoch shows the part once.
    times: how often an epoch shows each image; 0.5: half of them, others each epoch.
    images: how many an epoch shows. of_first: how many, as a multiple of what the
    epoch shows of the first part. centroid_classes: the classes that class-uniform
    sampling may draw from this part; null: all.
    """


class Mixture(BaseDataset):
    """Several datasets of the same classes as one training set.

    parts: sections {"type", "args"} of datasets, each with how much of it an epoch
        shows: {"times": 2}, {"images": 500} or {"of_first": 1}. What is less than a
        whole part is drawn without replacement, anew for every epoch. The args may
        hold options of the augmentation that differ from the mixture's.
    weights: the share of each part in an epoch, in place of the keys beside the parts.
    epoch_images: how many images an epoch shows with weights; null: as many as there are.

    All fine pictures of Cityscapes and equally many auto-labelled ones, others each
    epoch (PaddleSeg and NVIDIA, Cityscapes test mIoU 87 %):
        "parts": [{"type": "CityScapes", "args": {...}},
                  {"type": "Cityscapes_autolabelled", "args": {...}, "of_first": 1}]

    Names, colours, mean and std are those of the first part. An id that occurs in
    several parts has the number of its part in front: "1/aachen_000000_000019".
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
        self.num_classes, self.class_names = first.num_classes, first.class_names
        self.palette, self.mean, self.std = first.palette, first.mean, first.std
        for part in self.parts:
            part.mean = self.mean       # images are padded with the mean they are normalised by
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.centroid_classes = [section.get("centroid_classes") for section in parts]
        self.counts = _counts(parts, [len(part) for part in self.parts], weights, epoch_images)
        if sum(self.counts) > MAX_EPOCH:
            raise ConfigError(f"an epoch would show {sum(self.counts)} images; the limit is "
                              f"{MAX_EPOCH}", "parts", "draw less of them")
        split = " + ".join(f"{type(part).__name__} {part.split}" for part in self.parts)
        super().__init__("", split, ignore_index, seed, augmentation)
        self.root = first.root
        if self.counts != list(map(len, self.parts)):
            notice("an epoch of training shows " + ", ".join(
                f"{count} of {len(part)} ({type(part).__name__} {part.split})"
                for count, part in zip(self.counts, self.parts)))

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """Mistakes that show without opening the data, as "key: text"."""
        parts, weights = settings["parts"], settings["weights"]
        if not parts:
            return ["parts: expected at least one dataset"]
        problems = [f"parts[{number}]: a Mixture cannot be part of another; list its parts here"
                    for number, part in enumerate(parts)
                    if components("datasets").get(part.get("type")) is Mixture]
        for number, part in enumerate(parts):
            given = [key for key in _DRAWS if part.get(key) is not None]
            if len(given) > 1:
                problems.append(f"parts[{number}]: {' and '.join(given)} contradict each other")
            if weights is not None and given:
                problems.append(f"parts[{number}].{given[0]}: has no effect beside weights")
            problems += [f"parts[{number}].{key}: expected more than 0, found {part[key]}"
                         for key in given if part[key] <= 0]
        if parts[0].get("of_first") is not None:
            problems.append("parts[0].of_first: this is the first part; use times or images")
        if weights is not None and (len(weights) != len(parts) or min(weights) < 0
                                    or not 0 < sum(weights) < math.inf):
            problems.append(f"weights: expected {len(parts)} numbers from 0 up, one per part, "
                            f"found {weights}")
        if settings.get("cache") is not None:
            problems.append("cache: a mixture has none of its own; name those of its parts in "
                            "their args")
        if settings.get("sampler", ...) is None:
            problems += [f"parts[{number}].centroid_classes: has an effect only with the sampler "
                         "ClassUniform" for number, part in enumerate(parts)
                         if part.get("centroid_classes") is not None]
        images = settings["epoch_images"]
        if images is not None and weights is None:
            problems.append("epoch_images: has an effect only with weights; or say \"images\" "
                            "beside a part")
        elif images is not None and not 1 <= images <= MAX_EPOCH:
            problems.append(f"epoch_images: expected 1 to {MAX_EPOCH}, found {images}")
        return problems

    def find_samples(self):
        number_of = {}
        for number, part in enumerate(self.parts):
            for sample in part.samples:
                number_of.setdefault(sample.id, set()).add(number)
        for number, part in enumerate(self.parts):
            for sample in part.samples:
                yield sample if len(number_of[sample.id]) == 1 else \
                    sample._replace(id=f"{number}/{sample.id}")

    def check(self):
        """Every part has checked its own files when it was opened."""

    def owner(self, index):
        number = self.part_of(index)
        return self.parts[number], int(index - self._starts[number])

    def part_of(self, index) -> int:
        """The number of the part that a sample is from; of several, an array of them."""
        return np.searchsorted(self._starts, index, side="right") - 1

    def draw_epoch(self, epoch):
        draws = [start + drawn(count, len(part), self._stream(epoch, number)) for number,
                 (start, part, count) in enumerate(zip(self._starts, self.parts, self.counts))]
        return np.concatenate(draws)

    def may_centre(self, class_id, indices):
        classes = [one is None or class_id in one for one in self.centroid_classes]
        return np.array(classes)[self.part_of(indices)]

    def load(self, index):
        part, place = self.owner(index)
        return (part.cache or part).load(place)

    def load_label(self, index):
        part, place = self.owner(index)
        return part.load_label(place)

    def read_label(self, path):
        return next(part for part in self.parts for sample in part.samples
                    if sample.label == path).read_label(path)

    def describe(self, index):
        part, place = self.owner(index)
        return part.describe(place)

    def _stream(self, epoch, number):
        return np.random.default_rng(np.random.SeedSequence(
            (self.seed % 2 ** 64, epoch, _STREAM), spawn_key=(number,)))


def _opened(section, number, ignore_index, seed, augmentation):
    """The dataset of one part."""
    cls = lookup(section["type"], components("datasets"), f"parts[{number}].type")
    own, cached, options = split_args(section, *section_callables("parts", cls))
    try:
        if options and augmentation is not None:
            augmentation = augmentation.changed(**options)
        return use_cache(cls(**own, ignore_index=ignore_index, seed=seed,
                             augmentation=augmentation), **cached)
    except ConfigError as error:
        raise ConfigError(error.what, f"parts[{number}].args" + (f".{error.where}"
                                                                 if error.where else ""),
                          error.fix) from None


def _require_same_classes(first, part, number):
    if part.num_classes != first.num_classes:
        raise ConfigError(f"{_name(part, number)} has {part.num_classes} classes, "
                          f"{_name(first, 0)} has {first.num_classes}", f"parts[{number}]",
                          "mix datasets of the same classes")
    for class_id, (name, expected) in enumerate(zip(part.class_names, first.class_names)):
        if name != expected:
            raise ConfigError(f"class {class_id} is {name!r} in {_name(part, number)} and "
                              f"{expected!r} in {_name(first, 0)}", f"parts[{number}]",
                              "mix datasets of the same classes in the same order (a Folder takes "
                              "class_names and label_map)")


def _name(part, number):
    return f"parts[{number}] ({type(part).__name__} {part.split})"


def _counts(parts, sizes, weights, epoch_images):
    """How many images an epoch shows of each part."""
    if weights is not None:
        return _shares(weights, sum(sizes) if epoch_images is None else epoch_images)
    counts = []
    for part, size in zip(parts, sizes):
        if part.get("images") is not None:
            counts.append(part["images"])
        elif part.get("of_first") is not None:
            counts.append(round(part["of_first"] * counts[0]))
        else:
            counts.append(round((1 if part.get("times") is None else part["times"]) * size))
    return counts


def _shares(weights, total):
    """`total` in proportion to the weights, in whole numbers (largest remainders)."""
    exact = np.array(weights, float) * total / sum(weights)
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[:total - counts.sum()]] += 1
    return counts.tolist()
