"""Labels and sums of views from small logits equal those from logits at the image's size."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.layers.resize import resize_to
from utils import largest_class as module
from utils.largest_class import largest_class, upsampled_labels
from utils.last_resize import LastResize, Small
from utils.view_sum import ViewSum


def regions(classes, height, width, noise=0.0, seed=0):
    """Logits with regions of a few cells, as of a network: (1, C, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, height // 4 + 2, width // 4 + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    return smooth + noise * torch.randn(smooth.shape, generator=generator)


def resized(x, size, align_corners=False):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("classes", [1, 2, 19, 255, 300])
def test_the_largest_class_is_the_first_of_the_largest(classes):
    scores = torch.randint(0, 4, (2, classes, 9, 17), generator=torch.Generator().manual_seed(0))
    found = largest_class(scores.float())
    assert torch.equal(found.long(), scores.argmax(1))
    assert found.dtype == (torch.uint8 if classes <= 255 else torch.int16)


def test_a_nan_is_the_largest_class_as_it_is_for_torch():
    scores = torch.randn(1, 5, 4, 4)
    scores[0, 3, 1, 1] = float("nan")
    assert torch.equal(largest_class(scores).long(), scores.max(1).indices)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("classes,small,size", [
    (19, (16, 32), (128, 256)), (11, (45, 60), (360, 480)), (5, (17, 33), (129, 257)),
    (4, (9, 13), (100, 91)), (150, (16, 16), (128, 128)), (2, (20, 30), (80, 120)),
    (3, (16, 16), (128, 128)), (19, (64, 64), (80, 80)), (19, (4, 4), (32, 32)),
    (7, (1, 9), (50, 90)), (300, (8, 8), (80, 80))])
def test_labels_from_small_logits_are_exactly_those_of_the_resize(classes, small, size,
                                                                  align_corners):
    for noise in (0, 0.3, 3):
        x = regions(classes, *small, noise)
        expected = resized(x, size, align_corners).max(1).indices
        assert torch.equal(upsampled_labels(x, size, align_corners).long(), expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_ties_and_odd_values_are_decided_as_after_the_resize(align_corners):
    x = torch.randint(0, 3, (1, 6, 12, 16), generator=torch.Generator().manual_seed(0)).float()
    odd = regions(6, 12, 16)
    odd[0, 2, 3, 4], odd[0, 1, 8, 8], odd[0, 4, 0, 0] = float("nan"), float("inf"), -float("inf")
    for logits in (x, torch.zeros_like(x), odd):
        expected = resized(logits, (96, 128), align_corners).max(1).indices
        assert torch.equal(upsampled_labels(logits, (96, 128), align_corners).long(), expected)


def test_most_cells_are_never_resized(monkeypatch):
    """The shortcut is taken, not only allowed: where all agree nothing is computed."""
    def never(*_):
        raise AssertionError("a cell was computed although its corners agree")
    monkeypatch.setattr(module, "_inside", never)
    module._rounds_alike.cache_clear()
    monkeypatch.setattr(module, "_rounds_alike", lambda _: True)
    x = torch.zeros(1, 5, 16, 16)
    x[:, 3] = 1
    assert (upsampled_labels(x, (128, 128)) == 3).all()


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


def test_many_views_are_not_all_held(monkeypatch):
    monkeypatch.setattr("utils.view_sum.MOST_HELD", 0.1)
    views = torch.randn(12, 1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    total = ViewSum((80, 80))
    for view in views:
        total.add(view, 1.0, ((80, 80), False))
        assert sum(v.numel() for v, *_ in total._views) <= 0.1 * 3 * 80 * 80
    expected = sum(resized(view, (80, 80)) for view in views)
    assert (total.total() - expected).abs().max() <= 1e-5 * expected.abs().max()


class Ending(nn.Module):
    """Ends in a resize to its input, or goes on after one."""

    def __init__(self, goes_on=False):
        super().__init__()
        self.head, self.goes_on = nn.Conv2d(3, 4, 1), goes_on

    def forward(self, x):
        out = resize_to(self.head(F.avg_pool2d(x, 4)), x)
        return out * 2 if self.goes_on else out


def test_a_network_is_run_without_its_last_resize():
    short, x = LastResize(Ending().eval()), torch.randn(1, 3, 32, 40)
    for _ in range(2):
        small = short(x)
        assert isinstance(small, Small) and small.logits.shape == (1, 4, 8, 10)
        assert torch.equal(resized(small.logits, (32, 40)), short.model(x))


def test_an_evaluation_by_rule_max_without_a_loss_never_makes_the_large_logits(monkeypatch):
    from utils import predictor as module
    from utils.decision import build_decision
    from utils.evaluate import evaluate

    class Loader(list):
        batch_size, dataset = 2, None
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 90, 80), dtype=torch.uint8, generator=generator)
    loader = Loader([{"image": image, "label": torch.randint(
        0, 4, (2, 90, 80), dtype=torch.uint8, generator=generator), "id": ["a", "b"]}])
    torch.manual_seed(0)
    predictor = module.Predictor(Ending().eval(), lambda x: x.float() / 255)
    options = dict(num_classes=4, ignore_index=255, device="cpu")
    expected = evaluate(lambda x: predictor(x), loader, [build_decision("max")], **options)
    monkeypatch.setattr(module.Predictor, "__call__", None)
    found = evaluate(predictor, loader, [build_decision("max")], **options)
    assert found["max"]["Mean_IoU"] == expected["max"]["Mean_IoU"] > 0
    assert found["max"]["mIoU_I"] == expected["max"]["mIoU_I"]


def test_a_network_that_goes_on_after_its_resize_is_run_whole():
    short, x = LastResize(Ending(goes_on=True).eval()), torch.randn(1, 3, 32, 40)
    for _ in range(2):
        assert torch.equal(short(x), short.model(x))


def test_a_network_that_changes_its_mind_is_run_whole():
    short, x = LastResize(Ending().eval()), torch.randn(1, 3, 32, 40)
    short(x)
    short.model.goes_on = True
    for _ in range(2):
        assert torch.equal(short(x), short.model(x))
