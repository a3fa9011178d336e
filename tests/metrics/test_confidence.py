"""Intervals and comparisons of scores: worked by hand, against scipy, and by simulation."""
import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from utils.errors import DataError
from utils.metrics.confidence import MIN_IMAGES, compare, intervals, least_images, t_quantile
from utils.metrics.image_scores import ImageScores


def table_of(pixels, ids=None):
    """ImageScores of pixel counts (N, 3, C): hits, predicted, labeled."""
    pixels = np.asarray(pixels)
    hits, predicted, labeled = pixels.swapaxes(0, 1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, dice = hits / (predicted + labeled - hits), 2 * hits / (predicted + labeled)
        accuracy = hits.sum(1) / labeled.sum(1)
    image = np.stack([np.nanmean(iou, 1), np.nanmean(dice, 1), accuracy, accuracy], 1)
    classes = pixels.shape[2]
    return ImageScores(ids or [str(i) for i in range(len(pixels))], image, pixels,
                       list(range(classes)), [f"c{k}" for k in range(classes)])


def scene(r, images):
    """What two models have in common: labeled pixels (N, 3) and how easy they are, 0 to 1."""
    labeled = 1 + r.poisson(r.gamma(1, 300, (images, 3)))
    return labeled, np.clip(0.75 + r.normal(0, 0.12, (images, 1)), 0.1, 0.98)


def predicted(r, labeled, ease, noise):
    """Image scores of a model whose accuracy in each image and class is ease + noise."""
    hits = r.binomial(labeled, np.clip(ease + noise, 0, 0.99))
    wrong = r.binomial(labeled.sum(1, keepdims=True) - labeled, 0.01)
    return table_of(np.stack([hits, hits + wrong, labeled], 1))


NOISES = {"normal": lambda r, shape: r.normal(0, 0.1, shape),
          "collapses": lambda r, shape: -np.abs(0.03 * r.standard_t(1.5, shape)),
          "one in ten fails": lambda r, shape: np.where(r.random((shape[0], 1)) < 0.1, -0.6, 0)}


def drawn(seed, images, noise="normal", gain=0.0):
    """The scores of two models that are equally good, but for the `gain` of the second."""
    r = np.random.default_rng(seed)
    labeled, ease = scene(r, images)
    return [predicted(r, labeled, ease, NOISES[noise](r, labeled.shape) + more)
            for more in (0, gain)]


@pytest.mark.parametrize("probability, freedom", [(0.975, 1), (0.975, 5), (0.995, 19),
                                                  (0.95, 4999)])
def test_the_quantile_is_that_of_students_t(probability, freedom):
    assert t_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-5)


def test_the_interval_of_a_mean_over_images_is_the_t_interval():
    scores, _ = drawn(0, 60)
    scores.image[:, 0] = np.linspace(0.4, 0.9, 60)      # no image makes most of the spread
    one = intervals(scores)["mIoU_I"]
    values = scores.image[:, 0]
    low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert (one.value, one.low, one.high) == pytest.approx((values.mean(), low, high), abs=1e-6)


def test_the_interval_of_a_ratio_is_that_of_its_delta_method():
    """One class of one IoU: hits / union, whose error Taylor's formula also gives."""
    r = np.random.default_rng(0)
    labeled = r.integers(900, 1100, (200, 1))
    hits = r.binomial(labeled, 0.8)
    one = intervals(table_of(np.stack([hits, hits, labeled], 1)))["Mean_IoU"]
    share = hits.sum() / labeled.sum()
    error = np.std(hits - share * labeled, ddof=1) / math.sqrt(200) / labeled.mean()
    assert one.value == share
    assert one.high - one.low == pytest.approx(2 * stats.t.ppf(0.975, 199) * error, rel=0.02)


def test_one_image_that_makes_most_of_the_spread_widens_the_interval():
    """60 images, 59 of them alike: the variance is known from about two observations."""
    scores, _ = drawn(0, 60)
    scores.image[:, 0] = 0.8
    scores.image[0, 0] = 0.2
    one = intervals(scores)["mIoU_I"]
    kurtosis = stats.kurtosis(scores.image[:, 0], fisher=False)
    width = stats.t.ppf(0.975, 2 * 60 / (kurtosis - 1)) * stats.sem(scores.image[:, 0])
    assert one.value - one.low == pytest.approx(width, rel=1e-4)
    assert width > 2 * stats.t.ppf(0.975, 59) * stats.sem(scores.image[:, 0])


def test_an_image_without_the_score_does_not_narrow_an_interval():
    scores, _ = drawn(0, 60)
    more, _ = drawn(0, 80)
    more.image[:60], more.image[60:] = scores.image, np.nan
    one, other = intervals(scores)["mDice_I"], intervals(more)["mDice_I"]
    assert (other.low, other.high) == pytest.approx((one.low, one.high)) and other.images == 60


def test_too_few_images_have_no_interval():
    few, _ = drawn(0, MIN_IMAGES - 1)
    enough, _ = drawn(0, MIN_IMAGES)
    assert all(math.isnan(one.low) and math.isnan(one.high) for one in intervals(few).values())
    assert all(one.low < one.value < one.high for one in intervals(enough).values())


def test_p_is_the_share_of_exchanges_that_differ_as_much():
    """Three images of one class; the second model is better in each, by 1, 2 and 4 of 10 pixels."""
    def counts(hits):
        return [[[h], [10], [10]] for h in hits]
    one = compare(table_of(counts([5, 5, 5])), table_of(counts([6, 7, 9])))["Pixel_Accuracy"]
    assert (one.first, one.second) == pytest.approx((15 / 30, 22 / 30))
    assert one.p == 2 / 8           # only all or none exchanged differ by 7
    assert not one.enough and not one.differs
    mixed = compare(table_of(counts([5, 5, 5])), table_of(counts([6, 7, 1])))["Pixel_Accuracy"]
    # Every sum of +-1, +-2 and +-4 is at least 1 in size, as 1 + 2 - 4 is.
    assert mixed.p == 1


def test_few_images_never_differ_and_six_can():
    assert [least_images(level) for level in (0.9, 0.95, 0.99)] == [5, 6, 8]
    for images, differs in ((1, False), (2, False), (5, False), (6, True)):
        one = compare(*drawn(1, images, gain=-0.6))["mIoU_I"]
        assert one.value < -0.3 and one.differs is differs and one.enough is differs
        assert math.isnan(one.low) is not differs


def test_equal_results_have_p_1_and_do_not_differ():
    scores, _ = drawn(0, 30)
    for one in compare(scores, scores).values():
        assert (one.value, one.p, one.differs) == (0, 1, False)


def test_random_exchanges_agree_with_all_exchanges(monkeypatch):
    pair = drawn(3, 12, gain=0.05)
    every = compare(*pair)
    monkeypatch.setattr("utils.metrics.confidence.ALL_EXCHANGES", 1)
    some = compare(*pair, draws=4000)
    for name, one in every.items():
        assert some[name].p == pytest.approx(one.p, abs=0.03)


@pytest.mark.parametrize("images, noise", [(2, "collapses"), (5, "normal"), (8, "collapses"),
                                           (20, "one in ten fails")])
def test_models_that_are_equally_good_seldom_differ(images, noise):
    """At most 5 % of the comparisons: 80 of them have at most 9 in 99 of 100 such tests."""
    wrong = dict.fromkeys(("Mean_IoU", "mIoU_I", "mDice_I"), 0)
    for seed in range(80):
        table = compare(*drawn(1000 * images + seed, images, noise), draws=100, seed=seed)
        for name in wrong:
            wrong[name] += table[name].differs
    assert max(wrong.values()) <= (0 if images < 6 else 9)


@pytest.mark.slow       # thousands of simulated results
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("images", [6, 8, 10, 20, 50, 100])
def test_the_share_of_false_differences_is_below_6_percent(images, noise):
    tries = 1000
    wrong = dict.fromkeys(("Mean_IoU", "Mean_Dice", "mIoU_I", "mDice_I"), 0)
    for seed in range(tries):
        table = compare(*drawn(10_000 * images + seed, images, noise), draws=200, seed=seed)
        for name in wrong:
            wrong[name] += table[name].differs
    # 5 % and two and a half standard deviations of the simulation
    assert max(wrong.values()) <= tries * 0.05 + 2.5 * math.sqrt(tries * 0.05 * 0.95)


@pytest.mark.slow       # thousands of simulated results
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("images", [MIN_IMAGES, 100])
def test_intervals_contain_the_score_of_all_images_in_93_percent(images, noise):
    truth = {name: one.value for name, one in intervals(drawn(0, 100_000, noise)[0]).items()}
    tries, right = 1500, dict.fromkeys(("Mean_IoU", "Mean_Dice", "mIoU_I", "mDice_I"), 0)
    for seed in range(1, tries + 1):
        table = intervals(drawn(seed, images, noise)[0])
        for name in right:
            right[name] += table[name].low <= truth[name] <= table[name].high
    assert min(right.values()) >= 0.93 * tries - 2.5 * math.sqrt(tries * 0.93 * 0.07)


def test_results_without_images_or_with_an_id_twice_are_errors():
    a, b = drawn(0, 3)
    b.ids = ["0", "1", "1"]
    with pytest.raises(DataError, match="twice"):
        compare(a, b)
    with pytest.raises(DataError, match="no scored image"):
        compare(table_of(np.zeros((0, 3, 2), int)), a)


def test_results_with_other_classes_of_interest_or_without_counts_share_image_level_scores():
    first, second = drawn(0, 30, gain=0.1)
    usual = compare(first, second)
    for other in (dataclasses.replace(second, pixels=None),
                  dataclasses.replace(second, classes_of_interest=[0]),
                  dataclasses.replace(second, classes_of_interest=[0, 2])):
        for pair in ((first, other), (other, first)):
            table = compare(*pair)
            assert list(table) == ["mIoU_I", "mDice_I", "Pixel_Accuracy", "Binary_Accuracy"]
            for name, one in table.items():
                assert one.p == usual[name].p and abs(one.value) == abs(usual[name].value)
