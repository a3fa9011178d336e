"""The average precision of instances: every rule on a map small enough to count by hand."""
import math

import numpy as np
import pytest

from utils.metrics.instance_precision import (
    INSTANCE_CLASSES,
    THRESHOLDS,
    InstanceTruth,
    area_under_curve,
    average_precisions,
)

CAR, PERSON, ROAD = 26, 24, 7


def image(*parts):
    """Instance ids (1, N) of (id, number of pixels) from left to right."""
    return np.concatenate([np.full(count, value) for value, count in parts])[None]


def mask(width, *ranges):
    found = np.zeros((1, width), bool)
    for first, last in ranges:
        found[0, first:last] = True
    return found


def precisions(truth, *predictions):
    """{class: AP at each threshold} of one image; predictions: (mask, label id, score)."""
    one = InstanceTruth(truth)
    for prediction in predictions:
        one.add(*prediction)
    return average_precisions([one.counts()])


def test_the_classes_and_thresholds_are_the_official_ones():
    assert list(INSTANCE_CLASSES) == ["person", "rider", "car", "truck", "bus", "train",
                                      "motorcycle", "bicycle"]
    assert THRESHOLDS == pytest.approx([0.5 + 0.05 * i for i in range(10)])


def test_a_perfect_mask_has_precision_1_and_a_class_without_truth_has_none():
    table = precisions(image((CAR * 1000, 200), (ROAD, 100)), (mask(300, (0, 200)), CAR, 0.3))
    assert table["car"] == [1.0] * 10 and all(map(math.isnan, table["bus"]))


def test_a_mask_counts_at_the_thresholds_below_its_iou():
    """150 of 200 pixels: IoU 0.75, which is not above 0.75."""
    table = precisions(image((CAR * 1000, 200), (ROAD, 100)), (mask(300, (0, 150)), CAR, 0.3))
    assert table["car"] == [1.0] * 5 + [0.0] * 5


def test_the_area_joins_the_points_of_precision_over_recall_by_lines():
    """Scores 0.9 right, 0.8 wrong, 0.7 right of 4 wanted: points (0, 1) (1/4, 1) (1/4, 1/2)
    (2/4, 2/3)."""
    area = area_under_curve(np.array([0.7, 0.9]), np.array([0.8]), 4)
    assert area == pytest.approx(1 / 4 + 1 / 4 * (1 / 2 + 2 / 3) / 2)
    # Predictions of one score enter together: the only point is (2/4, 2/3).
    assert area_under_curve(np.array([0.5, 0.5]), np.array([0.5]), 4) == pytest.approx(
        2 / 4 * (1 + 2 / 3) / 2)
    assert area_under_curve(np.array([]), np.array([0.4]), 4) == 0


def test_the_better_of_two_masks_of_one_instance_counts_and_the_other_is_false():
    truth = image((CAR * 1000, 200), (ROAD, 100))
    exact, shifted = mask(300, (0, 200)), mask(300, (0, 190))
    table = precisions(truth, (exact, CAR, 0.3), (shifted, CAR, 0.8))
    # IoU 1 and 0.95. Up to 0.9 both find it: right at 0.8, false at 0.3, whose recall is the same.
    assert table["car"][:9] == [1.0] * 9
    # At 0.95 only the exact one does; the other is false before it: (0, 1) (0, 0) (1, 1/2).
    assert table["car"][9] == pytest.approx((0 + 1 / 2) / 2)


def test_a_missed_instance_lowers_the_recall_and_a_false_mask_the_precision():
    truth = image((CAR * 1000, 200), (CAR * 1000 + 1, 200), (ROAD, 200))
    found, false = (mask(600, (0, 200)), CAR, 0.5), (mask(600, (400, 600)), CAR, 0.9)
    assert precisions(truth, found)["car"] == [0.5] * 10
    # Points (0, 1), (0, 0), (1/2, 1/2).
    assert precisions(truth, found, false)["car"] == [pytest.approx(1 / 2 * (0 + 1 / 2) / 2)] * 10


def test_small_instances_and_groups_are_not_wanted_and_masks_on_them_are_not_false():
    truth = image((CAR * 1000, 99), (CAR, 300), (CAR * 1000 + 1, 100))
    assert precisions(truth)["car"] == [0.0] * 10
    wanted = (mask(499, (399, 499)), CAR, 0.5)
    on_small, on_group = (mask(499, (0, 99)), CAR, 0.9), (mask(499, (99, 399)), CAR, 0.9)
    assert precisions(truth, wanted, on_small, on_group)["car"] == [1.0] * 10
    assert all(map(math.isnan, precisions(image((CAR, 300)), on_group_of(300))["car"]))


def on_group_of(width):
    return mask(width, (0, width)), CAR, 0.5


def test_a_mask_on_void_or_a_group_is_false_only_below_the_threshold():
    """60 % of the false mask lie on void: it is ignored at 0.5 and 0.55, and false from 0.6 on."""
    truth = image((CAR * 1000, 200), (0, 60), (ROAD, 40), (CAR, 160))
    found = mask(460, (0, 200)), CAR, 0.5
    for first, last in ((200, 300), (260, 360)):         # void and road; road and the group
        table = precisions(truth, found, (mask(460, (first, last)), CAR, 0.9))["car"]
        assert table[:2] == [1.0] * 2
        assert table[3:] == [pytest.approx((0 + 1 / 2) / 2)] * 7


def test_a_mask_of_another_class_finds_nothing():
    truth = image((CAR * 1000, 200), (PERSON * 1000, 200))
    table = precisions(truth, (mask(400, (0, 200)), PERSON, 0.9), (mask(400, (0, 0)), CAR, 0.9),
                       (mask(400, (0, 200)), ROAD, 0.9))
    assert table["car"] == [0.0] * 10 and table["person"] == [0.0] * 10


def test_images_are_scored_together_by_the_scores_of_all():
    right, wrong = InstanceTruth(image((CAR * 1000, 200))), InstanceTruth(image((CAR * 1000, 200)))
    right.add(mask(200, (0, 200)), CAR, 0.4)
    wrong.add(mask(200, (0, 50)), CAR, 0.6)
    one, other = right.counts(), wrong.counts()
    # Points (0, 1), (0, 0), (1/2, 1/2).
    assert average_precisions([one, other])["car"] == [pytest.approx(1 / 2 * 1 / 4)] * 10
    assert average_precisions([one, one])["car"] == [1.0] * 10


def reference(images, threshold):
    """The AP of cars as the rules read, one instance after the other. images: (truth, masks)."""
    wanted, marks = 0, []
    for truth, masks in images:
        ids = [i for i in np.unique(truth) if i == CAR or i // 1000 == CAR]
        size = {i: (truth == i).sum() for i in ids}
        iou = {i: [(truth[m] == i).sum() / (m | (truth == i)).sum() for m, _ in masks]
               for i in ids}
        for i in ids:
            if i < 1000 or size[i] < 100:
                continue
            wanted += 1
            hits = sorted(score for (_, score), one in zip(masks, iou[i], strict=True)
                          if one > threshold)
            marks += [(score, False) for score in hits[:-1]] + [(score, True)
                                                                for score in hits[-1:]]
        for n, (m, score) in enumerate(masks):
            if any(iou[i][n] > threshold for i in ids):
                continue
            share = sum((truth[m] == i).sum() * ((i < 1000) + (size[i] < 100)) for i in ids)
            share += np.isin(truth[m], [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]).sum()
            if share / m.sum() <= threshold:
                marks.append((score, False))
    points = [(0.0, 1.0)]
    for limit in sorted({score for score, _ in marks}, reverse=True):
        taken = [right for score, right in marks if score >= limit]
        points.append((sum(taken) / wanted, sum(taken) / len(taken)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2
               for a, b in zip(points, points[1:], strict=False))


@pytest.mark.parametrize("seed", range(20))
def test_random_masks_score_as_the_rules_read_one_after_the_other(seed):
    rng = np.random.default_rng(seed)
    images, counts = [], []
    for _ in range(3):
        values = rng.choice([0, 7, 29, CAR, *(CAR * 1000 + np.arange(4))], 12)
        truth = np.repeat(values, rng.integers(30, 160, 12))[None]
        truth[0, :120] = CAR * 1000 + 9
        one, masks = InstanceTruth(truth), []
        for _ in range(9):
            target = rng.choice(np.unique(truth[truth >= CAR]))
            found = truth == target
            found[0, rng.integers(0, truth.size, int(0.4 * found.sum()))] ^= True
            masks.append((found, round(rng.random(), 1)))
            one.add(found, CAR, masks[-1][1])
        images.append((truth, masks))
        counts.append(one.counts())
    ours = average_precisions(counts)["car"]
    assert ours == pytest.approx([reference(images, t) for t in THRESHOLDS])
    assert 0 < ours[0] < 1
