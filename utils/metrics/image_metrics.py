"""Image-level scores: every image is scored on its own, then the images are averaged.

Dai & Li, RankSEG: A Consistent Ranking-based Framework for Segmentation,
JMLR 2023, appendix A. Per image i and class k, with the predicted set P and
the true set T on the valid pixels and smooth s:

    IoU = (|P & T| + s) / (|P | T| + s)      Dice = (2 |P & T| + s) / (|P| + |T| + s)

nan where the class is in neither P nor T. The score of an image is the mean
over its classes of interest, `Mean_IoU` the mean over images. `Class_IoU[k]` is
the mean over the images that have class k; the mean of those is another number
(mIoU^C). Images without a valid pixel are left out.
"""
import math

import numpy as np
import torch

from utils.metrics.counts import PixelCounts, checked_classes, count_pixels
from utils.metrics.reduction import all_gather

PUBLISHED_EPSILON = 1e-5      # added to every denominator by the published code


class ImageMetrics:
    """mIoU^I, mDice^I and accuracy of single images. Keeps 3C + 5 numbers per image.

    smooth: s of the formulas above.
    published: reproduces the numbers of the RankDice code instead: ignored pixels count as
        background, so that predictions there are false positives; with one-hot targets (its
        BCE losses) the union is |P| + |T|, which makes IoU half the Dice; pixel accuracy is
        over (pixel, class) pairs; 1e-5 is added to denominators; an image without labels is
        left out only if its whole batch has none. Only for comparison with its tables.
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
        """Forgets everything counted so far."""
        self._rows = []       # device tensors (N, 3C + 2): hits, predicted, labelled, n, kept
        self._notes = []      # host: (index, masks, one-hot target) per image

    def update(self, prediction: torch.Tensor, target: torch.Tensor, index=None):
        """Adds a batch: labels (N, H, W) or bool masks (N, C, H, W); target (N, H, W).

        index: the positions of the N images in the dataset; per-image results are sorted by
            it. Default: counted from 0 in order of arrival.
        """
        self.add(count_pixels(prediction, target, self.num_classes, self.ignore_index), index)

    def add(self, counts: PixelCounts, index=None):
        """Adds a batch that `count_pixels` has counted."""
        images = len(counts.hits)
        if index is None:
            index = range(len(self._notes), len(self._notes) + images)
        predicted, pixels, kept = counts.predicted, counts.valid, counts.valid > 0
        if self.published:
            predicted = predicted + counts.predicted_on_ignored
            pixels = torch.full_like(counts.valid, counts.pixels)
            kept = kept.any().expand(images)
        self._rows.append(torch.cat((counts.hits, predicted, counts.labelled,
                                     pixels[:, None], kept[:, None].to(pixels.dtype)), 1))
        masks = counts.confusion is None
        one_hot = counts.one_hot_target or self.one_hot_target
        self._notes += [(int(i), masks, one_hot) for i in index]

    def reduce(self):
        """Collects the images of all processes of torch.distributed, if there are several; once."""
        table = all_gather(torch.from_numpy(self._table()))
        table = table.numpy()
        self._rows = [torch.from_numpy(table[:, 3:].copy())]
        self._notes = [(index, bool(masks), bool(one_hot))
                       for index, masks, one_hot in table[:, :3].tolist()]

    def compute(self) -> dict:
        """Scores as plain floats and lists, fractions; nan where nothing can be said.

        Mean_IoU, Mean_Dice: mean over images of the image scores (mIoU^I, mDice^I).
        Class_IoU, Class_Dice: per class, mean over the images that have it.
        Mean_Class_IoU, Mean_Class_Dice: the mean of those over the classes of interest
            (mIoU^C, mDice^C). Classes_Averaged: how many classes these average.
        Pixel_Accuracy: mean over images; of label maps correct / valid pixels, of masks
            agreeing / all valid (pixel, class) pairs. Binary_Accuracy: the latter for both.
            masks: whether any prediction was masks, so that the former must not be compared.
        Images: images scored.
        img_index, img_iou, img_dice (images x C), img_miou, img_mdice, img_pixacc,
            img_binacc: the images one by one, by index. img_hits, img_predicted,
            img_labelled: their pixels of P & T, P and T (images x C).
        published: whether these are the scores of the published code.

        The means are correctly rounded sums, so the order of the images does not matter.
        """
        table, c = self._table(), self.num_classes
        table = table[table[:, -1] > 0]
        index, masks, one_hot = table[:, :3].T
        hits, predicted, labelled = table[:, 3:3 + 3 * c].reshape(-1, 3, c).transpose(1, 0, 2)
        pixels = table[:, 3 + 3 * c].astype(np.float64)
        iou, dice = self._scores(hits, predicted, labelled, one_hot)
        pairs = c * pixels
        binary = (pairs - (predicted + labelled - 2 * hits).sum(1)) / pairs
        accuracy = np.where(masks > 0, binary, hits.sum(1) / pixels)
        if self.published:
            accuracy = binary
        of_interest = self.classes_of_interest
        miou = np.array([mean(row) for row in iou[:, of_interest]])
        mdice = np.array([mean(row) for row in dice[:, of_interest]])
        class_iou = [mean(column) for column in iou.T]
        class_dice = [mean(column) for column in dice.T]
        averaged = [k for k in of_interest if not math.isnan(class_iou[k])]
        return {
            "Mean_IoU": mean(miou), "Mean_Dice": mean(mdice),
            "Mean_Class_IoU": mean([class_iou[k] for k in averaged]),
            "Mean_Class_Dice": mean([class_dice[k] for k in averaged]),
            "Classes_Averaged": len(averaged),
            "Pixel_Accuracy": mean(accuracy), "Binary_Accuracy": mean(binary),
            "Class_IoU": class_iou, "Class_Dice": class_dice, "Images": len(table),
            "img_index": index.tolist(), "img_iou": iou.tolist(), "img_dice": dice.tolist(),
            "img_miou": miou.tolist(), "img_mdice": mdice.tolist(),
            "img_pixacc": accuracy.tolist(), "img_hits": hits.tolist(),
            "img_predicted": predicted.tolist(), "img_labelled": labelled.tolist(),
            "img_binacc": binary.tolist(), "masks": bool((masks > 0).any()),
            "published": self.published,
        }

    def _table(self):
        """(images, 3 + 3C + 2) int64 by index: notes and rows side by side."""
        width = 3 * self.num_classes + 2
        rows = torch.cat(self._rows).cpu().numpy() if self._rows else np.zeros((0, width), int)
        notes = np.array(self._notes, np.int64).reshape(-1, 3)
        table = np.concatenate((notes, rows), 1)
        return table[np.argsort(table[:, 0], kind="stable")]

    def _scores(self, hits, predicted, labelled, one_hot):
        union, total = predicted + labelled - hits, predicted + labelled
        nobody = union == 0
        epsilon = 0.0
        if self.published:
            epsilon = PUBLISHED_EPSILON
            union = np.where(one_hot[:, None] > 0, total, union)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = (hits + self.smooth) / (union + self.smooth + epsilon)
            dice = (2 * hits + self.smooth) / (total + self.smooth + epsilon)
        return np.where(nobody, np.nan, iou), np.where(nobody, np.nan, dice)


def mean(values) -> float:
    """Mean of the numbers that are not nan, correctly rounded; nan without any."""
    values = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(values) / len(values) if values else float("nan")
