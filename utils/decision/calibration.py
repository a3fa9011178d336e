"""How well probabilities are calibrated, and what corrects them: a temperature, or a vector.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: logits are
divided by one number, the temperature, that minimizes the log loss on
validation pixels. The order of the classes stays the same, so the result of `max` does not
change; those of thresholds, RankDice and RankIoU do. Vector scaling has two numbers per class
(utils.decision.posterior says where they act). It also corrects what a sampler did to the shares of
the classes, which no inverse of a loss knows.

Expected calibration error (ECE): pixels are sorted into bins of equal width by
probability; the gap between mean probability and observed frequency is averaged
over the bins, weighted by their pixels. The classwise error is that of each class on its own, and
its mean over the classes (Kull et al., NeurIPS 2019, arXiv:1910.12656): a rare class counts as much
as a frequent one.
"""
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from utils.decision.posterior import probabilities
from utils.errors import DataError
from utils.images.sheet import FAINT, GRID, Sheet
from utils.images.text import shortened
from utils.images.visualize import side_by_side, stacked

LOWEST, HIGHEST = 0.05, 20.0      # range of the fitted temperature
CHUNK = 2 ** 16                   # pixels processed at a time
# What a distance of 1 from the identity costs a number of the vector scaling, in log loss per
# pixel: little, so that it only decides where the sample says nothing.
RIDGE = 1e-5
MOST_FITTED = 16_000_000          # probabilities of the sample on which the vector is fitted


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


def fit_vector(logits: torch.Tensor, labels: torch.Tensor, activation: str = "softmax") \
        -> tuple[list[float], list[float]]:
    """(scale, bias) of a Posterior with the lowest log loss plus a ridge, by L-BFGS in float64.

    logits (P, C) float, after inverse and temperature; labels (P,) int64. The ridge pulls ln scale
    and bias to 0. A class without a labeled pixel gets scale 1 and bias 0.
    """
    step = -(-logits.numel() // MOST_FITTED)
    x, y = logits[::step].double(), labels[::step]
    classes = x.shape[1]
    if activation == "softmax":
        x = x.log_softmax(1)
    seen = (torch.bincount(labels, minlength=classes) > 0).double()
    vector = torch.zeros(2, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([vector], max_iter=200, tolerance_grad=1e-7,
                                  line_search_fn="strong_wolfe")
    truth = F.one_hot(y, classes).double() if activation == "sigmoid" else None

    def loss():
        optimizer.zero_grad()
        log_scale, bias = vector * seen
        z = x * log_scale.exp() + bias
        value = F.cross_entropy(z, y) if truth is None else \
            F.binary_cross_entropy_with_logits(z, truth, reduction="sum") / len(y)
        value = value + RIDGE * (vector ** 2).sum()
        value.backward()
        return value
    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)
    log_scale, bias = vector.detach() * seen
    return log_scale.exp().tolist(), bias.tolist()


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
    return _of_sums(sums, loss / len(labels))


def class_reliability(logits: torch.Tensor, labels: torch.Tensor, activation: str = "softmax",
                      bins: int = 15) -> list[Reliability]:
    """The calibration of the probability of each class, over all pixels of the sample.

    logits (P, C), any float; labels (P,) int64. The log loss is that of the class against the rest.
    """
    classes = logits.shape[1]
    sums = torch.zeros(3, classes * bins, dtype=torch.float64)
    losses = torch.zeros(classes, dtype=torch.float64)
    first = torch.arange(classes) * bins
    for z, y in zip(logits.split(CHUNK), labels.split(CHUNK), strict=True):
        p = probabilities(z.double(), activation)
        truth = F.one_hot(y, classes).double()
        losses += F.binary_cross_entropy(p, truth, reduction="none").sum(0)
        place = ((p * bins).long().clamp_(max=bins - 1) + first).flatten()
        for row, weight in zip(sums, (torch.ones_like(p), p, truth), strict=True):
            row.scatter_add_(0, place, weight.flatten())
    return [_of_sums(one, float(loss) / len(labels))
            for one, loss in zip(sums.view(3, classes, bins).unbind(1), losses, strict=True)]


def _of_sums(sums, log_loss):
    """The Reliability of the sums (3, B) of cases, probabilities and truths in each bin."""
    count, confidence, true = sums.numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence, frequency = confidence / count, true / count
    gaps = np.where(count > 0, np.abs(confidence - frequency), 0)
    return Reliability(count, confidence, frequency, float((gaps * count).sum() / count.sum()),
                       log_loss)


BAR, MEAN, SHARE = (86, 180, 233), (213, 94, 0), (150, 150, 150)    # of the palette of Okabe & Ito


def reliability_diagram(diagrams: dict[str, Reliability], columns: int = 4) -> np.ndarray:
    """RGB picture (H, W, 3) uint8: one diagram for each title, so many side by side.

    Bars: how often cases of a bin were true; the line: a perfect answer; the marks: the
    mean probability of the bin; below: the share of the cases in each bin.
    """
    drawn = [_diagram(title, one) for title, one in diagrams.items()]
    return stacked(*(side_by_side(*drawn[i:i + columns]) for i in range(0, len(drawn), columns)))


def _diagram(title, one, side=360, strip=46):
    """Axes from 0 to 1, and below them the strip of shares; uint8 (H, W, 3)."""
    left, top, right = 52, 84, 24
    bottom = top + side
    base = bottom + 52 + strip          # of the strip
    sheet = Sheet(left + side + right, base + 58)
    sheet.text(left, 16, shortened(title, 15, side + right - 4), 15)
    sheet.text(left, 38, f"ECE {100 * one.ece:.2f} %   log loss {one.log_loss:.4f}", 13)
    sheet.text(left, 66, "how often it was true", 12, FAINT)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + tick * side, bottom - tick * side
        sheet.line([(left, y), (left + side, y)], GRID)
        sheet.line([(x, bottom), (x, bottom - side)], GRID)
        sheet.text(left - 6, y, f"{100 * tick:g} %", anchor="rm")
        sheet.text(x, bottom + 6, f"{100 * tick:g} %", anchor="ma")
    sheet.text(left + side / 2, bottom + 31, "predicted probability", 12, FAINT, "mm")
    for b in np.flatnonzero(one.count):
        x0, x1 = left + side * b / len(one.count) + 1, left + side * (b + 1) / len(one.count) - 1
        expected = bottom - side * one.confidence[b]
        sheet.box(x0, bottom - side * one.frequency[b], x1, bottom, BAR)
        sheet.line([(x0, expected), (x1, expected)], MEAN, 3)
        sheet.box(x0, base - strip * one.count[b] / one.count.max(), x1, base, SHARE)
    sheet.line([(left, bottom), (left + side, bottom - side)])
    sheet.text(left + side / 2, base + 14, "share of the cases with this probability", 12, FAINT,
               "mm")
    y = base + 40
    sheet.box(left, y - 5, left + 14, y + 5, BAR)
    sheet.text(left + 20, y, "how often true", 12)
    sheet.line([(left + 126, y), (left + 140, y)], MEAN, 3)
    sheet.text(left + 146, y, "mean probability", 12)
    sheet.line([(left + 264, y + 5), (left + 278, y - 5)])
    sheet.text(left + 284, y, "perfect", 12)
    return np.asarray(sheet.image())
