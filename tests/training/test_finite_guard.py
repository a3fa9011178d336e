"""FiniteGuard: a step whose loss or gradient is not finite changes nothing."""
import pytest
import torch
from torch import nn

from utils.training.finite_guard import FiniteGuard, copy_all


@pytest.mark.parametrize("value, refused", [(1.5, False), (float("nan"), True),
                                            (float("inf"), True), (-float("inf"), True)])
def test_a_step_is_refused_if_its_number_is_not_finite(value, refused):
    norm = nn.BatchNorm2d(2)
    guard = FiniteGuard(norm, torch.optim.SGD(norm.parameters(), 0.1), torch.device("cpu"), True)
    guard.before_step()
    norm(torch.randn(3, 2, 4, 4))
    changed = norm.running_mean.clone()
    assert guard.refuses(torch.tensor(value), 0, ["a"]) is refused
    assert torch.equal(norm.running_mean, torch.zeros(2) if refused else changed)


def test_a_guard_that_reads_every_step_has_nothing_to_report_later():
    layer = nn.Linear(1, 1)
    guard = FiniteGuard(layer, torch.optim.SGD(layer.parameters(), 0.1), torch.device("cpu"), True)
    guard.before_step()
    assert guard.refuses(torch.tensor(float("nan")), 3, ["a"])
    assert guard.first_bad_step() is None


def test_copy_all_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError):
        copy_all([torch.ones(1)], [torch.zeros(1), torch.zeros(1)])
