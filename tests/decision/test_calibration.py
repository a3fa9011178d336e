"""Calibration: fitted temperatures, calibration errors, and the sample of pixels."""
import numpy as np
import pytest
import torch

from utils.decision.calibration import (
    BAR,
    PixelSample,
    Reliability,
    class_reliability,
    fit_temperature,
    fit_vector,
    reliability,
    reliability_diagram,
)
from utils.decision.posterior import Posterior
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
    picture = reliability_diagram({"before": one, "a long title " * 9: one, "after": one})
    assert picture.dtype == np.uint8 and picture.ndim == 3
    assert (picture == BAR).all(2).sum() > 3 * 180 * 160
    pair = reliability_diagram({"before": one, "after": one, "x": one}, columns=2)
    assert pair.shape[0] > 2 * picture.shape[0] and pair.shape[1] < picture.shape[1]


def test_a_known_scale_and_bias_of_each_class_are_found():
    logits, labels = calibrated(100000, 3)
    scale, bias = [0.5, 1.0, 1.6], [0.4, 0.0, -0.5]
    # p ∝ q^scale e^bias, with q chosen so that the result is calibrated.
    p = logits.double().log_softmax(1)
    wrong = (p - torch.tensor(bias)) / torch.tensor(scale)
    found = fit_vector(wrong, labels)
    # A constant of every pixel is not determined, nor are all scales together with it: compare p.
    fixed = Posterior("softmax", scale=found[0], bias=found[1])(wrong)
    assert (fixed - p.exp()).abs().mean() < 0.02
    before = reliability(wrong, labels).log_loss
    after = reliability(Posterior(scale=found[0], bias=found[1]).logits(wrong), labels).log_loss
    assert after < before and after == pytest.approx(reliability(logits, labels).log_loss, abs=3e-3)


def test_the_vector_of_calibrated_probabilities_is_close_to_the_identity():
    for activation in ("softmax", "sigmoid"):
        logits, labels = calibrated(60000)
        if activation == "sigmoid":
            logits = logits.log_softmax(1)
            logits = logits - torch.log1p(-logits.exp())
        scale, bias = fit_vector(logits, labels, activation)
        assert np.allclose(scale, 1, atol=0.08) and np.allclose(bias, 0, atol=0.15)


def test_a_class_without_pixels_keeps_the_identity():
    logits, labels = calibrated(4000)
    scale, bias = fit_vector(torch.cat((logits, torch.zeros(4000, 1)), 1), labels)
    assert (scale[4], bias[4]) == (1.0, 0.0) and len(scale) == 5


def test_the_errors_of_the_classes_are_those_of_a_direct_count():
    logits, labels = calibrated(3000, 3)
    p = logits.double().softmax(1).numpy()
    for c, one in enumerate(class_reliability(logits, labels, bins=5)):
        place = np.minimum((p[:, c] * 5).astype(int), 4)
        gaps = [abs(p[place == b, c].sum() - (labels.numpy()[place == b] == c).sum())
                for b in range(5)]
        assert one.ece == pytest.approx(sum(gaps) / 3000)
        assert one.count.sum() == 3000
