"""Scores label files against the labels of a dataset: dataset-level and image-level scores."""
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from utils.evaluation.label_pairs import (
    LabelFileScores,
    count_all,
    pair_files,
    require_below,
    require_size,
)
from utils.images.image_io import read_label
from utils.images.picture_files import LABEL_SUFFIXES
from utils.images.types import Labels
from utils.metrics import DatasetMetrics, ImageMetrics, Scores, count_pixels
from utils.metrics.table import format_table


class LabeledDataset(Protocol):
    """What is needed of a dataset (base.base_dataset.BaseDataset)."""

    num_classes: int
    ignore_index: int
    class_names: list[str]
    samples: list[Any]              # with id and label, a path or None
    problems: list[str]

    def train_ids(self, raw: np.ndarray) -> np.ndarray: ...

    def read_train_ids(self, path: Path) -> Labels: ...


def score_labels(dataset: LabeledDataset, predictions: Path, ids: str | None = None,
                 split: str | None = None, workers: int = 1) -> LabelFileScores:
    """Scores and tables of the label files in the folder `predictions`.

    ids: what predictions contain, "train" ids (default) or "label" values as the truth does.
    Raises one DataError that names all files that are missing, surplus or wrong.
    """
    truths = {sample.id: sample.label for sample in dataset.samples if sample.label is not None}
    paths, unpaired = pair_files(truths, predictions, LABEL_SUFFIXES)
    classes, void = dataset.num_classes, _void_values(dataset)

    def count(name):
        target = dataset.read_train_ids(truths[name])
        if ids == "label":
            prediction = dataset.read_train_ids(paths[name])
        else:
            stored = read_label(paths[name])
            prediction = np.where(np.isin(stored, void), -1, stored.astype(np.int32))
            require_below(prediction, classes, stored, paths[name],
                          f"a train id 0..{classes - 1}" + ", or 255" * (classes <= 255),
                          "if these are encoded as the truth is, use --ids label")
        require_size(prediction, paths[name], target, truths[name])
        return count_pixels(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None],
                            classes, dataset.ignore_index)

    of_dataset = DatasetMetrics(classes, dataset.ignore_index)
    of_images = ImageMetrics(classes, dataset.ignore_index)
    names = [name for name in truths if name in paths]
    for number, counts in enumerate(count_all(count, names, workers, dataset.problems + unpaired)):
        of_dataset.add(counts)
        of_images.add(counts, [number])
    scores = Scores(of_dataset.compute(), of_images.compute())
    text = format_table(scores, dataset.class_names)
    image = {key: value for key, value in (scores.image or {}).items()
             if not key.startswith("img_")}
    document = {"dataset": type(dataset).__name__, "split": split,
                "class_names": dataset.class_names, **scores.dataset, "image": image}
    return LabelFileScores(document, text, text)


def _void_values(dataset):
    """The values of a prediction in train ids that mean "no class"."""
    ids = dataset.train_id_table(np.uint16)
    values = np.arange(len(ids))
    void = {255, dataset.ignore_index}
    # If the truth contains train ids too, its void values are also void in predictions.
    if (ids == values)[:dataset.num_classes].all():
        void |= set(values[ids == dataset.ignore_index].tolist())
    return sorted(value for value in void if not 0 <= value < dataset.num_classes)
