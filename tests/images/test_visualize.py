"""Pictures: sizes, colors, and no failure on odd input."""
import numpy as np
import torch

from utils.images.visualize import (
    confusion_picture,
    legend,
    overlay,
    prediction_grid,
    side_by_side,
    stacked,
)

PALETTE = [[0, 0, 0], [200, 10, 20], [10, 220, 30]]
NAMES = ["background", "apple", "Bäume"]


def test_overlay_mixes_half_and_half_and_leaves_ignored_pixels_alone():
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[1, 2, 255]], np.uint8)
    assert overlay(image, labels, PALETTE).tolist() == [[[150, 55, 60], [55, 160, 65],
                                                         [100, 100, 100]]]
    assert image.min() == 100


def test_pictures_of_different_heights_stand_side_by_side():
    a, b = np.zeros((5, 3, 3), np.uint8), np.full((2, 4, 3), 9, np.uint8)
    joined = side_by_side(a, b)
    assert joined.shape == (5, 3 + 4 + 4, 3)
    assert (joined[:2, 7:] == 9).all() and (joined[2:, 7:] == 255).all()
    assert stacked(a, b).shape == (5 + 4 + 2, 4, 3)


def test_grid_has_a_row_per_sample():
    samples = [{"image": torch.zeros(3, 20, 30, dtype=torch.uint8),
                "label": torch.ones(20, 30, dtype=torch.uint8)} for _ in range(2)]
    predictions = [torch.full((20, 30), 2, dtype=torch.uint8)] * 2
    grid = prediction_grid(samples, predictions, PALETTE)
    assert grid.shape == (20 + 4 + 20, 30 + 4 + 30 + 4 + 30, 3) and grid.dtype == np.uint8
    assert grid[0, 34].tolist() == PALETTE[1] and grid[0, 68].tolist() == PALETTE[2]


def test_legend_shows_each_color_and_breaks_lines():
    picture = legend(NAMES, PALETTE, width=120)
    assert picture.shape[1] == 120
    for color in PALETTE[1:]:
        assert (picture == color).all(-1).any()
    assert legend(NAMES, PALETTE, width=900).shape[0] < picture.shape[0]


def test_confusion_picture_is_dark_on_the_diagonal_of_a_perfect_prediction():
    picture = confusion_picture(np.diag([10, 20, 0]), NAMES)
    dark = (picture == (8, 48, 107)).all(-1).sum()
    cell = 56 * 56
    assert 1.6 * cell < dark <= 2 * cell       # two full cells, less the digits in them


def test_confusion_picture_draws_pixels_of_no_class_only_if_there_are_any():
    matrix = np.zeros((12, 13), int)
    matrix[0, 0] = 5
    without = confusion_picture(matrix, 4 * NAMES)
    matrix[1, 12] = 5
    assert confusion_picture(matrix, 4 * NAMES).shape[1] > without.shape[1]


def test_confusion_picture_of_150_classes_has_a_readable_size():
    names = [f"class {i}" for i in range(150)]
    picture = confusion_picture(np.eye(150, 151), names)
    assert 1500 < picture.shape[0] < 2600 and picture.dtype == np.uint8


def test_the_caption_fits_beside_few_classes_and_long_names_do_not_grow_the_picture():
    """The caption is as wide as in a picture of many classes."""
    def width_of_caption(picture):
        ink = (picture[-20:] < 128).any((0, 2))
        return np.flatnonzero(ink).max() - np.flatnonzero(ink).min()
    full = confusion_picture(np.eye(30), [f"c{k}" for k in range(30)])
    for classes in (1, 2, 3):
        picture = confusion_picture(np.eye(classes), list("abc")[:classes])
        assert width_of_caption(picture) == width_of_caption(full)
    for names in (["x" * 20000, "b", "c"], ["背景" * 3000, "b", "c"]):
        assert confusion_picture(np.eye(3), names).size < 700 * 700 * 3
        assert legend(names, PALETTE).shape[1] == 640
