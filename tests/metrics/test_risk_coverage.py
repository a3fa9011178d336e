"""The risk-coverage curve against a sort of all pixels."""
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from utils.metrics.risk_coverage import RiskCoverage, area_under_curve, risk_coverage_picture


def softmax(logits):
    return logits.softmax(1)


def counted(logits, labels):
    found = RiskCoverage(softmax, logits.shape[1])
    for one, truth in zip(logits.split(1), labels.split(1), strict=True):
        found.add(one, truth)
    return found.compute()


def case():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 40, 50, generator=generator)
    noise = torch.rand(2, 40, 50, generator=generator)
    labels = torch.where(noise < logits.softmax(1).max(1).values, logits.argmax(1),
                         torch.randint(0, 4, (2, 40, 50), generator=generator))
    labels[:, 0] = 255
    return logits, labels


def test_the_area_is_that_of_all_pixels_in_order():
    logits, labels = case()
    valid = labels != 255
    largest, guess = logits.double().softmax(1).max(1)
    order = largest[valid].argsort(descending=True)
    wrong = (guess != labels)[valid][order].double()
    risks = wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)
    found = counted(logits, labels)
    assert found["AURC"] == pytest.approx(float(risks.mean()), abs=2e-4)
    assert found["risk"] == float(wrong.mean()) and found["curve"][-1] == found["risk"]
    assert found["curve"][50] == pytest.approx(float(risks[len(risks) // 2 - 1]), abs=2e-3)


def test_the_best_order_has_no_excess_and_a_random_one_has_the_risk_as_its_area():
    pixels, errors = np.array([60.0, 40.0]), np.array([0.0, 40.0])
    assert area_under_curve(pixels, errors) == pytest.approx(0.4 + 0.6 * math.log(0.6))
    assert area_under_curve(np.array([50.0, 50.0]), np.array([10.0, 10.0])) == pytest.approx(0.2)


def test_certain_pixels_and_no_pixels_are_defined():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).T[None, :, :, None]
    found = counted(logits, torch.tensor([[[0], [1]]]))
    assert found["AURC"] == found["risk"] == 0
    assert math.isnan(counted(logits, torch.full((1, 2, 1), 255))["AURC"])


def test_the_picture_can_be_read():
    with Image.open(io.BytesIO(risk_coverage_picture(counted(*case())))) as picture:
        assert picture.size == (546, 464)


def test_the_calibration_of_the_same_counts_is_that_of_all_pixels():
    from utils.decision.calibration import reliability
    logits, labels = case()
    found = RiskCoverage(softmax, 4)
    found.add(logits, labels)
    valid = labels != 255
    exact = reliability(logits.permute(0, 2, 3, 1)[valid], labels[valid])
    one = found.reliability()
    assert one["ECE"] == pytest.approx(exact.ece, abs=2e-4)
    assert sum(one["pixels"]) == int(valid.sum())
    # A pixel within 0.2 % of an edge may lie in the next bin.
    assert np.abs(np.array(one["pixels"]) - exact.count).max() <= 10
    full = exact.count > 200
    assert np.array(one["accuracy"])[full] == pytest.approx(exact.frequency[full], abs=1e-2)
    assert np.array(one["confidence"])[full] == pytest.approx(exact.confidence[full], abs=1e-3)
