"""How far a run has come, and how long it is."""
import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """The position of a run, which a checkpoint saves, and its length.

    steps_per_epoch: optimizer steps of a whole epoch. total_steps: of the whole run.
    epochs: the last epoch.
    """

    steps_per_epoch: int
    total_steps: int
    epochs: int
    epoch: int = 1          # in training, or the next to train; counted from 1
    step: int = 0           # optimizer steps taken in the whole run
    batches_done: int = 0   # micro-batches of this epoch that are trained, on every rank
    into_batch: int = 0     # samples of the next batch that a run on other ranks has trained
    skipped: int = 0        # steps without an update: the loss or gradient was not finite
    overflows: int = 0      # steps without an update: the scaled gradient overflowed
    validated: int = 0      # the step after which the last validation was made
    stage: str = "training"     # or "validation"
    # [number, step] of each time the run was taken back to a step; the number counts them over
    # all checkpoints of its folder.
    lineage: list[list[int]] = field(default_factory=list)

    @classmethod
    def start(cls, epochs: int | None, iterations: int | None, steps_per_epoch: int) -> "Progress":
        """The start of a run whose length is given in epochs, or in iterations (steps)."""
        if iterations is None:
            assert epochs is not None, "the config check requires epochs or iterations"
            return cls(steps_per_epoch, epochs * steps_per_epoch, epochs)
        return cls(steps_per_epoch, iterations, math.ceil(iterations / steps_per_epoch))

    def __str__(self) -> str:
        return f"epoch {self.epoch} step {self.step}"

    @property
    def updates(self) -> int:
        """The steps that changed the weights."""
        return self.step - self.skipped - self.overflows

    def next_epoch(self):
        """Move to the start of the next epoch."""
        self.epoch, self.batches_done, self.into_batch = self.epoch + 1, 0, 0
