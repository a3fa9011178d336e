"""Keeps a loss or gradient that is NaN or infinite from the weights."""
import math

import torch

from utils import distributed


class FiniteGuard:
    """Looks at one number per step, whether the step may be taken.

    at_every_step: read the number from the device at every step. Otherwise, on
    a GPU with a fused optimizer, it stays there: the optimizer leaves the
    weights alone from the first number on that is not finite, and `noted` says
    at the next log line which step that was. On a CPU reading costs nothing.
    """

    def __init__(self, model, optimizer, device: torch.device, at_every_step: bool):
        self._buffers, self._kept = list(model.buffers()), None
        self._optimizer, self._device = optimizer, device
        self._reads = at_every_step or device.type == "cpu" \
            or not getattr(optimizer, "_step_supports_amp_scaling", False)
        self._first, self._names = torch.full((), -1.0, device=device), {}

    def before_step(self):
        """Keep the running statistics, which the forward pass changes."""
        if self._reads:
            self._kept = [buffer.clone() for buffer in self._buffers]

    def objects(self, value: torch.Tensor, step: int, names: list[str]) -> bool:
        """Whether the step must not be taken: some rank's `value` (a scalar) is not finite. The
        running statistics are then as before the step. names: the images of the step."""
        if self._reads:
            bad = distributed.any_rank(not math.isfinite(value.item()), self._device)
            if bad:
                copy_all(self._kept, self._buffers)
            return bad
        self._names[step] = names
        bad = ~torch.isfinite(value) & (self._first < 0)
        self._first = torch.where(bad, float(step), self._first)
        self._optimizer.found_inf = (self._first >= 0).float()
        return False

    def noted(self) -> tuple[int, list[str]] | None:
        """(step, its images) of the first number that was not finite; reads the device."""
        if self._reads:
            return None
        step = int(self._first.item())
        names = self._names.get(step, [])
        self._names.clear()
        return (step, names) if step >= 0 else None


@torch.no_grad()
def copy_all(sources, targets):
    """Copy tensors over tensors, in pairs."""
    for source, target in zip(sources, targets):
        target.copy_(source)
