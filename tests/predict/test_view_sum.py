"""A sum of views computed in strips equals the sum of the resized views."""
import pytest
import torch

from tests.predict.test_resizing import resized
from utils.predict.view_sum import ViewSum


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_sum_of_views_is_the_sum_of_their_resizes(align_corners):
    size, generator = (75, 101), torch.Generator().manual_seed(0)
    views = [(torch.randn(2, 5, h, w, generator=generator), middle)
             for h, w, middle in ((10, 13, (75, 101)), (5, 7, (37, 50)), (20, 26, (150, 202)))]
    total, expected = ViewSum(size), 0
    for view, middle in views:
        total.add(view, 0.25, (middle, not align_corners), (size, align_corners))
        expected += resized(resized(view, middle, not align_corners), size, align_corners) / 4
    tolerance = 1e-5 * expected.abs().max()
    assert (total.total() - expected).abs().max() <= tolerance
    strips = torch.cat([strip for _, strip in total.strips()], 2)
    assert (strips - expected).abs().max() <= tolerance


def test_views_beyond_the_limit_are_summed_up_and_not_held(monkeypatch):
    monkeypatch.setattr("utils.predict.view_sum.MOST_HELD", 0.1)
    views = torch.randn(12, 1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    total = ViewSum((80, 80))
    for view in views:
        total.add(view, 1.0, ((80, 80), False))
        assert sum(v.numel() for v, *_ in total._views) <= 0.1 * 3 * 80 * 80
    expected = sum(resized(view, (80, 80)) for view in views)
    assert (total.total() - expected).abs().max() <= 1e-5 * expected.abs().max()
