"""How sure a score is, and whether two of them differ: the bootstrap over images.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993: images are drawn
with replacement, as many as there are, and the score is taken again; the
quantiles of the repeated scores bound the interval. Two results on the same
images are compared on the same draws, so that what makes an image hard for both
cancels. The interval speaks about other images of the same kind, not about
another training run.
"""
import dataclasses

import numpy as np

from utils.errors import DataError
from utils.metrics.dataset_metrics import ratio
from utils.metrics.image_scores import OF_IMAGE, ImageScores

DRAWS_AT_ONCE = 2 ** 22       # draws x images held as weights


@dataclasses.dataclass
class Interval:
    """A score, or a difference of scores, with its bounds. p: only of a difference."""
    value: float
    low: float
    high: float
    p: float | None = None


def intervals(scores: ImageScores, level: float = 0.95, draws: int = 2000,
              seed: int = 0) -> dict[str, Interval]:
    """Mean_IoU, Mean_Dice (dataset level), mIoU_I, mDice_I and accuracies with their bounds."""
    drawn = _drawn(scores, draws, seed)
    value = _scores(np.ones((1, len(scores.ids))), scores)
    return {name: Interval(float(value[name][0]), *_bounds(drawn[name], level))
            for name in value}


def compare(first: ImageScores, second: ImageScores, level: float = 0.95, draws: int = 2000,
            seed: int = 0) -> dict[str, tuple[float, float, Interval]]:
    """metric -> (first, second, second - first with bounds), over the images both have.

    p: two-sided share of draws on the other side of 0 than the difference; never below
        1 / draws. DataError if no image, or no metric, is in both.
    """
    first, second = paired(first, second)
    whole = np.ones((1, len(first.ids)))
    a, b = _scores(whole, first), _scores(whole, second)
    drawn_a, drawn_b = _drawn(first, draws, seed), _drawn(second, draws, seed)
    table = {}
    for name in (name for name in a if name in b and not np.isnan(a[name] + b[name])):
        differences = drawn_b[name] - drawn_a[name]
        differences = differences[~np.isnan(differences)]
        share = min((differences <= 0).mean(), (differences >= 0).mean())
        p = float(np.clip(2 * share, 1 / draws, 1))
        low, high = _bounds(differences, level)
        table[name] = (float(a[name][0]), float(b[name][0]),
                       Interval(float(b[name][0] - a[name][0]), low, high, p))
    return table


def paired(first: ImageScores, second: ImageScores) -> tuple[ImageScores, ImageScores]:
    """Both tables cut to the images that are in both, in the order of the first."""
    places = {name: i for i, name in enumerate(second.ids)}
    common = [(i, places[name]) for i, name in enumerate(first.ids) if name in places]
    for table in (first, second):
        if len(set(table.ids)) != len(table.ids):
            raise DataError("image ids occur twice, so images cannot be paired")
    if not common:
        raise DataError(f"no image is in both results ({first.ids[:1]} ..., {second.ids[:1]} ...)",
                        fix="compare results on the same split")
    if len(first.class_names) != len(second.class_names):
        raise DataError(f"{len(first.class_names)} classes against {len(second.class_names)}",
                        fix="compare results on the same classes")
    return tuple(_selected(table, list(rows))
                 for table, rows in zip((first, second), zip(*common)))


def _selected(table, rows):
    return dataclasses.replace(
        table, ids=[table.ids[i] for i in rows], image=table.image[rows],
        pixels=None if table.pixels is None else table.pixels[rows])


def _drawn(scores, draws, seed):
    """metric -> (draws,) scores of the drawn samples; the same draws for the same seed."""
    generator, images = np.random.default_rng(seed), len(scores.ids)
    step, parts = max(1, DRAWS_AT_ONCE // max(images, 1)), []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        weights = generator.multinomial(images, np.full(images, 1 / images), size=count)
        parts.append(_scores(weights.astype(np.float64), scores))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(weights, scores):
    """metric -> (draws,): weights (draws, N) say how often each image counts."""
    table = {}
    if scores.pixels is not None:
        totals = weights @ scores.pixels.reshape(len(scores.ids), -1).astype(np.float64)
        hits, predicted, labelled = totals.reshape(len(weights), 3, -1).swapaxes(0, 1)
        hits, predicted, labelled = (part[:, scores.classes_of_interest]
                                     for part in (hits, predicted, labelled))
        table["Mean_IoU"] = _nanmean(ratio(hits, predicted + labelled - hits))
        table["Mean_Dice"] = _nanmean(ratio(2 * hits, predicted + labelled))
    for name, values in zip(OF_IMAGE, scores.image.T):
        known = ~np.isnan(values)
        table[name] = ratio(weights[:, known] @ values[known], weights[:, known].sum(1))
    return table


def _nanmean(values):
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(1), known.sum(1))


def _bounds(values, level):
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    return tuple(float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
