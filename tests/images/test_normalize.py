import pytest
import torch

from utils.images.normalize import Normalize

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


def test_the_input_is_not_changed_and_nothing_enters_a_state_dict():
    before = IMAGES.clone()
    normalize = Normalize(MEAN, STD)
    normalize(IMAGES)
    assert torch.equal(before, IMAGES) and not normalize.state_dict()
    assert Normalize(**normalize.state()).state() == normalize.state()


@pytest.mark.parametrize("options", [{"order": "RBG"}, {"std": [1, 0, 1]}, {"mean": [0.5]},
                                     {"scale": 0}])
def test_wrong_numbers_are_refused(options):
    with pytest.raises(ValueError):
        Normalize(**({"mean": MEAN, "std": STD} | options))
