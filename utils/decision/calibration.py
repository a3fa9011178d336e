"""How well probabilities are calibrated, and the temperature that corrects them.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: logits are
divided by one number, the temperature, that minimizes the log loss on
validation pixels. The order of the classes stays the same, so the result of `max` does not
change; those of thresholds, RankDice and RankIoU do.

Expected calibration error (ECE): pixels are sorted into bins of equal width by
probability; the gap between mean probability and observed frequency is averaged
over the bins, weighted by their pixels.
"""
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from utils.decision.posterior import probabilities
from utils.errors import DataError
from utils.images.sheet import GRID, Sheet

LOWEST, HIGHEST = 0.05, 20.0      # range of the fitted temperature
CHUNK = 2 ** 16                   # pixels processed at a time


class PixelSample:
    """Random labeled pixels of many images: logits (P, C) float32 and labels (P,) int64.

    per_image: pixels kept of each image; if fewer are labeled, all of these are kept.
    """

    def __init__(self, num_classes: int, per_image: int, ignore_index: int = 255, seed: int = 0):
        self.num_classes, self.per_image, self.ignore_index = num_classes, per_image, ignore_index
        self._generator = torch.Generator().manual_seed(seed)
        self._logits, self._labels = [], []

    def add(self, logits: torch.Tensor, target: torch.Tensor):
        """Add a batch of logits (N, C, H, W), any float, and labels (N, H, W), any integer."""
        for values, labels in zip(logits.flatten(2), target.flatten(1), strict=True):
            labels = labels.long()
            valid = (labels >= 0) & (labels < self.num_classes) & (labels != self.ignore_index)
            places = valid.nonzero()[:, 0]
            if len(places) > self.per_image:
                chosen = torch.randperm(len(places), generator=self._generator)[:self.per_image]
                places = places[chosen.to(places.device)]
            self._logits.append(values[:, places].T.float().cpu())
            self._labels.append(labels[places].cpu())

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, labels) of all kept pixels, on the CPU. Raises DataError if there are none."""
        if not sum(map(len, self._labels)):
            raise DataError("no labeled pixel to calibrate on",
                            fix="calibrate on a split that has labels")
        return torch.cat(self._logits), torch.cat(self._labels)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor,
                    activation: str = "softmax") -> float:
    """The temperature with the lowest log loss, between 0.05 and 20.

    logits (P, C) float, labels (P,) int64; with "sigmoid" each class is a separate binary
    decision. The loss is convex in 1 / temperature; bisection finds the zero of its slope.
    """
    def slope(inverse):
        total = 0.0
        for z, y in zip(logits.split(CHUNK), labels.split(CHUNK), strict=True):
            z = z.double()
            p = probabilities(z * inverse, activation)
            truth = z.gather(1, y[:, None]).sum()
            total += float((p * z).sum() - truth)
        return total

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    while high - low > 1e-5 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float((low * high) ** -0.5)


@dataclasses.dataclass
class Reliability:
    """Calibration in B bins of probability, each float64 (B,).

    count: the cases in each bin. confidence: their mean probability. frequency: the share of
    them that was true; both are nan in an empty bin. ece, log_loss: see the head of this file.
    """

    count: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    ece: float
    log_loss: float


def reliability(logits: torch.Tensor, labels: torch.Tensor, activation: str = "softmax",
                temperature: float = 1.0, bins: int = 15, top: bool = True) -> Reliability:
    """Calibration of logits (P, C), any float, with labels (P,) int64.

    top: use the most likely class of each pixel, as Guo et al.; otherwise use every class of
        every pixel, because RankDice needs all of them calibrated.
    """
    sums = torch.zeros(3, bins, dtype=torch.float64)        # cases, probability, truth
    loss = 0.0
    for z, y in zip(logits.split(CHUNK), labels.split(CHUNK), strict=True):
        z = z.double() / temperature
        p = probabilities(z, activation)
        if activation == "softmax":
            loss += float(F.cross_entropy(z, y, reduction="sum"))
        else:
            truth = F.one_hot(y, z.shape[1]).double()
            loss += float(F.binary_cross_entropy_with_logits(z, truth, reduction="sum"))
        if top:
            confidence, guess = p.max(1)
            true = guess == y
        else:
            confidence = p.flatten()
            true = F.one_hot(y, z.shape[1]).flatten()
        place = (confidence * bins).long().clamp_(max=bins - 1)
        for row, weight in zip(sums, (torch.ones_like(confidence), confidence, true.double()),
                               strict=True):
            row.scatter_add_(0, place, weight)
    count, confidence, true = sums.numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence, frequency = confidence / count, true / count
    gaps = np.where(count > 0, np.abs(confidence - frequency), 0)
    return Reliability(count, confidence, frequency, float((gaps * count).sum() / count.sum()),
                       loss / len(labels))


def reliability_diagram(diagrams: dict[str, Reliability]) -> np.ndarray:
    """RGB picture (H, W, 3) uint8: one diagram for each title, side by side.

    Bars: how often cases of a bin were true; the line: a perfect answer; the marks: the
    mean probability of the bin; below: the share of the cases in each bin.
    """
    return np.concatenate([_diagram(title, one) for title, one in diagrams.items()], axis=1)


BAR, GAP, SHARE = (70, 120, 180), (205, 80, 70), (150, 150, 150)


def _diagram(title, one, side=360, margin=52, strip=70):
    """Axes from 0 to 1, and below them the strip of shares; uint8 (H, W, 3)."""
    width, height = side + margin + 24, side + strip + 2 * margin + 20
    sheet = Sheet(width, height)
    left, bottom = margin, margin + side
    base = bottom + 24 + strip
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + tick * side, bottom - tick * side
        sheet.line([(left, y), (left + side, y)], GRID)
        sheet.line([(x, bottom), (x, bottom - side)], GRID)
        sheet.text(left - 6, y, f"{tick:g}", anchor="rm")
        sheet.text(x, bottom + 6, f"{tick:g}", anchor="ma")
    for b in np.flatnonzero(one.count):
        x0, x1 = left + side * b / len(one.count) + 1, left + side * (b + 1) / len(one.count) - 1
        expected = bottom - side * one.confidence[b]
        sheet.box(x0, bottom - side * one.frequency[b], x1, bottom, BAR)
        sheet.line([(x0, expected), (x1, expected)], GAP, 2)
        sheet.box(x0, base - (strip - 24) * one.count[b] / one.count.max(), x1, base, SHARE)
    sheet.line([(left, bottom), (left + side, bottom - side)])
    sheet.text(left, 17, title, 13)
    sheet.text(left, 38, f"ECE {100 * one.ece:.2f} %   log loss {one.log_loss:.4f}")
    sheet.text(left, height - 28, "probability; blue: how often true; red: mean probability", 10)
    sheet.text(left, height - 12, "gray: share of the cases", 10)
    return np.asarray(sheet.image())
