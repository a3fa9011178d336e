"""Which validation was the best, and when to stop waiting for a better one."""
import math

from utils.errors import ConfigError, unknown

# The single numbers that a validation reports: `trainer.monitor` names one of them.
DATASET_METRICS = ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "Mean_Recall", "FWIoU")
IMAGE_METRICS = ("mIoU_I", "mDice_I")
MONITORED = (*DATASET_METRICS, *IMAGE_METRICS, "loss")


def score_text(metric: str, value: float) -> str:
    """A monitored value for a message, as tables show it: 0.4238 -> "42.38 %"; a loss as it is."""
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.2f} %"


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
        self.best: float | None = None
        self.epoch: int | None = None       # the epoch of the best value
        self.step: int | None = None        # its step, if an epoch has several validations
        self.waited = 0                     # validations since then

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations in a row were not better."""
        return 0 < self.patience <= self.waited

    def update(self, results: dict, epoch: int, step: int | None = None) -> bool:
        """Compare one validation with the best; True if it is better. NaN never is.

        step: given if an epoch can have several validations, which it then tells apart.
        """
        if self.mode == "off":
            return False
        value = results[self.metric]
        better = not math.isnan(value) and self._beats(value)
        now, at_best = (epoch, self.epoch) if step is None or self.step is None else \
            (step, self.step)
        if better:
            self.best, self.epoch, self.step, self.waited = value, epoch, step, 0
        elif now == at_best:
            self.waited = 0        # the best validation, repeated after an interruption
        elif at_best is None or now > at_best:
            self.waited += 1
        return better

    def adopt(self, state: dict) -> bool:
        """Take over the best value in `state` if it is better; returns whether it is.

        state: a state dict, from model_best.pth. After a crash it may be newer than the checkpoint
        that is resumed.
        """
        if self.mode == "off" or state["best"] is None or not self._beats(state["best"]):
            return False
        self.best, self.epoch, self.step = state["best"], state["epoch"], state.get("step")
        self.waited = 0
        return True

    def _beats(self, value: float) -> bool:
        return self.best is None or (value > self.best if self.mode == "max"
                                     else value < self.best)

    def state_dict(self) -> dict:
        return {"best": self.best, "epoch": self.epoch, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict):
        self.best, self.epoch, self.step = state["best"], state["epoch"], state.get("step")
        self.waited = state["waited"]


def monitor_problem(spec: str) -> str | None:
    """The mistake in a monitor setting, as text, or None."""
    if spec == "off":
        return None
    mode, _, metric = spec.partition(" ")
    if mode not in ("max", "min") or not metric:
        return f"expected \"max NAME\", \"min NAME\" or \"off\", got {spec!r}"
    return None if metric in MONITORED else unknown("metric", metric, MONITORED)
