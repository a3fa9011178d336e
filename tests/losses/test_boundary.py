"""The boundary losses of PIDNet."""
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataloader.shapes import Shapes
from utils.losses import build_loss
from utils.losses.boundary import boundaries
from utils.losses.ohem import OhemCrossEntropy
from utils.losses.pixels import labeled
from utils.training.criterion import Criterion

PUBLISHED = {"out": {"type": "OhemCrossEntropy", "args": {"thresh": 0.9, "min_kept": 131072}},
             "p": "CE", "d": "BoundaryBCELoss", "out+d": "BoundaryOhemCrossEntropy"}
WEIGHTS = {"out": 1.0, "p": 0.4, "d": 20.0}


def boundary_of(target, width=4):
    valid, index = labeled(target, 255)
    return boundaries(index, valid, width)


def random_labels(size=(13, 17), classes=3, ignored=0.1):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, classes, (2, 1, 4, 4), generator=generator).float()
    target = F.interpolate(coarse, size, mode="nearest")[:, 0].long()
    return target.masked_fill(torch.rand(target.shape, generator=generator) < ignored, 255)


def outputs_of(target, classes=3):
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(len(target), count, *target.shape[1:], generator=generator)
            for name, count in (("out", classes), ("p", classes), ("d", 1))}


def test_a_straight_border_is_two_pixels_wide_on_either_side():
    target = torch.zeros(1, 6, 12, dtype=torch.uint8)
    target[:, :, 6:] = 2
    expected = [column in (4, 5, 6, 7) for column in range(12)]
    assert boundary_of(target).tolist() == [[expected] * 6]


def published_boundary(target):
    """PIDNet's own: Canny's edges of the labels, widened by a window of 4 x 4."""
    return cv2.dilate(cv2.Canny(target, 0.1, 0.2), np.ones((4, 4), np.uint8)) > 0


@pytest.mark.parametrize("rows", [False, True])
def test_a_straight_border_equals_the_published_one(rows):
    target = np.zeros((16, 16), np.uint8)
    target[7:] = 3
    target = target if rows else np.ascontiguousarray(target.T)
    assert (boundary_of(torch.from_numpy(target)[None])[0].numpy()
            == published_boundary(target)).all()


def test_the_boundaries_of_a_scene_are_nearly_the_published_ones():
    """They differ at corners and where regions are thinner than Canny's filter."""
    _, target = Shapes(size=(128, 192), length=1).load(0)
    target = np.where(target == 255, 0, target).astype(np.uint8)
    found = boundary_of(torch.from_numpy(target)[None])[0].numpy()
    published = published_boundary(target)
    assert (found & published).sum() > 0.85 * (found | published).sum()


@pytest.mark.parametrize("width", [2, 4, 6])
def test_a_boundary_pixel_has_another_class_in_its_window(width):
    target, reach = random_labels(), width // 2
    found = boundary_of(target, width)
    for n, row, column in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
        window = target[n, max(0, row - reach):row + reach + 1,
                        max(0, column - reach):column + reach + 1]
        own = target[n, row, column]
        assert found[n, row, column] == (own != 255 and bool(((window != own)
                                                              & (window != 255)).any()))


def test_the_border_of_an_unlabeled_area_is_no_boundary():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, 4:] = 255
    assert not boundary_of(target).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1)])
def test_maps_smaller_than_the_window_have_boundaries_too(size):
    target = torch.arange(size[0] * size[1]).view(1, *size)
    assert boundary_of(target).all() == (target.numel() > 1)


def test_the_loss_weighs_each_pixel_by_the_share_of_the_other_kind():
    target = random_labels()
    logits = outputs_of(target)["d"].double()
    boundary, valid = boundary_of(target), target != 255
    kinds = boundary[valid].double()
    weight = torch.where(kinds == 1, (kinds == 0).double().mean(), kinds.mean())
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], kinds, weight)
    torch.testing.assert_close(build_loss("BoundaryBCELoss")(logits, target), expected)


def test_without_a_boundary_the_loss_is_zero():
    logits = torch.randn(1, 1, 5, 5)
    assert build_loss("BoundaryBCELoss")(logits, torch.full((1, 5, 5), 2)) == 0


def test_ohem_on_the_boundary_uses_the_pixels_that_are_predicted_as_boundary():
    target = random_labels()
    outputs = outputs_of(target)
    masked = torch.where(outputs["d"].sigmoid()[:, 0] > 0.8, target, 255)
    loss = build_loss({"type": "BoundaryOhemCrossEntropy", "args": {"min_kept": 30}})
    expected = OhemCrossEntropy(0.9, 30)(outputs["out"], masked)
    assert torch.equal(loss(outputs["out"], outputs["d"], target), expected)
    assert 0 < (masked != 255).sum() < (target != 255).sum()


def test_the_published_combination_is_the_sum_of_four_losses():
    target = random_labels(ignored=0)
    outputs = outputs_of(target)
    total, parts = Criterion(PUBLISHED, WEIGHTS, num_classes=3)(outputs, {"label": target})
    kinds = boundary_of(target).float()
    weight = torch.where(kinds == 1, 1 - kinds.mean(), kinds.mean())
    near = torch.where(outputs["d"][:, 0].sigmoid() > 0.8, target, 255)
    expected = (F.cross_entropy(outputs["out"], target)     # of all: fewer than min_kept pixels
                + 0.4 * F.cross_entropy(outputs["p"], target)
                + 20 * F.binary_cross_entropy_with_logits(outputs["d"][:, 0], kinds, weight)
                + F.cross_entropy(outputs["out"], near, ignore_index=255))
    torch.testing.assert_close(total, expected)
    assert parts.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("width", [0, 3])
def test_a_width_that_is_not_even_is_refused(width):
    with pytest.raises(Exception, match="width must be even"):
        build_loss({"type": "BoundaryBCELoss", "args": {"width": width}})


def test_the_labels_may_have_any_integer_dtype_and_are_not_changed():
    target = random_labels()
    before = target.clone()
    assert torch.equal(boundary_of(target.to(torch.uint8)), boundary_of(target))
    assert torch.equal(target, before)
