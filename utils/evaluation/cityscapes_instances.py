"""Scores instance results as the Cityscapes benchmark does: the average precision of masks.

Predictions are those that the benchmark takes: for each image a text file whose name begins with
that of the image, with lines "MASK LABEL_ID SCORE" (utils.segfix.instances).
"""
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli.console import notice, warn
from utils.errors import DataError, listed, shown
from utils.evaluation.cityscapes_files import LINE, read_instances
from utils.evaluation.label_pairs import count_all, pair_files, read_prediction, require_size
from utils.images.headers import read_bytes
from utils.images.picture_files import picture_files
from utils.metrics.cityscapes_metrics import LABELS
from utils.metrics.instance_precision import (
    INSTANCE_CLASSES,
    MIN_PIXELS,
    THRESHOLDS,
    InstanceCounts,
    InstanceTruth,
    average_precisions,
)
from utils.segfix.instances import InstanceLine, instance_lines

ENDING = "_gtFine_instanceIds.png"


class InstanceScores(NamedTuple):
    """scores: for a JSON file, named as in the official one. text: the official table."""

    scores: dict[str, Any]
    text: str


def score_instances(folder: Path, predictions: Path, workers: int = 1) -> InstanceScores:
    """Average precision of the masks below `predictions`.

    folder: the truth, *_gtFine_instanceIds.png in any subfolder.
    Raises one DataError that names all files that are missing, surplus or wrong.
    """
    files = [path for path in picture_files(folder, (".png",)) if path.name.endswith(ENDING)]
    if not files:
        raise DataError(f"found no *{ENDING}", shown(folder),
                        "give the folder of the truth, such as gtFine/val")
    truths = {path.name.removesuffix(ENDING): path for path in files}
    paths, problems = pair_files(truths, predictions, (".txt",), ())
    results = count_all(lambda name: _count(truths[name], paths[name]),
                        [name for name in truths if name in paths], workers, problems)
    left_out = sum((one for _, one in results), Counter())
    _tell_left_out(left_out, any(len(counts.scores) for image, _ in results
                                 for counts in image.values()))
    return _report(average_precisions([counts for counts, _ in results]), len(results))


def _count(truth_path: Path, path: Path) -> "tuple[dict[int, InstanceCounts], Counter[str]]":
    """(the counts of one image, how many masks of each class without a score it has)."""
    instances = read_instances(truth_path)
    truth, left_out, seen = InstanceTruth(instances), Counter(), {}
    for line in instance_lines(path, read_bytes(path)):
        label_id, score = _numbers(line)
        mask_path = path.parent / os.path.normpath(line.mask)
        if mask_path in seen:
            raise DataError(f"the mask {shown(line.mask)} was named before, in line "
                            f"{seen[mask_path]}: the official script takes only the last one",
                            line.where, "write one mask file for each instance")
        seen[mask_path] = line.where.rpartition(":")[2]
        if label_id not in INSTANCE_CLASSES.values():
            left_out[LABELS[label_id].name] += 1
            continue
        mask = read_prediction(mask_path, "write a mask as a gray PNG that is 0 outside")
        require_size(mask, mask_path, instances, truth_path)
        truth.add(mask != 0, label_id, score)
    return truth.counts(), left_out


def _numbers(line: InstanceLine) -> tuple[int, float]:
    """The label id and the score of a line. Raises DataError if they cannot be right."""
    try:
        label_id, score = int(float(line.label_id)), float(line.score)
    except (ValueError, OverflowError):
        label_id, score = -1, math.nan
    if not 0 <= label_id < len(LABELS) or not math.isfinite(score):
        raise DataError(f"expected a label id 0..{len(LABELS) - 1} and a score, found "
                        f"{shown(line.label_id)} {shown(line.score)}", line.where)
    return label_id, score


def _tell_left_out(left_out: "Counter[str]", any_counted: bool):
    """Say which masks have no score."""
    if left_out:
        text = (f"{left_out.total()} masks are of classes without instances and count nowhere ("
                + listed(left_out.most_common(), 5, text=lambda one: f"{one[0]}: {one[1]}") + ")")
        ids = listed(INSTANCE_CLASSES.items(), 8, text=lambda one: f"{one[1]} {one[0]}")
        (notice if any_counted else warn)(text + ("" if any_counted else
                                                  f"; label ids are expected: {ids}"))


def _report(table: dict[str, list[float]], images: int) -> InstanceScores:
    classes = {name: {"ap": float(np.mean(values)), "ap50%": values[0]}
               for name, values in table.items()}
    mean, half = (_mean([one[key] for one in classes.values()]) for key in ("ap", "ap50%"))
    scores = {"averages": {"allAp": mean, "allAp50%": half, "classes": classes},
              "overlaps": THRESHOLDS.tolist(), "minRegionSizes": [MIN_PIXELS],
              "instLabels": list(table), "resultApMatrix": [list(table.values())]}
    rows = [*((name, one["ap"], one["ap50%"]) for name, one in classes.items())]
    lines = [f"{'what':<15}: {'AP':>8} {'AP_50%':>8}", LINE,
             *(f"{name:<15}: {ap:>8.3f} {ap50:>8.3f}" for name, ap, ap50 in rows), LINE,
             f"{'average':<15}: {mean:>8.3f} {half:>8.3f}", "", f"{images} images"]
    return InstanceScores(scores, "\n".join(lines))


def _mean(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
