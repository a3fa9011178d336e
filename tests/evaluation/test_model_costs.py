"""What is measured of a network, and what is reported if it cannot be measured."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from utils.evaluation.model_costs import CostJob, flop_counter, measure

JOB = CostJob("ENet", None, "cpu", height=32, width=48, batch=2, classes=5, repeats=1, threads=1,
              train=True)


def measured(**changes):
    """All numbers of a job as one dictionary."""
    row = {}
    for found in measure(dataclasses.replace(JOB, **changes)):
        row |= found
    return row


def test_a_network_is_measured_in_both_modes():
    row = measured()
    assert row.keys() == {"parameters", "flops", "infer_seconds", "train_seconds", "infer_bytes",
                          "train_bytes"}
    assert 340_000 < row["parameters"] < 380_000
    # In this process, which has run other tests before, a network may not raise the peak.
    assert all(value > 0 for name, value in row.items() if not name.endswith("_bytes"))


def test_flops_are_of_one_image():
    assert measured(train=False, batch=1)["flops"] == measured(train=False, batch=3)["flops"]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_as_its_two_products_on_a_cpu(masked):
    query, key, value = torch.randn(3, 2, 4, 7, 8).unbind()
    query.requires_grad_()
    mask = torch.ones(7, 7, dtype=torch.bool) if masked else None
    with flop_counter() as counter:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 7 * 7 * 8)
        out.sum().backward()
    assert counter.get_total_flops() > 2 * 2 * (2 * 2 * 4 * 7 * 7 * 8)


def test_a_training_that_fails_leaves_what_was_measured_before():
    row = measured(type="PSPNet", backbone="resnet18", batch=1)
    assert row["infer_seconds"] > 0 and "train_seconds" not in row
    assert "more than 1 value per channel" in row["error"]


def test_a_backbone_that_does_not_fit_is_refused():
    assert measured(type="FCN8", backbone="resnet18") == {
        "error": "FCN8 needs a vgg backbone, got 'resnet18'", "refused": True}
