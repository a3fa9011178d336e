"""Which validation was the best, and when to stop waiting for a better one."""
import math

from utils.errors import ConfigError
from utils.registry import unknown

# What a validation reports as single numbers, and `monitor` may therefore name.
DATASET_METRICS = ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "Mean_Recall", "FWIoU")
IMAGE_METRICS = ("mIoU_I", "mDice_I")
MONITORED = (*DATASET_METRICS, *IMAGE_METRICS, "loss")


class Monitor:
    """Keeps the best value of one validation metric.

    spec: "max Mean_IoU", "min loss" or "off". patience: how many validations
    in a row may pass without a better value before `exhausted`; 0 waits forever.
    """

    def __init__(self, spec: str, patience: int = 0):
        problem = monitor_problem(spec)
        if problem:
            raise ConfigError(f"trainer.monitor: {problem}")
        self.mode, _, self.metric = spec.partition(" ")
        self.patience = patience
        self.best = None
        self.epoch = None
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.waited

    def update(self, results: dict, epoch: int) -> bool:
        """Judge one validation; True when it is the best so far. NaN is never best."""
        if self.mode == "off":
            return False
        value = results[self.metric]
        better = not math.isnan(value) and self._beats(value)
        if better:
            self.best, self.epoch, self.waited = value, epoch, 0
        elif epoch == self.epoch:
            self.waited = 0        # the best validation itself, taken again after an interruption
        elif self.epoch is None or epoch > self.epoch:
            self.waited += 1
        return better

    def adopt(self, state: dict) -> bool:
        """Take over the best of `state` where it beats ours: what model_best.pth says of itself,
        which a crash may have left younger than the checkpoint that goes on. True if it does."""
        if self.mode == "off" or state["best"] is None or not self._beats(state["best"]):
            return False
        self.best, self.epoch, self.waited = state["best"], state["epoch"], 0
        return True

    def _beats(self, value):
        return self.best is None or (value > self.best if self.mode == "max"
                                     else value < self.best)

    def state_dict(self) -> dict:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def load_state_dict(self, state: dict):
        self.best, self.epoch, self.waited = state["best"], state["epoch"], state["waited"]


def monitor_problem(spec: str) -> str | None:
    """What is wrong with a monitor setting, or None."""
    if spec == "off":
        return None
    mode, _, metric = spec.partition(" ")
    if mode not in ("max", "min") or not metric:
        return f"expected \"max NAME\", \"min NAME\" or \"off\", got {spec!r}"
    return None if metric in MONITORED else unknown("metric", metric, MONITORED)
