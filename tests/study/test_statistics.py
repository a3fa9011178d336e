"""utils/study/statistics.py: what differences over seeds and data sets are worth."""
import math
from typing import Any

import numpy as np
import pytest

from utils.metrics.confidence import compare, compare_runs
from utils.metrics.image_scores import ImageScores
from utils.study.statistics import (
    holm,
    over_seeds,
    pooled_sd,
    rank_rows,
    seeds_needed,
)

SIMULATIONS = 1000


def seeds(values) -> dict[int | None, list[float]]:
    return {seed: [value] for seed, value in enumerate(values)}


def test_a_paired_difference_is_that_of_scipy():
    from scipy.stats import ttest_rel
    first, second = [0.50, 0.52, 0.49, 0.53], [0.53, 0.53, 0.54, 0.55]
    one = over_seeds(seeds(first), seeds(second))
    known: Any = ttest_rel(second, first)
    bounds = known.confidence_interval(0.95)
    assert one.p == pytest.approx(known.pvalue)
    assert (one.low, one.high) == pytest.approx((bounds.low, bounds.high))
    assert one.value == pytest.approx(np.mean(second) - np.mean(first)) and one.paired


def test_without_common_seeds_the_difference_is_that_of_welch():
    from scipy.stats import ttest_ind
    first, second = [0.50, 0.52, 0.49], [0.53, 0.58, 0.54, 0.55]
    one = over_seeds({None: first}, {None: second})
    known: Any = ttest_ind(second, first, equal_var=False)
    assert one.p == pytest.approx(known.pvalue) and not one.paired
    assert one.low == pytest.approx(known.confidence_interval(0.95).low)


def test_only_common_seeds_are_paired():
    one = over_seeds({0: [0.5], 1: [0.6], 2: [0.9]}, {1: [0.7], 2: [1.0], 3: [0.0]})
    assert one.value == pytest.approx(0.1) and one.seeds == 2


def test_one_seed_gives_a_difference_without_an_interval():
    one = over_seeds(seeds([0.5]), seeds([0.6]))
    assert one.value == pytest.approx(0.1)
    assert math.isnan(one.low) and math.isnan(one.p)


def test_holm_is_the_textbook_example():
    # 0.005 * 4, 0.011 * 3, then max(0.02 * 2, before), 0.04 * 1 raised to the one before
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([math.nan, 0.01])[1] == 0.01 and math.isnan(holm([math.nan, 0.01])[0])


def test_the_needed_seeds_are_those_of_the_power_tables():
    # A paired t test with effect 1, two-sided 0.05, needs 10 pairs for 80 % (Cohen, 1988).
    assert seeds_needed(0.01, 0.01) == 10
    assert seeds_needed(0.01, 0.005) == 34      # effect 0.5
    assert seeds_needed(1.0, 0.001) is None


def test_the_pooled_sd_weighs_by_degrees_of_freedom():
    one, two = over_seeds(seeds([0, 0]), seeds([1, 3])), over_seeds(seeds([0] * 3), seeds([0] * 3))
    assert pooled_sd([one, two]) == pytest.approx(math.sqrt(2 * 1 / 3))


def test_ranks_of_equal_scores_are_shared_and_a_constant_order_is_significant():
    ranks = rank_rows({f"d{i}": {"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.1} for i in range(6)})
    assert ranks is not None
    assert ranks.mean == [1, 2.5, 2.5, 4] and ranks.p < 0.001
    # Nemenyi: q 2.569 of four rows (Demsar, table 5), times sqrt(4 * 5 / (6 * 6)).
    assert ranks.critical == pytest.approx(2.569 * math.sqrt(20 / 36), abs=2e-3)


def test_one_data_set_is_not_ranked():
    assert rank_rows({"d": {"a": 1.0, "b": 0.5}}) is None


def images_of(generator, count, difficulty, better=0.0, classes=3):
    """Image scores of one run: the images are as difficult for all runs."""
    labeled = np.full((count, classes), 400)
    share = np.clip(difficulty[:, None] + better
                    + 0.05 * generator.standard_normal((count, classes)), 0.01, 0.99)
    hits = (labeled * share).astype(np.int64)
    predicted = labeled + (20 * generator.random((count, classes))).astype(np.int64)
    image = np.full((count, 4), np.nan)
    image[:, 0] = (hits / (predicted + labeled - hits)).mean(1)
    pixels = np.stack([hits, predicted, labeled], 1)
    return ImageScores([f"i{i}" for i in range(count)], image, pixels, list(range(classes)),
                       [f"c{k}" for k in range(classes)])


def test_the_difference_of_one_pair_of_runs_is_that_of_compare():
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(0.4, 0.9, 30)
    a, b = (images_of(generator, 30, difficulty, better) for better in (0, 0.02))
    assert compare_runs([a], [b]) == compare(a, b)


def test_runs_of_a_group_count_with_the_mean_of_their_scores():
    generator = np.random.default_rng(1)
    difficulty = generator.uniform(0.4, 0.9, 40)
    a, b, c, d = (images_of(generator, 40, difficulty) for _ in range(4))
    both = compare_runs([a, b], [c, d])["Mean_IoU"]
    single = [compare(one, two)["Mean_IoU"].value for one, two in ((a, c), (b, d))]
    assert both.value == pytest.approx(np.mean(single))


@pytest.mark.slow
def test_adjusted_p_over_seeds_are_uniform_or_larger_without_a_difference():
    generator, smallest, single = np.random.default_rng(2), [], []
    for _ in range(SIMULATIONS):
        runs = 0.7 + 0.005 * generator.standard_normal((5, 3))
        found = [over_seeds(seeds(runs[0]), seeds(row)).p for row in runs[1:]]
        smallest.append(min(holm(found)))
        single.append(found[0])
    for share in (0.01, 0.05, 0.1, 0.2, 0.5):
        room = 3 * math.sqrt(share * (1 - share) / SIMULATIONS)
        assert np.mean(np.array(smallest) <= share) <= share + room
        assert np.mean(np.array(single) <= share) == pytest.approx(share, abs=room)


@pytest.mark.slow
def test_the_interval_over_seeds_covers_a_known_difference():
    generator, covered = np.random.default_rng(3), 0
    for _ in range(SIMULATIONS):
        sample = 0.01 * generator.standard_normal(4)        # the same samples under one seed
        first = 0.7 + sample + 0.004 * generator.standard_normal(4)
        second = 0.712 + sample + 0.004 * generator.standard_normal(4)
        one = over_seeds(seeds(first), seeds(second))
        covered += one.low <= 0.012 <= one.high
    assert covered / SIMULATIONS == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow      # a thousand comparisons of 3 + 3 runs on 60 images
def test_p_over_images_are_uniform_or_larger_and_intervals_cover_a_known_difference():
    generator, smallest, covered = np.random.default_rng(4), [], 0
    for number in range(SIMULATIONS):
        difficulty = generator.uniform(0.4, 0.85, 60)
        base = [images_of(generator, 60, difficulty) for _ in range(2)]
        others = [[images_of(generator, 60, difficulty) for _ in range(2)] for _ in range(2)]
        found = [compare_runs(base, other, draws=200, seed=number)["mIoU_I"] for other in others]
        smallest.append(min(holm([one.p for one in found])))
        covered += found[0].low <= 0 <= found[0].high       # the true difference is 0
    for share in (0.05, 0.1, 0.2, 0.5):
        room = 3 * math.sqrt(share * (1 - share) / SIMULATIONS)
        assert np.mean(np.array(smallest) <= share) <= share + room
    assert covered / SIMULATIONS == pytest.approx(0.95, abs=0.02)
