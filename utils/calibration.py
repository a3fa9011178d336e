"""How far probabilities can be trusted, and the temperature that mends them.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: logits are
divided by one number, the temperature, that minimises the log loss on
validation pixels. The classes keep their order, so `max` does not change;
thresholds, RankDice and RankIoU do.

Expected calibration error (ECE): pixels are sorted into bins of equal width by
probability; the gap between mean probability and observed frequency is averaged
over the bins, weighted by their pixels.
"""
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from utils.decision import probabilities
from utils.errors import DataError

LOWEST, HIGHEST = 0.05, 20.0      # temperatures looked at
CHUNK = 2 ** 16                   # pixels worked on at a time


class PixelSample:
    """Random labelled pixels of many images: logits (P, C) float32 and labels (P,) int64.

    per_image: pixels kept of each image; all of them if it has fewer labelled ones.
    """

    def __init__(self, num_classes: int, per_image: int, ignore_index: int = 255, seed: int = 0):
        self.num_classes, self.per_image, self.ignore_index = num_classes, per_image, ignore_index
        self._generator = torch.Generator().manual_seed(seed)
        self._logits, self._labels = [], []

    def add(self, logits: torch.Tensor, target: torch.Tensor):
        """A batch of logits (N, C, H, W) and labels (N, H, W)."""
        for values, labels in zip(logits.flatten(2), target.flatten(1)):
            labels = labels.long()
            valid = (labels >= 0) & (labels < self.num_classes) & (labels != self.ignore_index)
            places = valid.nonzero()[:, 0]
            if len(places) > self.per_image:
                chosen = torch.randperm(len(places), generator=self._generator)[:self.per_image]
                places = places[chosen.to(places.device)]
            self._logits.append(values[:, places].T.float().cpu())
            self._labels.append(labels[places].cpu())

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, labels) of all pixels kept; DataError without any."""
        if not sum(map(len, self._labels)):
            raise DataError("no labelled pixel to calibrate on",
                            fix="calibrate on a split that has labels")
        return torch.cat(self._logits), torch.cat(self._labels)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor,
                    activation: str = "softmax") -> float:
    """The temperature of the lowest log loss, between 0.05 and 20.

    logits (P, C), labels (P,); with "sigmoid" every class is a yes-or-no question of its own.
    The loss is convex in 1 / temperature, so its slope is halved down to its zero.
    """
    def slope(inverse):
        total = 0.0
        for z, y in zip(logits.split(CHUNK), labels.split(CHUNK)):
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
    """Of B bins: how many cases, their mean probability, how often they were true.

    frequency and confidence are nan in an empty bin. ece, log_loss: see the module.
    """
    count: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    ece: float
    log_loss: float


def reliability(logits: torch.Tensor, labels: torch.Tensor, activation: str = "softmax",
                temperature: float = 1.0, bins: int = 15, top: bool = True) -> Reliability:
    """Calibration of logits (P, C) with labels (P,).

    top: judge the most likely class of each pixel, as Guo et al.; otherwise every class of
        every pixel, which is what RankDice relies on.
    """
    sums = torch.zeros(3, bins, dtype=torch.float64)        # cases, probability, truth
    loss = 0.0
    for z, y in zip(logits.split(CHUNK), labels.split(CHUNK)):
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
        for row, weight in zip(sums, (torch.ones_like(confidence), confidence, true.double())):
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


PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (222, 222, 222)
BAR, GAP, SHARE = (70, 120, 180), (205, 80, 70), (150, 150, 150)


def _diagram(title, one, side=360, margin=52, strip=70):
    """Axes from 0 to 1; drawn at its final size with anti-aliased text."""
    import cv2
    height, width = side + strip + 2 * margin + 20, side + margin + 24
    picture = np.full((height, width, 3), PAPER, np.uint8)
    left, bottom = margin, margin + side
    bins = len(one.count)

    def write(text, x, y, scale=0.42, colour=INK):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)

    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + round(tick * side), bottom - round(tick * side)
        cv2.line(picture, (left, y), (left + side, y), GRID, 1)
        cv2.line(picture, (x, bottom), (x, bottom - side), GRID, 1)
        write(f"{tick:g}", left - 40, y + 4)
        write(f"{tick:g}", x - 10, bottom + 16)
    for b in range(bins):
        if not one.count[b]:
            continue
        x0, x1 = (left + round(side * e / bins) for e in (b, b + 1))
        top = bottom - round(side * one.frequency[b])
        expected = bottom - round(side * one.confidence[b])
        cv2.rectangle(picture, (x0 + 1, top), (x1 - 1, bottom), BAR, -1)
        cv2.line(picture, (x0 + 1, expected), (x1 - 1, expected), GAP, 2)
        share = round((strip - 24) * one.count[b] / one.count.max())
        base = bottom + 24 + strip
        cv2.rectangle(picture, (x0 + 1, base - share), (x1 - 1, base), SHARE, -1)
    cv2.line(picture, (left, bottom), (left + side, bottom - side), INK, 1, cv2.LINE_AA)
    write(title, left, 22, 0.5)
    write(f"ECE {100 * one.ece:.2f} %   log loss {one.log_loss:.4f}", left, 42)
    write("probability; blue: how often true; red: mean probability", left, height - 24, 0.38)
    write("grey: share of the cases", left, height - 8, 0.38)
    return picture
