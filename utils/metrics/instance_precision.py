"""The average precision of instances, as the Cityscapes benchmark defines it.

Cordts et al., CVPR 2016, arXiv:1604.01685, section 4.2; the definition for masks is that of
Hariharan et al., Simultaneous Detection and Segmentation, ECCV 2014, arXiv:1407.1808. The numbers
are those of evalInstanceLevelSemanticLabeling of cityscapesScripts:

A prediction finds a true instance of its class if their IoU is above a threshold. If several find
the same one, that with the highest score counts as found and the others as false. A prediction that
finds nothing is false too, unless the share of its pixels that lies on void, on groups and on small
instances of the class is above the threshold. True instances below MIN_PIXELS and groups are
neither wanted nor false. AP is the area under precision over recall, whose points are joined by
straight lines; AP50 is that of the IoU 0.5, and AP the mean over the IoU 0.5, 0.55, ..., 0.95.
"""
import math
from typing import NamedTuple

import numpy as np

from utils.images.types import Labels
from utils.metrics.cityscapes_metrics import LABELS

INSTANCE_CLASSES = {label.name: i for i, label in enumerate(LABELS)
                    if label.has_instances and label.evaluated}
THRESHOLDS = np.arange(0.5, 1.0, 0.05)      # of the IoU, as the script computes them
MIN_PIXELS = 100                            # of a true instance that is wanted
FIRST_NUMBER = 1000     # instance ids from here on are label id * 1000 + number; below are groups

_VOID = [i for i, label in enumerate(LABELS) if not label.evaluated]


class InstanceCounts(NamedTuple):
    """What one image adds to one class: G true instances and P predictions.

    groups, sizes: (G,) whether a true instance is a group, and its pixels.
    scores, areas, void: (P,) of the predictions: score, pixels, and pixels on void.
    shared: (P, G) pixels that both cover.
    """

    groups: np.ndarray
    sizes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    void: np.ndarray
    shared: np.ndarray


class InstanceTruth:
    """The true instances of one image, to which predictions are added one by one.

    instances: ids as in *_instanceIds.png, (H, W) of any integer dtype.
    """

    def __init__(self, instances: Labels):
        self.map = instances
        self.pixels = np.bincount(instances.ravel(), minlength=FIRST_NUMBER * len(LABELS))
        ids = np.flatnonzero(self.pixels)
        label = np.where(ids < FIRST_NUMBER, ids, ids // FIRST_NUMBER)
        self._ids = {i: ids[label == i] for i in INSTANCE_CLASSES.values()}
        self._found: dict[int, list[tuple]] = {i: [] for i in INSTANCE_CLASSES.values()}

    def add(self, mask: np.ndarray, label_id: int, score: float):
        """Add a prediction: bool (H, W), its label id and its score. Empty masks do not count."""
        if label_id not in self._found or not mask.any():
            return
        covered = np.bincount(self.map[mask].ravel(), minlength=len(self.pixels))
        self._found[label_id].append((score, covered.sum(), covered[_VOID].sum(),
                                      covered[self._ids[label_id]]))

    def counts(self) -> dict[int, InstanceCounts]:
        """label id -> the counts of this image."""
        table = {}
        for label_id, ids in self._ids.items():
            rows = self._found[label_id]
            scores, areas, void = (np.array([row[i] for row in rows], np.float64)
                                   for i in range(3))
            shared = np.array([row[3] for row in rows], np.int64).reshape(len(rows), len(ids))
            table[label_id] = InstanceCounts(ids < FIRST_NUMBER, self.pixels[ids], scores, areas,
                                             void, shared)
        return table


def average_precisions(images: list[dict[int, InstanceCounts]]) -> dict[str, list[float]]:
    """class -> its AP at each of THRESHOLDS; nan for a class that no image has."""
    return {name: [_at_threshold([one[label_id] for one in images], threshold)
                   for threshold in THRESHOLDS] for name, label_id in INSTANCE_CLASSES.items()}


def _at_threshold(images, threshold):
    """The AP of one class. images: its InstanceCounts."""
    results = [_outcomes(one, threshold) for one in images]
    wanted = sum(int(_wanted(one).sum()) for one in images)
    if not wanted:
        return math.nan
    found = np.concatenate([one for one, _ in results])
    return area_under_curve(found, np.concatenate([one for _, one in results]), wanted)


def _wanted(counts):
    return ~counts.groups & (counts.sizes >= MIN_PIXELS)


def _outcomes(counts, threshold):
    """(scores of the predictions that count as found, of those that count as false)."""
    union = counts.areas[:, None] + counts.sizes - counts.shared
    hit = counts.shared / union > threshold                 # (P, G)
    wanted = _wanted(counts)
    found, false = [], []
    for scores in (counts.scores[column] for column in hit[:, wanted].T):
        if len(scores):
            best = scores.argmax()
            found.append(scores[best])
            false += np.delete(scores, best).tolist()
    # As in the script, a group that is also small counts twice.
    ignored = counts.void + counts.shared[:, counts.groups].sum(1) \
        + counts.shared[:, counts.sizes < MIN_PIXELS].sum(1)
    alone = ~hit.any(1) & (ignored / counts.areas <= threshold)
    return np.array(found), np.array([*false, *counts.scores[alone]])


def area_under_curve(found: np.ndarray, false: np.ndarray, wanted: int) -> float:
    """The area under precision over recall, by the trapezoidal rule.

    found, false: scores of the predictions that are right and wrong. wanted: the number of true
    instances. The curve has a point for every score, which takes the predictions from it on, and
    begins at recall 0 with precision 1. It is 0 without predictions.
    """
    if not len(found):
        return 0.0
    limits = np.unique(np.concatenate((found, false)))[::-1]
    hits, misses = (len(one) - np.searchsorted(np.sort(one), limits) for one in (found, false))
    taken = hits + misses
    precision = np.concatenate(([1.0], hits / taken))
    recall = np.concatenate(([0.0], hits / wanted))
    return float(((recall[1:] - recall[:-1]) * (precision[1:] + precision[:-1]) / 2).sum())
