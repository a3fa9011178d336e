"""Rules for dependent pixels, against all label fields and all masks of images of 3x3 pixels."""
import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.decision.test_rankdice import smooth_map
from utils.decision import dependent
from utils.decision.dependent import _factors, expected_scores, rank_dependent, smoothed
from utils.decision.rankdice import rank_dice
from utils.errors import ConfigError, NumericalError

SIDE = 3
# Every label field of 3x3 pixels, and so every mask: (512, 9) of 0 and 1.
FIELDS = np.array(list(itertools.product((0.0, 1.0), repeat=SIDE * SIDE)))
METRICS = ["dice", "iou"]


def correlation(theta, amplitude, side=SIDE):
    y, x = np.divmod(np.arange(side * side), side)
    squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    k = amplitude * np.exp(-squared / (2 * theta ** 2))
    np.fill_diagonal(k, 1)
    return k


def field(p, theta, amplitude):
    """Probabilities (512,) of all label fields, with the marginals p (9,) and the covariances of
    the rule: the Ising field of largest entropy, found by Newton's method in its 9 + 36 moments."""
    nu = np.sqrt(p * (1 - p))
    pairs = np.triu_indices(SIDE * SIDE, 1)
    features = np.concatenate((FIELDS, FIELDS[:, pairs[0]] * FIELDS[:, pairs[1]]), 1)
    second = (np.outer(nu, nu) * correlation(theta, amplitude) + np.outer(p, p))[pairs]
    wanted, strength = np.concatenate((p, second)), np.zeros(features.shape[1])
    strength[:len(p)] = np.log(p / (1 - p))

    def law(strength):
        logs = features @ strength
        weight = np.exp(logs - logs.max())
        return weight / weight.sum(), np.log(weight.sum()) + logs.max()

    for _ in range(200):
        weight, normalizer = law(strength)
        mean = weight @ features
        if np.abs(mean - wanted).max() < 1e-12:
            return weight
        hessian = (features * weight[:, None]).T @ features - np.outer(mean, mean)
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(mean)), wanted - mean)
        size, value = 1.0, normalizer - strength @ wanted
        while law(strength + size * step)[1] - (strength + size * step) @ wanted > value \
                and size > 1e-6:
            size /= 2
        strength = strength + size * step
    raise AssertionError("no field has these marginals and covariances")


def exact_scores(weight, metric):
    """The expected score (512,) of every mask."""
    hits = FIELDS @ FIELDS.T                              # (masks, fields)
    sizes = FIELDS.sum(1)
    both = sizes[:, None] + sizes
    score = 2 * hits / np.maximum(both, 1) if metric == "dice" else \
        hits / np.maximum(both - hits, 1)
    return score @ weight


def model_scores(p, metric, theta, amplitude, smooth=0.0):
    """The score (512,) of every mask by the formula of the rule, in numpy."""
    nu = np.sqrt(p * (1 - p))
    told = np.outer(nu / p, nu) * correlation(theta, amplitude)       # (i, j)
    scores = []
    for mask in FIELDS.astype(bool):
        others = np.ones(9, bool) if metric == "dice" else ~mask
        given = (p + told)[:, others].sum(1) + mask.sum() + smooth
        factor = 2 if metric == "dice" else 1
        empty = mask.sum() + p[others].sum() + smooth
        scores.append((factor * p / given)[mask].sum() + (smooth / empty if smooth else 0))
    return np.array(scores)


def index(mask):
    """The row of FIELDS of a mask (1, 1, 3, 3)."""
    return int("".join(str(int(one)) for one in mask.flatten()), 2)


def probabilities(seed, low=0.35, high=0.65):
    return np.random.default_rng(seed).uniform(low, high, 9)


def as_image(p):
    return torch.tensor(p).view(1, 1, SIDE, SIDE)


SETTINGS = [(1.0, 0.2), (2.0, 0.3), (1.5, 0.4)]


@pytest.mark.parametrize("theta, amplitude", SETTINGS)
def test_the_volume_given_one_pixel_is_that_of_all_label_fields(theta, amplitude):
    """With a mask of one pixel, Dice is 2 p / (1 + E[G | Y = 1]): the score tells the volume."""
    p = probabilities(0)
    weight = field(p, theta, amplitude)
    given = (weight[:, None] * FIELDS).T @ FIELDS.sum(1) / p
    one = torch.eye(9, dtype=torch.bool).view(9, 1, SIDE, SIDE)
    scores = expected_scores(as_image(p).expand(9, 1, SIDE, SIDE), one, "dice", 0, theta,
                             amplitude)[:, 0].numpy()
    assert 2 * p / scores - 1 == pytest.approx(given, abs=1e-9)
    outside = given - 1                              # of the mask of one pixel
    scores = expected_scores(as_image(p).expand(9, 1, SIDE, SIDE), one, "iou", 0, theta,
                             amplitude)[:, 0].numpy()
    assert p / scores - 1 == pytest.approx(outside, abs=1e-9)


@pytest.mark.parametrize("theta, amplitude", [*SETTINGS, (300.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("smooth", [0, 1])
def test_scores_of_all_masks_follow_the_formula(metric, theta, amplitude, smooth):
    p = probabilities(1, 0.02, 0.98)
    masks = torch.tensor(FIELDS).bool().view(1, 512, SIDE, SIDE)
    scores = expected_scores(as_image(p).expand(1, 512, SIDE, SIDE), masks, metric, smooth, theta,
                             amplitude)
    assert scores[0].numpy() == pytest.approx(model_scores(p, metric, theta, amplitude, smooth))


@pytest.mark.parametrize("metric, most", [("dice", 5e-4), ("iou", 0.01)])
@pytest.mark.parametrize("theta, amplitude", [SETTINGS[1], (300.0, 1.0)])
def test_the_mask_is_nearly_the_best_of_all_by_the_formula(metric, most, theta, amplitude):
    """The rule is a local search: of 9 pixels, one more is a large step."""
    for seed in range(15):
        p = probabilities(seed, 0.02, 0.98)
        scores = model_scores(p, metric, theta, amplitude)
        mask = rank_dependent(as_image(p), 0, metric, 0, True, theta, amplitude)
        assert scores[index(mask)] >= scores.max() - most


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("theta, amplitude, low", [(1.0, 0.1, 0.12), (2.0, 0.1, 0.12),
                                                   (2.0, 0.3, 0.35)])
def test_the_mask_is_nearly_the_best_of_all_under_an_enumerated_field(metric, theta, amplitude,
                                                                      low):
    lost = []
    for seed in range(8):
        p = probabilities(seed, low, 1 - low)
        scores = exact_scores(field(p, theta, amplitude), metric)
        mask = rank_dependent(as_image(p), 0, metric, 0, True, theta, amplitude)
        lost.append(scores.max() - scores[index(mask)])
    assert max(lost) < 5e-4


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("theta, amplitude", [(300.0, 1.0), (4.0, 0.7), (0.2, 1.0)])
def test_the_mask_never_scores_below_that_of_the_independent_rule(metric, smooth, theta, amplitude):
    for scale in (0.5, 2.0, 8.0):
        probs = smooth_map(1, 4, 32, 48, scale)
        expected = [expected_scores(probs, masks, metric, smooth, theta, amplitude) for masks in
                    (rank_dice(probs, smooth, metric, 0),
                     rank_dependent(probs, smooth, metric, 0, True, theta, amplitude))]
        assert (expected[1] >= expected[0] - 1e-7).all()


def test_dependence_makes_a_difference_that_the_model_likes():
    probs = smooth_map(1, 3, 64, 64, 2.0)
    one, other = rank_dice(probs), rank_dependent(probs, theta=20)
    assert not torch.equal(one, other)
    assert (expected_scores(probs, other, theta=20) - expected_scores(probs, one, theta=20)).max() \
        > 1e-4


@pytest.mark.parametrize("metric", METRICS)
def test_amplitude_0_decides_like_the_independent_rule(metric):
    probs = smooth_map(2, 5)
    same = rank_dependent(probs, metric=metric, amplitude=0.0) == rank_dice(probs, metric=metric)
    assert same.double().mean() > 0.999


@pytest.mark.parametrize("theta", [0.3, 2.0, 11.0, 40.0, 300.0, 1e6])
@pytest.mark.parametrize("shape", [(1, 1), (7, 60), (31, 24), (4, 5, 30)])
def test_smoothing_is_the_sum_over_all_pixels(theta, shape):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    places = np.stack(np.unravel_index(np.arange(x[0].numel()), shape), 1)
    squared = ((places[:, None] - places) ** 2).sum(-1)
    expected = x.flatten(1).double().numpy() @ np.exp(-squared / (2 * theta ** 2))
    for values, tolerance in ((x, 2e-6), (x.double(), 1e-7)):
        found = smoothed(values, theta).flatten(1).numpy()
        assert np.abs(found - expected).max() <= tolerance * expected.max()


def test_an_interpolated_gaussian_is_exact_to_1e_8():
    for length, theta in ((2048, 3000.0), (2048, 300.0), (512, 50.0), (700, 10.0)):
        basis, kernel = _factors(length, theta, torch.float64, torch.device("cpu"))
        places = np.arange(length)
        exact = np.exp(-(places[:, None] - places) ** 2 / (2 * theta ** 2))
        assert basis is not None and basis.shape[1] < length / 2
        assert np.abs((basis @ kernel).numpy() - exact).max() < 2e-8


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("overlap", [True, False])
def test_parts_of_several_classes_give_the_same_answer(metric, overlap, monkeypatch):
    """As on a GPU, where many classes are solved together, pruned ones too."""
    probs = smooth_map(2, 6, 32, 48)
    probs[1, 2] *= 0.4
    expected = rank_dependent(probs, metric=metric, overlap=overlap)
    monkeypatch.setattr(dependent, "on_gpu", lambda tensor: True)
    together = rank_dependent(probs, metric=metric, overlap=overlap)
    assert (together == expected).double().mean() > 0.9999


@pytest.mark.parametrize("metric", METRICS)
def test_a_pixel_of_one_mask_keeps_its_class_and_every_pixel_has_one(metric):
    probs = smooth_map(2, 6)
    masks, labels = (rank_dependent(probs, metric=metric, overlap=one) for one in (True, False))
    alone = masks.sum(1) == 1
    assert torch.equal(masks.to(torch.uint8).argmax(1)[alone], labels.long()[alone])
    assert labels.dtype == torch.uint8 and labels.shape == (2, 96, 160)
    claimed = masks.any(1)
    assert masks.gather(1, labels.long()[:, None])[:, 0][claimed].all()


def test_a_class_at_or_below_the_pruning_probability_stays_empty():
    probs = torch.tensor([[0.5, 0.4], [0.51, 0.1]]).view(1, 2, 1, 2)
    assert rank_dependent(probs).flatten(2).any(2).tolist() == [[False, True]]
    pruned = torch.tensor([[0.4, 0.3], [0.3, 0.4], [0.3, 0.3]]).view(1, 3, 1, 2)
    assert rank_dependent(pruned, overlap=False).flatten().tolist() == [0, 1]
    assert not rank_dependent(pruned).any()


def test_extreme_probabilities_give_finite_answers():
    probs = torch.tensor([0.0, 1e-38, 1.0, 1.0, 0.5, 1e-20]).view(1, 1, 2, 3)
    for metric in METRICS:
        for smooth in (0.0, 1.0):
            mask = rank_dependent(probs, smooth, metric, 0.0)
            assert mask.flatten().tolist()[2:4] == [True, True]
            assert not mask.flatten()[0]
            assert expected_scores(probs, mask, metric, smooth).isfinite().all()
    assert not rank_dependent(torch.zeros(1, 1, 4, 4), pruning=0.0).any()
    assert rank_dependent(torch.full((1, 1, 1, 1), 0.9)).all()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_probability_that_is_not_finite_is_an_error(overlap):
    for value in (float("nan"), float("inf")):
        probs = torch.full((1, 2, 5, 5), 0.6)
        probs[0, 1, 2, 2] = value
        with pytest.raises(NumericalError, match="not finite"):
            rank_dependent(probs, overlap=overlap)


@pytest.mark.parametrize("setting", [{"theta": 0}, {"theta": float("nan")}, {"theta": -1.0},
                                     {"theta": float("inf")}, {"amplitude": 1.1},
                                     {"amplitude": -0.1}, {"metric": "f1"}, {"pruning": 2}])
def test_a_wrong_setting_is_a_config_error(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        rank_dependent(torch.rand(1, 2, 2, 2), **setting)


def test_memory_does_not_grow_with_the_number_of_classes():
    """Few maps of one class at a time; the masks themselves are a quarter of the probabilities."""
    probs = smooth_map(1, 6, 64, 64)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                sizes.append(result.untyped_storage().nbytes() if result.data_ptr() !=
                             probs.data_ptr() else 0)
            return result
    with Watch():
        rank_dependent(probs)
        rank_dependent(probs, overlap=False)
    large = [size for size in sizes if size > 2 * 64 * 64 * 4 and size != probs.nbytes]
    assert not large
