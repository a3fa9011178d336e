"""Scores label files as the official Cityscapes script does."""
from pathlib import Path

import numpy as np
import torch

from utils.cli.console import warn
from utils.errors import DataError, shown
from utils.evaluation.label_pairs import (
    LabelFileScores,
    count_all,
    pair_files,
    read_prediction,
    require_below,
    require_size,
)
from utils.images.image_io import read_label
from utils.images.picture_files import picture_files
from utils.images.types import Labels
from utils.metrics import DatasetMetrics, ImageMetrics, PixelCounts, Scores
from utils.metrics.cityscapes_metrics import EVALUATED_IDS, LABELS, CityscapesMetrics, count_pair

TRUTH_ENDINGS = ("_gtFine_labelIds.png", "_gtCoarse_labelIds.png")
LINE = "-" * 32


def score_cityscapes(folder: Path, predictions: Path, ids: str | None = None,
                     workers: int = 1) -> LabelFileScores:
    """Scores under the official names, the official tables, and five lines of summary.

    folder: the truth, *_labelIds.png and for iIoU *_instanceIds.png in any subfolder.
    ids: what predictions contain, "label" ids (default) or "train" ids.
    Raises one DataError that names all files that are missing, surplus or wrong.
    """
    truths, problems = _truths(folder)
    if not truths:
        raise DataError("found no *_gtFine_labelIds.png or *_gtCoarse_labelIds.png",
                        shown(folder), "give the folder of the truth, such as gtFine/val")
    paths, unpaired = pair_files(truths, predictions, (".png",))
    instances = {name: Path(str(path).replace("_labelIds.png", "_instanceIds.png"))
                 for name, path in truths.items()}
    if not any(path.is_file() for path in instances.values()):
        warn(f"{shown(folder)} has no *_instanceIds.png: there is no nIoU")
        instances = {}

    def count(name):
        truth = _read_ids(truths[name], "label", read_label(truths[name]))
        prediction = _read_ids(paths[name], ids or "label", read_prediction(
            paths[name], "write label ids or train ids as a gray or palette PNG"))
        require_size(prediction, paths[name], truth, truths[name])
        return count_pair(prediction, truth,
                          _instances_of(instances.get(name), truth, truths[name]))

    metrics, of_dataset = CityscapesMetrics(), DatasetMetrics(len(EVALUATED_IDS))
    of_images = ImageMetrics(len(EVALUATED_IDS))
    names = [name for name in truths if name in paths]
    for counts in count_all(count, names, workers, problems + unpaired):
        metrics.add(counts)
        pixels = _pixel_counts(counts.confusion)
        of_dataset.add(pixels)
        of_images.add(pixels)
    evaluated = metrics.confusion[list(EVALUATED_IDS)]
    if not evaluated.any():
        raise DataError(f"there is nothing to score: no pixel of {len(names)} images has a class "
                        "that is evaluated", shown(folder),
                        "the labels of the split test are not public: score val")
    predicted = metrics.confusion.sum(0)
    if ids is None and predicted[:7].any() and not predicted[19:].any():
        warn("no prediction holds an id above 18: if they are train ids, use --ids train")
    void = int(evaluated.sum() - evaluated[:, list(EVALUATED_IDS)].sum())
    if void:
        warn(f"{void} of {int(evaluated.sum())} evaluated pixels are predicted as ids that are not "
             "evaluated, and count as wrong")
    scores, text, summary = _report(metrics)
    measured = Scores(of_dataset.compute(), of_images.compute(), images=len(names))
    return LabelFileScores(scores, text, summary, measured, names,
                           [LABELS[i].name for i in EVALUATED_IDS])


def _pixel_counts(confusion: np.ndarray) -> PixelCounts:
    """The counts of the 19 evaluated classes in the confusion matrix (34, 34) of one image."""
    classes = list(EVALUATED_IDS)
    rows = confusion[classes]
    matrix, labeled = rows[:, classes], rows.sum(1)
    predicted = matrix.sum(0)
    batch = (matrix.diagonal(), predicted, labeled, confusion[:, classes].sum(0) - predicted)
    hits, predicted, labeled, on_ignored = (torch.from_numpy(one.copy())[None] for one in batch)
    void = rows.sum(1) - matrix.sum(1)          # predicted as an id that is not evaluated
    return PixelCounts(hits, predicted, labeled, on_ignored, labeled.sum(1),
                       int(confusion.sum()), torch.from_numpy(np.c_[matrix, void]))


def _truths(folder):
    """({name: label file}, problems)."""
    truths, problems = {}, []
    for path in picture_files(folder, (".png",)):
        ending = next((e for e in TRUTH_ENDINGS if path.name.endswith(e)), None)
        if ending is None:
            continue
        name = path.name.removesuffix(ending)
        if name in truths:
            problems.append(f"{shown(path)}: same name as {shown(truths[name])}")
        truths.setdefault(name, path)
    return truths, problems


def _read_ids(path: Path, ids: str, values: Labels) -> Labels:
    """A map of label ids 0..33, (H, W), of the values that the file stores."""
    if ids == "train":
        table = np.full(int(values.max(initial=255)) + 1, 255, np.uint8)
        table[:len(EVALUATED_IDS)] = EVALUATED_IDS
        table[[len(EVALUATED_IDS), 255]] = 0        # unlabeled; 19 is void in VIPriors' MiniCity
        return require_below(table[values], len(LABELS), values, path,
                             "a train id 0..18, or 19 or 255 for no class")
    fix = None
    if not ((values > 18) & (values != 255)).any():
        fix = "if these are train ids, use --ids train"
    return require_below(values, len(LABELS), values, path, "a label id 0..33", fix)


def _instances_of(path: Path | None, truth: Labels, truth_path: Path) -> Labels | None:
    if path is None:
        return None
    values = read_instances(path)
    require_size(values, path, truth, truth_path)
    return values


def read_instances(path: Path) -> Labels:
    """The instance ids of an *_instanceIds.png. Raises DataError if one belongs to no class."""
    values = read_label(path)
    if values.max(initial=0) >= 1000 * len(LABELS):
        raise DataError(f"holds instance id {values.max()}, which does not belong to any class",
                        shown(path), "copy or download the file again")
    return values


def _report(metrics):
    scores = metrics.compute()
    accuracy, with_ignored = metrics.accuracies()
    text = "\n".join((*_table("classes", "Class", "Classes", scores), "",
                      *_table("categories", "Category", "Categories", scores), "",
                      f"{metrics.images} images, pixel accuracy {accuracy:.4f}"))
    summary = "\n".join(f"{title}: {value}" for title, value in (
        ("IoU Class", scores["averageScoreClasses"]),
        ("iIoU Class", scores["averageScoreInstClasses"]),
        ("IoU Category", scores["averageScoreCategories"]),
        ("iIoU Category", scores["averageScoreInstCategories"]), ("Accuracy", with_ignored)))
    return scores, text, summary


def _table(title, kind, kinds, scores):
    """The lines of a table of the official script."""
    yield f"{title:<17}IoU      nIoU"
    yield LINE
    instances = scores[f"{kind.lower()}InstScores"]
    for name, value in scores[f"{kind.lower()}Scores"].items():
        if name != "void":
            yield f"{name:<14}: {value:>5.3f}    {instances[name]:>5.3f}"
    yield LINE
    yield (f"Score Average : {scores[f'averageScore{kinds}']:5.3f}    "
           f"{scores[f'averageScoreInst{kinds}']:5.3f}")
    yield LINE
