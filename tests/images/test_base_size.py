"""The resize to a base size: that of a dataset, to the last bit."""
import numpy as np
import pytest

from dataloader.augmentation.transforms import Augmentation
from utils.images.base_size import Span, base_size_text, whole_view

SIZES = [(320, 480), (481, 321), (97, 131), (1, 700), (640, 7), (33, 33), (1000, 1500)]


def picture(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def seen_in_validation(image, **options):
    label = np.zeros(image.shape[:2], np.uint8)
    return Augmentation(**options)(image, label, np.random.default_rng(0), image_border=(0, 0, 0),
                                   label_border=255).image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base_size", [48, 107, 160, 512, 700])
def test_a_view_has_the_pixels_of_validation(size, base_size):
    image = picture(*size)
    view = whole_view(*size, base_size)
    seen = image if view is None else view.cut(image)
    assert np.array_equal(seen, seen_in_validation(image, base_size=base_size))
    assert max(seen.shape[:2]) == base_size


@pytest.mark.parametrize("size", [(320, 480), (481, 321), (97, 131)])
@pytest.mark.parametrize("crop", [(64, 96), (96, 64), (40, 40)])
def test_a_view_that_covers_the_crop_of_validation_contains_its_pixels(size, crop):
    image = picture(*size)
    seen = whole_view(*size, crop).cut(image)
    cropped = seen_in_validation(image, val=True, crop_size=list(crop))
    assert all(have >= need for have, need in zip(seen.shape, crop, strict=False))
    assert min(have - need for have, need in zip(seen.shape, crop, strict=False)) == 0
    # The crop starts at a whole pixel of the image, so it may lie between two of the view.
    assert abs(seen.astype(float).mean() - cropped.astype(float).mean()) < 3


def test_a_picture_of_the_base_size_is_left_as_it_is():
    assert whole_view(100, 160, 160) is None
    assert whole_view(100, 160, (100, 120)) is None
    assert whole_view(100, 160, None) is None
    assert whole_view(100, 161, 160) is not None


def test_each_pixel_of_the_picture_has_a_place_in_the_view():
    assert Span(2, 4, 8).inside(9).tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert Span(0, 3, 5).inside(3).tolist() == [0, 1, 2]


def test_a_base_size_in_words():
    assert base_size_text(512) == "512 pixels (long side)"
    assert base_size_text([64, 96]) == "the size that covers 64x96 pixels"
    assert base_size_text(None) == "their own size"
