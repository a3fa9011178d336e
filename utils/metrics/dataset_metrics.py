"""Dataset-level scores: one confusion matrix over all images.

The convention of the PASCAL VOC and Cityscapes benchmarks: the pixels of all images are added up
first, then IoU = TP / (TP + FP + FN) per class. Pixels with an ignored target are not counted. A
void prediction on a valid pixel is a false negative of the class of the target, but not a false
positive of any class.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike

from utils.metrics.counts import PixelCounts, checked_classes, count_pixels
from utils.metrics.reduction import all_reduce


class DatasetMetrics:
    """IoU, Dice, recall, precision and pixel accuracy over a whole dataset.

    classes_of_interest: the classes that are averaged; default all. They change neither the
        counts nor the pixel accuracy.

    Counts stay on the device of the predictions until `compute` or `reduce`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255,
                 classes_of_interest: list | str | None = None):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.classes_of_interest = checked_classes(classes_of_interest, num_classes)
        self.reset()

    def reset(self):
        """Sets all counts to 0."""
        self._totals: torch.Tensor | None = None       # see `_counted`
        self._label_images = self._mask_images = 0

    def update(self, prediction: torch.Tensor, target: torch.Tensor):
        """Adds a batch; shapes and dtypes are those of `count_pixels`."""
        self.add(count_pixels(prediction, target, self.num_classes, self.ignore_index))

    def add(self, counts: PixelCounts):
        """Adds the counts of a batch from `count_pixels`."""
        matrix = counts.confusion
        if matrix is None:
            matrix = counts.hits.new_zeros(self.num_classes * (self.num_classes + 1))
            self._mask_images += len(counts.hits)
        else:
            self._label_images += len(counts.hits)
        totals = torch.cat((counts.hits.sum(0), counts.predicted.sum(0), counts.labeled.sum(0),
                            counts.valid.sum().view(1), matrix.flatten()))
        self._totals = totals if self._totals is None else self._totals + totals

    def reduce(self):
        """Adds up the counts of all processes of torch.distributed, if any. Call it only once."""
        images = torch.tensor([self._label_images, self._mask_images])
        totals = all_reduce(torch.cat((self._counted(), images)))
        self._totals = totals[:-2]
        self._label_images, self._mask_images = totals[-2:].tolist()

    def compute(self) -> dict:
        """The scores as floats and lists: fractions, and nan for an undefined score.

        Class_IoU, Class_Dice, Class_Recall, Class_Precision: per class. IoU and Dice are nan
            for a class in neither targets nor predictions, recall for a class not in the
            targets, precision for a class that is never predicted.
        Mean_IoU, Mean_Dice, Mean_Recall, Mean_Precision: the means over the classes of interest
            whose score is not nan. Classes_Averaged: the number of classes in Mean_IoU.
        Pixel_Accuracy: correct / valid pixels; confusion: C x (C + 1), rows are targets, the last
            column is void predictions. Both for label maps; nan and None for masks.
        Binary_Accuracy: agreeing / all valid (pixel, class) pairs.
        FWIoU: IoU weighted with the frequency of the class among the valid pixels.
        tp, fp, fn, pixels: per class, integers (pixels = tp + fn). Images: integer.
        """
        c = self.num_classes
        totals = self._counted().numpy()
        hits, predicted, labeled = totals[:3 * c].reshape(3, c)
        valid, matrix = int(totals[3 * c]), totals[3 * c + 1:].reshape(c, c + 1)
        union = predicted + labeled - hits
        iou, dice = ratio(hits, union), ratio(2 * hits, predicted + labeled)
        recall, precision = ratio(hits, labeled), ratio(hits, predicted)
        of_interest = self.classes_of_interest
        only_labels = self._label_images > 0 and self._mask_images == 0
        seen = labeled > 0
        return {
            "Mean_IoU": _mean(iou[of_interest]), "Mean_Dice": _mean(dice[of_interest]),
            "Mean_Recall": _mean(recall[of_interest]),
            "Mean_Precision": _mean(precision[of_interest]),
            "Classes_Averaged": int(np.count_nonzero(~np.isnan(iou[of_interest]))),
            "Pixel_Accuracy": float(ratio(hits.sum(), valid)) if only_labels else float("nan"),
            "Binary_Accuracy": float(ratio(c * valid - (union - hits).sum(), c * valid)),
            "FWIoU": float((labeled[seen] / valid * iou[seen]).sum()) if valid else float("nan"),
            "Class_IoU": iou.tolist(), "Class_Dice": dice.tolist(),
            "Class_Recall": recall.tolist(), "Class_Precision": precision.tolist(),
            "tp": hits.tolist(), "fp": (predicted - hits).tolist(),
            "fn": (labeled - hits).tolist(), "pixels": labeled.tolist(),
            "confusion": matrix.tolist() if only_labels else None,
            "Images": self._label_images + self._mask_images,
        }

    def _counted(self):
        """The sum of the vectors that `add` builds: (3C + 1 + C(C + 1),) int64 on the CPU."""
        c = self.num_classes
        return (torch.zeros(3 * c + 1 + c * (c + 1), dtype=torch.int64) if self._totals is None
                else self._totals.cpu())


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """part / whole, elementwise in float64; nan where whole is 0. Both have one shape."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
