"""Learning-rate schedules: functions of the number of optimizer steps taken.

The classes below step once per optimizer step (`per_iteration` is True): the rate of step k,
counted from 0, is the initial rate of the parameter group times a factor that depends on k alone.
So resuming and gradient accumulation need only the count, and parameter groups keep their ratio.
Torch's schedulers can also be used. They step once per epoch, except OneCycleLR and CyclicLR, which
are defined per step, and ReduceLROnPlateau, which steps at each validation.

Call order: `optimizer.step()`, then `scheduler.step()`. If the gradient scaler skipped the step,
call neither. Per-epoch schedules always step at the end of an epoch. A schedule that has reached
its last step stays there.

Except for ReduceLROnPlateau, a rate is a function of the config, the length of the run and the
number of steps. So a run that resumes with other ones builds a new schedule and calls `advance`:
its rates are those of one run that had them from its start.
"""
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from utils.cli.console import notice
from utils.config import registry
from utils.config.build import construct
from utils.errors import ConfigError

# Arguments of torch's schedules that `build_scheduler` fills in from the length of the run.
FILLED_IN = {"CosineAnnealingLR": ("T_max",), "PolynomialLR": ("total_iters",),
             "OneCycleLR": ("max_lr", "total_steps")}
_PER_ITERATION = ("OneCycleLR", "CyclicLR")
# The arguments that set the length of torch's schedules, in epochs.
_LENGTHS = {"ConstantLR": "total_iters", "LinearLR": "total_iters", "PolynomialLR": "total_iters",
            "CosineAnnealingLR": "T_max"}
# The error of a schedule that steps on a monitored value if there is none.
NEEDS_MONITOR = ("the schedule steps on the validated value that trainer.monitor names, but "
                 "nothing is validated or monitored", "lr_scheduler.type",
                 "set trainer.val to true and trainer.monitor to a value, or use another schedule")
_MAX_CHECKED = 1000     # epochs of a run whose rates are computed before it starts


def build_scheduler(section: str | dict, optimizer: torch.optim.Optimizer, total_steps: int,
                    steps_per_epoch: int, better: str = "off") -> LRScheduler:
    """Build the schedule of a config; its `per_iteration` is whether it steps per optimizer step.

    section: NAME or {"type": NAME, "args": {...}}. total_steps: optimizer steps of the whole run;
    steps_per_epoch: of one epoch. better: whether a monitored value is better if it is larger
    ("max") or smaller ("min"); "off": nothing is monitored. For torch's classes T_max and
    total_iters of PolynomialLR (in epochs), total_steps and max_lr (the rate of each group) are
    filled in if the config leaves them out or null.

    A notice tells of a length that is not the run's, and of epochs whose rate is 0. Raises
    ConfigError for wrong arguments, rates that are negative or infinite, or a run without a step.
    """
    if isinstance(section, str):
        section = {"type": section}
    name, args = section["type"], dict(section.get("args") or {})
    scheduler = registry.lookup(name, registry.components("schedulers"), "lr_scheduler.type")
    if total_steps < 1 or steps_per_epoch < 1:
        raise ConfigError(f"a schedule needs at least one step, found {total_steps} in all and "
                          f"{steps_per_epoch} per epoch", "lr_scheduler",
                          fix="the training set holds fewer images than one batch: lower "
                              "batch_size, or set drop_last to false")
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    provided: dict[str, Any] = {}
    if hasattr(scheduler, "per_iteration"):
        provided |= {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        if "mode" in getattr(scheduler, "provided", ()):
            provided["mode"] = better
    else:
        args = _filled_in(name, args, rates, total_steps, math.ceil(total_steps / steps_per_epoch))

    def over(groups: torch.optim.Optimizer) -> Any:
        built: Any = construct(scheduler, args, "lr_scheduler.args",
                               {"optimizer": groups, **provided},
                               (TypeError, ValueError, KeyError, ArithmeticError))
        built.per_iteration = getattr(scheduler, "per_iteration", name in _PER_ITERATION)
        built.per_validation = getattr(scheduler, "per_validation", False)
        return built

    built = over(optimizer)
    now = [float(group["lr"]) for group in optimizer.param_groups]
    if len(set(rates)) > 1 and len(set(now)) == 1 and now[0]:
        raise ConfigError(f"{name} gives all {len(rates)} groups of parameters one rate, so that "
                          "differential_lr, groups and layer_decay of the optimizer have no effect",
                          "lr_scheduler.args", f"list {len(rates)} rates, or remove them from "
                                               "optimizer")
    if not built.per_validation:
        names = [group.get("name", "") for group in optimizer.param_groups]
        _check_rates(name, args, over(_scratch(rates, names)), total_steps, steps_per_epoch)
    return built


def advance(scheduler: Any, steps: int):
    """Let a schedule of `build_scheduler` take `steps` further steps, without optimizer steps.

    One that steps per iteration goes to the last of them at once: its rate depends on nothing but
    their number.
    """
    if scheduler.per_iteration and steps:
        scheduler.last_epoch += steps - 1
        scheduler._step_count += steps - 1
        steps = 1
    with warnings.catch_warnings():
        # Torch expects an optimizer step in between.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for _ in range(steps):
            scheduler.step()


def _filled_in(name, args, rates, total_steps, epochs):
    """The arguments of one of torch's schedules, with those that the run decides."""
    known = {"T_max": epochs, "total_iters": epochs, "total_steps": total_steps, "max_lr": rates}
    args = dict(args)
    own_length = name == "OneCycleLR" and args.get("epochs") and args.get("steps_per_epoch")
    for key in FILLED_IN.get(name, ()):
        if args.get(key) is None and not (own_length and key == "total_steps"):
            args[key] = known[key]
    return args


def _scratch(rates, names):
    """An optimizer with groups of these rates and names that trains nothing."""
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate,
                             "name": name} for rate, name in zip(rates, names, strict=True)],
                           momentum=0.9)


def _check_rates(name, args, scheduler, total_steps, steps_per_epoch):
    """Raise ConfigError for rates that cannot be; tell of a length that is not the run's."""
    epochs = math.ceil(total_steps / steps_per_epoch)
    length = getattr(scheduler, "total_steps", total_steps)
    if length < total_steps:
        raise ConfigError(f"{name} ends after {length} steps, the run has {total_steps}",
                          "lr_scheduler.args", "leave out the length: it is then the run's")
    rates = []      # in the middle of each epoch, of the group with the largest
    middle = steps_per_epoch // 2 if scheduler.per_iteration else 0
    for epoch in range(min(epochs, _MAX_CHECKED)):
        try:
            if scheduler.per_iteration:
                step = min(epoch * steps_per_epoch + middle, total_steps - 1)
                advance(scheduler, step - scheduler.last_epoch)
            elif epoch:
                advance(scheduler, 1)
        except (ValueError, ArithmeticError) as error:
            raise ConfigError(f"{name}: {error} in epoch {epoch + 1}",
                              "lr_scheduler.args") from error
        now = [float(rate) for rate in scheduler.get_last_lr()]
        if not all(math.isfinite(rate) and rate >= 0 for rate in now):
            raise ConfigError(f"{name}: the learning rate would be {min(now):.3g} in epoch "
                              f"{epoch + 1}", "lr_scheduler.args")
        rates.append(max(now))
    if _tell_length(name, args.get(_LENGTHS.get(name)), rates, epochs):
        return
    last_step = scheduler.per_iteration and steps_per_epoch == 1 and epochs <= _MAX_CHECKED
    idle = [epoch for epoch, rate in enumerate(rates[:-1] if last_step else rates, 1) if not rate]
    if idle and any(rates):
        notice(f"schedule {name}: the learning rate is 0 in {len(idle)} of {epochs} epochs, first "
               f"in epoch {idle[0]}")


def _tell_length(name, length, rates, epochs):
    """Tell of a schedule that is shorter or longer than the run; returns whether it is."""
    if length in (None, 0, epochs) or len(set(rates)) == 1:
        return False
    after = f", {rates[length]:.3g} in epoch {length + 1}" if length < len(rates) - 1 else ""
    notice(f"schedule {name}: {_LENGTHS[name]} is {length}, the run has {epochs} epochs: the "
           f"learning rate is {rates[0]:.3g} in the first{after} and {rates[-1]:.3g} in the last")
    return True


class _StepSchedule(LRScheduler):
    """A schedule per optimizer step; subclasses write `factor`."""

    per_iteration = True

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        raise NotImplementedError

    def __init__(self, optimizer, total_steps, steps_per_epoch):
        if total_steps < 1 or steps_per_epoch < 1:
            raise ValueError(f"total_steps and steps_per_epoch must be at least 1, found "
                             f"{total_steps} and {steps_per_epoch}")
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        super().__init__(optimizer)

    def get_lr(self):
        factor = self.factor(min(self.last_epoch, self.total_steps - 1))
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict:
        """The steps taken and the initial rates of the groups, as plain numbers."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(lr) for lr in self.base_lrs]}

    def _of_largest_rate(self, rate):
        """An absolute rate as a share of the largest initial rate of a group."""
        largest = max(float(lr) for lr in self.base_lrs)
        return rate / largest if largest else 0.0


class Poly(_StepSchedule):
    """Polynomial decay, lr · (1 − T/N)^power, as in DeepLab (Chen et al., arXiv:1606.00915).

    N: total steps. T counts from 1, as in the published code: the first step is
    already below the full rate and the last has `end_lr`. from_zero: T counts
    from 0, as in HRNet, openseg, MIC-DKFZ and PaddleSeg. per_epoch: T and N
    count finished epochs (NVIDIA); the rate is constant inside an epoch.
    end_lr: the rate at T = N, of the group with the largest rate.

    The warm-up lasts warmup_epochs, or warmup_steps; W is its length in steps:
    warmup "jump": lr · T/W while T < W, then the decay as if there had been no
    warm-up, as published; the rate falls at T = W.
    "scale": the decay times min(1, (T+1)/W)^warmup_power from T = 0 on, which
    has no jump (openseg: warmup_power 4); implies from_zero.
    "restart": from warmup_start_lr linearly to lr, then the decay over the
    remaining N − W steps (PaddleSeg); implies from_zero.
    backbone_wait, with "restart": the backbone's rate is 0 for so many steps, then it
    warms up over backbone_warmup_steps and decays over the rest (EoMT).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 power: float = 0.9, warmup_epochs: float = 0, warmup_steps: int = 0,
                 warmup: Literal["jump", "scale", "restart"] = "jump", warmup_power: float = 1.0,
                 warmup_start_lr: float = 0.0, end_lr: float = 0.0, from_zero: bool = False,
                 per_epoch: bool = False, backbone_wait: int = 0, backbone_warmup_steps: int = 0):
        if power <= 0:
            raise ValueError(f"power must be positive, found {power}")
        if warmup not in ("jump", "scale", "restart"):
            raise ValueError(f'warmup must be "jump", "scale" or "restart", found {warmup!r}')
        self.warmup_steps = _warmup_steps(warmup_epochs, warmup_steps, steps_per_epoch,
                                          total_steps)
        if warmup_power != 1 and warmup != "scale":
            raise ValueError('warmup_power has an effect with warmup "scale" only')
        if warmup_start_lr and warmup != "restart":
            raise ValueError('warmup_start_lr has an effect with warmup "restart" only')
        self.power, self.warmup, self.warmup_power = power, warmup, warmup_power
        self.warmup_start_lr, self.end_lr = warmup_start_lr, end_lr
        self.per_epoch = per_epoch
        self.first = 0 if from_zero or per_epoch or warmup != "jump" else 1
        self.wait, self.late_warmup = backbone_wait, backbone_warmup_steps
        self.late = [group.get("name", "").startswith("backbone")
                     for group in optimizer.param_groups]
        if backbone_wait or backbone_warmup_steps:
            self._check_wait(total_steps)
        super().__init__(optimizer, total_steps, steps_per_epoch)

    def get_lr(self):
        rates = super().get_lr()
        if self.wait or self.late_warmup:
            factor = self.backbone_factor(min(self.last_epoch, self.total_steps - 1))
            rates = [base * factor if late else rate
                     for base, rate, late in zip(self.base_lrs, rates, self.late, strict=True)]
        return rates

    def backbone_factor(self, step: int) -> float:
        """As `factor`, of the groups of the backbone."""
        return 0.0 if step < self.wait else self._restarted(
            step - self.wait, self.late_warmup, self.total_steps - self.wait)

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        done, warm = step + self.first, self.warmup_steps
        if self.warmup == "restart":
            return self._restarted(step, warm, self.total_steps)
        if self.warmup == "scale":
            rise = min(1.0, (step + 1) / warm) ** self.warmup_power if warm else 1.0
            return rise * self._decay(done, self.total_steps)
        return done / warm if done < warm else self._decay(done, self.total_steps)

    def _restarted(self, step, warm, total):
        """A rise over `warm` steps from warmup_start_lr, then the decay to the last of `total`."""
        if step < warm:
            start = self._of_largest_rate(self.warmup_start_lr)
            return start + (1 - start) * step / warm
        return self._decay(step - warm, total - warm)

    def _check_wait(self, total_steps):
        if self.warmup != "restart":
            raise ValueError('backbone_wait and backbone_warmup_steps have an effect with warmup '
                             '"restart" only')
        if min(self.wait, self.late_warmup) < 0 or self.wait + self.late_warmup > total_steps:
            raise ValueError(f"a backbone that waits {self.wait} steps and warms up over "
                             f"{self.late_warmup} does not fit into {total_steps} steps")
        if not any(self.late):
            raise ValueError("backbone_wait and backbone_warmup_steps need groups of the backbone: "
                             "set layer_decay or differential_lr of the optimizer")

    def _decay(self, done, total):
        if self.per_epoch:
            done, total = done // self.steps_per_epoch, math.ceil(total / self.steps_per_epoch)
        end = self._of_largest_rate(self.end_lr)
        return end + (1 - end) * max(0.0, 1 - done / total) ** self.power if total else 1.0


class OneCycle(_StepSchedule):
    """One cycle up and down in half cosines. Smith & Topin, 2018, arXiv:1708.07120.

    The rate rises from lr/start_div to lr over the first int(pct · N) steps and
    falls to lr/end_div over the rest, while the momentum (SGD) or beta1 (Adam)
    goes from momentums[1] down to momentums[0] and back.

    The published code and its own description differ. Default, as the code:
    start_div 25, end_div 250000, T counts from 1. as_described: start_div 10,
    end_div 25, T counts from 0. A divisor that is given wins in both.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 as_described: bool = False, pct: float = 0.3, start_div: float | None = None,
                 end_div: float | None = None, momentums: tuple = (0.85, 0.95)):
        if not 0 < pct < 1:
            raise ValueError(f"pct must be in (0, 1), found {pct}")
        if len(momentums) != 2 or not all(0 <= m < 1 for m in momentums):
            raise ValueError(f"momentums must be two numbers in [0, 1), found {list(momentums)}")
        self.start_div = start_div or (10.0 if as_described else 25.0)
        self.end_div = end_div or (25.0 if as_described else 250000.0)
        self.momentums = tuple(momentums)
        self.first = 0 if as_described else 1
        self.rise = int(pct * total_steps)
        if not any("betas" in g or "momentum" in g for g in optimizer.param_groups):
            raise ValueError(f"{type(optimizer).__name__} has neither momentum nor betas to cycle")
        super().__init__(optimizer, total_steps, steps_per_epoch)

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        rising, height = self._phase(step)
        low = 1 / (self.start_div if rising else self.end_div)
        return low + (1 - low) * height

    def momentum(self, step: int) -> float:
        """The momentum (beta1) of optimizer step `step`: low if the rate is high."""
        _, height = self._phase(step)
        low, high = self.momentums
        return high - (high - low) * height

    def step(self, epoch: int | None = None):
        super().step(epoch)
        self._write_momentum()

    def _phase(self, step):
        """(in the rising phase, height between 0 and 1) at `step`."""
        done = step + self.first
        if done <= self.rise and self.rise:
            return True, (1 - math.cos(math.pi * done / self.rise)) / 2
        rest = max(1, self.total_steps - self.rise)
        return False, (1 + math.cos(math.pi * min(1.0, (done - self.rise) / rest))) / 2

    def _write_momentum(self):
        value = self.momentum(min(self.last_epoch, self.total_steps - 1))
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = value


class Cosine(_StepSchedule):
    """Half a cosine from lr down to end_lr. Loshchilov & Hutter, 2017, arXiv:1608.03983.

    After a linear warm-up of warmup_epochs, or warmup_steps. per_epoch: constant inside an
    epoch, equal to torch's CosineAnnealingLR over all epochs.
    end_lr: of the group with the largest rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 end_lr: float = 0.0, warmup_epochs: float = 0, warmup_steps: int = 0,
                 per_epoch: bool = False):
        self.warmup_steps = _warmup_steps(warmup_epochs, warmup_steps, steps_per_epoch, total_steps)
        self.end_lr, self.per_epoch = end_lr, per_epoch
        super().__init__(optimizer, total_steps, steps_per_epoch)

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        warm = self.warmup_steps
        if step < warm:
            return (step + 1) / warm
        done, total = step - warm, self.total_steps - warm
        if self.per_epoch:
            done, total = done // self.steps_per_epoch, math.ceil(total / self.steps_per_epoch)
        end = self._of_largest_rate(self.end_lr)
        return end + (1 - end) * (1 + math.cos(math.pi * done / total)) / 2


class Step(_StepSchedule):
    """The rate times gamma at every milestone (epochs, fractions allowed), after a linear warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 milestones: list, gamma: float = 0.1, warmup_epochs: float = 0,
                 warmup_steps: int = 0):
        self.milestones = [round(epoch * steps_per_epoch) for epoch in milestones]
        self.gamma = gamma
        self.warmup_steps = _warmup_steps(warmup_epochs, warmup_steps, steps_per_epoch,
                                          total_steps)
        super().__init__(optimizer, total_steps, steps_per_epoch)

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return rise * self.gamma ** sum(step >= milestone for milestone in self.milestones)


def _warmup_steps(epochs, steps, steps_per_epoch, total_steps):
    """The length of a warm-up in steps; it is given in epochs or in steps."""
    if epochs and steps:
        raise ValueError("give warmup_epochs or warmup_steps, not both")
    length = steps or round(epochs * steps_per_epoch)
    if not 0 <= length <= total_steps:
        raise ValueError(f"a warm-up of {length} steps does not fit into {total_steps} steps")
    return length


class SWAPoly(_StepSchedule):
    """Poly over the first part of the run, then short cycles for weight averaging (openseg).

    The first int(normal · N) steps decay as (1 − k/that)^power; then cycles of
    (the rest // cycles) + 1 steps each start at lr · restart and decay alike.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 power: float = 0.9, normal: float = 0.75, cycles: int = 5, restart: float = 0.5):
        if not 0 < normal <= 1 or cycles < 1:
            raise ValueError(f"normal must be in (0, 1] and cycles at least 1, found {normal} and "
                             f"{cycles}")
        self.power, self.restart = power, restart
        self.normal_steps = max(1, int(normal * total_steps))
        self.cycle_steps = (total_steps - self.normal_steps) // cycles + 1
        super().__init__(optimizer, total_steps, steps_per_epoch)

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0) as a share of the initial rate."""
        if step < self.normal_steps:
            return (1 - step / self.normal_steps) ** self.power
        position = (step - self.normal_steps) % self.cycle_steps
        return self.restart * (1 - position / self.cycle_steps) ** self.power


class ReduceLROnPlateau(torchs.ReduceLROnPlateau):
    """Torch's schedule: the rate times `factor` where the validations stop getting better.

    It steps at each validation, on the value that `trainer.monitor` names; whether more or less of
    it is better also comes from there. patience and cooldown count validations.
    min_lr: of the group with the largest rate.
    """

    per_iteration = False
    per_validation = True
    provided = ("mode",)    # an argument that the program sets

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int,
                 mode: Literal["max", "min", "off"], factor: float = 0.1, patience: int = 10,
                 threshold: float = 1e-4, threshold_mode: Literal["rel", "abs"] = "rel",
                 cooldown: int = 0, min_lr: float = 0.0, eps: float = 1e-8):
        if mode == "off":
            raise ConfigError(*NEEDS_MONITOR)
        if factor <= 0 or patience < 0 or cooldown < 0 or min_lr < 0:
            raise ValueError("factor must be positive, and patience, cooldown and min_lr not "
                             f"negative, found {factor}, {patience}, {cooldown} and {min_lr}")
        rates: list[Any] = [float(group["lr"]) for group in optimizer.param_groups]
        largest = max(rates) or 1.0
        super().__init__(optimizer, mode, factor, patience, threshold, threshold_mode, cooldown,
                         [min_lr * rate / largest for rate in rates], eps)
        self.base_lrs = list(rates)

    def state_dict(self) -> dict:
        """The best value, the validations since then, and the rates, as plain numbers."""
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "base_lrs")
        return {**{name: getattr(self, name) for name in kept},
                "rates": [float(rate) for rate in self.get_last_lr()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]):
        """Continue from the saved state; also sets the optimizer's rates.

        If the initial rates are others now, the reductions so far apply to them.
        """
        for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            setattr(self, name, state_dict[name])
        rates, bases = state_dict["rates"], state_dict["base_lrs"]
        if bases != self.base_lrs:
            share = rates[0] / bases[0] if bases[0] else 1.0
            rates = [max(base * share, least)
                     for base, least in zip(self.base_lrs, self.min_lrs, strict=True)]
        self._last_lr = list(rates)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def forget_best(self):
        """Let the next validation be the best so far, because it measures something else."""
        self.best, self.num_bad_epochs = self.mode_worse, 0
