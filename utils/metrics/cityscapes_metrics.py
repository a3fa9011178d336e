"""The scores of the Cityscapes benchmark. Cordts et al., CVPR 2016, arXiv:1604.01685.

IoU of the 19 classes and the 7 categories over all images, and iIoU (printed as nIoU by the
official tool), in which the pixels of every instance of the truth are weighted by the mean
instance size of its class over its own size: large instances no longer decide alone. Equal to
cityscapesScripts 2.3.0 to the last bit.

Counted are label ids 0..33, not train ids. Pixels whose true id is not evaluated count nowhere;
a prediction of such an id on a valid pixel is a miss of the true class and nobody's false alarm.
"""
import math
from typing import NamedTuple

import numpy as np

SCRIPTS_VERSION = "2.3.0"


class CityLabel(NamedTuple):
    """A label id of Cityscapes; its place in LABELS is the id."""

    name: str
    category: str
    has_instances: bool = False
    evaluated: bool = True


LABELS = (
    *(CityLabel(name, "void", False, False) for name in (
        "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic",
        "ground")),
    CityLabel("road", "flat"), CityLabel("sidewalk", "flat"),
    CityLabel("parking", "flat", False, False), CityLabel("rail track", "flat", False, False),
    CityLabel("building", "construction"), CityLabel("wall", "construction"),
    CityLabel("fence", "construction"), CityLabel("guard rail", "construction", False, False),
    CityLabel("bridge", "construction", False, False),
    CityLabel("tunnel", "construction", False, False),
    CityLabel("pole", "object"), CityLabel("polegroup", "object", False, False),
    CityLabel("traffic light", "object"), CityLabel("traffic sign", "object"),
    CityLabel("vegetation", "nature"), CityLabel("terrain", "nature"), CityLabel("sky", "sky"),
    CityLabel("person", "human", True), CityLabel("rider", "human", True),
    CityLabel("car", "vehicle", True), CityLabel("truck", "vehicle", True),
    CityLabel("bus", "vehicle", True), CityLabel("caravan", "vehicle", True, False),
    CityLabel("trailer", "vehicle", True, False), CityLabel("train", "vehicle", True),
    CityLabel("motorcycle", "vehicle", True), CityLabel("bicycle", "vehicle", True),
)
# Mean size of an instance in pixels, as the official tool has it.
MEAN_SIZE = {"bicycle": 4672.3249222261, "motorcycle": 6298.7200839748, "rider": 3930.4788056518,
             "bus": 35732.1511111111, "train": 67583.7075812274, "car": 12794.0202738185,
             "person": 3462.4756337644, "truck": 27855.1264367816}
CATEGORIES = tuple(dict.fromkeys(label.category for label in LABELS))
FIRST_INSTANCE = 1000       # ids above are label id * 1000 + number

_IDS = len(LABELS)
_EVALUATED = np.array([label.evaluated for label in LABELS])
_CATEGORY = np.array([CATEGORIES.index(label.category) for label in LABELS], np.uint8)


class PairCounts(NamedTuple):
    """Counts of one image. confusion: (34, 34) pixels, rows are the truth.

    instances: (K, 4) label id, pixels, those predicted as the class, as the category.
    """

    confusion: np.ndarray
    instances: np.ndarray


class CityscapesMetrics:
    """Adds up images and computes the scores under the official tool's names.

    Weighted sums are taken in the order in which images are added, as the official tool takes
    them: another order may change the last bit of an iIoU.
    """

    def __init__(self):
        self.confusion = np.zeros((_IDS, _IDS), np.int64)
        self.images = 0
        self._instances = []

    def update(self, prediction: np.ndarray, truth: np.ndarray, instances: np.ndarray | None):
        """Adds an image: label ids (H, W) of 0..33; instances as in *_instanceIds.png, or None."""
        self.add(count_pair(prediction, truth, instances))

    def add(self, counts: PairCounts):
        """Adds an image that `count_pair` has counted."""
        self.confusion += counts.confusion
        self.images += 1
        self._instances.append(counts.instances)

    def compute(self) -> dict:
        """classScores, classInstScores, categoryScores, categoryInstScores: name -> IoU or nan.

        averageScore...: the means of those that are not nan. confusion_34x34: counts.
        """
        classes, categories = _by_class(), _by_category()
        scores = {
            "classScores": {name: self._iou([i]) for name, i in classes.items()},
            "classInstScores": {name: self._class_iiou(i) for name, i in classes.items()},
            "categoryScores": {name: self._iou([i for i in ids if _EVALUATED[i]])
                               for name, ids in categories.items()},
            "categoryInstScores": {name: self._category_iiou(ids)
                                   for name, ids in categories.items()}}
        averages = {f"averageScore{part}": _mean(scores[key].values()) for part, key in (
            ("Classes", "classScores"), ("InstClasses", "classInstScores"),
            ("Categories", "categoryScores"), ("InstCategories", "categoryInstScores"))}
        return {**scores, **averages, "confusion_34x34": self.confusion.tolist(),
                "cityscapesScripts_version": SCRIPTS_VERSION}

    def accuracies(self) -> tuple[float, float]:
        """(pixel accuracy, the same with ignored pixels counted as right only if named exactly).

        The second is what the tutorial of VIPriors 2020 prints as Accuracy.
        """
        valid = self.confusion[_EVALUATED].sum()
        hits = np.trace(self.confusion)
        valid_hits = np.trace(self.confusion[_EVALUATED][:, _EVALUATED])
        return _ratio(valid_hits, valid), _ratio(hits, self.confusion.sum())

    def _iou(self, ids):
        hits = self.confusion[np.ix_(ids, ids)].sum()
        return _ratio(hits, self.confusion[ids].sum() + self._false_alarms(ids))

    def _false_alarms(self, ids, category=None):
        """Pixels predicted as one of the ids on evaluated pixels of no such id (or category)."""
        others = _EVALUATED.copy()
        others[ids] = False
        if category is not None:
            others &= _CATEGORY != category
        return self.confusion[np.ix_(others, ids)].sum()

    def _class_iiou(self, label_id):
        if not LABELS[label_id].has_instances:
            return math.nan
        hits, misses = self._weighted([label_id], 2)
        return _ratio(hits, hits + float(self._false_alarms([label_id])) + misses)

    def _category_iiou(self, ids):
        if not all(LABELS[i].has_instances for i in ids):
            return math.nan
        hits, misses = self._weighted(ids, 3)
        false_alarms = float(self._false_alarms(ids, _CATEGORY[ids[0]]))
        return _ratio(hits, hits + false_alarms + misses)

    def _weighted(self, ids, column):
        """(hits, misses) of the instances of these classes, weighted."""
        if not self._instances:
            return 0.0, 0.0
        table = np.concatenate(self._instances)
        table = table[np.isin(table[:, 0], ids)]
        weights = np.array([MEAN_SIZE[LABELS[i].name] for i in table[:, 0]]) / table[:, 1]
        return (_running_sum(table[:, column] * weights),
                _running_sum((table[:, 1] - table[:, column]) * weights))


def count_pair(prediction: np.ndarray, truth: np.ndarray,
               instances: np.ndarray | None = None) -> PairCounts:
    """Counts one image: label ids (H, W) of 0..33 and, for iIoU, its instance ids (H, W).

    ValueError: shapes that differ, or an id that is none.
    """
    for name, ids in (("prediction", prediction), ("truth", truth)):
        if ids.shape != truth.shape or not ids.size or ids.min() < 0 or ids.max() >= _IDS:
            raise ValueError(f"the {name} must hold label ids 0..{_IDS - 1} in the size of the "
                             "truth")
    if instances is not None and instances.shape != truth.shape:
        raise ValueError("the instances must have the size of the truth")
    cells = truth.astype(np.intp) * _IDS + prediction
    confusion = np.bincount(cells.ravel(), minlength=_IDS * _IDS).reshape(_IDS, _IDS)
    return PairCounts(confusion, _count_instances(prediction, instances)
                      if instances is not None else np.zeros((0, 4), np.int64))


def _count_instances(prediction, instances):
    """(K, 4) per instance of an evaluated class: label id, pixels, class hits, category hits."""
    of_instance = instances > FIRST_INSTANCE
    found, predicted = instances[of_instance].astype(np.intp), prediction[of_instance]
    if found.size and found.max() >= 1000 * _IDS:
        raise ValueError(f"instance id {found.max()} belongs to no class")
    own = (np.arange(1000 * _IDS) // 1000).astype(np.uint8)[found]
    said = (predicted == own).astype(np.intp) + (_CATEGORY[predicted] == _CATEGORY[own])
    # One histogram over (instance, what the prediction says about its pixels).
    counts = np.bincount(found * 3 + said, minlength=3000 * _IDS).reshape(-1, 3)
    size = counts.sum(1)
    numbers = np.flatnonzero(size)
    numbers = numbers[_EVALUATED[numbers // 1000]]
    return np.stack([numbers // 1000, size[numbers], counts[numbers, 2],
                     size[numbers] - counts[numbers, 0]], 1)


def _by_class():
    return {label.name: i for i, label in enumerate(LABELS) if label.evaluated}


def _by_category():
    return {name: [i for i, label in enumerate(LABELS) if label.category == name]
            for name in CATEGORIES}


def _ratio(part, whole):
    return float(part) / float(whole) if whole else math.nan


def _running_sum(values):
    """Added one after the other: numpy's own sum takes pairs, and rounds otherwise."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0


def _mean(values):
    values = [value for value in values if not math.isnan(value)]
    return _running_sum(values) / len(values) if values else math.nan
