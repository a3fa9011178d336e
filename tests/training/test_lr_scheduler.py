"""Schedules: golden curves, single values, resuming, arguments that are filled in."""
import json
import math
import warnings

import pytest
import torch

from tests.support.places import SHARED
from tools.plot_schedules import curve as drawn
from utils.config.registry import components
from utils.errors import ConfigError
from utils.training.lr_scheduler import advance, build_scheduler

GOLDEN = SHARED / "losses/schedules.json"
ON_SCORES = "ReduceLROnPlateau"
OURS = {name: cls for name, cls in components("schedulers").items()
        if getattr(cls, "per_iteration", False)}
BY_STEPS = sorted(components("schedulers").keys() - {ON_SCORES})
ARGS = {"Step": {"milestones": [2, 4]}, "StepLR": {"step_size": 2},
        "MultiStepLR": {"milestones": [2, 4]}, "ExponentialLR": {"gamma": 0.9},
        "CosineAnnealingWarmRestarts": {"T_0": 2},
        "CyclicLR": {"base_lr": [1e-4, 1e-5], "max_lr": [0.01, 0.001], "step_size_up": 7}}
CURVES = {
    "poly_reference": ("Poly", {}, 0.01),
    "poly_from_zero": ("Poly", {"from_zero": True}, 0.01),
    "poly_warmup1_reference": ("Poly", {"warmup_epochs": 1}, 0.01),
    "poly_warmup20_continuous": ("Poly", {"warmup_steps": 20, "warmup": "scale"}, 0.01),
    "poly_per_epoch": ("Poly", {"per_epoch": True}, 0.01),
    "poly_power2": ("Poly", {"power": 2.0, "from_zero": True}, 0.005),
    "onecycle_reference": ("OneCycle", {}, 0.01),
    "onecycle_as_described": ("OneCycle", {"as_described": True}, 0.01),
    "onecycle_torch_builtin_equivalent":
        ("OneCycleLR", {"pct_start": 0.3, "div_factor": 10, "final_div_factor": 2.5}, 0.01),
    "cosine_per_epoch_intended": ("CosineAnnealingLR", {}, 0.01),
    "swa_poly": ("SWAPoly", {}, 0.01),
}


def optimizer_of(rate=0.01, kind=torch.optim.SGD, **options):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    if kind is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    return kind([{"params": weights[:1]}, {"params": weights[1:], "lr": rate / 10}], lr=rate,
                **options)


def curve(section, rate=0.01, steps=100, per_epoch=20):
    """(lr of group 0, lr of group 1, momentum) at every step."""
    optimizer = optimizer_of(rate)
    scheduler = build_scheduler(section, optimizer, steps, per_epoch)
    return stepped(scheduler, optimizer, 0, steps, per_epoch)


def stepped(scheduler, optimizer, first, steps, per_epoch=20):
    """(lr of group 0, lr of group 1, momentum) at the steps from `first` on."""
    rows = []
    for step in range(first, steps):
        rows.append((*(group["lr"] for group in optimizer.param_groups),
                     optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        if scheduler.per_iteration or (step + 1) % per_epoch == 0:
            scheduler.step()
    return list(zip(*rows, strict=True))


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden schedules (../shared/losses) are not here")
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", CURVES)
def test_the_curve_equals_the_golden_one(golden, name):
    kind, args, rate = CURVES[name]
    found, slow, momentum = curve({"type": kind, "args": args}, rate)
    assert found == pytest.approx(golden[name]["lr"], rel=1e-12, abs=1e-16)
    assert slow == pytest.approx([lr / 10 for lr in found], rel=1e-9, abs=1e-16)
    if "momentum" in golden[name]:
        assert momentum == pytest.approx(golden[name]["momentum"], rel=1e-12)


@pytest.mark.parametrize("section, probes", [
    ("Poly", {0: 0.01 * 0.99 ** 0.9, 50: 0.01 * 0.49 ** 0.9, 99: 0.0}),
    ({"type": "Poly", "args": {"from_zero": True}}, {0: 0.01, 99: 0.01 * 0.01 ** 0.9}),
    ({"type": "Poly", "args": {"warmup_epochs": 1}},
     {0: 0.0005, 18: 0.0095, 19: 0.01 * 0.8 ** 0.9}),
    ({"type": "Poly", "args": {"warmup_steps": 10, "warmup": "scale", "warmup_power": 4}},
     {0: 1e-6, 4: 0.01 * 0.96 ** 0.9 / 16, 20: 0.01 * 0.8 ** 0.9}),
    ({"type": "Poly", "args": {"warmup_steps": 20, "warmup": "restart", "warmup_start_lr": 0.002}},
     {0: 0.002, 10: 0.006, 20: 0.01, 60: 0.01 * 0.5 ** 0.9}),
    ({"type": "Poly", "args": {"from_zero": True, "end_lr": 0.001, "power": 1.0}},
     {0: 0.01, 50: 0.0055}),
    ("OneCycle", {29: 0.01, 99: 0.01 / 250000}),
    ({"type": "OneCycle", "args": {"as_described": True}}, {0: 0.001, 30: 0.01}),
    ({"type": "OneCycle", "args": {"start_div": 5, "end_div": 2}}, {29: 0.01, 99: 0.005}),
    ({"type": "Cosine", "args": {"end_lr": 0.001}}, {0: 0.01, 50: 0.0055}),
    ({"type": "Cosine", "args": {"warmup_epochs": 0.5}}, {0: 0.001, 9: 0.01, 55: 0.005}),
    ({"type": "Cosine", "args": {"warmup_steps": 10}}, {0: 0.001, 9: 0.01, 55: 0.005}),
    ({"type": "Step", "args": {"milestones": [1, 3.5]}}, {19: 0.01, 20: 0.001, 70: 0.0001}),
    ({"type": "Step", "args": {"milestones": [1], "warmup_steps": 10}}, {0: 0.001, 9: 0.01}),
    ("CosineAnnealingLR", {19: 0.01, 20: 0.005 * (1 + math.cos(math.pi / 5))}),
    ({"type": "StepLR", "args": {"step_size": 2}}, {39: 0.01, 40: 0.001}),
])
def test_single_values_of_the_curves_are_right(section, probes):
    found = curve(section)[0]
    for step, rate in probes.items():
        assert found[step] == pytest.approx(rate, rel=1e-9, abs=1e-12), step


def test_the_backbone_waits_warms_up_and_decays_over_its_own_rest():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "name": "head"},
                                 {"params": weights[1:], "name": "backbone_layer_0", "lr": 0.001}],
                                lr=0.01, momentum=0.9)
    args = {"warmup": "restart", "warmup_steps": 10, "backbone_wait": 10,
            "backbone_warmup_steps": 20}
    scheduler = build_scheduler({"type": "Poly", "args": args}, optimizer, 100, 20)
    head, backbone, _ = stepped(scheduler, optimizer, 0, 100)
    assert [head[step] for step in (0, 5, 10, 55)] == pytest.approx(
        [0, 0.005, 0.01, 0.01 * 0.5 ** 0.9])
    assert [backbone[step] for step in (0, 9, 10, 20, 30, 65)] == pytest.approx(
        [0, 0, 0, 0.0005, 0.001, 0.001 * 0.5 ** 0.9])


def test_a_backbone_that_cannot_wait_is_refused():
    args = {"warmup": "restart", "backbone_wait": 10}
    with pytest.raises(ConfigError, match="need groups of the backbone"):
        build_scheduler({"type": "Poly", "args": args}, optimizer_of(), 100, 20)
    with pytest.raises(ConfigError, match='with warmup "restart" only'):
        build_scheduler({"type": "Poly", "args": {"backbone_wait": 1}}, optimizer_of(), 100, 20)
    optimizer = optimizer_of()
    optimizer.param_groups[0]["name"] = "backbone"
    with pytest.raises(ConfigError, match="waits 90 steps and warms up over 20 does not fit"):
        build_scheduler({"type": "Poly", "args": args | {
            "backbone_wait": 90, "backbone_warmup_steps": 20}}, optimizer, 100, 20)


@pytest.mark.parametrize("name", ["Cosine", "Step", "Poly"])
def test_a_warm_up_is_given_in_steps_or_in_epochs_and_fits_into_the_run(name):
    args = {"milestones": [1]} if name == "Step" else {}
    with pytest.raises(ConfigError, match="give warmup_epochs or warmup_steps, not both"):
        build_scheduler({"type": name, "args": args | {"warmup_epochs": 1, "warmup_steps": 5}},
                        optimizer_of(), 100, 20)
    with pytest.raises(ConfigError, match="a warm-up of 101 steps does not fit into 100 steps"):
        build_scheduler({"type": name, "args": args | {"warmup_steps": 101}}, optimizer_of(), 100,
                        20)


def test_cosine_per_epoch_equals_torchs():
    rates = curve({"type": "Cosine", "args": {"per_epoch": True}})[0]
    assert rates == pytest.approx(curve("CosineAnnealingLR")[0], rel=1e-12)


def test_one_cycle_moves_the_momentum_against_the_rate():
    *_, momentum = curve({"type": "OneCycle", "args": {"as_described": True}})
    assert momentum[0] == 0.95 and momentum[30] == pytest.approx(0.85)


def test_one_cycle_moves_beta1_of_adam():
    optimizer = optimizer_of(kind=torch.optim.AdamW)
    build_scheduler({"type": "OneCycle", "args": {"as_described": True}}, optimizer, 10, 5)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.999)


@pytest.mark.parametrize("name", BY_STEPS)
@pytest.mark.parametrize("first", [0, 1, 37, 40, 99])
def test_an_advanced_schedule_goes_on_as_one_that_never_stopped(name, first):
    section = {"type": name, "args": ARGS.get(name, {})}
    whole = curve(section)
    optimizer = optimizer_of()
    scheduler = build_scheduler(section, optimizer, 100, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")       # torch warns if a schedule steps before the optimizer
        advance(scheduler, first if scheduler.per_iteration else first // 20)
        assert stepped(scheduler, optimizer, first, 100) == [row[first:] for row in whole]


@pytest.mark.parametrize("name", BY_STEPS)
def test_the_state_of_a_schedule_holds_the_number_of_its_steps(name):
    optimizer = optimizer_of()
    scheduler = build_scheduler({"type": name, "args": ARGS.get(name, {})}, optimizer, 100, 20)
    advance(scheduler, 3)
    assert scheduler.state_dict()["last_epoch"] == 3


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_schedule_stays_at_its_end(name):
    optimizer = optimizer_of()
    scheduler = build_scheduler({"type": name, "args": ARGS.get(name, {})}, optimizer, 10, 5)
    for _ in range(13):
        optimizer.step()
        scheduler.step()
    last = scheduler.get_last_lr()
    assert all(rate >= 0 for rate in last) and last[1] == pytest.approx(last[0] / 10)


@pytest.mark.parametrize("name", sorted(OURS))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(name, steps):
    args = ARGS.get(name, {})
    optimizer = optimizer_of()
    scheduler = build_scheduler({"type": name, "args": args}, optimizer, steps, 1)
    for _ in range(steps):
        assert all(math.isfinite(rate) and rate >= 0 for rate in scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_rate_of_zero_stays_zero(name):
    rates = curve({"type": name, "args": ARGS.get(name, {})}, rate=0.0, steps=10, per_epoch=5)[0]
    assert rates == (0.0,) * 10


def test_segwrights_schedules_step_per_iteration_and_most_of_torchs_per_epoch():
    def steps_per_iteration(section):
        return build_scheduler(section, optimizer_of(), 100, 20).per_iteration
    assert steps_per_iteration("Poly") and steps_per_iteration("OneCycleLR")
    assert not steps_per_iteration({"type": "StepLR", "args": {"step_size": 3}})


def test_missing_lengths_are_filled_in_and_given_ones_kept():
    assert build_scheduler("CosineAnnealingLR", optimizer_of(), 100, 20).T_max == 5
    section = {"type": "CosineAnnealingLR", "args": {"T_max": 9}}
    assert build_scheduler(section, optimizer_of(), 100, 20).T_max == 9
    section = {"type": "CosineAnnealingLR", "args": {"T_max": None}}
    assert build_scheduler(section, optimizer_of(), 100, 20).T_max == 5


def test_a_linear_decay_of_torch_lasts_as_long_as_the_run():
    rates = curve("PolynomialLR", steps=8, per_epoch=1)[0]
    assert rates == pytest.approx([0.01 * (1 - epoch / 8) for epoch in range(8)])


@pytest.mark.parametrize("section, words", [
    ({"type": "PolynomialLR", "args": {"total_iters": 2}},
     "PolynomialLR: total_iters is 2, the run has 5 epochs: the learning rate is 0.01 in the "
     "first, 0 in epoch 3 and 0 in the last"),
    ({"type": "LinearLR", "args": {"start_factor": 0.5, "total_iters": 2}},
     "LinearLR: total_iters is 2, the run has 5 epochs: the learning rate is 0.005 in the first, "
     "0.01 in epoch 3 and 0.01 in the last"),
    ({"type": "CosineAnnealingLR", "args": {"T_max": 2}}, "T_max is 2, the run has 5 epochs"),
    ({"type": "CosineAnnealingLR", "args": {"T_max": 8}}, "T_max is 8, the run has 5 epochs"),
    ({"type": "StepLR", "args": {"step_size": 3, "gamma": 0.0}},
     "StepLR: the learning rate is 0 in 2 of 5 epochs, first in epoch 4"),
    ({"type": "Step", "args": {"milestones": [2], "gamma": 0}},
     "Step: the learning rate is 0 in 3 of 5 epochs, first in epoch 3"),
])
def test_another_length_than_the_runs_and_epochs_without_a_rate_are_told(section, words, capsys):
    build_scheduler(section, optimizer_of(), 100, 20)
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


@pytest.mark.parametrize("name", BY_STEPS)
@pytest.mark.parametrize("per_epoch", [1, 20])
def test_a_schedule_of_the_runs_length_tells_nothing(name, per_epoch, capsys):
    build_scheduler({"type": name, "args": ARGS.get(name, {})}, optimizer_of(), 5 * per_epoch,
                    per_epoch)
    assert not capsys.readouterr().err


def test_a_constant_rate_tells_nothing(capsys):
    args = {"factor": 1.0, "total_iters": 0}
    build_scheduler({"type": "ConstantLR", "args": args}, optimizer_of(), 100, 20)
    assert not capsys.readouterr().err


def test_one_cycle_of_torch_takes_its_length_from_epochs_and_steps_if_they_are_given():
    args = {"max_lr": [0.1, 0.01], "total_steps": None, "epochs": 8, "steps_per_epoch": 20}
    section = {"type": "OneCycleLR", "args": args}
    assert build_scheduler(section, optimizer_of(), 100, 20).total_steps == 160
    with pytest.raises(ConfigError, match="ends after 80 steps, the run has 100"):
        build_scheduler({"type": "OneCycleLR", "args": {**args, "epochs": 4}}, optimizer_of(), 100,
                        20)


# A schedule on validated values


def plateau(optimizer, better="max", **args):
    return build_scheduler({"type": ON_SCORES, "args": args}, optimizer, 100, 20, better)


@pytest.mark.parametrize("better, scores", [("max", [0.1, 0.3, 0.2, 0.3, 0.4, 0.1, 0.1, 0.1]),
                                            ("min", [0.4, 0.2, 0.3, 0.2, 0.1, 0.4, 0.4, 0.4])])
def test_the_rate_falls_when_more_than_patience_validations_were_not_better(better, scores):
    optimizer = optimizer_of()
    scheduler = plateau(optimizer, better, patience=1, factor=0.5)
    rates = []
    for score in scores:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.0025, 0.0025]
    assert optimizer.param_groups[1]["lr"] == 0.00025


def test_a_validation_that_is_not_a_number_counts_as_not_better():
    optimizer = optimizer_of()
    scheduler = plateau(optimizer, patience=0)
    for score in (0.5, math.nan):
        scheduler.step(score)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_the_lowest_rate_keeps_the_ratio_of_the_groups():
    optimizer = optimizer_of()
    scheduler = plateau(optimizer, patience=0, min_lr=0.004)
    for _ in range(4):
        scheduler.step(0.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.004, 0.0004])


def test_a_resumed_plateau_goes_on_as_if_never_stopped():
    scores = [0.1, 0.3, 0.2, 0.3, 0.2, 0.1, 0.4, 0.1, 0.1, 0.1]

    def rates_of(scheduler, optimizer, scores):
        rates = []
        for score in scores:
            scheduler.step(score)
            rates.append([group["lr"] for group in optimizer.param_groups])
        return rates
    optimizer = optimizer_of()
    whole = rates_of(plateau(optimizer, patience=1, cooldown=1), optimizer, scores)
    for stop in range(len(scores)):
        optimizer = optimizer_of()
        first = plateau(optimizer, patience=1, cooldown=1)
        begun = rates_of(first, optimizer, scores[:stop])
        state = json.loads(json.dumps(first.state_dict()))      # plain types only
        optimizer = optimizer_of()
        second = plateau(optimizer, patience=1, cooldown=1)
        second.load_state_dict(state)
        assert begun + rates_of(second, optimizer, scores[stop:]) == whole


def test_reductions_of_a_plateau_apply_to_a_new_rate():
    scheduler = plateau(optimizer_of(), patience=0, factor=0.5)
    for score in (0.5, 0.5, 0.5):
        scheduler.step(score)
    optimizer = optimizer_of(rate=0.08)
    plateau(optimizer, patience=0, factor=0.5).load_state_dict(scheduler.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])


def test_it_cannot_be_drawn():
    with pytest.raises(ConfigError, match="cannot be drawn: its rates depend on validations"):
        drawn({"type": ON_SCORES}, 20, 5)


@pytest.mark.parametrize("name", BY_STEPS)
def test_every_other_schedule_can_be_drawn(name):
    args = {**ARGS, "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0}}.get(name, {})
    found, _ = drawn({"type": name, "args": args}, 20, 5)
    assert len(found) == 20 and max(found) <= 1


def test_a_schedule_on_validated_values_needs_them():
    with pytest.raises(ConfigError, match="nothing is validated or monitored"):
        plateau(optimizer_of(), "off")


@pytest.mark.parametrize("section, text", [
    ("Polly", "Did you mean 'Poly'"),
    ({"type": "Poly", "args": {"pwer": 1}}, "Did you mean 'power'"),
    ({"type": "Poly", "args": {"warmup_epochs": 6}}, "does not fit"),
    ({"type": "Poly", "args": {"warmup": "soft"}}, "jump"),
    ({"type": "Poly", "args": {"warmup_power": 2}}, "no effect|has an effect"),
    ({"type": "OneCycle", "args": {"pct": 1.5}}, "pct"),
    ({"type": "StepLR"}, "step_size"),
    ({"type": "StepLR", "args": {"step_size": 0}}, "StepLR: .* in epoch 2"),
    ({"type": "CosineAnnealingLR", "args": {"T_max": 0}}, "CosineAnnealingLR: .*zero"),
    ({"type": "ExponentialLR", "args": {"gamma": -1.0}},
     "the learning rate would be -0.01 in epoch 2"),
    ({"type": "OneCycleLR", "args": {"pct_start": 0.01}}, "OneCycleLR: .*zero"),
    ({"type": "OneCycleLR", "args": {"total_steps": 50}},
     "ends after 50 steps, the run has 100"),
    ({"type": "OneCycleLR", "args": {"max_lr": 0.1}}, "differential_lr, .* have no effect"),
    ({"type": "CyclicLR", "args": {"base_lr": 0.0, "max_lr": 1.0, "step_size_up": 0}},
     "CyclicLR: .*zero"),
])
def test_mistakes_are_config_errors(section, text):
    with pytest.raises(ConfigError, match=text):
        build_scheduler(section, optimizer_of(), 100, 20)


def test_a_run_without_a_step_is_a_config_error():
    with pytest.raises(ConfigError, match="drop_last"):
        build_scheduler("OneCycle", optimizer_of(), 0, 0)


def test_one_cycle_refuses_an_optimizer_without_momentum():
    with pytest.raises(ConfigError, match="momentum"):
        build_scheduler("OneCycle", optimizer_of(kind=torch.optim.Adagrad), 10, 5)
