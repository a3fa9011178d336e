"""The settings of a training: the section `trainer` of a config."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from utils.config.registry import components
from utils.config.schema import Components
from utils.errors import expression_problem
from utils.machine.distributed import RANK_TIMEOUT
from utils.training.monitor import monitor_problem

# The smallest allowed value of each number that has a lower bound.
_SMALLEST = {"epochs": 1, "iterations": 1, "accumulate": 1, "val_per_epochs": 1,
             "val_per_iterations": 1, "log_per_iter": 1, "save_period": 0, "save_every": 0,
             "early_stop": 0, "clip_grad_norm": 0, "keep": 0, "max_skipped": 1, "rank_timeout": 1}


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How long to train, what to save and log, and how a step is computed.

    epochs: length of the run in epochs. Give exactly one of epochs and iterations.
    iterations: length of the run in optimizer steps.
    save_dir: each run gets the folder save_dir/<name>/<date>.
    save_period: keep checkpoint-epochN.pth every N epochs; 0: only model_best.pth and last.pth.
    save_every: also write last.pth every N optimizer steps; 0: only at the end of an epoch.
    keep: how many of the checkpoint-epochN.pth stay; 0: all. Those of later epochs than a
        run that goes back are left alone.
    save_async: write checkpoints in the background while the training continues.
    requeue: after SIGUSR1 save and exit with status 75, so that the cluster starts the run
        again; without it SIGUSR1 only saves.
    monitor: "max METRIC", "min METRIC" or "off", for example "max Mean_IoU" or "min loss": the
        best validation is saved as model_best.pth.
    early_stop: end after this many validations in a row without a better value; 0: never.
    val: whether to validate.
    val_per_epochs: validate every N epochs, and after the last one.
    val_per_iterations: validate every N optimizer steps instead, also inside an epoch, and after
        the last one. Each validation saves last.pth.
    tensorboard: also write TensorBoard event files.
    log_dir: write them to log_dir/<name>/<date>; null: to the folder of the run.
    log_to: further places for the numbers of the log: a list of "csv", "wandb", "mlflow" or
        {"type", "args"}. wandb and mlflow need their packages. See --list trackers.
    log_per_iter: optimizer steps between two log lines.
    amp: precision of the forward pass: "auto" (bf16 where the hardware supports it), "bf16",
        "fp16" or false. fp16 skips steps whose scaled gradient overflows; this is normal.
    channels_last: store images and weights in torch's channels_last memory format.
    compile: compile the network with torch.compile.
    accumulate: micro-batches per optimizer step.
    average: how the losses of micro-batches and processes make one: "pixels" weights each by its
        number of labeled pixels, so that for plain means any split gives the same step; "ranks"
        takes their plain mean, as DistributedDataParallel alone does.
    clip_grad_norm: largest norm of the gradient; 0: no clipping.
    ema: decay of a running average of the weights; the average is validated and exported.
        0: none.
    nonfinite: what to do when the loss or gradient of a step is NaN or infinite: "stop" the run,
        or "skip" the step, which reads a number from the device at every step. A step that is
        not finite never changes the weights.
    max_skipped: end the run when this many steps were not finite; one less can be skipped.
    rank_timeout: seconds after which the other processes give up on one that hangs; time in which
    the job is suspended does not count.
    finetune_from: a checkpoint, also of another program: the tensors whose names and shapes fit
        are the start of the training, but not those of norms of another kind than the network's.
        "run:NAME": the newest model_best.pth of the runs called NAME in save_dir;
        "run:NAME/last.pth": the newest last.pth.
    finetune_exclude: regular expressions; tensors of the network whose names they fit are not
        taken from finetune_from.
    """

    # Arguments of the trainer that the program sets: a config must not contain them.
    provided: ClassVar[tuple[str, ...]] = (
        "model", "criterion", "normalize", "train_loader", "val_loader", "config", "folder",
        "device", "checkpoint", "checkpoint_path")

    epochs: int | None = None
    iterations: int | None = None
    save_dir: str = "saved"
    save_period: int = 0
    save_every: int = 0
    keep: int = 0
    save_async: bool = False
    requeue: bool = False
    monitor: str = "max Mean_IoU"
    early_stop: int = 0
    val: bool = True
    val_per_epochs: int = 1
    val_per_iterations: int | None = None
    tensorboard: bool = True
    log_dir: str | None = None
    log_to: Annotated[Sequence, Components("trackers")] = ()
    log_per_iter: int = 20
    amp: Literal["auto", "bf16", "fp16", False] = "auto"
    channels_last: bool = True
    compile: bool = False
    accumulate: int = 1
    average: Literal["pixels", "ranks"] = "pixels"
    clip_grad_norm: float = 0.0
    ema: float = 0.0
    nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    rank_timeout: float = RANK_TIMEOUT
    finetune_from: str | None = None
    finetune_exclude: tuple[str, ...] = ()

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """The mistakes in a `trainer` section that its types do not show, as "key: text"."""
        problems = []
        lengths = [settings[k] for k in ("epochs", "iterations") if settings[k] is not None]
        if len(lengths) != 1:
            problems.append("trainer: expected exactly one of epochs and iterations, got " + (
                f"both, {lengths[0]} and {lengths[1]}; set one of them to null, for example "
                "trainer.iterations=null" if lengths else "neither"))
        for key, bound in _SMALLEST.items():
            if settings[key] is not None and settings[key] < bound:
                problems.append(f"trainer.{key}: expected at least {bound}, got {settings[key]}")
        if settings["val_per_iterations"] is not None and settings["val_per_epochs"] != 1:
            problems.append("trainer.val_per_iterations: expected only one of val_per_iterations "
                            f"({settings['val_per_iterations']}) and val_per_epochs "
                            f"({settings['val_per_epochs']}); set val_per_epochs to 1, its default")
        if not 0 <= settings["ema"] < 1:
            problems.append(f"trainer.ema: expected a decay in [0, 1), got {settings['ema']}")
        for number, pattern in enumerate(settings["finetune_exclude"]):
            wrong = expression_problem(pattern)
            if wrong:
                problems.append(f"trainer.finetune_exclude: [{number}] {wrong}")
        known = components("trackers")
        trackers = [known[one["type"]] for one in settings["log_to"] if one.get("type") in known]
        twice = next((cls for cls in trackers if trackers.count(cls) > 1), None)
        if twice:
            problems.append(f"trainer.log_to: names {twice.__name__} twice")
        problem = monitor_problem(settings["monitor"])
        if problem:
            problems.append(f"trainer.monitor: {problem}")
        return problems
