"""What the differences between rows of a study are worth: over seeds, and over data sets.

Over seeds: the paired t interval and test; a row and its baseline see the same samples in the same
order under the same seed. Without common seeds, Welch's (The generalization of Student's problem,
Biometrika 34, 1947). Over images: utils.metrics.confidence. Several rows against one baseline:
Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979. Over
data sets: mean ranks, Friedman's statistic (1937) with p by permutation, and the critical
difference of Nemenyi; Demsar, Statistical comparisons of classifiers, JMLR 7, 2006.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.metrics.confidence import t_quantile

POWER = 0.8             # with which a margin should be found
MOST_SEEDS = 1000
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class SeedDifference:
    """The mean difference of two rows over seeds, in fractions; nan where it cannot be told.

    seeds: pairs, or the smaller number of runs if they are not paired. sd: of the differences.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    paired: bool
    sd: float


def over_seeds(first: Mapping[int | None, Sequence[float]],
               second: Mapping[int | None, Sequence[float]],
               level: float = 0.95) -> SeedDifference:
    """second - first. first, second: seed -> scores; the seed None has runs of unknown seeds."""
    common = sorted(seed for seed in first.keys() & second.keys() if seed is not None)
    if common:
        values = np.array([np.mean(second[seed]) - np.mean(first[seed]) for seed in common])
        return _paired(values, level)
    one, two = (np.concatenate([np.asarray(runs, float) for runs in group.values()])
                for group in (first, second))
    return _welch(one, two, level)


def _paired(values: np.ndarray, level: float) -> SeedDifference:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return SeedDifference(mean, math.nan, math.nan, math.nan, count, True, math.nan)
    sd = float(values.std(ddof=1))
    error = sd / math.sqrt(count)
    return SeedDifference(mean, *_t(mean, error, count - 1, level), count, True, sd)


def _welch(one: np.ndarray, two: np.ndarray, level: float) -> SeedDifference:
    value, least = float(two.mean() - one.mean()), min(len(one), len(two))
    if least < 2:
        return SeedDifference(value, math.nan, math.nan, math.nan, least, False, math.nan)
    parts = [group.var(ddof=1) / len(group) for group in (one, two)]
    total = float(sum(parts))
    freedom = total ** 2 / sum(part ** 2 / (len(group) - 1) for part, group
                               in zip(parts, (one, two), strict=True)) if total else 1.0
    sd = math.sqrt(one.var(ddof=1) + two.var(ddof=1))
    return SeedDifference(value, *_t(value, math.sqrt(total), max(1.0, float(freedom)), level),
                          least, False, sd)


def _t(value: float, error: float, freedom: float, level: float) -> tuple[float, float, float]:
    """(low, high, p) of a difference by Student's t."""
    if error == 0:
        return value, value, (1.0 if value == 0 else 0.0)
    from scipy.special import stdtr
    width = t_quantile((1 + level) / 2, freedom) * error
    return value - width, value + width, float(2 * stdtr(freedom, -abs(value) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p in the order of `p_values`; nan stays nan and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def seeds_needed(sd: float, margin: float, level: float = 0.95, power: float = POWER) \
        -> int | None:
    """The seeds with which the paired t test finds a true difference of `margin` with `power`.

    sd: of the differences between two rows under the same seed, in the unit of the margin.
    None: more than MOST_SEEDS.
    """
    if math.isnan(sd):
        return None
    if sd == 0:
        return 2
    from scipy.special import nctdtr
    for count in range(2, MOST_SEEDS + 1):
        effect, critical = margin / sd * math.sqrt(count), t_quantile((1 + level) / 2, count - 1)
        found = 1 - nctdtr(count - 1, effect, critical) + nctdtr(count - 1, effect, -critical)
        if found >= power:
            return count
    return None


def pooled_sd(differences: Sequence[SeedDifference]) -> float:
    """The sd of paired differences, over all rows together; nan without any."""
    known = [(one.sd ** 2, one.seeds - 1) for one in differences if not math.isnan(one.sd)]
    freedom = sum(weight for _, weight in known)
    return math.sqrt(sum(var * weight for var, weight in known) / freedom) if freedom else math.nan


@dataclass(frozen=True)
class Ranks:
    """Ranks over data sets. labels: of rows; ranks: (data sets, rows), 1 is best.

    p: that all rows are equally good. critical: mean ranks that differ less cannot be told apart
    (0.05, all pairs).
    """

    data: list[str]
    labels: list[str]
    ranks: list[list[float]]
    mean: list[float]
    p: float
    critical: float


def rank_rows(scores: Mapping[str, Mapping[str, float]], seed: int = 0) -> Ranks | None:
    """The ranks of rows on several data sets. scores: data set -> row -> score, larger is better.

    Only rows with a score on every data set are ranked. None for fewer than two rows or data sets.
    """
    from scipy.stats import rankdata, studentized_range
    data = [name for name, rows in scores.items() if rows]
    labels = [label for label in (scores[data[0]] if data else ())
              if all(label in scores[name] for name in data)]
    if len(data) < 2 or len(labels) < 2:
        return None
    table = np.array([[scores[name][label] for label in labels] for name in data])
    ranks = rankdata(-table, axis=1)
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.broadcast_to(ranks, (_PERMUTATIONS, *ranks.shape)), axis=2)
    spread = ((ranks.mean(0) - ranks.mean()) ** 2).sum()
    others = ((drawn.mean(1) - ranks.mean()) ** 2).sum(1)
    p = (1 + np.count_nonzero(others >= spread - 1e-12)) / (1 + _PERMUTATIONS)
    count = len(labels)
    critical = studentized_range.ppf(0.95, count, np.inf) / math.sqrt(2) \
        * math.sqrt(count * (count + 1) / (6 * len(data)))
    return Ranks(data, labels, ranks.tolist(), ranks.mean(0).tolist(), float(p), float(critical))
