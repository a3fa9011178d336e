"""Labels from small logits equal those of logits resized to the image's size."""
import pytest
import torch
import torch.nn.functional as F

from tests.predict.test_resizing import resized
from utils.predict import largest_class as module
from utils.predict.largest_class import largest_class, upsampled_labels


def regions(classes, height, width, noise=0.0, seed=0):
    """Logits with regions of a few cells, as of a network: (1, C, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, height // 4 + 2, width // 4 + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    return smooth + noise * torch.randn(smooth.shape, generator=generator)


@pytest.mark.parametrize("classes", [1, 2, 19, 255, 300])
def test_the_largest_class_is_the_first_of_the_largest(classes):
    scores = torch.randint(0, 4, (2, classes, 9, 17), generator=torch.Generator().manual_seed(0))
    found = largest_class(scores.float())
    assert torch.equal(found.long(), scores.argmax(1))
    assert found.dtype == (torch.uint8 if classes <= 255 else torch.int16)


def test_a_nan_counts_as_the_largest_as_in_torch():
    scores = torch.randn(1, 5, 4, 4)
    scores[0, 3, 1, 1] = float("nan")
    assert torch.equal(largest_class(scores).long(), scores.max(1).indices)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("classes,small,size", [
    (19, (16, 32), (128, 256)), (11, (45, 60), (360, 480)), (5, (17, 33), (129, 257)),
    (4, (9, 13), (100, 91)), (150, (16, 16), (128, 128)), (2, (20, 30), (80, 120)),
    (3, (16, 16), (128, 128)), (19, (64, 64), (80, 80)), (19, (4, 4), (32, 32)),
    (7, (1, 9), (50, 90)), (300, (8, 8), (80, 80))])
def test_labels_from_small_logits_equal_those_of_the_resize(classes, small, size, align_corners):
    for noise in (0, 0.3, 3):
        x = regions(classes, *small, noise)
        expected = resized(x, size, align_corners).max(1).indices
        assert torch.equal(upsampled_labels(x, size, align_corners).long(), expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_ties_nan_and_infinity_give_the_labels_of_the_resize(align_corners):
    x = torch.randint(0, 3, (1, 6, 12, 16), generator=torch.Generator().manual_seed(0)).float()
    odd = regions(6, 12, 16)
    odd[0, 2, 3, 4], odd[0, 1, 8, 8], odd[0, 4, 0, 0] = float("nan"), float("inf"), -float("inf")
    for logits in (x, torch.zeros_like(x), odd):
        expected = resized(logits, (96, 128), align_corners).max(1).indices
        assert torch.equal(upsampled_labels(logits, (96, 128), align_corners).long(), expected)


def test_a_cell_whose_corners_agree_is_not_computed(monkeypatch):
    def never(*_):
        raise AssertionError("a cell was computed although its corners agree")

    monkeypatch.setattr(module, "_inside", never)
    module._rounds_alike.cache_clear()
    monkeypatch.setattr(module, "_rounds_alike", lambda _: True)
    x = torch.zeros(1, 5, 16, 16)
    x[:, 3] = 1
    assert (upsampled_labels(x, (128, 128)) == 3).all()
