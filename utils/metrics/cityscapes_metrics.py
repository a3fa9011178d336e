"""The scores of the Cityscapes benchmark. Cordts et al., CVPR 2016, arXiv:1604.01685.

IoU of the 19 classes and the 7 categories over all images, and iIoU (printed as nIoU by the
official tool). iIoU weights the pixels of each true instance with the mean instance size of the
class divided by the size of the instance, so that large instances do not dominate. The results
equal those of cityscapesScripts 2.3.0 to the last bit.

The ids are label ids 0..33, not train ids. Pixels whose true id is not evaluated are not counted.
A prediction of such an id on a valid pixel is a miss of the true class, but not a false alarm of
any class.
"""
import math
from typing import NamedTuple

import numpy as np

from utils.images.types import Labels

SCRIPTS_VERSION = "2.3.0"


class CityLabel(NamedTuple):
    """A label of Cityscapes; its index in LABELS is the label id."""

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
# Mean size of an instance in pixels, from the official tool.
MEAN_SIZE = {"bicycle": 4672.3249222261, "motorcycle": 6298.7200839748, "rider": 3930.4788056518,
             "bus": 35732.1511111111, "train": 67583.7075812274, "car": 12794.0202738185,
             "person": 3462.4756337644, "truck": 27855.1264367816}
EVALUATED_IDS = tuple(i for i, label in enumerate(LABELS) if label.evaluated)     # by train id
CATEGORIES = tuple(dict.fromkeys(label.category for label in LABELS))
FIRST_INSTANCE = 1000       # an instance id above this is label id * 1000 + number

_IDS = len(LABELS)
_EVALUATED = np.array([label.evaluated for label in LABELS])
_CATEGORY = np.array([CATEGORIES.index(label.category) for label in LABELS], np.uint8)


class PairCounts(NamedTuple):
    """Counts of one image.

    confusion: (34, 34) int64, numbers of pixels; rows are the truth, columns the prediction.
    instances: (K, 4) int64, for each instance its label id, its number of pixels, and how many of
        these are predicted as its class and as its category.
    """

    confusion: np.ndarray
    instances: np.ndarray


class CityscapesMetrics:
    """Adds up the counts of images and computes the scores, named as in the official tool.

    Weighted sums run over the images in the order they are added, as in the official tool: another
    order can change the last bit of an iIoU.
    """

    def __init__(self):
        self.confusion = np.zeros((_IDS, _IDS), np.int64)
        self.images = 0
        self._instances: list[np.ndarray] = []

    def update(self, prediction: Labels, truth: Labels, instances: np.ndarray | None):
        """Adds an image; the arguments are those of `count_pair`."""
        self.add(count_pair(prediction, truth, instances))

    def add(self, counts: PairCounts):
        """Adds the counts of an image from `count_pair`."""
        self.confusion += counts.confusion
        self.images += 1
        self._instances.append(counts.instances)

    def compute(self) -> dict:
        """The scores as floats (fractions) and lists.

        classScores, classInstScores, categoryScores, categoryInstScores: name -> IoU, or nan if it
            is undefined. averageScoreClasses, ...InstClasses, ...Categories, ...InstCategories:
            the means of those that are not nan. confusion_34x34: numbers of pixels.
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
        """(accuracy over the evaluated pixels, accuracy over all pixels), as fractions.

        The second counts an ignored pixel as correct only if its exact label id is predicted. The
        tutorial of VIPriors 2020 prints it as Accuracy.
        """
        valid = self.confusion[_EVALUATED].sum()
        hits = np.trace(self.confusion)
        valid_hits = np.trace(self.confusion[_EVALUATED][:, _EVALUATED])
        return _ratio(valid_hits, valid), _ratio(hits, self.confusion.sum())

    def _iou(self, ids):
        hits = self.confusion[np.ix_(ids, ids)].sum()
        return _ratio(hits, self.confusion[ids].sum() + self._false_alarms(ids))

    def _false_alarms(self, ids, category=None):
        """Evaluated pixels of other ids (and categories) that are predicted as one of `ids`."""
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
        """(hits, misses) of the instances of these classes, weighted; column: of the hits."""
        if not self._instances:
            return 0.0, 0.0
        table = np.concatenate(self._instances)
        table = table[np.isin(table[:, 0], ids)]
        weights = np.array([MEAN_SIZE[LABELS[i].name] for i in table[:, 0]]) / table[:, 1]
        return (_running_sum(table[:, column] * weights),
                _running_sum((table[:, 1] - table[:, column]) * weights))


def count_pair(prediction: Labels, truth: Labels,
               instances: np.ndarray | None = None) -> PairCounts:
    """Counts one image.

    prediction, truth: label ids 0..33, (H, W) of any integer dtype.
    instances: for iIoU, instance ids as in *_instanceIds.png, (H, W) of any integer dtype.
    Raises ValueError if the shapes differ or an id does not exist.
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
    """`PairCounts.instances`: the instances of evaluated classes."""
    of_instance = instances > FIRST_INSTANCE
    ids, predicted = instances[of_instance].astype(np.intp), prediction[of_instance]
    if ids.size and ids.max() >= 1000 * _IDS:
        raise ValueError(f"instance id {ids.max()} does not belong to any class")
    true = (np.arange(1000 * _IDS) // 1000).astype(np.uint8)[ids]
    # 0: another category is predicted, 1: another class of the same category, 2: the class.
    outcome = (predicted == true).astype(np.intp) + (_CATEGORY[predicted] == _CATEGORY[true])
    counts = np.bincount(ids * 3 + outcome, minlength=3000 * _IDS).reshape(-1, 3)
    size = counts.sum(1)
    numbers = np.flatnonzero(size)
    numbers = numbers[_EVALUATED[numbers // 1000]]
    return np.stack([numbers // 1000, size[numbers], counts[numbers, 2],
                     size[numbers] - counts[numbers, 0]], 1)


def _by_class():
    """name -> label id, of the evaluated classes."""
    return {label.name: i for i, label in enumerate(LABELS) if label.evaluated}


def _by_category():
    """name -> label ids."""
    return {name: [i for i, label in enumerate(LABELS) if label.category == name]
            for name in CATEGORIES}


def _ratio(part, whole):
    return float(part) / float(whole) if whole else math.nan


def _running_sum(values):
    """The sum, added from left to right; np.sum adds in pairs, which rounds differently."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0


def _mean(values):
    values = [value for value in values if not math.isnan(value)]
    return _running_sum(values) / len(values) if values else math.nan
