"""Confidence intervals of scores and of their differences: the bootstrap over images.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993: as many images as there are are drawn
with replacement, and the score is computed again. The quantiles of many such scores bound the
interval. Two results on the same images are compared on the same draws, so that the difficulty of
an image, which affects both, cancels out. The interval holds for other images of the same kind,
not for another training run.
"""
import dataclasses

import numpy as np

from utils.errors import DataError
from utils.metrics.dataset_metrics import ratio
from utils.metrics.image_scores import OF_IMAGE, ImageScores

DRAWS_AT_ONCE = 2 ** 22       # the most weights (draws x images) in memory


@dataclasses.dataclass
class Interval:
    """A score, or a difference of scores, with its bounds. p: only for a difference."""
    value: float
    low: float
    high: float
    p: float | None = None


def intervals(scores: ImageScores, level: float = 0.95, draws: int = 2000,
              seed: int = 0) -> dict[str, Interval]:
    """Mean_IoU, Mean_Dice (dataset level), mIoU_I, mDice_I and accuracies with their bounds.

    level: the probability between the bounds. Scores are fractions. Mean_IoU and Mean_Dice are
    missing for scores of the published code, which have no pixel counts.
    """
    drawn = _drawn(scores, draws, seed)
    value = _scores(np.ones((1, len(scores.ids))), scores)
    return {name: Interval(float(value[name][0]), *_bounds(drawn[name], level))
            for name in value}


def paired_bootstrap(first: ImageScores, second: ImageScores, level: float = 0.95,
                     draws: int = 2000, seed: int = 0) -> dict[str, tuple[float, float, Interval]]:
    """metric -> (first, second, second - first with bounds), over the images in both results.

    p of a difference: the share of draws with the opposite sign, times 2; at least 1 / draws.
    Raises DataError if no image is in both or the numbers of classes differ. Metrics that are
    undefined in either result are left out.
    """
    first, second = paired(first, second)
    whole = np.ones((1, len(first.ids)))
    a, b = _scores(whole, first), _scores(whole, second)
    drawn_a, drawn_b = _drawn(first, draws, seed), _drawn(second, draws, seed)
    table = {}
    for name in a:
        if name not in b or np.isnan(a[name] + b[name]):
            continue
        differences = drawn_b[name] - drawn_a[name]
        differences = differences[~np.isnan(differences)]
        share = min((differences <= 0).mean(), (differences >= 0).mean())
        p = float(np.clip(2 * share, 1 / draws, 1))
        low, high = _bounds(differences, level)
        table[name] = (float(a[name][0]), float(b[name][0]),
                       Interval(float(b[name][0] - a[name][0]), low, high, p))
    return table


def paired(first: ImageScores, second: ImageScores) -> tuple[ImageScores, ImageScores]:
    """Both tables reduced to the images that are in both, in the order of the first.

    Raises DataError if there are none, if an id occurs twice, or if the numbers of classes differ.
    """
    rows = {name: i for i, name in enumerate(second.ids)}
    common = [(i, rows[name]) for i, name in enumerate(first.ids) if name in rows]
    for table in (first, second):
        if len(set(table.ids)) != len(table.ids):
            raise DataError("an image id occurs twice, so images cannot be paired")
    if not common:
        raise DataError(f"no image is in both results ({first.ids[:1]} ..., {second.ids[:1]} ...)",
                        fix="compare results on the same split")
    if len(first.class_names) != len(second.class_names):
        raise DataError(f"{len(first.class_names)} classes against {len(second.class_names)}",
                        fix="compare results on the same classes")
    return (_selected(first, [i for i, _ in common]), _selected(second, [i for _, i in common]))


def _selected(table, rows):
    return dataclasses.replace(
        table, ids=[table.ids[i] for i in rows], image=table.image[rows],
        pixels=None if table.pixels is None else table.pixels[rows])


def _drawn(scores: ImageScores, draws: int, seed: int) -> dict[str, np.ndarray]:
    """metric -> (draws,) scores of the drawn samples; the same draws for the same seed."""
    generator, images = np.random.default_rng(seed), len(scores.ids)
    step, parts = max(1, DRAWS_AT_ONCE // max(images, 1)), []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        weights = generator.multinomial(images, np.full(images, 1 / images), size=count)
        parts.append(_scores(weights.astype(np.float64), scores))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(weights: np.ndarray, scores: ImageScores) -> dict[str, np.ndarray]:
    """metric -> (draws,) float64; weights (draws, N): how often an image is in each draw."""
    table = {}
    if scores.pixels is not None:
        totals = weights @ scores.pixels.reshape(len(scores.ids), -1).astype(np.float64)
        hits, predicted, labeled = totals.reshape(len(weights), 3, -1).swapaxes(0, 1)
        hits, predicted, labeled = (part[:, scores.classes_of_interest]
                                     for part in (hits, predicted, labeled))
        table["Mean_IoU"] = _nanmean(ratio(hits, predicted + labeled - hits))
        table["Mean_Dice"] = _nanmean(ratio(2 * hits, predicted + labeled))
    for name, values in zip(OF_IMAGE, scores.image.T, strict=True):
        known = ~np.isnan(values)
        table[name] = ratio(weights[:, known] @ values[known], weights[:, known].sum(1))
    return table


def _nanmean(values):
    """The mean of each row over its numbers; nan for a row that contains only nan."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(1), known.sum(1))


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
