"""The parts shared by all trainers: setup, the loop over epochs, checkpoints, resume, stopping.

A subclass implements the training and the validation of one epoch.
"""
import contextlib
import functools
import inspect
import math
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from base.base_model import BaseModel
from base.trainer_settings import TrainerSettings
from utils.checkpoint.find import BEST, LAST, PERIODIC
from utils.checkpoint.format import Checkpoint
from utils.checkpoint.load import load_foreign
from utils.checkpoint.run_checkpoints import RunCheckpoints
from utils.cli.console import Interrupted, notice
from utils.cli.stop_signal import StopNow, StopSignal
from utils.errors import ConfigError, first_line
from utils.images.normalize import Normalize
from utils.machine import distributed
from utils.machine.precision import autocast_dtype
from utils.machine.sync_batchnorm import convert_sync_batchnorm
from utils.training.criterion import Criterion, validation_loss
from utils.training.earlier_runs import warn_of_other_input
from utils.training.lr_scheduler import advance, build_scheduler
from utils.training.monitor import Monitor, score_text
from utils.training.optimizer import build_optimizer
from utils.training.progress import Progress
from utils.training.run_folder import dataset_facts
from utils.training.run_log import RunLogger, training_facts
from utils.training.run_state import last_is_outdated, restore, state_of
from utils.training.warmup import WarmingRates

REQUEUE_STATUS = 75      # EX_TEMPFAIL: try again later
STOP = 1000              # added to the number of a stop signal, which then outranks saving


class BaseTrainer(ABC):
    """Trains a network for a number of epochs or iterations. Constructing it writes nothing.

    model, criterion, normalize: network, loss and input normalization.
    train_loader, val_loader: `dataloader.loader.Loader`; val_loader may be None.
    config: the resolved config; its section `trainer` holds the TrainerSettings.
    folder: the folder of the run. device: where to train.
    checkpoint: the state to resume from, or None. checkpoint_path: its file, if known.
    """

    def __init__(self, model: BaseModel, criterion: Criterion, normalize: Normalize,
                 train_loader: Any, val_loader: Any, config: dict, folder: str | Path,
                 device: torch.device, checkpoint: Checkpoint | None = None,
                 checkpoint_path: Path | None = None):
        self.settings = settings = TrainerSettings(**config["trainer"])
        if settings.val and val_loader is None:
            raise ConfigError("trainer.val is true, but there is no val_loader", "val_loader",
                              "add one, or set trainer.val to false")
        self.config, self.folder, self.device = config, Path(folder), device
        self.train_loader = train_loader
        self.val_loader: Any = val_loader if settings.val else None
        self.dataset_facts = dataset_facts(train_loader.dataset)

        model.check_frozen(random_weights=not (
            checkpoint or settings.finetune_from or config["arch"]["args"].get("pretrained")))
        # The network itself: weights are saved from here.
        self.model: BaseModel = self._on_device(model)
        self.criterion, self.normalize = criterion.to(device), normalize.to(device)
        self.val_loss = validation_loss(config, lambda: criterion, criterion.activation)
        if self.val_loss is not None:
            self.val_loss.to(device)
        self.ema = _running_average(self.model, settings.ema) if settings.ema else None

        self.progress = Progress.start(settings.epochs, settings.iterations,
                                       math.ceil(len(train_loader) / settings.accumulate))
        self.monitor = Monitor(settings.monitor if settings.val else "off", settings.early_stop)
        self.optimizer = build_optimizer(config["optimizer"], self.model)
        self.scheduler: Any = build_scheduler(config["lr_scheduler"], self.optimizer,
                                              self.progress.total_steps,
                                              self.progress.steps_per_epoch, self.monitor.mode)
        self.warmup = WarmingRates(config["lr_scheduler"].get("warmup"),
                                   self.progress.total_steps, self.progress.steps_per_epoch)
        self.autocast_dtype = autocast_dtype(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type,
                                           enabled=self.autocast_dtype is torch.float16)
        self.checkpoints = RunCheckpoints(folder, settings.keep, settings.save_async)
        self.rewrite_last = False       # resumed, but last.pth is damaged or too old
        if checkpoint:
            restore(self, checkpoint)
            self.rewrite_last = checkpoint_path != self.folder / LAST \
                and distributed.is_main() and last_is_outdated(self, self._finished)
        elif settings.finetune_from:
            report = load_foreign(self.model, settings.finetune_from, settings.finetune_exclude)
            notice(f"fine-tuning from {settings.finetune_from}\n{report}")
            warn_of_other_input("trainer.finetune_from", report.normalization, self.normalize)
        else:
            warn_of_other_input("arch.args.pretrained", self.model.input_of_weights(),
                                self.normalize)

        self.train_model: Any = self._wrapped(self.model)       # called in training
        # Several ranks must first agree to stop; a single process can stop at once.
        self.stop_signal = StopSignal(distributed.world_size() == 1, self._acknowledge_stop)

    @abstractmethod
    def _check(self):
        """Raise the errors that would otherwise appear late in the first epoch."""

    @abstractmethod
    def _train_epoch(self, epoch: int):
        """Take the optimizer steps of `epoch`, from batch `self.progress.batches_done` on."""

    @abstractmethod
    def _valid_epoch(self, epoch: int) -> dict:
        """Validate once; returns at least the numbers that `trainer.monitor` can name."""

    def train(self) -> int | None:
        """Train to the end. Raises Interrupted, after saving, when a signal asks to stop.

        Returns a stop signal that came after the last step, when nothing was left to stop.
        """
        progress = self.progress
        self._say_start()
        with self._logged_end(), self.stop_signal:
            try:
                with self._explained_errors():
                    with self.stop_signal.idle():
                        self._check()
                    if self.rewrite_last:
                        self.save(LAST, required=self._finished)
                    while not self._finished:
                        self._train_epoch(progress.epoch)
                        if self.monitor.exhausted and self._inside_epoch:
                            break
                        self._finish_epoch()
            except StopNow:
                self.stop_if_asked()
            self.checkpoints.finish(required=True)
            self._say_best()
            late = distributed.max_over_ranks(self.stop_signal.signum or 0, self.device)
        return late or None

    def _say_start(self):
        """Say what is trained, and where; of a finished run, how to train it longer."""
        progress, key = self.progress, "epochs" if self.settings.epochs else "iterations"
        name = type(self.model).__name__
        if self._finished:
            reached = f"trainer.{key} is reached" if progress.epoch > progress.epochs else \
                "trainer.early_stop ended it"
            longer = f"trainer.{key}={2 * (self.settings.epochs or progress.total_steps)}" \
                if progress.epoch > progress.epochs else "trainer.early_stop=0"
            self.logger.say(f"training {name} is finished, nothing is left to train: {reached}. To "
                            f"train longer:\n  python train.py -r {self.folder} {longer}")
            return
        start = f", resumed at {progress}" if progress.step else ""
        self.logger.say(f"training {name} to epoch {progress.epochs} ({progress.total_steps} "
                        f"steps){start}; run folder {self.folder}")
        self.logger.write_origin()
        for line in training_facts(self):
            self.logger.say(line)

    @contextlib.contextmanager
    def _logged_end(self):
        """Write into log.txt why the block ended early, if it does, and close the logs."""
        outcome, text = "finished", "finished"
        try:
            yield
        except BaseException as error:
            outcome, text = "failed", first_line(error)
            if isinstance(error, Interrupted):
                name = signal.Signals(error.signum).name
                text = f"interrupted by {name} {text.removesuffix('; resume with')}"
            if isinstance(error, (Interrupted, KeyboardInterrupt)):
                outcome = "interrupted"
            self.logger.write(f"ended: {text}")
            raise
        finally:
            self.logger.close(outcome, text)

    def _acknowledge_stop(self, name):
        self.logger.say(f"{name}: stopping after this step, then saving (Ctrl-C after that ends "
                        "without saving)")

    def stop_if_asked(self):
        """If any rank received a signal, save, and stop unless it was SIGUSR1 without requeue.

        All ranks call this at the same point, between two steps or two validation batches.
        Raises Interrupted to stop.
        """
        stop = self.stop_signal
        request = stop.signum + STOP if stop.signum else int(stop.save_asked)
        distributed.mark_place(f"{self.progress}: agreeing on whether to stop")
        request = distributed.max_over_ranks(request, self.device)
        if not request:
            return
        stop.save_asked, leave = False, request > STOP or self.settings.requeue
        self.save(LAST, required=leave)
        if not leave:
            self.logger.say(f"saved at {self.progress}, because of a signal")
            return
        text = f"at {self.progress}; resume with\n  python train.py -r {self.folder / LAST}"
        if request > STOP:
            raise Interrupted(request - STOP, text)
        raise Interrupted(signal.SIGUSR1, text, REQUEUE_STATUS)

    def save(self, *names: str, required: bool = False):
        """Save the current state under each of `names` in the run's folder (rank 0 only).

        required: raise if a file cannot be written; set if no later save will follow.
        """
        if distributed.is_main():
            self.checkpoints.save(state_of(self), *names, required=required)

    def _finish_epoch(self):
        """Validate if it is due, move to the next epoch, and save."""
        progress, settings = self.progress, self.settings
        epoch = progress.epoch
        last = epoch == progress.epochs
        if settings.val_per_iterations:
            due = last and progress.validated != progress.step
        else:
            due = last or epoch % settings.val_per_epochs == 0
        better = self.val_loader is not None and due and self._validate()
        progress.next_epoch()
        if not (self.scheduler.per_iteration or self.scheduler.per_validation):
            # Only now: a run stopped during the validation repeats the validation when resumed.
            # The epoch may have no step: it was resumed at its end, or all were skipped.
            advance(self.scheduler, 1)
        names = [BEST] if better else []
        if settings.save_period and epoch % settings.save_period == 0:
            names.append(PERIODIC.format(epoch))
        self.save(*names, LAST, required=self._finished)

    def _validate_inside_epoch(self):
        """Validate if val_per_iterations says so after this step, and save.

        A run that was stopped in this validation is resumed at its step, so ask this before the
        next step as well.
        """
        every, progress = self.settings.val_per_iterations, self.progress
        if not every or self.val_loader is None or not progress.step \
                or progress.step % every or progress.validated == progress.step:
            return
        better = self._validate()
        progress.stage = "training"
        self.train_model.train()
        self.save(*[BEST] if better else [], LAST, required=self._finished)

    def _validate(self) -> bool:
        """Validate, and return whether this is the best validation so far."""
        progress = self.progress
        results = self._valid_epoch(progress.epoch)
        progress.validated = progress.step
        better = self.monitor.update(
            results, progress.epoch, progress.step if self.settings.val_per_iterations else None)
        if better:
            self.logger.best({f"best/{self.monitor.metric}": results[self.monitor.metric],
                              "best/epoch": progress.epoch}, progress.step)
        if self.scheduler.per_validation:
            self._step_on_score(results[self.monitor.metric])
        return better

    def _step_on_score(self, score):
        """Let a schedule that depends on the validations see the newest, and say what it does."""
        before = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step(score)
        rate = self.optimizer.param_groups[0]["lr"]
        if rate != before:
            self.logger.say(f"{self.monitor.metric} stopped getting better: lr {before:.3g} is now "
                            f"{rate:.3g}")

    @property
    def _finished(self) -> bool:
        return self.progress.epoch > self.progress.epochs or self.monitor.exhausted

    @property
    def _inside_epoch(self) -> bool:
        """Whether batches of the present epoch are left."""
        return self.progress.batches_done < len(self.train_loader)

    def _say_best(self):
        monitor = self.monitor
        if monitor.exhausted:
            self.logger.say(f"stopped: {monitor.waited} validations without a better "
                            f"{monitor.metric}")
        if monitor.best is not None:
            step = "" if monitor.step is None else f" step {monitor.step}"
            # Of a run resumed without validations nothing says which score its best is.
            score = f"{monitor.metric} {score_text(monitor.metric, monitor.best)} " \
                if monitor.metric else ""
            self.logger.say(f"best {score}at epoch {monitor.epoch}{step}: {self.folder / BEST}")
        # test.py and inference.py take model_best.pth of a folder.
        weights = self.folder if monitor.best is not None else self.folder / LAST
        score = self.config["test_loader"] or self.config["val_loader"]
        self.logger.say("next:" + (f"\n  python test.py -r {weights}" if score else "")
                        + f"\n  python inference.py -r {weights} --images FOLDER --overlay")

    @contextlib.contextmanager
    def _explained_errors(self):
        """Turn errors of the machine in the block into a ConfigError with the setting to change."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        except Exception as error:
            if "deterministic implementation" in str(error):
                raise ConfigError(f"deterministic is true, but {first_line(error).split()[0]} has "
                                  f"no deterministic form on {self.device}", "deterministic",
                                  "set it to false, or use another network or loss") from error
            if not self.settings.compile or not _is_of_compiler(error):
                raise
            raise ConfigError(f"torch.compile cannot compile this network here: "
                              f"{first_line(error)}", "trainer.compile",
                              "set it to false, or install what the message names") from error

    def _out_of_memory(self):
        training = self.progress.stage == "training"
        loader, key = ((self.train_loader, "train_loader") if training
                       else (self.val_loader, "val_loader"))
        height, width = loader.dataset[1, 0]["image"].shape[1:]
        other = "and raise trainer.accumulate" if training else "or set predict.mode to sliding"
        return ConfigError(f"out of GPU memory in {self.progress.stage} at {self.progress}, with "
                           f"{loader.batch_size} images of about {height}x{width}",
                           f"{key}.args.batch_size",
                           f"lower it, {other}; a smaller crop_size helps too")

    @functools.cached_property
    def logger(self) -> RunLogger:
        """The log of the run, opened when it is first used: a rehearsal writes nothing."""
        settings, progress = self.settings, self.progress
        return RunLogger(self.folder, settings.tensorboard, settings.log_dir, progress.step,
                         settings.log_to, self.config, progress.lineage)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.settings.channels_last else torch.contiguous_format

    @property
    def num_classes(self) -> int:
        return len(self.train_loader.dataset.class_names)

    def _on_device(self, model: Any) -> Any:
        model = model.to(self.device, memory_format=self.memory_format)
        if distributed.world_size() > 1:
            model = convert_sync_batchnorm(model, every=self.config["use_synch_bn"])
        return model

    def _wrapped(self, model):
        """The network as training calls it: compiled if set, and parallel over several ranks."""
        if self.settings.compile:
            model = torch.compile(model)
        if distributed.world_size() == 1:
            return model
        parallel = torch.nn.parallel.DistributedDataParallel
        # Buffers are sent before each validation; nothing reads them in between.
        # torch 2.15 renamed this argument.
        names = inspect.signature(parallel).parameters
        buffers = ("forward_sync_buffers" if "forward_sync_buffers" in names
                   else "broadcast_buffers")
        # Both settings allow parameters without a gradient. A static graph costs nothing per step,
        # but does not support `no_sync`, which accumulation needs.
        unused = "static_graph" if self.settings.accumulate == 1 else "find_unused_parameters"
        switches: dict[str, Any] = {buffers: False, unused: True}
        return parallel(model, device_ids=[self.device] if self.device.type == "cuda" else None,
                        gradient_as_bucket_view=True, **switches)


def _is_of_compiler(error):
    from torch._dynamo.exc import TorchDynamoException
    return isinstance(error, TorchDynamoException)


def _running_average(model, decay):
    """Torch's running average of parameters and buffers."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
