"""build_optimizer: what an optimizer does with its rate is said at the start."""
import pytest

from tests.programs.test_trainer import Net
from tests.training.test_run_state import REFUSED
from utils.config.registry import components
from utils.training.optimizer import build_optimizer

TOLD = "uses the learning rate in its first step only"


@pytest.mark.parametrize("name", sorted(components("optimizers").keys() - REFUSED.keys()))
def test_an_optimizer_that_forgets_its_rate_says_so_and_no_other_does(name, capsys):
    optimizer = build_optimizer({"type": name, "args": {"lr": 0.01}}, Net())
    assert (f"{name} {TOLD}" in capsys.readouterr().err) is (name == "Rprop")
    assert not any(optimizer.state[p] for p in optimizer.param_groups[0]["params"]
                   if name != "Adagrad")


@pytest.mark.parametrize("rate", [0.0, 1e-12])
def test_a_rate_near_zero_is_not_forgotten(rate, capsys):
    build_optimizer({"type": "SGD", "args": {"lr": rate}}, Net())
    assert TOLD not in capsys.readouterr().err


def test_the_weights_of_the_network_are_not_touched():
    model = Net()
    before = [p.clone() for p in model.parameters()]
    build_optimizer({"type": "AdamW", "args": {"lr": 0.1}}, model)
    assert all((a == b).all() for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
