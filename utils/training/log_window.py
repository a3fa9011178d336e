"""What the training log reports about the steps since its last line."""
import math

import torch

from utils.machine import distributed
from utils.training.step_clock import StepClock


class LogWindow:
    """The summed loss of the steps since the last log line, and the last gradient norm.

    The numbers stay on the device until `means` reads them: reading one waits for the device.

    batch_size: images of one micro-batch, over all ranks. loss_scale: of the gradient scaler.
    """

    def __init__(self, device: torch.device, batch_size: int, loss_scale: float = 1.0):
        self.loss = torch.zeros((), device=device)
        self.steps = 0
        self.grad_norm = torch.full((), math.nan, device=device)
        self.loss_scale = loss_scale
        self.rates: dict[str, float] = {}       # of the newest step: group name -> learning rate
        self.clock = StepClock(batch_size)

    def add(self, loss: torch.Tensor):
        """Count one step. loss: a scalar."""
        self.loss += loss
        self.steps += 1

    def means(self) -> tuple[float, float]:
        """(mean loss, gradient norm), averaged over the ranks; the sum starts again at zero."""
        means = torch.stack([self.loss / self.steps, self.grad_norm])
        loss, norm = (distributed.all_reduce_(means) / distributed.world_size()).tolist()
        self.loss.zero_()
        self.steps = 0
        return loss, norm
