"""Prediction at a base size, answered at the size of the image."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.predict.test_predictor import Net, logits_of, normalize, picture
from utils.decision.rules import build_decision
from utils.errors import ConfigError, NumericalError
from utils.images.base_size import whole_view
from utils.predict.predictor import Predictor, build_predictor, finite_images


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def seen(images, base_size):
    view = whole_view(*images.shape[-2:], base_size)
    return torch.stack([torch.from_numpy(view.cut(one.permute(1, 2, 0).numpy())).permute(2, 0, 1)
                        for one in images])


def test_logits_are_those_of_the_resized_image_at_the_size_of_the_image(net):
    images = picture(2, 90, 120)
    small = seen(images, 60)
    assert small.shape[-2:] == (45, 60)
    expected = F.interpolate(logits_of(net, normalize(small)), (90, 120), mode="bilinear")
    assert torch.equal(Predictor(net, normalize, base_size=60)(images), expected)


def test_an_image_smaller_than_the_base_size_is_enlarged(net):
    images = picture(1, 24, 32)
    out = Predictor(net, normalize, base_size=64)(images)
    assert out.shape == (1, 5, 24, 32)
    enlarged = logits_of(net, normalize(seen(images, 64)))
    assert torch.equal(out, F.interpolate(enlarged, (24, 32), mode="bilinear"))


@pytest.mark.parametrize("size,base_size", [((90, 120), 60), ((91, 121), 50), ((321, 214), 107),
                                            ((24, 32), 64), ((37, 53), (30, 40)), ((90, 120), 120)])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"mode": "sliding", "crop_size": 24},
                                     {"mode": "multiscale", "scales": (0.5, 1)}])
@pytest.mark.parametrize("rule", ["max", "T", "rankdice"])
def test_labels_are_those_of_the_logits(net, size, base_size, options, rule):
    predictor = Predictor(net, normalize, base_size=base_size, **options)
    decision, images = build_decision(rule), picture(2, *size)
    expected = decision.labels(predictor(images))
    assert torch.equal(predictor.labels(images, decision), expected)
    assert expected.shape == (2, *size)


@pytest.mark.parametrize("size,base_size", [((90, 120), 60), ((321, 214), 107), ((24, 32), 64)])
def test_blocks_equal_the_whole_image(net, size, base_size):
    predictor, images = Predictor(net, normalize, base_size=base_size), picture(1, *size)
    blocks = torch.full((1, 5, *size), float("nan"))

    def store(rows, columns, logits):
        blocks[..., rows, columns] = logits
    predictor.in_blocks(images[0].permute(1, 2, 0).numpy(), "cpu", store, most_bytes=5 * 4 * 700)
    assert torch.allclose(blocks, predictor(images), atol=1e-5)
    assert predictor.finite.tolist() == [True]


def test_a_part_of_a_pixel_that_the_view_leaves_out_repeats_the_edge(net):
    view = whole_view(50, 138, 48)
    assert (view.rows.start, view.rows.length) == (1, 48)       # of 50
    images = picture(1, 50, 138)
    out = Predictor(net, normalize, base_size=48)(images)
    part = F.interpolate(logits_of(net, normalize(seen(images, 48))), (48, 138), mode="bilinear")
    assert torch.equal(out[..., 1:49, :], part)
    assert torch.equal(out[..., 0, :], part[..., 0, :])
    assert torch.equal(out[..., 49, :], part[..., 47, :])


def test_val_and_null_leave_images_as_they_are(net):
    images, plain = picture(), Predictor(net, normalize, base_size=None)(picture())
    assert torch.equal(Predictor(net, normalize)(images), plain)
    assert "base_size" not in Predictor(net, normalize).describe()
    assert Predictor(net, normalize, base_size=(30, 40)).describe()["base_size"] == (30, 40)


@pytest.mark.parametrize("wrong", [0, -3, (0, 5), (1, 2, 3), 10 ** 6])
def test_a_wrong_base_size_is_a_config_error(net, wrong):
    with pytest.raises(ConfigError, match="base_size"):
        Predictor(net, normalize, base_size=wrong)


def test_multiscale_at_scale_1_is_one_scale(net):
    predictor = build_predictor(net, normalize, {"mode": "multiscale", "scales": [1.0]})
    assert predictor.scales == (1.0,)
    assert torch.equal(predictor(picture()), Predictor(net, normalize)(picture()))


class Broken(Net):
    """Gives a logit of `value` where the first pixel of the image is black."""

    value = float("nan")

    def forward(self, x):
        out = super().forward(x)
        out[:, 2, 3, 4] = torch.where(x[:, 0, 0, 0] <= -1, self.value, out[:, 2, 3, 4])
        return out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [
    {}, {"flip": True}, {"mode": "sliding", "crop_size": 24}, {"average": "probs", "flip": True},
    {"mode": "multiscale", "scales": (0.5, 1)}, {"base_size": 40}])
@pytest.mark.parametrize("rule", ["max", "T"])
def test_logits_that_are_not_finite_are_found_for_each_image(value, options, rule):
    torch.manual_seed(0)
    net = Broken().eval()
    net.value = value
    images = picture(3, 37, 53).clamp(min=9)
    images[1, :, :3, :3] = 0
    predictor = Predictor(net, normalize, **options)
    predictor.labels(images, build_decision(rule))
    found = predictor.finite.tolist()
    if value == float("-inf") and options.get("average") == "probs":
        return      # a probability of 0 is a number
    assert found == [True, False, True]
    with pytest.raises(NumericalError, match="not finite") as error:
        predictor.require_finite(["a", "b", "c"])
    assert error.value.where == "b"


def test_the_finite_check_reads_any_memory_layout():
    x = torch.zeros(2, 3, 4, 5)
    assert finite_images(x).tolist() == [True, True]
    x = x.contiguous(memory_format=torch.channels_last)
    x[1, 2, 3, 4] = float("nan")
    assert finite_images(x).tolist() == [True, False]
    assert finite_images(x[:, :, ::2, :3]).tolist() == [True, True]
    assert np.isfinite(3e38)
    assert finite_images(torch.full((1, 2, 2, 2), 3e38)).tolist() == [True]
