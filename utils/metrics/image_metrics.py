"""Image-level scores: each image is scored separately, then the scores are averaged.

Dai & Li, RankSEG: A Consistent Ranking-based Framework for Segmentation,
JMLR 2023, appendix A. For an image and a class, with the predicted set P and the true set T of
valid pixels and the smoothing s:

    IoU = (|P & T| + s) / (|P | T| + s)      Dice = (2 |P & T| + s) / (|P| + |T| + s)

Both are nan if the class is in neither P nor T. The score of an image is the mean over its classes
of interest, and `Mean_IoU` is the mean over the images. `Class_IoU[k]` is the mean over the images
with class k; the mean over these, `Mean_Class_IoU` (mIoU^C), is a different number. Images without
a valid pixel are left out.
"""
import math
from collections.abc import Iterable

import numpy as np
import torch

from utils.metrics.counts import PixelCounts, checked_classes, count_pixels
from utils.metrics.reduction import all_gather

PUBLISHED_EPSILON = 1e-5      # added to every denominator by the published code


class ImageMetrics:
    """mIoU^I, mDice^I and the accuracies of each image. Keeps 3C + 5 numbers per image.

    classes_of_interest: the classes that are averaged; default all.
    smooth: s of the formulas above.
    published: reproduces the numbers of the RankDice code: ignored pixels count as background, so
        that predictions on them are false positives; with one-hot targets (its BCE losses) the
        union is |P| + |T|, which makes the IoU half the Dice; pixel accuracy is over
        (pixel, class) pairs; 1e-5 is added to denominators; an image without labels is left out
        only if its whole batch has none. Use it only to compare with the tables of that paper.
    one_hot_target: in published mode, treat index targets as that code treats one-hot ones.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255,
                 classes_of_interest: list | str | None = None, smooth: float = 0.0,
                 published: bool = False, one_hot_target: bool = False):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.classes_of_interest = checked_classes(classes_of_interest, num_classes)
        self.smooth, self.published = smooth, published
        self.one_hot_target = one_hot_target
        self.reset()

    def reset(self):
        """Removes all images."""
        # Per batch, on the device: (N, 3C + 2) int64: hits, predicted, labeled, pixels, kept.
        self._rows: list[torch.Tensor] = []
        # Per image, on the host: (index, prediction is masks, target is one-hot).
        self._notes: list[tuple[int, bool, bool]] = []

    def update(self, prediction: torch.Tensor, target: torch.Tensor,
               index: Iterable[int] | None = None):
        """Adds a batch; shapes and dtypes are those of `count_pixels`.

        index: the positions of the N images in the dataset; per-image results are sorted by
            them. Default: the images are numbered from 0 in the order they are added.
        """
        self.add(count_pixels(prediction, target, self.num_classes, self.ignore_index), index)

    def add(self, counts: PixelCounts, index: Iterable[int] | None = None):
        """Adds the counts of a batch from `count_pixels`; index: as in `update`."""
        images = len(counts.hits)
        if index is None:
            index = range(len(self._notes), len(self._notes) + images)
        predicted, pixels, kept = counts.predicted, counts.valid, counts.valid > 0
        if self.published:
            predicted = predicted + counts.predicted_on_ignored
            pixels = torch.full_like(counts.valid, counts.pixels)
            kept = kept.any().expand(images)
        self._rows.append(torch.cat((counts.hits, predicted, counts.labeled,
                                     pixels[:, None], kept[:, None].to(pixels.dtype)), 1))
        masks = counts.confusion is None
        one_hot = counts.one_hot_target or self.one_hot_target
        self._notes += [(int(i), masks, one_hot) for i in index]

    def reduce(self):
        """Collects the images of all processes of torch.distributed, if any. Call it only once."""
        table = all_gather(torch.from_numpy(self._table()))
        table = table.numpy()
        self._rows = [torch.from_numpy(table[:, 3:].copy())]
        self._notes = [(index, bool(masks), bool(one_hot))
                       for index, masks, one_hot in table[:, :3].tolist()]

    def compute(self) -> dict:
        """The scores as floats and lists: fractions, and nan for an undefined score.

        Mean_IoU, Mean_Dice: the means over the images of their scores (mIoU^I, mDice^I).
        Class_IoU, Class_Dice: per class, the mean over the images with this class.
        Mean_Class_IoU, Mean_Class_Dice: the means of those over the classes of interest
            (mIoU^C, mDice^C). Classes_Averaged: the number of classes in these means.
        Pixel_Accuracy: mean over the images of correct / valid pixels for label maps, and of
            agreeing / all valid (pixel, class) pairs for masks. Binary_Accuracy: the latter for
            both. masks: whether any prediction was masks; then do not compare Pixel_Accuracy.
        Images: the number of scored images.
        img_index, img_iou, img_dice (images x C), img_miou, img_mdice, img_pixacc,
            img_binacc: per image, sorted by index. img_hits, img_predicted, img_labelled: the
            numbers of pixels of P & T, P and T (images x C).
        published: whether these are the scores of the published code.

        The means are correctly rounded, so the order of the images does not matter.
        """
        table = self._table()
        table = table[table[:, -1] > 0]
        images = self._per_image(table)
        class_iou = [mean(column) for column in images["iou"].T]
        class_dice = [mean(column) for column in images["dice"].T]
        averaged = [k for k in self.classes_of_interest if not math.isnan(class_iou[k])]
        return {
            "Mean_IoU": mean(images["miou"]), "Mean_Dice": mean(images["mdice"]),
            "Mean_Class_IoU": mean([class_iou[k] for k in averaged]),
            "Mean_Class_Dice": mean([class_dice[k] for k in averaged]),
            "Classes_Averaged": len(averaged),
            "Pixel_Accuracy": mean(images["pixacc"]), "Binary_Accuracy": mean(images["binacc"]),
            "Class_IoU": class_iou, "Class_Dice": class_dice, "Images": len(table),
            **{f"img_{name}": values.tolist() for name, values in images.items()},
            "masks": bool((table[:, 1] > 0).any()), "published": self.published,
        }

    def _per_image(self, table):
        """The arrays of `compute` whose names begin with img_, by the rest of the name."""
        c = self.num_classes
        index, masks, one_hot = table[:, :3].T
        hits, predicted, labeled = table[:, 3:3 + 3 * c].reshape(-1, 3, c).transpose(1, 0, 2)
        pixels = table[:, 3 + 3 * c].astype(np.float64)
        iou, dice = self._scores(hits, predicted, labeled, one_hot)
        pairs = c * pixels
        binary = (pairs - (predicted + labeled - 2 * hits).sum(1)) / pairs
        accuracy = np.where(masks > 0, binary, hits.sum(1) / pixels)
        return {
            "index": index, "iou": iou, "dice": dice,
            "miou": np.array([mean(row) for row in iou[:, self.classes_of_interest]]),
            "mdice": np.array([mean(row) for row in dice[:, self.classes_of_interest]]),
            "pixacc": binary if self.published else accuracy,
            "hits": hits, "predicted": predicted, "labelled": labeled, "binacc": binary,
        }

    def _table(self):
        """(images, 3 + 3C + 2) int64, sorted by index: the columns of `_notes` and `_rows`."""
        width = 3 * self.num_classes + 2
        rows = torch.cat(self._rows).cpu().numpy() if self._rows else np.zeros((0, width), int)
        notes = np.array(self._notes, np.int64).reshape(-1, 3)
        table = np.concatenate((notes, rows), 1)
        return table[np.argsort(table[:, 0], kind="stable")]

    def _scores(self, hits, predicted, labeled, one_hot):
        """IoU and Dice, (images, C) float64 each; nan for a class that is not in the image."""
        union, total = predicted + labeled - hits, predicted + labeled
        absent = union == 0
        epsilon = 0.0
        if self.published:
            epsilon = PUBLISHED_EPSILON
            union = np.where(one_hot[:, None] > 0, total, union)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = (hits + self.smooth) / (union + self.smooth + epsilon)
            dice = (2 * hits + self.smooth) / (total + self.smooth + epsilon)
        return np.where(absent, np.nan, iou), np.where(absent, np.nan, dice)


def mean(values: Iterable[float]) -> float:
    """The correctly rounded mean of the numbers that are not nan; nan if there are none."""
    values = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(values) / len(values) if values else float("nan")
