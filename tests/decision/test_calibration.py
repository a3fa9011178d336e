"""Calibration: fitted temperatures, calibration errors, and the sample of pixels."""
import numpy as np
import pytest
import torch

from utils.decision.calibration import (
    PixelSample,
    Reliability,
    fit_temperature,
    reliability,
    reliability_diagram,
)
from utils.errors import DataError


def calibrated(pixels=40000, classes=4):
    """Logits, and labels that are drawn from their probabilities."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(pixels, classes, generator=g) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    logits, labels = calibrated()
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_of_a_sigmoid_network_has_the_lowest_loss():
    logits, labels = calibrated()
    best = fit_temperature(logits, labels, "sigmoid")
    losses = [reliability(logits, labels, "sigmoid", best * f).log_loss for f in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)


def test_a_network_that_is_always_right_or_wrong_gets_the_extreme_temperature():
    labels = torch.arange(4)
    assert fit_temperature(torch.eye(4) * 5, labels) == 0.05
    assert fit_temperature(torch.eye(4) * -5, labels) == 20


def test_calibrated_probabilities_have_almost_no_error():
    logits, labels = calibrated()
    for top in (True, False):
        assert reliability(logits, labels, top=top).ece < 0.01
        assert reliability(logits * 3, labels, top=top).ece > 0.02


def test_ece_and_log_loss_equal_an_example_worked_by_hand():
    """Four pixels of confidence 0.8, three right; two of 0.6, none right."""
    p = torch.tensor([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    result = reliability(p.log(), labels, bins=10)
    assert result.ece == pytest.approx((4 * 0.05 + 2 * 0.6) / 6)
    assert result.count.sum() == 6
    assert result.log_loss == pytest.approx(
        -(3 * np.log(0.8) + np.log(0.2) + 2 * np.log(0.4)) / 6)


def test_without_top_every_class_of_every_pixel_is_counted():
    logits, labels = calibrated(100)
    assert reliability(logits, labels, top=False).count.sum() == 400


def test_the_sample_leaves_out_ignored_pixels_and_is_limited_per_image():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 10, 10, generator=g)
    target = torch.randint(0, 4, (3, 10, 10), generator=g, dtype=torch.uint8)
    target[0], target[1, :9] = 255, 255
    sample = PixelSample(4, per_image=25)
    sample.add(logits, target)
    kept, labels = sample.tensors()
    assert kept.shape == (35, 4)
    assert labels.max() < 4
    known = {tuple(v) for v in logits.movedim(1, -1).reshape(-1, 4).tolist()}
    assert all(tuple(v) in known for v in kept.tolist())


def test_a_split_without_labels_is_an_error():
    sample = PixelSample(3, 10)
    sample.add(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    with pytest.raises(DataError, match="no labeled pixel"):
        sample.tensors()


def test_the_diagram_has_bars_and_accepts_empty_bins():
    one = Reliability(np.array([0.0, 10.0]), np.array([np.nan, 0.9]), np.array([np.nan, 0.5]),
                      0.4, 1.0)
    picture = reliability_diagram({"before": one, "after": one})
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert (picture == (70, 120, 180)).all(2).any()
