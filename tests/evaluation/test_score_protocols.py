"""The table of several protocols: what is compared with what, and what cannot be."""
import dataclasses

import numpy as np

from tests.metrics.test_confidence import drawn
from utils.evaluation.score_protocols import ProtocolScores, Run


def table_of(*runs):
    """The lines of the table. runs: (name, image scores)."""
    scores = ProtocolScores([], None, "val_loader", {}, None, None, True)   # type: ignore
    scores.runs = [Run(name, "max", {"name": name}, one, 0.1) for name, one in runs]
    return scores.table().splitlines()


def row(lines, name):
    return next(line for line in lines if line.startswith(f"{name} "))


def published(scores):
    return dataclasses.replace(scores, pixels=None)


def test_protocols_of_the_published_code_are_compared_by_image_level_scores():
    first, second = drawn(1, 80, gain=0.05)
    lines = table_of(("a", published(first)), ("b", published(second)))
    gain = 100 * (second.image[:, 0].mean() - first.image[:, 0].mean())
    assert "mIoU_I" in lines[1] and "mean IoU" not in lines[1]
    assert f"{gain:+.2f}" in row(lines, "b") and row(lines, "b").rstrip().endswith("0.10")


def test_a_published_protocol_among_others_adds_a_table_of_image_level_scores():
    first, second = drawn(1, 80, gain=0.05)
    lines = table_of(("a", first), ("b", second), ("c", published(second)))
    start = next(i for i, line in enumerate(lines) if "mIoU_I" in line)
    assert "mean IoU" in lines[1]
    assert "c" not in [line.split(" ")[0] for line in lines[:start - 1]]
    assert {"a", "b", "c"} <= {line.split(" ")[0] for line in lines[start:]}
    assert row(lines[start:], "b").split()[2:] == row(lines[start:], "c").split()[2:]


def test_protocols_with_other_classes_of_interest_are_compared_by_image_level_scores():
    first, second = drawn(1, 80)
    lines = table_of(("a", first), ("b", dataclasses.replace(second, classes_of_interest=[1])))
    start = next(i for i, line in enumerate(lines) if "mIoU_I" in line)
    assert row(lines[:start], "b").endswith("averages other classes")
    assert row(lines[start:], "a") and row(lines[start:], "b")


def test_protocols_after_a_published_one_have_no_difference_to_it_in_mean_iou():
    first, second = drawn(1, 80)
    lines = table_of(("a", published(first)), ("b", second))
    assert row(lines, "b").endswith("a counts no pixels")


def test_one_image_is_too_few_to_tell():
    first, second = drawn(1, 1)
    assert "too few images to tell" in row(table_of(("a", first), ("b", second)), "b")


def test_a_score_that_is_undefined_is_a_dash():
    first, second = drawn(1, 10)
    for one in (first, second):
        one.pixels = np.zeros_like(one.pixels)
        one.image[:] = np.nan
    assert row(table_of(("a", first), ("b", second)), "b").split()[2] == "-"
