"""Scores label files against the labels of a dataset: dataset-level and image-level scores.

Predictions hold train ids (0, 1, ... as inference.py writes) or the values of the truth ("label"
values), which may mean something else: in a truth of 0 and 255, 255 may be class 1, and as a
train id it means "no class". Without an order of the caller both readings are counted, see
`_chosen`.
"""
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from utils.cli.console import notice, warn
from utils.errors import DataError, listed, shown
from utils.evaluation.label_pairs import (
    SHOWN_VALUES,
    LabelFileScores,
    pair_files,
    read_prediction,
    require_below,
    require_none,
    require_size,
)
from utils.files.file_jobs import work_through
from utils.images.picture_files import LABEL_SUFFIXES
from utils.images.types import Labels
from utils.metrics import DatasetMetrics, ImageMetrics, Scores, count_pixels
from utils.metrics.table import format_table, percent

VALUES = 2 ** 16        # that a label file can store
VOID = -1               # a predicted pixel of no class


class LabeledDataset(Protocol):
    """What is needed of a dataset (base.base_dataset.BaseDataset)."""

    num_classes: int
    ignore_index: int
    class_names: list[str]
    label_palette: list | None
    samples: list[Any]              # with id and label, a path or None
    problems: list[str]

    def train_id_table(self, dtype: np.dtype | type) -> np.ndarray: ...

    def read_label(self, path: Path) -> Labels: ...

    def read_train_ids(self, path: Path) -> Labels: ...


def score_labels(dataset: LabeledDataset, predictions: Path, ids: str | None = None,
                 split: str | None = None, workers: int = 1,
                 train_void: bool = False) -> LabelFileScores:
    """Scores and tables of the label files in the folder `predictions`.

    ids: what predictions contain, "train" ids or "label" values as the truth does; None finds out,
        and takes train ids unless the values speak against it.
    train_void: the network had a last class for void (BaseDataset.add_void): train ids may hold it,
        and it counts as no class.
    Raises one DataError that names all files that are missing or wrong.
    """
    truths = {sample.id: sample.label for sample in dataset.samples if sample.label is not None}
    paths, unpaired = pair_files(truths, predictions, LABEL_SUFFIXES)
    names = [name for name in truths if name in paths]
    readings = [_Reading(dataset, kind, train_void)
                for kind in ((ids,) if ids else ("train", "label"))]

    def count(number):
        name = names[number]
        target = dataset.read_train_ids(truths[name])
        stored, colored = _stored(dataset, paths[name], ids)
        require_size(stored, paths[name], target, truths[name])
        values = np.bincount(stored.ravel(), minlength=VALUES)
        for reading in readings:
            reading.add(number, stored, target, paths[name], colored, values)

    outcome = work_through(range(len(names)), count, workers, "scoring")
    reading = readings[0] if ids else _chosen(*readings)
    require_none([*dataset.problems, *unpaired], [*outcome.failed, *reading.sorted_errors()])
    if not reading.valid:
        raise DataError(f"there is nothing to score: all pixels of {len(names)} labels are ignored",
                        shown(predictions), "check what the stored values of the truth mean")
    reading.tell_void()
    scores = Scores(reading.of_dataset.compute(), reading.of_images.compute(), images=len(names))
    text = format_table(scores, dataset.class_names)
    image = {key: value for key, value in (scores.image or {}).items()
             if not key.startswith("img_")}
    document = {"dataset": type(dataset).__name__, "split": split, "ids": reading.kind,
                "class_names": dataset.class_names, **scores.dataset,
                "pixels_without_prediction": reading.void, "image": image}
    return LabelFileScores(document, text, text, scores, names, dataset.class_names)


def _stored(dataset, path, ids):
    """(stored values (H, W), whether they are the indices of colors)."""
    palette = dataset.label_palette
    try:
        return read_prediction(
            path, "write class ids, or name the colors with --args '{\"palette\": [[r, g, b], "
            "...]}', if the dataset takes it" if palette is None else
            "--ids label reads the colors of the palette"), False
    except DataError:
        if palette is None or ids == "train":
            raise
        return dataset.read_label(path), True


class _Reading:
    """The counts of all files in one reading of their values.

    kind: "train" or "label". table: (VALUES,) what each stored value means: a class, VOID, or
    num_classes for a value without a meaning. values: (VALUES,) how often each is predicted.
    hits, void, valid: labeled pixels that are right, that are predicted as no class, and all.
    """

    def __init__(self, dataset: LabeledDataset, kind: str, train_void: bool = False):
        self.kind, self.classes = kind, dataset.num_classes
        self.ignore_index = dataset.ignore_index
        self.table = (_train_meanings(dataset, train_void) if kind == "train" else
                      _label_meanings(dataset))
        self.of_dataset = DatasetMetrics(self.classes, self.ignore_index)
        self.of_images = ImageMetrics(self.classes, self.ignore_index)
        self.values = np.zeros(VALUES, np.int64)
        self.errors: dict[int, DataError] = {}
        self.hits = self.void = self.valid = self.colored = 0
        self._lock = threading.Lock()

    def add(self, number: int, stored: Labels, target: Labels, path: Path, colored: bool,
            values: np.ndarray):
        """Count a file. Values without a meaning are kept as an error, and counted as VOID.

        values: (VALUES,) how often `stored` holds each.
        """
        ids, error = self.table[stored], None
        try:
            if colored and self.kind == "train":
                raise DataError("is a color picture, others hold ids", shown(path),
                                "use --ids label if all are colors or values of the truth")
            require_below(ids, self.classes, stored, path, *self._expected(stored))
        except DataError as wrong:
            error = wrong
            ids = np.where(ids >= self.classes, VOID, ids)
        counts = count_pixels(torch.from_numpy(ids)[None], torch.from_numpy(target)[None],
                              self.classes, self.ignore_index)
        assert counts.confusion is not None         # of label maps
        with self._lock:
            self.of_dataset.add(counts)
            self.of_images.add(counts, [number])
            self.values += values
            self.hits += int(counts.hits.sum())
            self.valid += int(counts.valid.sum())
            self.void += int(counts.confusion[:, self.classes].sum())
            self.colored += colored
            if error:
                self.errors[number] = error

    def _expected(self, stored):
        if self.kind == "label":
            return "a value of the truth", "if these are train ids, use --ids train"
        return (f"a train id 0..{self.classes - 1}" + ", or 255" * (self.classes <= 255),
                "if these are encoded as the truth is, use --ids label"
                + bool((stored == self.classes).any()) * (
                    f"; if {self.classes} is the void of a network with train_void, use --args "
                    "'{\"train_void\": true}'"))

    def sorted_errors(self) -> list[DataError]:
        """The errors in the order of the files."""
        return [error for _, error in sorted(self.errors.items())]

    @property
    def accuracy(self) -> str:
        """The share of the labeled pixels that are right, in percent."""
        return percent(self.hits / self.valid if self.valid else None)

    def tell_void(self):
        """Warn of pixels that are predicted as no class: each is an error in the scores."""
        if self.void:
            found = np.flatnonzero((self.values > 0) & (self.table == VOID))
            warn(f"{self.void} of {self.valid} labeled pixels ({self.void / self.valid:.2%}) are "
                 f"predicted as no class (value {listed(found, SHOWN_VALUES)}) and count as wrong")


def _chosen(train: _Reading, label: _Reading) -> _Reading:
    """The reading of predictions whose ids the caller has not named.

    Train ids, but for two cases that are clear: colors, and values like the 255 of a mask of
    0 and 255 that stand for a class in the truth, while no prediction holds the train id of that
    class. Raises DataError if the label values fit better and it is not clear.
    """
    if label.errors or not label.valid:
        return train
    if train.colored == len(train.errors) > 0:
        notice("the predictions are color pictures, read as the truth is (--ids label)")
        return label
    values = np.flatnonzero(train.values)
    no_class = (train.table[values] == VOID) | (train.table[values] >= train.classes)
    of_truth = values[no_class & (label.table[values] >= 0)]
    seen = set(train.table[values].tolist())
    if len(of_truth) and label.hits >= train.hits \
            and not seen & set(label.table[of_truth].tolist()):
        notice(f"predictions hold {listed(of_truth, SHOWN_VALUES)}, no train id but a class in the "
               "truth: they are read as the truth is (--ids label; the other reading: --ids train)")
        return label
    if not train.errors and label.hits > train.hits:
        raise DataError(f"it is not clear what the predictions hold: read as train ids "
                        f"{train.accuracy} % of the pixels are right, read as values of the truth "
                        f"{label.accuracy} %", "the predictions",
                        "say which they are with --ids train or --ids label")
    return train


def _train_meanings(dataset, train_void):
    """(VALUES,) what a stored value means as a train id."""
    ids = dataset.train_id_table(np.uint16).astype(np.int32)
    values = np.arange(VALUES, dtype=np.int32)
    void = {255, dataset.ignore_index, *([dataset.num_classes] if train_void else [])}
    # If the truth contains train ids too, its void values are also void in predictions.
    if (ids == values)[:dataset.num_classes].all():
        void |= set(values[ids == dataset.ignore_index].tolist())
    meaning = np.minimum(values, dataset.num_classes)
    meaning[[value for value in void if dataset.num_classes <= value < VALUES]] = VOID
    return meaning


def _label_meanings(dataset):
    """(VALUES,) what a stored value means in the truth."""
    ids = dataset.train_id_table(np.uint16).astype(np.int64)
    known = (ids >= 0) & (ids < dataset.num_classes)
    meaning = np.where(known, ids, dataset.num_classes)
    meaning[~known & (ids == dataset.ignore_index)] = VOID
    return meaning.astype(np.int32)
