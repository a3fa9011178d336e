"""Warm-up over any schedule: single values, every kind of schedule, resuming, refusals."""
import json

import pytest
import torch

from tests.config.samples import only_mistake, small
from tests.training.test_run_state import last, rates, trained
from tools.plot_schedules import curve
from utils.config.schema import resolve_config
from utils.errors import ConfigError
from utils.training.warmup import WarmingRates

LINEAR = {"steps": 5, "start_factor": 0.2}


def section(name, args=None, **more):
    return "lr_scheduler=" + json.dumps({"type": name, "args": args or {}, **more})


@pytest.mark.parametrize("warmup, wanted", [
    ({"steps": 4, "start_factor": 0.2}, [0.2, 0.4, 0.6, 0.8, 1, 1]),
    ({"epochs": 0.5, "start_factor": 0.0}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ({"steps": 3, "start_factor": 0.25, "mode": "constant"}, [0.25, 0.25, 0.25, 1, 1, 1]),
    (None, [1] * 6)])
def test_the_factor_of_the_first_steps(warmup, wanted):
    rise = WarmingRates(warmup, 100, 10)
    assert [rise.factor(step) for step in range(6)] == pytest.approx(wanted)


@pytest.mark.parametrize("name, args", [
    ("MultiStepLR", {"milestones": [1, 2], "gamma": 0.5}), ("OneCycleLR", {}), ("Poly", {}),
    ("ExponentialLR", {"gamma": 0.5}), ("CosineAnnealingLR", {}),
    ("ReduceLROnPlateau", {"patience": 0, "factor": 0.5, "threshold": 0.5}),
    ("ConstantLR", {"factor": 1})])
def test_a_run_has_the_rates_of_its_schedule_times_the_warmup(tmp_path, name, args):
    factors = [WarmingRates(LINEAR, 12, 4).factor(step) for step in range(12)]
    settings = "trainer.log_per_iter=1", "optimizer.differential_lr=true"
    for folder, more in (("plain", {}), ("warm", {"warmup": LINEAR})):
        trainer = trained(tmp_path / folder, section(name, args, **more), *settings)
        assert trainer.monitor.mode == "max"
    plain, warm = ([json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").open()]
                   for folder in ("plain", "warm"))
    if name == "ReduceLROnPlateau":     # whose reductions depend on the scores
        factors, plain, warm = factors[:4], plain[:4], warm[:4]
    for group in ("train/lr/head", "train/lr/backbone"):
        before, after = ([line[group] for line in lines if line["kind"] == "train"]
                         for lines in (plain, warm))
        assert after == pytest.approx([a * b for a, b in zip(before, factors, strict=True)])


@pytest.mark.parametrize("name", ["MultiStepLR", "ReduceLROnPlateau", "Poly"])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_run_stopped_in_or_after_its_warmup_resumes_without_a_difference(tmp_path, name, stop):
    args = {"MultiStepLR": {"milestones": [1, 2]}, "ReduceLROnPlateau": {"patience": 0}}
    settings = section(name, args.get(name), warmup=LINEAR), "trainer.log_per_iter=1"
    trained(tmp_path / "whole", *settings)
    trained(tmp_path / "cut", *settings, stop=stop)
    trained(tmp_path / "cut", *settings, checkpoint=last(tmp_path / "cut"))
    assert rates(tmp_path / "cut") == rates(tmp_path / "whole")
    one, other = last(tmp_path / "cut")["model"], last(tmp_path / "whole")["model"]
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_schedule_never_sees_the_lowered_rates():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    rise = WarmingRates(LINEAR, 10, 5)
    with pytest.raises(KeyboardInterrupt), rise.applied(optimizer, 0):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        raise KeyboardInterrupt
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_drawn_curve_shows_the_warmup():
    drawn, _ = curve({"type": "ConstantLR", "args": {"factor": 1}, "warmup": LINEAR}, 10, 2)
    assert drawn == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("warmup, words", [
    ({}, "expected exactly one of steps and epochs, got neither"),
    ({"steps": 3, "epochs": 1}, "got both"), ({"steps": 0}, "expected more than 0, got 0"),
    ({"epochs": -1.0}, "warmup.epochs: expected more than 0"),
    ({"steps": 3, "start_factor": 1}, r"start_factor: expected a number in [0, 1), got 1"),
    ({"steps": 3, "mode": "linaer"}, 'Did you mean "linear"?')])
def test_a_warmup_that_cannot_be_is_a_mistake(warmup, words):
    assert words in only_mistake(small(lr_scheduler={"type": "Poly", "warmup": warmup}))


@pytest.mark.parametrize("key", ["warmup_epochs", "warmup_steps"])
def test_a_second_warmup_is_refused(key):
    schedule = {"type": "Poly", "args": {key: 1}, "warmup": {"steps": 3}}
    assert f"Poly already warms up: remove lr_scheduler.args.{key}" in only_mistake(
        small(lr_scheduler=schedule))


def test_a_warmup_longer_than_the_run_or_of_no_step_is_refused():
    for warmup in ({"steps": 11}, {"epochs": 0.01}):
        with pytest.raises(ConfigError, match="does not fit into the 10 steps of the run"):
            WarmingRates(warmup, 10, 5)


def test_a_config_without_a_warmup_stays_as_it_was():
    assert resolve_config(small(lr_scheduler="Poly"))["lr_scheduler"].keys() == {"type", "args"}
    warmup = resolve_config(small(lr_scheduler={"type": "Poly", "warmup": {"steps": 3}}))[
        "lr_scheduler"]["warmup"]
    assert warmup == {"steps": 3, "epochs": None, "start_factor": 0.1, "mode": "linear"}
