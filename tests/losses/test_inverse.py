"""The inverses of losses: exact where a loss is at its minimum, finite everywhere.

The reference is the loss itself: its minimum over free logits, found by Newton's method or gradient
descent for known posteriors, must be turned back into these posteriors.
"""
import math

import pytest
import torch
from torch import nn

from tests.losses.test_losses import ARGS, NAMES
from utils.losses import build_loss
from utils.losses.inverse import Inverse, NoInverse, inverse_of

CASES = [
    ("CE", {}), ("CE", {"weight": "W"}), ("CE", {"label_smoothing": 0.1}),
    ("CE", {"weight": "W", "label_smoothing": 0.2}),
    *(("FocalLoss", {"gamma": gamma}) for gamma in (0, 0.5, 1, 2, 5)),
    *(("FocalLoss", {"gamma": gamma, "alpha": "W"}) for gamma in (0, 0.5, 2, 5)),
    ("BCEWithLogitsLoss2d", {}), ("BCEWithLogitsLoss2d", {"weight": "W"}),
    *(("BCEWithLogitsFocalLoss2d", {"gamma": gamma, "alpha": "W"}) for gamma in (0, 0.5, 1, 2, 5)),
    ("RMI", {"do_rmi": False, "weight": "W"}),
    ("MixedLoss", {"losses": [{"type": "CE", "args": {"weight": "W"}}]}),
    ("MixedLoss", {"losses": [{"type": "CE"}, {"type": "FocalLoss", "args": {"gamma": 0},
                                               "weight": 0.4}]}),
]


def pixels_of(classes, rows=3, pixels=250):
    """The label counts (rows, classes) of `rows` kinds of pixels, `pixels` of each.

    The shares are the posteriors: from almost even ones to one of nearly 1. Every class occurs.
    """
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    sharp = torch.linspace(0.3, 4, rows, dtype=torch.float64)[:, None]
    counts = ((logits * sharp).softmax(1) * (pixels - classes)).floor() + 1
    counts[torch.arange(rows), counts.argmax(1)] += pixels - counts.sum(1)
    return counts.long()


def with_weights(args, classes):
    """The arguments with numbers for "W": from 0.5 to 4, one for each class."""
    if isinstance(args, dict):
        return {key: with_weights(value, classes) for key, value in args.items()}
    if isinstance(args, list):
        return [with_weights(value, classes) for value in args]
    return torch.linspace(0.5, 4, classes).tolist() if args == "W" else args


def minimum(loss, counts):
    """The logits (rows, classes), float64, that minimize the loss of pixels with these labels.

    All pixels of a row share their logits.
    """
    rows, classes = counts.shape
    pixels = int(counts[0].sum())
    labels = torch.stack([torch.arange(classes).repeat_interleave(one) for one in counts])[None]
    z = torch.zeros(rows, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=1000, tolerance_grad=1e-6,
                                  tolerance_change=0, history_size=40,
                                  line_search_fn="strong_wolfe")

    def total():
        optimizer.zero_grad()
        logits = z.T[None, :, :, None].expand(1, classes, rows, pixels)
        value = loss(logits, labels) * labels.numel()
        value.backward()
        return value
    optimizer.step(total)
    return z.detach()


@pytest.mark.parametrize("classes", [2, 19, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, args", CASES, ids=[f"{name}-{args}" for name, args in CASES])
def test_the_inverse_of_the_minimum_of_a_loss_is_the_posterior(name, args, classes):
    loss = build_loss({"type": name, "args": with_weights(args, classes)})
    counts = pixels_of(classes)
    p = counts / counts.sum(1, keepdim=True)
    inverse = inverse_of(loss)
    assert isinstance(inverse, Inverse)
    logits = inverse(minimum(loss, counts))
    found = logits.softmax(1) if inverse.activation == "softmax" else logits.sigmoid()
    assert (found - p).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("inverse", [
    Inverse(2.0), Inverse(0.5, [1, 0, 3]), Inverse(5.0, label_smoothing=0.1),
    Inverse(2.0, activation="sigmoid"), Inverse(weight=[1e-6, 1, 1e6], activation="sigmoid")],
    ids=str)
def test_extreme_logits_stay_finite_and_keep_their_input(inverse, dtype):
    largest = torch.finfo(dtype).max
    rows = [[0, 0, 0], [largest, -largest, 0], [largest, largest, -largest], [-largest] * 3,
            [80, -80, 0], [1e-4, 0, -1e-4], [3e4, 2.9e4, -6e4]]
    logits = torch.tensor(rows, dtype=torch.float64).to(dtype)
    before = logits.clone()
    found = inverse(logits)
    assert found.isfinite().all() and found.shape == logits.shape
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    p = found.softmax(1) if inverse.activation == "softmax" else found.sigmoid()
    assert p.isfinite().all()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_float32_gives_the_focal_inverse_of_float64_also_next_to_certainty(gamma):
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 30
    exact = Inverse(gamma)(logits.double()).log_softmax(1)
    found = Inverse(gamma)(logits).log_softmax(1)
    assert ((found - exact).abs() <= 1e-4 * (1 + exact.abs())).all()


def test_the_focal_inverse_of_two_classes_is_the_formula_of_the_paper():
    q, gamma = torch.tensor([[0.8, 0.2]], dtype=torch.float64), 2.0
    h = q / ((1 - q) ** gamma - gamma * (1 - q) ** (gamma - 1) * q * q.log())
    assert torch.allclose(Inverse(gamma)(q.log()).softmax(1), h / h.sum())


def test_class_weights_of_one_value_and_no_gamma_leave_the_logits_as_they_are():
    logits = torch.randn(4, 3, 2, 2)
    for inverse in (Inverse(), Inverse(0.0, [2.0, 2.0, 2.0])):
        assert not inverse.active and inverse(logits) is logits and inverse.describe() == ""


def test_a_class_of_weight_0_keeps_its_logit_against_one_of_mean_weight():
    inverse = Inverse(weight=[1.0, 0.0, 3.0])
    logits = torch.zeros(1, 3)
    assert inverse.unknown == [1]
    expected = torch.tensor([[math.log(2), 0.0, math.log(2 / 3)]])
    assert torch.allclose(inverse(logits), expected)


def test_label_smoothing_never_gives_a_probability_below_the_floor():
    p = Inverse(label_smoothing=0.1)(torch.tensor([[20.0, 0.0]])).softmax(1)
    assert 0 < p[0, 1] < 1e-6 and p[0, 0] > 1 - 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_states_an_inverse_or_why_there_is_none(name):
    loss = build_loss({"type": name, "args": ARGS.get(name, {})})
    inverse = inverse_of(loss)
    if isinstance(inverse, NoInverse):
        assert len(inverse.reason) > 20
    else:
        assert inverse.activation == loss.activation


@pytest.mark.parametrize("name", ["OhemCrossEntropy", "TOPK", "BootstrappedCrossEntropyLoss",
                                  "DiceLoss", "CE_DiceLoss", "LogCoshDiceLoss", "DC_CE", "DC_TOPK",
                                  "LovaszSoftmax", "RMI", "MixedLoss", "SegFixLoss"])
def test_a_loss_without_an_inverse_is_named_with_the_reason(name):
    inverse = inverse_of(build_loss({"type": name, "args": ARGS.get(name, {})}))
    assert isinstance(inverse, NoInverse)
    assert inverse.reason.startswith(name)


def test_a_sum_of_losses_whose_others_have_the_weight_0_has_the_inverse_of_the_one_left():
    inverse = inverse_of(build_loss({"type": "MixedLoss", "args": {"losses": [
        {"type": "FocalLoss"}, {"type": "DC", "weight": 0}]}}))
    assert inverse == Inverse(2.0)


def test_a_subclass_with_another_forward_does_not_inherit_an_inverse():
    base = type(build_loss("CE"))

    class Own(base):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        def forward(self, logits, target):
            return super().forward(logits, target) ** 2

    class Stated(Own):
        def inverse(self):
            return Inverse(weight=[1, 2])

    class Without(nn.Module):
        pass
    assert inverse_of(Own()) == NoInverse("Own does not state an inverse")
    assert inverse_of(Stated()) == Inverse(weight=[1, 2])
    assert inverse_of(Without()) == NoInverse("Without does not state an inverse")


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("alpha", [None, "W"])
def test_where_a_detached_focal_loss_has_no_expected_gradient_the_inverse_is_the_posterior(
        classes, alpha):
    loss = build_loss({"type": "FocalLoss", "args": with_weights(
        {"gamma": 2.0, "alpha": alpha, "detach": True}, classes)})
    torch.manual_seed(classes)
    logits = torch.randn(1, classes, dtype=torch.float64, requires_grad=True)
    p = inverse_of(loss)(logits.detach()).softmax(1)
    assert (p - logits.softmax(1)).abs().max() > 0.01
    expected = sum(share * loss(logits[:, :, None, None], torch.full((1, 1, 1), label))
                   for label, share in enumerate(p[0]))
    expected.backward()
    assert logits.grad.abs().max() < 1e-9
