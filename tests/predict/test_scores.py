"""Predicting with a network that gives scores: scores are averaged, and resized."""
import pytest
import torch
import torch.nn.functional as F

from tests.decision.test_scores import ScoreNet, shares
from tests.predict.test_predictor import close, normalize, picture
from utils.decision.rules import MaxDecision
from utils.errors import ConfigError
from utils.predict.predictor import Predictor


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ScoreNet().eval()


def predicted(net, image, **options):
    return Predictor(net, normalize, activation="scores", **options)(image)


def outputs(net, x):
    with torch.no_grad():
        return net(x)


def test_windows_average_scores_where_they_overlap(net):
    image = picture(1, 24, 40)
    x = normalize(image)
    found = predicted(net, image, mode="sliding", crop_size=24, tiling="spread")
    left, right = outputs(net, x[..., :24]), outputs(net, x[..., 16:])
    close(found[..., :16], left[..., :16])
    close(found[..., 16:24], (left[..., 16:] + right[..., :8]) / 2)
    close(found[..., 24:], right[..., 8:])


def test_scales_average_scores_at_the_size_of_the_image(net):
    image = picture()
    x = normalize(image)
    size = x.shape[-2:]
    small = F.interpolate(x, [18, 26], mode="bilinear")
    other = F.interpolate(outputs(net, small), size, mode="bilinear")
    expected = (outputs(net, x) + other) / 2
    close(predicted(net, image, mode="multiscale", scales=(0.5, 1.0)), expected)


def test_the_mean_of_probabilities_are_scores_again(net):
    image = picture()
    x = normalize(image)
    expected = (shares(outputs(net, x)) + shares(outputs(net, x.flip(-1)).flip(-1))) / 2
    close(predicted(net, image, flip=True, average="probs"), expected)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"base_size": 30}, {
    "mode": "sliding", "crop_size": 24}])
def test_max_decides_on_the_scores_at_the_size_of_the_image(net, options):
    predictor = Predictor(net, normalize, activation="scores", **options)
    found = predictor.decide(picture(2), MaxDecision())
    assert torch.equal(found.long(), predictor(picture(2)).argmax(1))


def test_exponentials_of_scores_are_refused(net):
    with pytest.raises(ConfigError, match="gives scores"):
        Predictor(net, normalize, activation="scores", average="exp")
