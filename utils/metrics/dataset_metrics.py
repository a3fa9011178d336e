"""Dataset-level scores: one confusion matrix over all images.

The convention of the PASCAL VOC and Cityscapes benchmarks: pixels of all
images are added up first, then IoU = TP / (TP + FP + FN) per class. Ignored
target pixels count nowhere. A void prediction on a valid pixel is a false
negative of the target's class and nobody's false positive.
"""
import numpy as np
import torch

from utils.metrics.counts import PixelCounts, checked_classes, count_pixels
from utils.metrics.reduction import all_reduce


class DatasetMetrics:
    """IoU, Dice, recall, precision and pixel accuracy over a whole dataset.

    classes_of_interest: the classes that the means run over; default all. It changes
        neither the counts nor the pixel accuracy.

    Counts stay on the device of the predictions until `compute` or `reduce`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255,
                 classes_of_interest: list | str | None = None):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.classes_of_interest = checked_classes(classes_of_interest, num_classes)
        self.reset()

    def reset(self):
        """Forgets everything counted so far."""
        self._totals = None       # see `_counted`
        self._label_images = self._mask_images = 0

    def update(self, prediction: torch.Tensor, target: torch.Tensor, index=None):
        """Adds a batch: labels (N, H, W) or bool masks (N, C, H, W); target (N, H, W).

        `index` is accepted for symmetry with `ImageMetrics`; sums know no order.
        """
        self.add(count_pixels(prediction, target, self.num_classes, self.ignore_index))

    def add(self, counts: PixelCounts, index=None):
        """Adds a batch that `count_pixels` has counted."""
        matrix = counts.confusion
        if matrix is None:
            matrix = counts.hits.new_zeros(self.num_classes * (self.num_classes + 1))
            self._mask_images += len(counts.hits)
        else:
            self._label_images += len(counts.hits)
        totals = torch.cat((counts.hits.sum(0), counts.predicted.sum(0), counts.labelled.sum(0),
                            counts.valid.sum().view(1), matrix.flatten()))
        self._totals = totals if self._totals is None else self._totals + totals

    def reduce(self):
        """Adds up the counts of all processes of torch.distributed, if there are several; once."""
        images = torch.tensor([self._label_images, self._mask_images])
        totals = all_reduce(torch.cat((self._counted(), images)))
        self._totals = totals[:-2]
        self._label_images, self._mask_images = totals[-2:].tolist()

    def compute(self) -> dict:
        """Scores as plain floats and lists, fractions; nan where nothing can be said.

        Class_IoU, Class_Dice, Class_Recall, Class_Precision: per class; IoU and Dice are nan
            for a class in neither targets nor predictions, recall for one not in the
            targets, precision for one never predicted.
        Mean_IoU, Mean_Dice, Mean_Recall, Mean_Precision: over the classes of interest that
            are not nan. Classes_Averaged: how many classes Mean_IoU averages.
        Pixel_Accuracy: correct / valid pixels, and confusion (C x (C + 1), rows are targets,
            last column void predictions): for label maps; nan and None for masks.
        Binary_Accuracy: agreeing / all valid (pixel, class) pairs.
        FWIoU: IoU weighted with the frequency of the class among the valid pixels.
        tp, fp, fn, pixels: per class, integers (pixels = tp + fn). Images: integer.
        """
        c = self.num_classes
        totals = self._counted().numpy()
        hits, predicted, labelled = totals[:3 * c].reshape(3, c)
        valid, matrix = int(totals[3 * c]), totals[3 * c + 1:].reshape(c, c + 1)
        union = predicted + labelled - hits
        iou, dice = ratio(hits, union), ratio(2 * hits, predicted + labelled)
        recall, precision = ratio(hits, labelled), ratio(hits, predicted)
        of_interest = self.classes_of_interest
        only_labels = self._label_images > 0 and self._mask_images == 0
        seen = labelled > 0
        return {
            "Mean_IoU": _mean(iou[of_interest]), "Mean_Dice": _mean(dice[of_interest]),
            "Mean_Recall": _mean(recall[of_interest]),
            "Mean_Precision": _mean(precision[of_interest]),
            "Classes_Averaged": int(np.count_nonzero(~np.isnan(iou[of_interest]))),
            "Pixel_Accuracy": float(ratio(hits.sum(), valid)) if only_labels else float("nan"),
            "Binary_Accuracy": float(ratio(c * valid - (union - hits).sum(), c * valid)),
            "FWIoU": float((labelled[seen] / valid * iou[seen]).sum()) if valid else float("nan"),
            "Class_IoU": iou.tolist(), "Class_Dice": dice.tolist(),
            "Class_Recall": recall.tolist(), "Class_Precision": precision.tolist(),
            "tp": hits.tolist(), "fp": (predicted - hits).tolist(),
            "fn": (labelled - hits).tolist(), "pixels": labelled.tolist(),
            "confusion": matrix.tolist() if only_labels else None,
            "Images": self._label_images + self._mask_images,
        }

    def _counted(self):
        """(3C + 1 + C(C + 1),) int64 on the CPU, the sum of what `add` concatenates."""
        c = self.num_classes
        return (torch.zeros(3 * c + 1 + c * (c + 1), dtype=torch.int64) if self._totals is None
                else self._totals.cpu())


def ratio(part, whole) -> np.ndarray:
    """part / whole in float64, nan where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
