"""SegFix as the last stage: offsets from files or from a network refine labels."""
import numpy as np
import pytest
import torch

from tests.support.segfix import RNG, blocks, golden, random_offsets
from utils.errors import ConfigError, DataError, NumericalError
from utils.segfix.mat_files import write_offsets
from utils.segfix.offsets import refine
from utils.segfix.refiner import NetworkOffsets, open_refiner, predict_offsets


class Constant(torch.nn.Module):
    """A network with the same output for every image."""

    def __init__(self, mask, direction):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.output = mask, direction

    def heads(self, x):
        return self.output


def test_logits_give_the_golden_offsets():
    case = golden("network_a")
    model = Constant(*(torch.from_numpy(case[f"{name}_logits"]) for name in ("mask", "dir")))
    found = predict_offsets(model, torch.Tensor.float, torch.zeros(3, 128, 256, dtype=torch.uint8))
    np.testing.assert_array_equal(found, case["offset"])


class Pointwise(torch.nn.Module):
    """A network whose output depends on each pixel alone, so that crops change nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def heads(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        red = x[:, :1] / 255 - 0.5
        direction = torch.cat([torch.cos(7 * red + k) for k in range(8)], 1)
        return torch.cat([-red, red], 1), direction


@pytest.mark.parametrize("size", [(40, 70), (32, 32), (20, 90), (33, 65)])
def test_crops_cover_the_image_and_are_averaged(size):
    image = torch.from_numpy(RNG.integers(0, 256, (3, *size), dtype=np.uint8))
    model = Pointwise()
    whole = predict_offsets(model, torch.Tensor.float, image)
    assert model.sizes.pop() == size
    np.testing.assert_array_equal(
        predict_offsets(model, torch.Tensor.float, image, crop=32, stride=10), whole)
    expected = [1 if length <= 32 else -(-(length - 32) // 10) + 1 for length in size]
    assert len(model.sizes) == np.prod(expected)
    assert all(height <= 32 and width <= 32 for height, width in model.sizes)


@pytest.mark.parametrize("crop", [None, 16])
@pytest.mark.parametrize("size,seen", [((40, 80), (24, 48)), ((33, 24), (48, 35))])
def test_a_network_sees_the_base_size_and_answers_at_the_size_of_the_image(crop, size, seen):
    ramp = np.linspace(0, 255, size[0])[:, None, None] * np.ones((1, size[1], 3))
    image = torch.from_numpy(ramp.astype(np.uint8)).permute(2, 0, 1)
    model = Pointwise()
    found = predict_offsets(model, torch.Tensor.float, image, crop, base_size=48)
    assert found.shape == (*size, 2)
    assert all(one == ((16, 16) if crop else seen) for one in model.sizes)
    # A ramp stays a ramp, so only rows where a direction ends may differ.
    own = predict_offsets(model, torch.Tensor.float, image)
    assert (found != own).any(axis=(1, 2)).mean() < 0.1


@pytest.mark.parametrize("crop", [None, 16])
def test_outputs_that_are_not_finite_are_an_error_and_no_offset(crop):
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    with pytest.raises(NumericalError, match="not finite"):
        predict_offsets(Pointwise(), lambda x: x.float() * float("nan"), image, crop)


def test_a_refiner_with_files_takes_arrays_tensors_and_masks(tmp_path):
    labels, offset = blocks(), random_offsets(40, 60)
    write_offsets(tmp_path / "a.mat", offset)
    refiner = open_refiner(tmp_path, 2)
    assert not refiner.needs_image
    expected = refine(labels, offset)
    np.testing.assert_array_equal(refiner(labels, None, "a.png"), expected)
    found = refiner(torch.from_numpy(labels), None, "a")
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    masks = torch.from_numpy(np.stack([labels == 1, labels == 2]))
    np.testing.assert_array_equal(refiner(masks, None, "a")[1].numpy(), expected == 2)


def test_a_missing_offset_file_is_named(tmp_path):
    write_offsets(tmp_path / "a.mat", random_offsets(4, 4))
    with pytest.raises(DataError) as caught:
        open_refiner(tmp_path)(blocks(), None, "b")
    assert caught.value.where == str(tmp_path / "b.mat")


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_wrong_scale_is_an_error(tmp_path, scale):
    with pytest.raises(ConfigError, match="scale"):
        open_refiner(tmp_path, scale)


def test_a_network_needs_the_image_of_the_labels():
    network = NetworkOffsets(Pointwise(), torch.Tensor.float)
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    assert network(image, "a", (4, 6)).shape == (4, 6, 2)
    for wrong, text in ((None, "not there"), (image[:, 1:], "3x6")):
        with pytest.raises(DataError, match=text):
            network(wrong, "a", (4, 6))
