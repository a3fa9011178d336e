"""Cross-validation: the results of the folds of a row become one result over all held-out images.

Each image is scored once, by a network that was not trained on it. Scores of the dataset are
computed from the counts of pixels, summed over all images; scores of images are means over all of
them. The mean of the scores of the folds would be another number: the IoU of a class that few
folds show would depend on how the images were divided.
"""
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from utils.errors import DataError, listed, shown
from utils.metrics.counts import PixelCounts
from utils.metrics.dataset_metrics import DatasetMetrics
from utils.metrics.image_metrics import mean
from utils.metrics.image_scores import OF_IMAGE, ImageScores
from utils.metrics.scores import NUMBERS
from utils.study.results import RunResult
from utils.study.study_file import Cell


def pooled_runs(cell: Cell, runs: Sequence[RunResult]) -> list[RunResult]:
    """One result for each seed whose folds are all finished; of a row without folds its runs.

    Raises DataError if results cannot be added up: an image in two folds, or no counts of pixels.
    """
    if not cell.folds:
        return list(runs)
    by_seed: dict[int | None, dict[str, RunResult]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.fold] = run
    return [_pooled(cell, seed, [found[fold] for fold in cell.folds])
            for seed, found in by_seed.items() if found.keys() >= cell.folds.keys()]


def unfinished_folds(cell: Cell, runs: Iterable[RunResult], seed: int) -> list[str]:
    """The folds of a seed that have no result, if others have one."""
    done = {run.fold for run in runs if run.seed == seed}
    return [fold for fold in cell.folds if fold not in done] if done else []


def _pooled(cell, seed, parts: list[RunResult]) -> RunResult:
    images = _all_images(parts)
    scores = _scores(parts, images)
    classes = scores.pop("Class_IoU")
    seconds = [part.seconds for part in parts]
    return RunResult(
        cell, f"{cell.title}, seed {seed}, {len(parts)} folds", parts[0].place,
        {name: scores[name] for name in NUMBERS if name in scores},
        dict(zip(images.class_names, classes, strict=True)), seed, None, parts[0].entry, images,
        None if None in seconds else sum(filter(None, seconds)), costs=parts[0].costs,
        parts=tuple(parts))


def _all_images(parts) -> ImageScores:
    """The scores of the images of all folds, in the order of the folds."""
    found: dict[str, str] = {}
    for part in parts:
        if part.images is None or part.images.pixels is None:
            raise DataError(f"fold {part.fold} has no counts of pixels for each image, so the "
                            "folds cannot be added up", shown(part.place),
                            "predict.published and label files of other programs have none")
        first = parts[0].images
        if part.images.class_names != first.class_names or \
                part.images.classes_of_interest != first.classes_of_interest:
            raise DataError(f"fold {part.fold} has or averages other classes than fold "
                            f"{parts[0].fold}", shown(part.place), "score all folds alike")
        twice = [name for name in part.images.ids if name in found]
        if twice:
            raise DataError(f"{len(twice)} images are held out by the folds {found[twice[0]]} and "
                            f"{part.fold}: {listed(twice, 3, text=shown)}", shown(part.place),
                            "each image belongs into the val list of one fold; if the config has a "
                            "test_loader, \"test\": [\"--split\", \"val\"] scores the held-out "
                            "images")
        found |= dict.fromkeys(part.images.ids, part.fold)
    tables = [part.images for part in parts]
    return ImageScores([name for one in tables for name in one.ids],
                       np.concatenate([one.image for one in tables]),
                       np.concatenate([one.pixels for one in tables]),
                       tables[0].classes_of_interest, tables[0].class_names)


def _scores(parts, images) -> dict:
    """The scores of NUMBERS that can be computed over all images, and "Class_IoU"."""
    hits, predicted, labeled = torch.from_numpy(images.pixels).unbind(1)
    # Label maps have a confusion matrix; masks have none, and no pixel accuracy.
    matrices = [part.entry.get("confusion") for part in parts]
    confusion = None if None in matrices else torch.tensor(np.sum(matrices, 0), dtype=torch.int64)
    metrics = DatasetMetrics(len(images.class_names),
                             classes_of_interest=images.classes_of_interest)
    metrics.add(PixelCounts(hits, predicted, labeled, torch.zeros_like(hits), labeled.sum(1), 0,
                            confusion))
    scores = metrics.compute()
    of_image = {name: mean(images.image[:, column]) for column, name in enumerate(OF_IMAGE)}
    scores |= {name: of_image[name] for name in ("mIoU_I", "mDice_I")}
    losses = [(part.scores.get("loss", math.nan), len(part.images.ids)) for part in parts]
    total = sum(loss * count for loss, count in losses) / max(1, len(images.ids))
    return scores if math.isnan(total) else {**scores, "loss": total}
