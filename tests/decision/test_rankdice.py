"""RankDice against stored optima, an independent exact computation, and general properties."""
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.places import ROOT, SHARED
from utils.decision.expected_score import Objective
from utils.decision.rankdice import rank_dice
from utils.decision.rankdice_batched import first_order_growth, solve_batched
from utils.errors import ConfigError, NumericalError

ORACLES = SHARED / "rankdice"
stored = pytest.mark.skipif(not ORACLES.exists(), reason=f"{ORACLES} is not there")
METRICS_AND_SMOOTH = [("dice", 0), ("dice", 1), ("iou", 0), ("iou", 1)]


def by_row(probs, smooth, metric, pruning=0.0, solver="auto"):
    return rank_dice(probs, smooth, metric, pruning, solver=solver)


def batched(probs, smooth, metric, pruning=0.0, solver="auto"):
    """The solver for GPUs, which also runs on a CPU."""
    masks, _ = solve_batched(probs.flatten(2), Objective(metric, smooth), pruning, solver, True)
    return masks.view(probs.shape)


def as_map(values, dtype=torch.float32):
    return torch.as_tensor(np.asarray(values), dtype=dtype).view(1, 1, 1, -1)


def exact_curve(p, metric, smooth):
    """Expected score of the best mask of each size, by convolving the volumes in and outside it."""
    q = np.sort(np.asarray(p, np.float64))[::-1]
    chosen, curve = np.array([1.0]), []
    for size in range(len(q) + 1):
        left = np.array([1.0])
        for x in q[size:]:
            left = np.convolve(left, [1 - x, x])
        s, r = np.arange(len(chosen))[:, None], np.arange(len(left))[None]
        hits = (2 * s if metric == "dice" else s) + smooth
        whole = size + r + smooth + (s if metric == "dice" else 0 * s)
        score = np.divide(hits, whole, out=np.zeros(np.broadcast(hits, whole).shape),
                          where=whole > 0)
        curve.append(float(chosen @ score @ left))
        if size < len(q):
            chosen = np.convolve(chosen, [1 - q[size], q[size]])
    return np.array(curve)


def gap(mask, p, curve):
    """Best score minus the mask's score; the mask must contain the largest probabilities."""
    mask, p = mask.flatten().numpy(), np.asarray(p)
    size = int(mask.sum())
    assert size in (0, len(p)) or p[mask].min() >= p[~mask].max()
    return curve.max() - curve[size]


@stored
@pytest.mark.parametrize("metric, smooth", METRICS_AND_SMOOTH)
@pytest.mark.parametrize("solve, solver, dtype, tolerance", [
    (by_row, "auto", torch.float32, 1e-6), (by_row, "exact", torch.float64, 1e-9),
    (batched, "auto", torch.float32, 1e-6)])
def test_every_stored_case_is_solved_to_the_optimum(metric, smooth, solve, solver, dtype,
                                                    tolerance):
    data = np.load(ORACLES / "cases.npz")
    curves, offset = data[f"{metric}{smooth}"], data["curve_off"]
    for i, name in enumerate(data["name"]):
        p = data["p"][data["p_off"][i]:data["p_off"][i + 1]]
        mask = solve(as_map(p, dtype), smooth, metric, solver=solver)
        assert gap(mask, p, curves[offset[i]:offset[i + 1]]) <= tolerance, name


@stored
@pytest.mark.parametrize("metric, smooth", METRICS_AND_SMOOTH[:3])
@pytest.mark.parametrize("solve", [by_row, batched])
def test_realistic_maps_are_solved_to_the_optimum(metric, smooth, solve):
    data = np.load(ORACLES / "realistic.npz")
    masks = solve(torch.from_numpy(data["probs"]), smooth, metric, 0.5)
    size = masks.flatten(2).sum(2).numpy()
    score = np.take_along_axis(data[f"{metric}{smooth}_curve"], size[..., None], 2)[..., 0]
    kept = data["max_prob"] > 0.5
    assert (data[f"{metric}{smooth}_best"] - score)[kept].max() <= 1e-6
    assert size[~kept].max() == 0
    if (metric, smooth) == ("dice", 0):
        assert (data["rankseg_RMA_dice0"] - score)[kept].max() <= 1e-6


@stored
def test_label_maps_score_at_least_as_high_as_the_published_ones():
    data = np.load(ORACLES / "realistic.npz")
    labels = rank_dice(torch.from_numpy(data["probs"]), overlap=False)
    scores = []
    for image in (0, 2):       # softmax maps
        for c in range(3):
            if data["max_prob"][image, c] > 0.5:
                scores.append(expected_dice(data["probs"][image, c].ravel(),
                                            (labels[image] == c).numpy().ravel())
                              - data["rankseg_RMA_multiclass_dice0"][image, c])
    assert np.mean(scores) >= -1e-4


def expected_dice(q, mask):
    q, mask = q.astype(np.float64), mask.astype(np.float64)
    return Objective("dice", 0).second_order((q * mask).sum(), (q * (1 - q) * mask).sum(),
                                             mask.sum(), q.sum(), (q * (1 - q)).sum())


def test_two_pixels_have_the_score_worked_by_hand():
    """q = a, b. Mask {a}: Dice 1 if only a is true, 2/3 if both are; IoU 1 and 1/2."""
    a, b = 0.9, 0.4
    _, info = rank_dice(as_map([b, a], torch.float64), solver="exact", return_info=True)
    assert info.expected.item() == pytest.approx(max(a * (1 - b) + a * b * 2 / 3,
                                                     a * b + (a + b - 2 * a * b) * 2 / 3))
    _, info = rank_dice(as_map([b, a], torch.float64), metric="iou", solver="exact",
                        return_info=True)
    assert info.expected.item() == pytest.approx(max(a * (1 - b) + a * b / 2, (a + b) / 2))


def probabilities():
    """Up to 25 probabilities: arbitrary, tied, tiny or certain."""
    return st.lists(st.one_of(st.floats(0, 1, width=32), st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
                              st.floats(0, 0.0625, width=32)), min_size=1, max_size=25)


SMOOTH = st.sampled_from([0, 0.1, 1, 10])
METRIC = st.sampled_from(["dice", "iou"])


@pytest.mark.parametrize("solve, solver, dtype, tolerance", [
    (by_row, "auto", torch.float32, 1e-6), (by_row, "exact", torch.float64, 1e-9),
    (batched, "auto", torch.float32, 1e-6)])
@given(p=probabilities(), metric=METRIC, smooth=SMOOTH)
@settings(max_examples=60, deadline=None)
def test_small_problems_are_solved_exactly(solve, solver, dtype, tolerance, p, metric, smooth):
    mask = solve(as_map(p, dtype), smooth, metric, solver=solver)
    assert gap(mask, p, exact_curve(p, metric, smooth)) <= tolerance


@given(p=probabilities(), metric=METRIC, smooth=SMOOTH, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_pixels_does_not_matter(p, metric, smooth, seed):
    order = np.random.default_rng(seed).permutation(len(p))
    mask = by_row(as_map(p), smooth, metric).flatten()
    assert torch.equal(by_row(as_map(np.array(p)[order]), smooth, metric).flatten(), mask[order])


@given(p=probabilities(), metric=METRIC, smooth=SMOOTH)
@settings(max_examples=30, deadline=None)
def test_a_mask_contains_the_most_probable_pixels(p, metric, smooth):
    mask, p = by_row(as_map(p), smooth, metric).flatten().numpy(), np.array(p)
    assert mask.all() or not mask.any() or p[mask].min() > p[~mask].max()


@given(p=probabilities(), metric=METRIC)
@settings(max_examples=30, deadline=None)
def test_pixels_above_one_half_are_always_in_the_mask(p, metric):
    mask = by_row(as_map(p), 0, metric).flatten().numpy()
    assert mask[np.float32(p) > 0.5].all()


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), METRIC, SMOOTH)
@settings(max_examples=30, deadline=None)
def test_certain_probabilities_give_the_labels(p, metric, smooth):
    assert by_row(as_map(p), smooth, metric).flatten().tolist() == [bool(v) for v in p]


@pytest.mark.parametrize("metric, smooth", METRICS_AND_SMOOTH)
@pytest.mark.parametrize("solver", ["auto", "exact", "rma"])
def test_the_mask_of_probabilities_0_is_empty(metric, smooth, solver):
    masks, info = rank_dice(torch.zeros(1, 2, 3, 4), smooth, metric, 0.0, solver=solver,
                            return_info=True)
    assert not masks.any()
    assert torch.isfinite(info.expected).all()


@pytest.mark.parametrize("solve", [by_row, batched])
def test_one_pixel_is_in_the_mask_if_its_probability_is_large_enough(solve):
    assert solve(as_map([0.01]), 0, "dice").item()
    # Empty mask: E[1 / (1 + Y)] = 1 - q / 2. Full mask: E[(2Y + 1) / (2 + Y)] = 1/2 + q/2. Equal
    # at q = 1/2.
    assert not solve(as_map([0.49]), 1, "dice").item()
    assert solve(as_map([0.51]), 1, "dice").item()


def smooth_map(images=2, classes=5, height=96, width=160, scale=4.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, classes, height // 16, width // 16, generator=g) * scale
    return F.interpolate(coarse, size=(height, width), mode="bicubic").softmax(1)


def sorted_first_order(probs, pruning=0.5):
    """The published first-order solver: a full sort of every class."""
    rows = probs.flatten(2).double()
    ranked, order = rows.sort(dim=2, descending=True)
    size = torch.arange(1, rows.shape[2] + 1)
    best = (2 * ranked.cumsum(2) / (size + rows.sum(2, keepdim=True) + 1)).max(2, True).indices
    chosen = (size - 1 <= best) & (rows.amax(2, keepdim=True) > pruning)
    return torch.zeros_like(chosen).scatter_(2, order, chosen).view(probs.shape)


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("solve", [by_row, batched])
def test_large_maps_are_never_worse_than_the_published_solver(solve, scale):
    probs = smooth_map(scale=scale)
    masks, published = solve(probs, 0, "dice", 0.5), sorted_first_order(probs)
    for row, mask, other in zip(probs.flatten(0, 1), masks.flatten(0, 1), published.flatten(0, 1),
                                strict=True):
        q = row.numpy().ravel()
        lost = expected_dice(q, other.numpy().ravel()) - expected_dice(q, mask.numpy().ravel())
        assert lost <= 1e-6


def test_a_large_class_of_small_probabilities_is_solved():
    p = torch.full((1, 1, 128, 128), 0.001)
    p[..., :4] = 0.02
    for solve in (by_row, batched):
        lost = (expected_dice(p.numpy().ravel(), sorted_first_order(p, 0).numpy().ravel())
                - expected_dice(p.numpy().ravel(), solve(p, 0, "dice").numpy().ravel()))
        assert lost <= 1e-6


@pytest.mark.parametrize("overlap", [True, False])
def test_a_batch_equals_its_images_one_by_one(overlap):
    probs = smooth_map(3)
    whole = rank_dice(probs, overlap=overlap)
    assert torch.equal(whole, torch.cat([rank_dice(p[None], overlap=overlap) for p in probs]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("overlap", [True, False])
def test_half_precision_gives_the_masks_of_float32(dtype, overlap):
    probs = smooth_map(1).to(dtype)
    expected = rank_dice(probs.float(), overlap=overlap)
    assert torch.equal(rank_dice(probs, overlap=overlap), expected)


def test_the_memory_layout_does_not_matter():
    probs = smooth_map()
    other = probs.to(memory_format=torch.channels_last)
    assert torch.equal(rank_dice(other), rank_dice(probs))
    assert torch.equal(rank_dice(other, overlap=False), rank_dice(probs, overlap=False))


def test_the_input_is_unchanged():
    probs = smooth_map()
    before = probs.clone()
    rank_dice(probs)
    rank_dice(probs, overlap=False)
    assert torch.equal(probs, before)


def test_several_threads_give_the_same_masks():
    probs, threads = smooth_map(2, 20), torch.get_num_threads()
    one = [rank_dice(probs), rank_dice(probs, overlap=False)]
    try:
        torch.set_num_threads(3)
        assert torch.equal(rank_dice(probs), one[0])
        assert torch.equal(rank_dice(probs, overlap=False), one[1])
    finally:
        torch.set_num_threads(threads)


def test_a_class_at_or_below_the_pruning_probability_stays_empty():
    probs = torch.tensor([[0.5, 0.4], [0.51, 0.1]]).view(1, 2, 1, 2)
    masks, info = rank_dice(probs, return_info=True)
    assert masks.flatten(2).any(2).tolist() == [[False, True]]
    assert info.thresholds[0, 0] == 1
    assert info.expected[0, 0] == 0


@pytest.mark.parametrize("smooth", [0, 1])
def test_thresholds_and_scores_describe_the_masks(smooth):
    probs = smooth_map(2, 5, 48, 64)
    masks, info = rank_dice(probs, smooth, return_info=True)
    assert torch.equal(masks, probs > info.thresholds[..., None, None])
    for i in range(2):
        for c in range(5):
            q, mask = probs[i, c].double(), masks[i, c].double()
            score = Objective("dice", smooth).second_order(
                (q * mask).sum(), (q * (1 - q) * mask).sum(), mask.sum(), q.sum(),
                (q * (1 - q)).sum())
            assert info.expected[i, c] == pytest.approx(score.item(), abs=1e-4)


def test_the_empty_mask_of_a_pruned_class_has_its_exact_score():
    p = np.array([0.3, 0.2, 0.45, 0.0])
    _, info = rank_dice(as_map(p, torch.float64), smooth=1.0, return_info=True)
    assert info.expected.item() == pytest.approx(exact_curve(p, "dice", 1)[0], abs=1e-6)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_labels_follow_the_largest_gain(metric):
    """Two classes of equal size have equal thresholds, so the more probable one wins."""
    probs = torch.tensor([[0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.7, 0.9]]).view(1, 2, 1, 4)
    assert rank_dice(probs, metric=metric, overlap=False).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_labels_of_both_solvers_agree(metric):
    probs = smooth_map(2, 5)
    labels, _ = solve_batched(probs.flatten(2), Objective(metric, 0), 0.5, "auto", False)
    expected = rank_dice(probs, metric=metric, overlap=False).flatten(1)
    assert (labels == expected).double().mean() > 0.9999


def test_a_pixel_in_some_mask_gets_the_label_of_one_of_its_masks():
    probs = smooth_map(2, 6)
    masks, labels = rank_dice(probs), rank_dice(probs, overlap=False)
    in_some_mask = masks.any(1)
    in_mask_of_label = masks.gather(1, labels.long()[:, None])[:, 0]
    assert (in_mask_of_label == in_some_mask).double().mean() > 0.9999


def test_an_image_whose_classes_are_all_pruned_still_has_labels():
    probs = torch.tensor([[0.4, 0.3], [0.3, 0.4], [0.3, 0.3]]).view(1, 3, 1, 2)
    assert rank_dice(probs, overlap=False).flatten().tolist() == [0, 1]
    labels, _ = solve_batched(probs.flatten(2), Objective("dice", 0), 0.5, "auto", False)
    assert labels.flatten().tolist() == [0, 1]


def test_an_image_whose_classes_are_all_pruned_has_thresholds_1_and_scores_0():
    probs = torch.tensor([[0.4, 0.3], [0.3, 0.4], [0.3, 0.3]]).view(1, 3, 1, 2)
    _, info = rank_dice(probs, overlap=False, return_info=True)
    _, batched = solve_batched(probs.flatten(2), Objective("dice", 0), 0.5, "auto", False)
    assert torch.equal(torch.stack((info.thresholds, info.expected)), batched)
    assert (info.thresholds == 1).all() and (info.expected == 0).all()


def test_many_classes_get_int16_labels():
    assert rank_dice(torch.rand(1, 256, 2, 2), overlap=False).dtype == torch.int16


@pytest.mark.parametrize("setting", [{"metric": "f1"}, {"solver": "sort"}, {"smooth": -1},
                                     {"smooth": float("nan")}, {"pruning": 1.5}])
def test_a_wrong_setting_is_a_config_error(setting):
    with pytest.raises(ConfigError):
        rank_dice(torch.rand(1, 2, 2, 2), **setting)


@pytest.mark.parametrize("metric, smooth", METRICS_AND_SMOOTH)
@pytest.mark.parametrize("dtype, share", [(torch.float64, 0.9999), (torch.float32, 0.999)])
def test_the_growth_of_the_first_order_score_gives_labels_and_masks(metric, smooth, dtype, share):
    """What tools.export puts into a graph."""
    probs = smooth_map(2, 6).to(dtype)
    probs[1, 2] *= 0.3                                      # a pruned class
    growth = first_order_growth(probs, Objective(metric, smooth), 0.5)
    labels, masks = (rank_dice(probs, smooth, metric, overlap=one, solver="rma")
                     for one in (False, True))
    assert (growth.argmax(1) == labels).double().mean() >= share
    assert ((growth > 0) == masks).double().mean() >= share


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_the_growth_of_empty_and_pruned_classes_is_finite_or_minus_infinity(metric):
    probs = torch.tensor([[0.4, 0.0], [0.3, 0.0]]).view(1, 2, 1, 2)
    growth = first_order_growth(probs, Objective(metric, 0), 0.5)       # all classes are pruned
    assert growth.isfinite().all() and growth.argmax(1)[0, 0, 0] == 0
    probs = torch.tensor([[0.9, 0.8], [0.0, 0.0]]).view(1, 2, 1, 2)
    growth = first_order_growth(probs, Objective(metric, 0), 0.0)
    assert not growth.isnan().any() and growth.argmax(1).flatten().tolist() == [0, 0]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_batched_volume_equals_the_image(overlap):
    """On a GPU; test_rules.py compares volumes on the CPU."""
    probs = smooth_map(2, 3, 32, 48)
    image, volume = (solve_batched(one.flatten(2), Objective("dice", 0), 0.5, "auto", overlap)[0]
                     for one in (probs, probs.view(2, 3, 4, 8, 48)))
    assert torch.equal(image, volume)


def test_a_tensor_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"N, C, H, W"):
        rank_dice(torch.rand(2, 3, 4))


MEMORY = """
import sys, torch
from utils.machine.memory import peak_memory
from utils.decision.rankdice import rank_dice
torch.set_num_threads(1)
c, h, w = map(int, sys.argv[1:4])
rank_dice(torch.rand(1, 2, 8, 8))
probs = torch.empty(1, c, h, w).uniform_()
probs /= probs.sum(1, keepdim=True).mul_(0.2)
probs.clamp_(max=1)
before = peak_memory()
rank_dice(probs)
rank_dice(probs, overlap=False)
print((peak_memory() - before) / (probs.numel() * 4))
"""


@pytest.mark.slow      # a separate process, with maps of 300 MB
@pytest.mark.parametrize("shape", [(19, 1024, 2048), (150, 683, 683)])
def test_memory_stays_within_twice_the_probabilities(shape):
    result = subprocess.run([sys.executable, "-c", MEMORY, *map(str, shape)], cwd=ROOT, text=True,
                            capture_output=True, check=True)
    assert float(result.stdout) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("solver", ["auto", "exact", "rma"])
@pytest.mark.parametrize("pixels", [16, 10_000])
def test_a_probability_that_is_not_finite_is_an_error_and_no_label(value, overlap, solver, pixels):
    probs = torch.full((1, 2, 1, pixels), 0.4)
    probs[0, 1, 0, 7] = value
    with pytest.raises(NumericalError, match="not finite"):
        rank_dice(probs, overlap=overlap, solver=solver)


def test_batched_labels_of_nan_are_classes():
    probs = torch.full((2, 3, 50), float("nan"))
    labels, _ = solve_batched(probs, Objective("dice", 0.0), 0.5, "auto", False)
    assert labels.shape == (2, 50) and labels.max() < 3


def test_the_truncated_mean_counts_the_likely_pixels_instead_of_summing():
    torch.manual_seed(0)
    probs = (torch.randn(1, 1, 40, 50) * 1.5 - 0.5).sigmoid()
    mask, info = rank_dice(probs, solver="published_truncated", return_info=True)
    q = probs.flatten().double().sort(descending=True).values
    volume, sizes = (q >= 0.5).sum(), torch.arange(1, len(q) + 1)
    scores = 2 * q.cumsum(0) / (sizes + volume)
    assert mask.sum() == scores.argmax() + 1
    assert info.expected.item() == pytest.approx(scores.max().item(), rel=1e-4)
    assert mask.sum() != rank_dice(probs).sum()


def test_the_truncated_mean_is_refused_for_iou():
    with pytest.raises(ConfigError, match='"published_truncated" was published for Dice only'):
        rank_dice(torch.rand(1, 1, 2, 2), metric="iou", solver="published_truncated")
