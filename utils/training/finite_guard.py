"""Stops NaN and infinite losses or gradients from reaching the weights."""
import math
from collections.abc import Iterable

import torch
from torch import nn

from utils.machine import distributed


class FiniteGuard:
    """Checks one number per step, which decides whether the weights are updated.

    at_every_step: read the number from the device at every step. Otherwise, on a GPU with a fused
        optimizer, it stays on the device: from the first non-finite value on the optimizer skips
        its updates, and `first_bad_step` reports the step at the next log line. On a CPU the
        number is always read, because reading is free.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
                 at_every_step: bool):
        self._optimizer, self._device = optimizer, device
        self._reads = at_every_step or device.type == "cpu" \
            or not getattr(optimizer, "_step_supports_amp_scaling", False)
        self._buffers = list(model.buffers())       # the running statistics of norms
        self._saved_buffers: list[torch.Tensor] = []
        self._first = torch.full((), -1.0, device=device)       # the first bad step; -1: none
        self._names: dict[int, list[str]] = {}                  # step -> its images

    def before_step(self):
        """Save the running statistics, which the forward pass changes."""
        if self._reads:
            self._saved_buffers = [buffer.clone() for buffer in self._buffers]

    def refuses(self, value: torch.Tensor, step: int, names: list[str]) -> bool:
        """Whether step number `step` must be skipped: `value` is not finite on some rank.

        value: a scalar. names: the images of the step. If the step must be skipped, the running
        statistics are restored. Without reading the device the result is always False.
        """
        if self._reads:
            bad = distributed.any_rank(not math.isfinite(value.item()), self._device)
            if bad:
                copy_all(self._saved_buffers, self._buffers)
            return bad
        self._names[step] = names
        bad = ~torch.isfinite(value) & (self._first < 0)
        self._first = torch.where(bad, float(step), self._first)
        # A fused optimizer skips its update if this is 1, as after an overflow.
        self._optimizer.found_inf = (self._first >= 0).float()  # pyright: ignore[reportAttributeAccessIssue]
        return False

    def first_bad_step(self) -> tuple[int, list[str]] | None:
        """(step, its images) of the first non-finite number, or None; reads the device."""
        if self._reads:
            return None
        step = int(self._first.item())
        names = self._names.get(step, [])
        self._names.clear()
        return (step, names) if step >= 0 else None


@torch.no_grad()
def copy_all(sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]):
    """Copy each source tensor into the target at the same position; shapes must agree."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
