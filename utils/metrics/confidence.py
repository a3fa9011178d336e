"""How far a score may be from that of other images, and whether two scores really differ.

The images are taken as a sample of all images of their kind. What is said holds for other images,
not for another training run.

Interval: the jackknife. Tukey, Bias and confidence in not-quite large samples, 1958; Miller, The
jackknife: a review, Biometrika 61, 1974. The score is computed again without each image in turn;
the spread of these scores gives the standard error, and Student's t the bounds. For a mean over
images it is the usual t interval, but for the degrees of freedom: N - 1, or fewer if a few images
make most of the spread (Satterthwaite, An approximate distribution of estimates of variance
components, Biometrics 2, 1946, with the kurtosis of the sample). Below MIN_IMAGES images there is
no interval: if one image in ten fails, the intervals of 20 images miss the score of all images in
9 % of the cases instead of 5 %; from 60 on they contain it in 94 to 96 % (tests/metrics/
test_confidence.py).

p of a difference: the paired randomization test. Fisher, The Design of Experiments, 1935; Yeh,
More accurate tests for the statistical significance of result differences, COLING 2000,
arXiv:cs/0008005. If two models are equally good, it is chance which of them gave which of the
two predictions of an image. p is the share of all exchanges of predictions, image by image, whose
scores differ at least as much as the measured ones. So p below 0.05 comes up by chance in at most
5 % of the comparisons, for any number of images and any distribution of their scores; and N
images cannot give a p below 2 / 2^N. (A bootstrap needs about a hundred images for that: with five,
16 % of the comparisons of equal models were below 0.05.)
"""
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from utils.errors import DataError
from utils.metrics.dataset_metrics import ratio
from utils.metrics.image_scores import OF_IMAGE, ImageScores

MIN_IMAGES = 60               # of an interval of one score
ALL_EXCHANGES = 2 ** 12       # up to this number every exchange is computed
NUMBERS_AT_ONCE = 2 ** 22     # of an array in memory

Table = dict[str, np.ndarray]


@dataclasses.dataclass
class Interval:
    """A score with its bounds, in fractions; nan if there are too few images to tell.

    images: with a value of this score.
    """
    value: float
    low: float
    high: float
    images: int


@dataclasses.dataclass
class Difference(Interval):
    """second - first with its bounds. p: of the paired randomization test, above 0 and up to 1.

    enough: whether so many images can show a difference at all at the level that was asked for.
    differs: whether they do: p is small enough and the bounds exclude 0.
    """
    first: float
    second: float
    p: float
    enough: bool
    differs: bool


def intervals(scores: ImageScores, level: float = 0.95) -> dict[str, Interval]:
    """Mean_IoU, Mean_Dice (dataset level), mIoU_I, mDice_I and accuracies with their bounds.

    level: the probability between the bounds. Mean_IoU and Mean_Dice are missing for scores of
    the published code, which have no pixel counts. The bounds are nan below MIN_IMAGES images.
    """
    rows = _rows(scores)
    value = _scores(rows.sum(0, keepdims=True), scores)
    spreads = _jackknife(lambda sums: _scores(sums, scores), rows, _known(scores))
    return {name: _interval(float(value[name][0]), spreads[name], level) for name in value}


def mean_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """The mean of one number per image, (N,) and not nan, which may be negative; as `intervals`."""
    images = len(values)
    value = math.fsum(values) / images if images else math.nan
    if images < MIN_IMAGES:
        return Interval(value, math.nan, math.nan, images)
    spread = _Spread.of((values.sum() - values) / (images - 1))
    return Interval(value, *spread.bounds(value, level), images)


def compare(first: ImageScores, second: ImageScores, level: float = 0.95, draws: int = 2000,
            seed: int = 0) -> dict[str, Difference]:
    """metric -> the difference of two results over the images in both.

    draws: random exchanges for p, if there are more than ALL_EXCHANGES exchanges.
    Raises DataError if no image is in both or the numbers of classes differ. Metrics that are
    undefined in either result are left out.
    """
    return compare_runs([first], [second], level, draws, seed)


def compare_runs(first: Sequence[ImageScores], second: Sequence[ImageScores], level: float = 0.95,
                 draws: int = 2000, seed: int = 0) -> dict[str, Difference]:
    """metric -> the difference between the mean scores of two groups of runs, as `compare`.

    An image is left out, or its predictions are exchanged, in all runs at once, for which the
    groups must have as many runs. The result holds for other images, and for these very runs.
    Dataset-level scores are left out unless all runs count pixels and average the same classes.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} runs against {len(second)}")
    firsts, seconds = paired_runs(first, second)
    if not same_counts([*firsts, *seconds]):
        firsts, seconds = ([dataclasses.replace(one, pixels=None) for one in group]
                           for group in (firsts, seconds))
    a, b = (np.concatenate([_rows(one) for one in group], 1) for group in (firsts, seconds))
    masks = [_known(one) for one in (*firsts, *seconds)]
    known = {name: np.logical_or.reduce([one[name] for one in masks]) for name in masks[0]}

    def mean(sums, group):
        tables = [_scores(part, one) for part, one in
                  zip(np.split(sums, len(group), axis=1), group, strict=True)]
        return {name: np.mean([table[name] for table in tables], 0) for name in known}

    def differences(sums):
        of_first, of_second = np.split(sums, 2, axis=1)
        one, two = mean(of_first, firsts), mean(of_second, seconds)
        return {name: two[name] - one[name] for name in known}

    one, two = mean(a.sum(0, keepdims=True), firsts), mean(b.sum(0, keepdims=True), seconds)
    spreads = _jackknife(differences, np.concatenate((a, b), 1), known)
    p = _exchanged(differences, a, b, draws, seed)
    table = {}
    for name, spread in spreads.items():
        value = float(two[name][0] - one[name][0])
        if math.isnan(value):
            continue
        enough = spread.images >= least_images(level)
        bounds = spread.bounds(value, level) if enough else (math.nan, math.nan)
        differs = enough and p[name] <= 1 - level + 1e-12 and not bounds[0] <= 0 <= bounds[1]
        table[name] = Difference(value, *bounds, spread.images, float(one[name][0]),
                                 float(two[name][0]), p[name], enough, differs)
    return table


def same_counts(tables: Sequence[ImageScores]) -> bool:
    """Whether all results count pixels and average the same classes in dataset-level scores."""
    return all(one.pixels is not None
               and sorted(one.classes_of_interest) == sorted(tables[0].classes_of_interest)
               for one in tables)


def least_images(level: float) -> int:
    """The fewest images whose p, 2 / 2^N at the least, can be as small as 1 - level."""
    return math.ceil(math.log2(2 / (1 - level)) - 1e-9)


def paired(first: ImageScores, second: ImageScores) -> tuple[ImageScores, ImageScores]:
    """Both tables reduced to the images that are in both, in the order of the first.

    Raises DataError if there are none, if an id occurs twice, or if the numbers of classes differ.
    """
    if not first.ids or not second.ids:
        raise DataError("a result has no scored image: all pixels were ignored",
                        fix="compare results of images with labels")
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


def paired_runs(first: Sequence[ImageScores], second: Sequence[ImageScores]) \
        -> tuple[list[ImageScores], list[ImageScores]]:
    """All tables reduced to the images that are in all of them, in the order of the first one.

    Raises DataError as `paired`.
    """
    reduced = first[0]
    for other in (*first[1:], *second):
        reduced, _ = paired(reduced, other)
    return ([paired(reduced, one)[1] for one in first], [paired(reduced, one)[1] for one in second])


def _selected(table, rows):
    return dataclasses.replace(
        table, ids=[table.ids[i] for i in rows], image=table.image[rows],
        pixels=None if table.pixels is None else table.pixels[rows])


def _rows(scores: ImageScores) -> np.ndarray:
    """(N, K) float64: what every image adds to the sums from which `_scores` computes."""
    known = ~np.isnan(scores.image)
    parts = [np.where(known, scores.image, 0), known]
    if scores.pixels is not None:
        parts.append(scores.pixels[:, :, scores.classes_of_interest].reshape(len(scores.ids), -1))
    return np.concatenate(parts, 1).astype(np.float64)


def _known(scores: ImageScores) -> dict[str, np.ndarray]:
    """metric -> bool (N,): the images with a value of it."""
    names = () if scores.pixels is None else ("Mean_IoU", "Mean_Dice")
    known: Table = {name: np.full(len(scores.ids), True) for name in names}
    for name, values in zip(OF_IMAGE, scores.image.T, strict=True):
        known[name] = ~np.isnan(values)
    return known


def _scores(sums: np.ndarray, scores: ImageScores) -> Table:
    """metric -> (R,) of R sums of rows, (R, K); nan where undefined."""
    count = len(OF_IMAGE)
    of_image = ratio(sums[:, :count], sums[:, count:2 * count])
    table: Table = {}
    if scores.pixels is not None:
        hits, predicted, labeled = (sums[:, 2 * count:].reshape(
            len(sums), 3, len(scores.classes_of_interest)).swapaxes(0, 1))
        table["Mean_IoU"] = _nanmean(ratio(hits, predicted + labeled - hits))
        table["Mean_Dice"] = _nanmean(ratio(2 * hits, predicted + labeled))
    for name, values in zip(OF_IMAGE, of_image.T, strict=True):
        table[name] = values
    return table


def _nanmean(values):
    """The mean of each row over its numbers; nan for a row that contains only nan."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(1), known.sum(1))


def _jackknife(score: Callable[[np.ndarray], Table], rows: np.ndarray,
               known: dict[str, np.ndarray]) -> "dict[str, _Spread]":
    """metric -> how far it varies, by leaving out one image each."""
    total = rows.sum(0)
    step = max(1, NUMBERS_AT_ONCE // rows.shape[1])
    parts = [score(total - rows[start:start + step]) for start in range(0, len(rows), step)]
    table = {}
    for name, used in known.items():
        without = np.concatenate([part[name] for part in parts])[used]
        table[name] = _Spread.of(without)
    return table


@dataclasses.dataclass
class _Spread:
    """The standard error of a score of so many images, and its degrees of freedom."""

    error: float
    freedom: float
    images: int

    @classmethod
    def of(cls, without: np.ndarray) -> "_Spread":
        """without: (N,), the scores without one image each."""
        images = len(without)
        squares = (without - without.mean()) ** 2 if images else without
        if images < 2 or not squares.sum() > 0:
            return cls(math.nan if images < 2 or np.isnan(squares).any() else 0.0,
                       max(images - 1, 1), images)
        kurtosis = images * (squares ** 2).sum() / squares.sum() ** 2
        # The variance of an estimated variance is (kurtosis - 1) / N of its square.
        freedom = 2 * images / max(kurtosis - 1, 1e-9)
        return cls(math.sqrt((images - 1) / images * squares.sum()),
                   max(1.0, min(images - 1.0, freedom)), images)

    def bounds(self, value: float, level: float) -> tuple[float, float]:
        width = t_quantile((1 + level) / 2, self.freedom) * self.error
        return value - width, value + width


def _exchanged(score: Callable[[np.ndarray], Table], first: np.ndarray, second: np.ndarray,
               draws: int, seed: int) -> dict[str, float]:
    """metric -> p of the paired randomization test; first, second: rows (N, K)."""
    images = len(first)
    both, change = first.sum(0) + second.sum(0), second - first
    measured = score(np.concatenate((first.sum(0), second.sum(0)))[None])
    every = 2 ** (images - 1) <= ALL_EXCHANGES      # exchanging all predictions changes the sign
    total = 2 ** (images - 1) if every else draws
    generator = np.random.default_rng(seed)
    extreme = dict.fromkeys(measured, 0)
    step = max(1, NUMBERS_AT_ONCE // max(images, len(both)))
    for start in range(0, total, step):
        count = min(step, total - start)
        exchanged = ((np.arange(start, start + count)[:, None] >> np.arange(images)) & 1 if every
                     else generator.integers(0, 2, (count, images))).astype(np.float64)
        sums = first.sum(0) + exchanged @ change
        for name, values in score(np.concatenate((sums, both - sums), 1)).items():
            # A sum of the same numbers in another order may differ in its last digits.
            far = np.abs(values) >= np.abs(measured[name]) - 1e-12
            extreme[name] += int(np.count_nonzero(far | np.isnan(values)))
    # Of random draws the measured one is one more.
    return {name: (number + (not every)) / (total + (not every))
            for name, number in extreme.items()}


def _interval(value, spread, level):
    if spread.images < MIN_IMAGES or math.isnan(spread.error):
        return Interval(value, math.nan, math.nan, spread.images)
    low, high = spread.bounds(value, level)
    return Interval(value, max(low, 0.0), min(high, 1.0), spread.images)


def t_quantile(probability: float, freedom: float) -> float:
    """The value below which Student's t is with this probability.

    freedom: degrees of freedom, at least 1.
    """
    from scipy.special import stdtrit
    return float(stdtrit(freedom, probability))
