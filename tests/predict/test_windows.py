"""The windows of sliding inference: where they start, and the mean over them."""
import pytest
import torch

from utils.predict.windows import (
    batched_windows,
    mean_in_blocks,
    mean_of_windows,
    overlapping_windows,
    strided_windows,
)


def test_default_windows_overlap_by_a_third_on_each_axis():
    windows = overlapping_windows((1024, 2048), None, 1 / 3)
    assert windows.tile == (409, 819) and len(windows.places) == 16
    assert windows.rows[-1] == 1024 - 409 and windows.columns[-1] == 2048 - 819


def test_source_tiling_strides_both_axes_by_the_height():
    windows = overlapping_windows((1024, 2048), None, 1 / 3, "source")
    assert windows.tile == (409, 819) and windows.rows == [0, 273, 546, 819]
    assert windows.columns == [0, 273, 546, 819, 1092, 1365]


@pytest.mark.parametrize("length,tile,stride,starts", [
    (10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 3, [0]), (3, 4, 3, [0]),
    (10, 4, 6, [0, 6])])
def test_the_last_window_ends_at_the_far_edge(length, tile, stride, starts):
    windows = strided_windows((length, 1), (tile, 1), (stride, 1))
    assert windows.rows == starts and windows.columns == [0]


def test_cover_counts_the_windows_over_each_row_and_column():
    down, across = strided_windows((5, 3), (3, 4), (2, 4)).cover("cpu")
    assert down.tolist() == [1, 1, 2, 1, 1] and across.tolist() == [1, 1, 1]


def ramp_views(windows, places):
    """A view whose values are those of one image: the mean over windows is this image."""
    height, width = windows.tile
    image = torch.arange(90.0 * 90).view(1, 1, 90, 90)
    for top, left in places:
        yield top, left, image[:, :, top:top + height, left:left + width]


@pytest.mark.parametrize("tile,stride", [((4, 6), (3, 2)), ((8, 8), (8, 8)), ((30, 5), (1, 5))])
@pytest.mark.parametrize("most_bytes", [1, 10 ** 6])
def test_the_mean_of_equal_predictions_is_the_prediction(tile, stride, most_bytes):
    windows = strided_windows((20, 31), tile, stride)
    expected = torch.arange(90.0 * 90).view(90, 90)[:20, :31]
    whole = mean_of_windows(windows, ramp_views(windows, windows.places))
    assert torch.allclose(whole[0, 0], expected)
    blocks = torch.full((20, 31), float("nan"))
    for rows, columns, mean in mean_in_blocks(windows, lambda p: ramp_views(windows, p), 1, "cpu",
                                              most_bytes=most_bytes):
        blocks[rows, columns] = mean[0, 0]
    assert torch.equal(blocks, whole[0, 0])


def test_batches_contain_each_window_and_its_mirror_image_padded_to_one_size():
    image = torch.arange(1.0, 13).view(1, 1, 3, 4)
    windows = strided_windows((3, 4), (3, 3), (3, 3), inside=False)
    batches = list(batched_windows(lambda top, left: image[(..., *windows.area(top, left))],
                                   windows.places, windows.tile, 3, (False, True)))
    assert [group for group, _ in batches] == [[(0, 0, False), (0, 0, True), (0, 3, False)],
                                               [(0, 3, True)]]
    assert torch.equal(batches[0][1][1], image[0, :, :, :3].flip(-1))
    assert batches[1][1][0, 0, 0].tolist() == [0, 0, 4]
