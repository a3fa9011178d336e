"""Warm-up over any schedule: the rates of the first optimizer steps are lowered.

As in Goyal et al., Accurate, Large Minibatch SGD, 2017, arXiv:1706.02677; the two modes are those
of mmsegmentation's `warmup`, where start_factor is called warmup_ratio.
"""
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """The rates of the first steps, as a share of those of the schedule, which goes on below it.

    steps: its length in optimizer steps. epochs: its length in epochs; give exactly one of both.
    start_factor: the share at the first step. mode: "linear": from there to 1, which the first step
    after the warm-up has; "constant": start_factor until then.
    """

    steps: int | None = None
    epochs: float | None = None
    start_factor: float = 0.1
    mode: Literal["linear", "constant"] = "linear"

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """The mistakes in a section that its types do not show, as "key: text"."""
        problems = []
        given = {key: settings[key] for key in ("steps", "epochs") if settings[key] is not None}
        if len(given) != 1:
            problems.append("warmup: expected exactly one of steps and epochs, got "
                            f"{'both' if given else 'neither'}")
        problems += [f"warmup.{key}: expected more than 0, got {value}"
                     for key, value in given.items() if value <= 0]
        if not 0 <= settings["start_factor"] < 1:
            problems.append("warmup.start_factor: expected a number in [0, 1), got "
                            f"{settings['start_factor']}")
        return problems


class WarmingRates:
    """Lowers the rates of an optimizer while it takes one of the first steps of a run.

    section: `lr_scheduler.warmup` of a config; None: no warm-up. total_steps: optimizer steps of
    the whole run; steps_per_epoch: of one epoch. Raises ConfigError for a warm-up of no step, or
    longer than the run.
    """

    def __init__(self, section: dict | None, total_steps: int, steps_per_epoch: int):
        self.settings = Warmup(**section) if section else None
        self.length = 0
        if self.settings:
            self.length = self.settings.steps or round((self.settings.epochs or 0)
                                                       * steps_per_epoch)
            if not 0 < self.length <= total_steps:
                raise ConfigError(f"a warm-up of {self.length} steps does not fit into the "
                                  f"{total_steps} steps of the run", "lr_scheduler.warmup")

    def factor(self, step: int) -> float:
        """The rate of optimizer step `step`, from 0, as a share of that of the schedule."""
        if self.settings is None or step >= self.length:
            return 1.0
        start = self.settings.start_factor
        return start if self.settings.mode == "constant" else \
            start + (1 - start) * step / self.length

    @contextlib.contextmanager
    def applied(self, optimizer: torch.optim.Optimizer, step: int) -> Iterator[None]:
        """In the block the optimizer has the rates of `step`; then those of the schedule again.

        So a schedule that computes a rate from the one before never sees the warm-up.
        """
        factor = self.factor(step)
        if factor == 1:
            yield
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        try:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
