"""Scores of the outlines: boundary IoU and boundary F.

Boundary IoU: Cheng et al., Boundary IoU, CVPR 2021, arXiv:2103.16562. Only the
pixels of each mask within d of its outline are compared; d is 2 % of the image
diagonal. Pixels are summed over all images before dividing, as for dataset-level IoU.

Boundary F: Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013. Precision is the share of the predicted outline pixels that lie within a
tolerance (0.75 % of the diagonal) of the true outline; recall is the same with the two outlines
exchanged; F is their harmonic mean, per image and class.

Differs from both: the border of an ignored region is not an outline, and ignored regions contain
none. The border of the image is an outline, as published.
"""
import math

import numpy as np
import torch

from utils.metrics.counts import checked_classes, labels_of_one_hot
from utils.metrics.image_metrics import mean
from utils.metrics.reduction import all_gather

# Per image and class: hits and union of the bands; outline pixels and hits of the prediction;
# outline pixels and hits of the target.
COUNTS = 6


class BoundaryMetrics:
    """Boundary IoU and boundary F. Computed on the CPU, image by image: slow, off by default.

    ratio: width of the band of boundary IoU, as a fraction of the image diagonal.
    tolerance: largest distance at which an outline pixel of boundary F is a hit, as a fraction of
        the diagonal.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255,
                 classes_of_interest: list | str | None = None, ratio: float = 0.02,
                 tolerance: float = 0.0075):
        if not ratio > 0 or not tolerance >= 0:
            raise ValueError(f"ratio must be above 0 and tolerance not below, got {ratio} and "
                             f"{tolerance}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.classes_of_interest = checked_classes(classes_of_interest, num_classes)
        self.ratio, self.tolerance = ratio, tolerance
        self.reset()

    def reset(self):
        """Removes all images."""
        self._rows: list[torch.Tensor] = []       # (1, 6C) int64 each

    def update(self, prediction: torch.Tensor, target: torch.Tensor):
        """Adds a batch.

        prediction: label map (N, H, W) of any integer dtype, or bool masks (N, C, H, W).
        target: (N, H, W) of any integer dtype, or one-hot (N, C, H, W) of any dtype.
        """
        if target.ndim == 4:
            target = labels_of_one_hot(target)
        for one, truth in zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True):
            self._rows.append(torch.from_numpy(self._count(one, truth)).view(1, -1))

    def reduce(self):
        """Collects the images of all processes of torch.distributed, if any. Call it only once."""
        self._rows = [all_gather(self._table())]

    def compute(self) -> dict:
        """The scores as floats and lists: fractions, and nan for an undefined score.

        Boundary_IoU, Boundary_F: means over the classes of interest.
        Class_Boundary_IoU, Class_Boundary_F: per class; nan for a class without an outline.
        """
        counts = self._table().numpy().reshape(-1, COUNTS, self.num_classes)
        hits, union = counts[:, :2].sum(0)
        iou = [h / u if u else math.nan
               for h, u in zip(hits.tolist(), union.tolist(), strict=True)]
        f = [mean(_f(*row) for row in counts[:, 2:, k].tolist())
             for k in range(self.num_classes)]
        return {"Boundary_IoU": mean(iou[k] for k in self.classes_of_interest),
                "Boundary_F": mean(f[k] for k in self.classes_of_interest),
                "Class_Boundary_IoU": iou, "Class_Boundary_F": f}

    def _table(self):
        """(images, 6C) int64: one row per image."""
        if not self._rows:
            return torch.zeros(0, COUNTS * self.num_classes, dtype=torch.int64)
        return torch.cat(self._rows)

    def _count(self, prediction, truth):
        """The counts (6, C) int64 of one image: labels (H, W) or masks (C, H, W); truth (H, W)."""
        import cv2
        ignored = (truth < 0) | (truth >= self.num_classes) | (truth == self.ignore_index)
        diagonal = math.hypot(*truth.shape)
        band = max(1, round(self.ratio * diagonal))
        reach = self.tolerance * diagonal
        counts = np.zeros((COUNTS, self.num_classes), np.int64)
        for k in range(self.num_classes):
            masks = [(prediction[k] if prediction.ndim == 3 else prediction == k) & ~ignored,
                     (truth == k) & ~ignored]
            if not any(mask.any() for mask in masks):
                continue
            p, t = (_inner_band(cv2, mask, ignored, band) for mask in masks)
            outlines = [_inner_band(cv2, mask, ignored, 1) for mask in masks]
            counts[:2, k] = np.count_nonzero(p & t), np.count_nonzero(p | t)
            for i, (outline, other) in enumerate((outlines, outlines[::-1])):
                counts[2 + 2 * i:4 + 2 * i, k] = _near(cv2, outline, other, reach)
        return counts


def _inner_band(cv2, mask, ignored, width):
    """The mask pixels within `width` (chessboard distance) of a pixel outside mask and ignored."""
    solid = (mask | ignored).astype(np.uint8)
    core = cv2.erode(solid, np.ones((3, 3), np.uint8), iterations=width,
                     borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (core == 0)


def _near(cv2, outline, other, reach):
    """(number of outline pixels, number of those within `reach` pixels of the other outline)."""
    count = np.count_nonzero(outline)
    if not count or not other.any():
        return count, 0
    distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2,
                                     cv2.DIST_MASK_PRECISE)
    return count, np.count_nonzero(distance[outline] <= reach)


def _f(predicted, predicted_hits, labeled, labeled_hits):
    """Harmonic mean of precision and recall; nan if there is no outline at all."""
    if not predicted and not labeled:
        return math.nan
    if not predicted_hits or not labeled_hits:
        return 0.0
    precision, recall = predicted_hits / predicted, labeled_hits / labeled
    return 2 * precision * recall / (precision + recall)
