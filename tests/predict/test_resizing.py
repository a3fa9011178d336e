"""Resizing in pieces equals resizing at once."""
import pytest
import torch
import torch.nn.functional as F

from utils.predict import resizing
from utils.predict.resizing import add_resized, resize_rows


def resized(x, size, align_corners=False):
    """torch's resize of the whole of x (N, C, h, w), against which the pieces are compared."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source", [(9, 7), (50, 61), (1, 1), (20, 90)])
def test_resized_rows_are_rows_of_the_resize(source, align_corners):
    x = torch.randn(2, 3, *source, generator=torch.Generator().manual_seed(0))
    whole = resized(x, (33, 41), align_corners)
    for first, last in ((0, 33), (5, 6), (20, 33)):
        rows = resize_rows(x, (33, 41), range(first, last), align_corners)
        assert torch.allclose(rows, whole[:, :, first:last], atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4], [0, 2, 1, 3, 4]])
@pytest.mark.parametrize("probs", [None, lambda x: x.softmax(1)])
def test_a_sum_in_pieces_is_the_sum_of_the_resized_views(monkeypatch, layout, classes, probs):
    monkeypatch.setitem(resizing.CHUNK_BYTES, "cpu", 4000)
    a, b = torch.randn(2, 2, 5, 9, 7, generator=torch.Generator().manual_seed(0))
    views = resized(a, (20, 31)), resized(b, (20, 31)).flip(-1)[:, classes]
    expected = sum((probs(view) if probs else view) / 2 for view in views)
    total = add_resized(None, a.contiguous(memory_format=layout), 0.5, (20, 31), probs=probs)
    assert add_resized(total, b, 0.5, (20, 31), mirror=classes, probs=probs) is total
    assert torch.allclose(total, expected, atol=1e-5)
