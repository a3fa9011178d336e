import pytest
import torch

from models.weights.published import published
from utils.images.normalize import InputNumbers, Normalize

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5) * 2


def test_bytes_become_normalized_floats():
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    expected = (IMAGES.double() / 255 - mean) / std
    torch.testing.assert_close(Normalize(MEAN, STD)(IMAGES).double(), expected, rtol=1e-6,
                               atol=1e-6)


def test_bgr_swaps_the_channels_and_keeps_the_list_of_numbers():
    torch.testing.assert_close(Normalize(MEAN, STD, "BGR")(IMAGES),
                               Normalize(MEAN, STD)(IMAGES.flip(1)))


def test_scale_1_takes_numbers_of_0_to_255():
    found = Normalize([104.0, 117.0, 123.0], [1.0, 1.0, 1.0], scale=1.0)(IMAGES)
    torch.testing.assert_close(found[:, 0], IMAGES[:, 0].float() - 104)


def test_the_memory_format_is_kept_or_as_asked():
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    normalize = Normalize(MEAN, STD)
    assert normalize(last).is_contiguous(memory_format=torch.channels_last)
    assert normalize(last, memory_format=torch.contiguous_format).is_contiguous()
    torch.testing.assert_close(normalize(last), normalize(IMAGES))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_the_input_is_not_changed_and_nothing_enters_a_state_dict(kind):
    images, before = IMAGES.to(kind), IMAGES.to(kind, copy=True)
    normalize = Normalize(MEAN, STD)
    assert torch.equal(normalize(images), Normalize(MEAN, STD)(IMAGES))
    assert torch.equal(before, images) and not normalize.state_dict()
    assert Normalize(**normalize.state()).state() == normalize.state()


@pytest.mark.parametrize("options", [{"order": "RBG"}, {"std": [1, 0, 1]}, {"mean": [0.5]},
                                     {"scale": 0}])
def test_wrong_numbers_are_refused(options):
    with pytest.raises(ValueError):
        Normalize(**({"mean": MEAN, "std": STD} | options))


@pytest.mark.parametrize("options, color", [
    ({"mean": [0.485, 0.456, 0.406], "std": STD}, (124, 116, 104)),
    ({"mean": [0.485, 0.456, 0.406], "std": STD, "order": "BGR"}, (104, 116, 124)),
    ({"mean": [102.9801, 115.9465, 122.7717], "std": [1.0] * 3, "order": "BGR", "scale": 1.0},
     (123, 116, 103)),
    ({"mean": [1.0] * 3, "std": [1.0] * 3, "scale": 127.5}, (128, 128, 128)),
])
def test_the_zero_color_is_seen_as_zero_to_half_a_step(options, color):
    normalize = Normalize(**options)
    assert normalize.zero_color == color
    seen = normalize(torch.tensor(color, dtype=torch.uint8).view(1, 3, 1, 1))
    assert (seen.abs().flatten() <= 0.5001 * normalize.factor.flatten()).all()


@pytest.mark.parametrize("given, problem", [
    ({"mean": [0.5] * 3}, "std: expected three numbers, because mean is given"),
    ({"std": [0.5] * 3}, "mean: expected three numbers, because std is given"),
    ({"mean": [0.5] * 2, "std": [0.2] * 3}, "mean: expected three numbers, found 2"),
    ({"mean": [123.0, 116.0, 103.0], "std": [58.0] * 3}, "need \"scale\": 1"),
    ({"mean": [0.5] * 3, "std": [0.2] * 3, "scale": 1.0}, "need \"scale\": 255"),
    ({"scale": 1.0}, "scale: has no effect without mean and std"),
    ({"mean": [0.5] * 3, "std": [0.2] * 3, "scale": 0.0}, "scale: expected more than 0, found 0"),
])
def test_numbers_that_cannot_be_meant_are_refused(given, problem):
    settings = {"mean": None, "std": None, "order": "RGB", "scale": 255.0} | given
    problems = InputNumbers.check_settings(settings)
    assert len(problems) == 1 and problem in problems[0]


def test_the_numbers_of_every_published_checkpoint_can_stand_in_a_config():
    for name, entry in published().items():
        numbers = {"mean": list(entry.mean), "std": list(entry.std), "order": entry.order,
                   "scale": entry.scale}
        assert InputNumbers.check_settings(numbers) == [], name
