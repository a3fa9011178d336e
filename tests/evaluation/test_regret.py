"""The parts of a lost Dice score: what they add up to, and each against a search."""
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression

from utils.decision.dependent import rank_dependent
from utils.decision.expected_score import expected_dice
from utils.decision.posterior import Posterior
from utils.decision.rankdice import rank_dice
from utils.evaluation.regret import PARTS, Regret, best_prefix, values_of
from utils.metrics import ImageMetrics


def case(images=3, classes=4, side=24, seed=0):
    """Logits of smooth regions, of one class more, and labels with an ignored row."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(images, classes, side // 4, side // 4, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    drawn = (2 * logits).softmax(1).movedim(1, -1).reshape(-1, classes)
    labels = torch.multinomial(drawn, 1, generator=generator).view(images, side, side)
    labels[:, 0] = 255
    labels[0][labels[0] == 1] = 255         # a class that image 0 does not have
    never = torch.full_like(logits[:, :1], -20)
    return torch.cat((logits, never), 1), labels


def softmax(logits):
    return logits.softmax(1)


def judged(logits, labels, batch=2, rules=("max", "T"), theta=300.0, classes_of_interest=None):
    regret = Regret(Posterior(), logits.shape[1], classes_of_interest=classes_of_interest,
                    theta=theta)
    decide = {"max": lambda x: x.argmax(1), "T": lambda x: softmax(x) > 0.5,
              "rankdice": lambda x: rank_dice(softmax(x)),
              "rankdice_dep": lambda x: rank_dependent(softmax(x), theta=5)}
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        regret.open(logits[part], labels[part], range(len(logits))[part])
        for rule in rules:
            regret.add(rule, decide[rule](logits[part]))
    return regret.compute(rules)


@pytest.mark.parametrize("rule", ["max", "T", "rankdice", "rankdice_dep"])
@pytest.mark.parametrize("interest", ["all", [1, 3]])
def test_the_parts_add_up_to_what_the_dice_lacks_and_the_dice_is_that_of_the_score(rule, interest):
    logits, labels = case()
    found = judged(logits, labels, rules=[rule], classes_of_interest=interest, theta=5)[rule]
    metric = ImageMetrics(5, classes_of_interest=interest)
    decided = {"max": logits.argmax(1), "T": softmax(logits) > 0.5,
               "rankdice": rank_dice(softmax(logits)),
               "rankdice_dep": rank_dependent(softmax(logits), theta=5)}[rule]
    metric.update(decided, labels)
    scores = metric.compute()
    assert found["Dice"] == scores["Mean_Dice"] and found["images"] == scores["Images"]
    assert sum(values_of(found).values()) == pytest.approx(1 - found["Dice"], abs=1e-12)
    *classes, never = found["classes"]
    assert never["images"] == 0 and math.isnan(never["Dice"])
    for one, expected in zip(classes, scores["Class_Dice"], strict=False):
        assert one["Dice"] == expected
        assert sum(values_of(one).values()) == pytest.approx(1 - expected, abs=1e-12)


def test_the_solver_loses_what_rankdice_would_gain_and_independence_what_the_dependent_rule_would():
    logits, labels = case()
    found = judged(logits, labels, rules=("max", "rankdice"), theta=5)
    metric = {name: ImageMetrics(5) for name in ("rankdice", "rankdice_dep")}
    metric["rankdice"].update(rank_dice(softmax(logits)), labels)
    metric["rankdice_dep"].update(rank_dependent(softmax(logits), theta=5), labels)
    of = {name: one.compute()["Mean_Dice"] for name, one in metric.items()}
    # All rules find the same classes here, so the same pairs count.
    assert of["rankdice"] - found["max"]["Dice"] == pytest.approx(found["max"]["solver"]["value"])
    for rule in found:
        assert found[rule]["independence"]["value"] == pytest.approx(
            of["rankdice_dep"] - of["rankdice"])
    assert found["rankdice"]["solver"]["value"] == found["rankdice"]["promised"] == 0
    assert found["max"]["promised"] > 0


def test_of_a_rule_for_dependent_pixels_nothing_is_lost_to_independence():
    found = judged(*case(), rules=["rankdice_dep"], theta=5)["rankdice_dep"]
    assert found["independence"]["value"] == found["solver"]["value"] == 0


@pytest.mark.parametrize("levels", [5, 1000])
def test_the_best_prefix_is_the_best_of_all_thresholds_and_of_the_recalibrated_rule(levels):
    generator = np.random.default_rng(levels)
    p = generator.integers(0, levels + 1, 400) / levels
    truth = generator.random(400) < 0.8 * p ** 2
    found = best_prefix(p, truth)
    every = [2 * (truth & (p >= t)).sum() / ((p >= t).sum() + truth.sum()) for t in np.unique(p)]
    assert found == pytest.approx(max(every), abs=1e-15)
    # Pixels of equal probability get equal ones: regression on the levels, weighted by pixels.
    level, place, count = np.unique(p, return_inverse=True, return_counts=True)
    shares = np.bincount(place, truth) / count
    right = isotonic_regression(shares, weights=count).x[place]
    expected = [2 * right[right >= t].sum() / ((right >= t).sum() + right.sum())
                for t in np.unique(right)]
    assert max(expected) == pytest.approx(found, abs=1e-12)
    mask = right >= np.unique(right)[int(np.argmax(expected))]
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) == pytest.approx(found, abs=1e-12)


def test_a_class_that_is_not_there_is_a_fault_of_calibration():
    logits = torch.full((1, 2, 4, 4), -4.0)
    logits[0, 0, :, :2], logits[0, 1, :, 2:] = 4, 4
    found = judged(logits, torch.zeros(1, 4, 4, dtype=torch.uint8), rules=["max"])["max"]
    assert found["classes"][1]["Dice"] == 0 and found["classes"][1]["calibration"]["value"] == 1
    assert found["classes"][1]["network"]["value"] == 0
    assert found["classes"][0]["Dice"] == pytest.approx(2 / 3)


def test_a_class_without_a_mask_and_without_a_label_does_not_count():
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 0] = 9
    found = judged(logits, torch.zeros(1, 4, 4, dtype=torch.int64), rules=["T"])["T"]
    assert found["classes"][1]["images"] == 0 and math.isnan(found["classes"][1]["Dice"])
    assert values_of(found["classes"][1]) == {}
    assert found["Dice"] == 1 and all(found[part]["value"] == 0 for part in PARTS)


def test_any_batches_give_the_same_numbers_and_60_images_an_interval():
    logits, labels = case(images=60, side=8)
    one, other = judged(logits, labels, 1), judged(logits, labels, 7)
    assert str(one) == str(other)
    solver = one["max"]["solver"]
    assert solver["low"] < solver["value"] < solver["high"]
    assert math.isnan(judged(logits[:59], labels[:59], 59)["max"]["solver"]["low"])


def test_a_process_without_an_image_has_no_score():
    found = Regret(Posterior(), 3).compute(["max"])["max"]
    assert found["images"] == 0 and math.isnan(found["Dice"]) and len(found["classes"]) == 3
    assert values_of(found) == {}


def brute_force(p, mask):
    total = 0.0
    for label in itertools.product((0, 1), repeat=len(p)):
        label = np.array(label)
        chance = np.prod(np.where(label, p, 1 - p))
        total += chance * 2 * (label & mask).sum() / max(label.sum() + mask.sum(), 1)
    return total


@pytest.mark.parametrize("faint", [False, True])
def test_the_expected_dice_of_any_mask_is_that_of_all_labels(faint):
    generator = np.random.default_rng(3)
    for _ in range(5):
        p = generator.random(9)
        if faint:
            p[:5] *= 1 / 200
        mask = generator.random(9) < 0.5
        assert expected_dice(p, mask) == pytest.approx(brute_force(p, mask), abs=1e-7)
    assert expected_dice(p, np.zeros(9, bool)) == 0


@pytest.mark.parametrize("scale", [1.0, 2.5, 6.0])
def test_auto_promises_as_much_as_the_exact_solver(scale):
    """Volumes in each of its three ranges: the solver "auto" may stand for the exact rule."""
    generator = torch.Generator().manual_seed(1)
    coarse = scale * torch.randn(1, 4, 9, 9, generator=generator)
    coarse[:, 1] -= 5
    probs = torch.nn.functional.interpolate(coarse, (90, 90), mode="bicubic").softmax(1)
    masks = [rank_dice(probs, pruning=0.0, solver=solver).numpy() for solver in ("auto", "exact")]
    for row, auto, exact in zip(probs[0].flatten(1).numpy(), *(m[0].reshape(4, -1) for m in masks),
                                strict=True):
        assert expected_dice(row, auto) == pytest.approx(expected_dice(row, exact), abs=1e-6)
