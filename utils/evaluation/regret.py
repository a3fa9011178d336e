"""What part of the Dice score a decision loses, and to what.

For every image and class that counts in mDice_I, masks of the class are scored one after the other,
from the decision itself to a mask that only someone who knows the labels could choose:

    attained     the mask that was decided
    exact        the mask with the largest expected Dice if the labels of pixels are independent
    dependent    the mask of rankdice_dep (utils.decision.dependent), on the same probabilities
    best prefix  of all masks {pixels of probability >= t}, the one with the largest true Dice

    solver = exact - attained           calibration = best prefix - dependent
    independence = dependent - exact    network = 1 - best prefix

They add up to 1 - attained. Each but `network` may be negative. Of a decision by a rule for
dependent pixels `independence` is 0, and `solver` = dependent - attained.

"Exact" is rank_dice with the solver "auto", whose expected Dice is within 1e-6 of the solver
"exact" (tests/evaluation/test_regret.py). It leaves out classes by `predict.pruning`, as rankdice
does. `promised` is what the probabilities say of `solver`: the expected Dice of the exact mask less
that of the decided one; not computed for rules for dependent pixels.

The best prefix is what a perfect calibration would reach. If the probabilities of an image are
replaced by the isotonic regression of the labels on them (Zadrozny & Elkan, KDD 2002), the expected
Dice 2 C / (N + mu) of a prefix that ends between two levels is its true Dice, and the largest is
always at such an end, a corner of the concave hull of the hits. So the rule with that formula finds
the best prefix, and no regression needs to be computed.

A class that is not in the image has the score 1 without a mask and 0 with one; without a mask in
the decision itself it does not count. Predictions are made for the whole image and scored on its
labeled pixels.
"""
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from utils.decision.dependent import rank_dependent
from utils.decision.expected_score import expected_dice
from utils.decision.posterior import Posterior
from utils.decision.rankdice import rank_dice
from utils.decision.rules import DEPENDENT
from utils.machine.tensors import LabelBatch, Logits, Masks
from utils.metrics.confidence import Interval, mean_interval
from utils.metrics.counts import PixelCounts, checked_classes, count_pixels
from utils.metrics.image_metrics import mean
from utils.metrics.reduction import all_gather

PARTS = ("solver", "independence", "calibration", "network")
_COLUMNS = ("attained", *PARTS, "promised")


@dataclasses.dataclass
class _Batch:
    """Images whose decisions are to be judged, on the CPU.

    probs: (N, C, H, W). labels: (N, H, W). exact, dependent: masks (N, C, H, W). scores: of those
    and of the best prefix, float64 (3, N, C), nan for the best prefix of a class that is absent.
    """

    positions: list[int]
    probs: torch.Tensor
    labels: LabelBatch
    exact: Masks
    scores: np.ndarray


class Regret:
    """Splits 1 - Dice of each decision into PARTS; the same for any number of processes.

    posterior: from logits to the probabilities. classes_of_interest: those that the mean over
    classes includes. pruning: of the exact and of the dependent mask. theta, amplitude: of the
    dependent mask. Works on the CPU, with one image after the other.
    """

    def __init__(self, posterior: Posterior, num_classes: int,
                 ignore_index: int = 255, classes_of_interest: list[int] | str | None = None,
                 pruning: float = 0.5, theta: float = 300.0, amplitude: float = 1.0):
        self.posterior, self.num_classes = posterior, num_classes
        self.ignore_index, self.pruning = ignore_index, pruning
        self.theta, self.amplitude = theta, amplitude
        self.classes_of_interest = checked_classes(classes_of_interest, num_classes)
        self._batch: _Batch | None = None
        # By rule: (position, _COLUMNS of every class) of each image, float64 (N, 1 + 6 C).
        self._rows: dict[str, list[np.ndarray]] = {}

    def open(self, logits: Logits, labels: LabelBatch, positions: Iterable[int]):
        """Begin with images, before `add` of what each rule decides on them.

        logits (N, C, H, W); labels (N, H, W), any integer dtype. positions: in the dataset.
        """
        probs, labels = self.posterior(logits).cpu(), labels.cpu()
        exact = rank_dice(probs, pruning=self.pruning)
        dependent = rank_dependent(probs, pruning=self.pruning, theta=self.theta,
                                   amplitude=self.amplitude)
        best = np.full(exact.shape[:2], np.nan)
        for n, truth in enumerate(labels):
            valid = (truth >= 0) & (truth < self.num_classes) & (truth != self.ignore_index)
            known = truth[valid].numpy()
            for c in np.unique(known).tolist():
                best[n, c] = best_prefix(probs[n, c][valid].numpy(), known == c)
        scores = [dice(self._counts(masks, labels)) for masks in (exact, dependent)]
        self._batch = _Batch(list(positions), probs, labels, exact, np.stack([*scores, best]))

    def add(self, rule: str, prediction: LabelBatch | Masks):
        """What a rule decides on the images of `open`: labels (N, H, W) or masks (N, C, H, W)."""
        batch, prediction = self._batch, prediction.cpu()
        assert batch is not None, "open() comes first"
        counts = self._counts(prediction, batch.labels)
        attained = dice(counts)
        exact, dependent, best = (np.where(np.isnan(one), 1.0, one) for one in batch.scores)
        if rule in DEPENDENT:
            exact = dependent
        promised = np.full_like(attained, np.nan)
        for n, c in np.argwhere(~np.isnan(attained)) if rule not in DEPENDENT else ():
            mask = prediction[n, c] if prediction.ndim == 4 else prediction[n] == int(c)
            promised[n, c] = self._promised(batch, n, c, mask.numpy().ravel())
        table = np.stack([attained, exact - attained, dependent - exact, best - dependent,
                          1 - best, promised], 1)                       # (N, 6, C)
        table = np.where(np.isnan(attained)[:, None], np.nan, table)
        places = np.array(batch.positions, np.float64)[:, None]
        self._rows.setdefault(rule, []).append(
            np.concatenate((places, table.reshape(len(table), -1)), 1))

    def describe(self) -> dict[str, Any]:
        """The settings of the masks that decisions are compared with."""
        return {"pruning": self.pruning, "theta": self.theta, "amplitude": self.amplitude,
                **self.posterior.describe()}

    def compute(self, rules: Iterable[str]) -> dict[str, dict[str, Any]]:
        """rule -> its scores over all processes; each must call this once, with the same rules.

        images: how many count. Dice: their mean, which is mDice_I. Each of PARTS: {"value", "low",
        "high"}, a mean over the images and its 95 % interval, nan below
        utils.metrics.confidence.MIN_IMAGES images. promised: a mean. classes: the same of every
        class, over the images in which it counts.
        """
        # A process without an image takes part too.
        none = np.zeros((0, 1 + len(_COLUMNS) * self.num_classes))
        tables = {rule: np.concatenate([none, *self._rows.get(rule, [])]) for rule in rules}
        return {rule: self._scores(all_gather(torch.from_numpy(table)).numpy())
                for rule, table in tables.items()}

    def _scores(self, table):
        table = table[np.argsort(table[:, 0], kind="stable"), 1:]
        table = table.reshape(len(table), len(_COLUMNS), self.num_classes)
        of_images = np.array([[mean(one) for one in image]
                              for image in table[:, :, self.classes_of_interest]])
        return {**_means(of_images.reshape(-1, len(_COLUMNS))),
                "classes": [_means(table[:, :, c]) for c in range(self.num_classes)]}

    def _counts(self, prediction, labels) -> PixelCounts:
        return count_pixels(prediction, labels, self.num_classes, self.ignore_index)

    def _promised(self, batch, n, c, mask):
        """The expected Dice of the exact mask less that of a mask (pixels,)."""
        row, exact = batch.probs[n, c].numpy().ravel(), batch.exact[n, c].numpy().ravel()
        if np.array_equal(exact, mask):
            return 0.0
        return expected_dice(row, exact) - expected_dice(row, mask)


def dice(counts: PixelCounts) -> np.ndarray:
    """The Dice scores (N, C), float64, of single images; nan for 0 / 0."""
    hits, total = counts.hits.numpy(), (counts.predicted + counts.labeled).numpy()
    return np.divide(2.0 * hits, total, out=np.full(hits.shape, np.nan), where=total > 0)


def best_prefix(probs: np.ndarray, truth: np.ndarray) -> float:
    """The largest Dice of all masks {probs >= t}. probs, truth: (n,), float and bool, one true."""
    # A best mask ends with a true pixel, so the probabilities of these are thresholds enough.
    right = np.sort(probs[truth])[::-1]
    wrong = np.sort(probs[~truth])
    above = len(wrong) - np.searchsorted(wrong, right, "left")
    hits = np.arange(1, len(right) + 1)         # too few inside a tie, right at its end
    return float((2 * hits / (hits + above + len(right))).max())


def _means(values):
    """The entries of `Regret.compute` from values (N, 6), whose rows are nan where not counted."""
    values = values[~np.isnan(values[:, 0])]
    attained, *parts, promised = values.T
    return {"images": len(values), "Dice": mean(attained),
            **{part: _plain(mean_interval(one)) for part, one in zip(PARTS, parts, strict=True)},
            "promised": mean(promised)}


def _plain(one: Interval):
    return {"value": one.value, "low": one.low, "high": one.high}


def values_of(one: dict[str, Any]) -> dict[str, float]:
    """part -> its value, of the mean or of a class; {} for a class that counts in no image."""
    return {part: one[part]["value"] for part in PARTS
            if one[part]["value"] is not None and not math.isnan(one[part]["value"])}
