"""Pictures: sizes, colors, and no failure on odd input."""
import numpy as np
import pytest
import torch

from utils.images.visualize import (
    GAP,
    caption,
    confusion_picture,
    example_grid,
    legend,
    listed_classes,
    overlay,
    side_by_side,
    stacked,
    text_size,
    with_legend,
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


def test_a_black_class_shows_the_photo():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    labels = np.arange(81, dtype=np.uint8).reshape(9, 9) % 3
    mixed = overlay(image, labels, PALETTE)
    np.testing.assert_array_equal(mixed[labels == 0], image[labels == 0])
    assert (mixed[labels > 0] != image[labels > 0]).any(-1).mean() > 0.9


def test_grid_has_titles_a_row_per_sample_and_a_legend():
    label = torch.ones(20, 90, dtype=torch.uint8)
    label[:, 60:] = 255
    samples = [{"image": torch.full((3, 20, 90), 7, dtype=torch.uint8), "label": label}] * 2
    predictions = [torch.full((20, 90), 2, dtype=torch.uint8)] * 2
    grid = example_grid(samples, PALETTE, NAMES, predictions)
    assert grid.shape[1] == 3 * 90 + 2 * GAP and grid.dtype == np.uint8
    title = np.flatnonzero((grid[:, :90] == 7).all((1, 2)))[0]      # rows above the first image
    for column in range(3):
        assert (grid[:title, 94 * column:94 * column + 90] < 128).any()
    assert grid[title, 94].tolist() == PALETTE[1] and grid[title, 188].tolist() == PALETTE[2]
    ignored = grid[title:title + 20, 94 + 60:94 + 90]
    assert {tuple(color) for color in ignored.reshape(-1, 3).tolist()} == \
        {(0, 0, 0), (128, 128, 128), (255, 255, 255)}
    below = grid[title + 2 * 20 + GAP:]
    for color in PALETTE:
        assert (below == color).all(-1).any()
    without = example_grid(samples, PALETTE, NAMES)
    assert without.shape[1] == 240 > 2 * 90 + GAP
    np.testing.assert_array_equal(without[title:title + 44, :184], grid[title:title + 44, :184])


@pytest.mark.parametrize("classes, listed", [(3, [0, 1, 2]), (24, list(range(24))), (25, [2, 20])])
def test_only_a_legend_of_many_classes_leaves_out_those_that_do_not_occur(classes, listed):
    assert listed_classes(classes, {2, 20, 255}) == listed


def test_every_color_of_a_legend_has_its_name_beside_it():
    names, palette = ["one", "two", "three"], [[200, 10, 20], [10, 220, 30], [1, 2, 240]]
    picture = legend(names, palette, width=400, size=14)
    for color in palette:
        rows, columns = np.nonzero((picture == color).all(-1))
        beside = picture[rows.min():rows.max() + 1, columns.max() + 4:columns.max() + 24]
        assert (beside < 128).any(), "no text"
        assert len(rows) == 13 * 13         # inside the outline


def test_the_legend_of_an_overlay_says_what_is_not_painted():
    over = legend(NAMES, PALETTE, width=600, over_photo=True)
    plain = legend(NAMES, PALETTE, width=600)
    black = (plain[:, :30] == 0).all(-1).sum()
    assert black > 150 and (over[:, :30] == 0).all(-1).sum() < black
    assert len(np.flatnonzero((over < 128).any((0, 2)))) > len(
        np.flatnonzero((plain < 128).any((0, 2)))) + 40


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_a_legend_of_a_given_height_counts_what_finds_no_room(lines):
    names = [f"name {k}" for k in range(40)]
    palette = [[k + 1, 0, 255] for k in range(40)]
    picture = legend(names, palette, width=300, lines=lines)
    assert picture.shape == legend(names[:2], palette, width=300, lines=lines).shape
    shown = [k for k, color in enumerate(palette) if (picture == color).all(-1).any()]
    assert shown == list(range(len(shown))) and 3 * lines - 2 <= len(shown) <= 4 * lines
    assert (picture[:, -4:] == 255).all(), "text is cut off"
    assert legend(names, palette, [], width=300, lines=lines).shape == picture.shape


@pytest.mark.parametrize("width, expected", [(30, 240), (239, 240), (240, 240), (1000, 1000)])
def test_a_legend_leaves_the_picture_as_it_is(width, expected):
    picture = np.random.default_rng(0).integers(0, 256, (10, width, 3), np.uint8)
    found = with_legend(picture, NAMES, PALETTE, [0, 1, 2])
    assert found.shape[1] == expected and found.shape[0] % 2 == 0
    np.testing.assert_array_equal(found[:10, :width], picture)
    assert (found[:10, width:] == 255).all()
    assert with_legend(picture, NAMES, PALETTE, []) is not None


def test_letters_grow_with_the_picture():
    assert text_size(192) == 13 and text_size(4000) == 57 and text_size(10 ** 6) == 120
    assert caption("x", 500, 20).shape == (34, 500, 3)


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
