"""What every trainer shares: schedule, best and last checkpoint, resume, stopping.

A subclass writes the two loops, `_train_epoch` and `_valid_epoch`.
"""
import contextlib
import inspect
import math
import signal
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch

from utils import distributed
from utils.checkpoint import (FORMAT, load_exact, load_foreign, load_optimizer,
                              read_checkpoint, taking_up, verified)
from utils.console import Interrupted, notice, warn
from utils.criterion import validation_loss
from utils.errors import CheckpointError, ConfigError
from utils.logger import RunLogger
from utils.lr_scheduler import build_scheduler
from utils.monitor import Monitor, monitor_problem
from utils.optim import build_optimizer
from utils.precision import autocast_dtype
from utils.run_checkpoints import PERIODIC, RunCheckpoints
from utils.run_folder import dataset_facts, run_facts
from utils.stop_signal import StopNow, StopSignal
from utils.sync_batchnorm import convert_sync_batchnorm

REQUEUE_STATUS = 75      # EX_TEMPFAIL: try again later
STOP = 1000              # added to a signal's number, so that stopping outranks saving


class BaseTrainer(ABC):
    """Trains a network for a number of epochs or iterations.

    model, criterion, normalize: network, loss and input normalisation.
    train_loader, val_loader: `dataloader.loader.Loader`; val_loader may be None.
    config: the resolved config. folder: the run's folder. checkpoint: what a
    run that is resumed had saved (see utils.checkpoint), or None.

    Settings (the config's `trainer` section):
    epochs, iterations: how long to train; exactly one of the two. An iteration
        is one optimizer step.
    save_dir: runs are kept in save_dir/<name>/<date>/. save_period: keep
        checkpoint-epochN.pth every N epochs (0: only model_best.pth and
        last.pth). save_every: also write last.pth every N iterations. keep: how
        many of the periodic checkpoints stay (0: all). save_async: write them
        while the training goes on. requeue: SIGUSR1, after which a run saves and
        goes on, also ends it, with status 75, for the cluster to start it again.
    monitor: "max Mean_IoU" | "min loss" | … | "off"; judged at every
        validation. early_stop: end after so many validations without a better
        value (0: never).
    val, val_per_epochs: validate every N epochs, and after the last.
    tensorboard, log_dir, log_per_iter: event files, their place (default: the
        run's folder), and the steps between two log lines.
    amp: "auto" (bf16 where the hardware has it), "bf16", "fp16" or false.
    channels_last: memory layout of images and weights. compile: torch.compile.
    accumulate: micro-batches per optimizer step. clip_grad_norm: largest
        gradient norm (0: no clipping). ema: decay of the average of the weights
        that is validated and exported (0: none). nonfinite: what a step whose
        loss or gradient is NaN or infinite does: "stop" the run, or "skip" the
        step, which reads the loss at every step; max_skipped such steps end the
        run all the same. The weights are never touched by one. fp16 leaves out
        steps whose scaled gradient overflows, as its scaling is meant to.
    rank_timeout: seconds that several processes wait for one that stands still.
    finetune_from: a checkpoint of any origin whose fitting tensors the network
        starts from.
    """

    provided = ("model", "criterion", "normalize", "train_loader", "val_loader", "config",
                "folder", "device", "checkpoint")

    def __init__(self, model, criterion, normalize, train_loader, val_loader, config: dict,
                 folder, device, checkpoint: dict | None = None, *,
                 epochs: int | None = None, iterations: int | None = None,
                 save_dir: str = "saved", save_period: int = 0, save_every: int = 0,
                 keep: int = 0, save_async: bool = False, requeue: bool = False,
                 monitor: str = "max Mean_IoU", early_stop: int = 0,
                 val: bool = True, val_per_epochs: int = 1,
                 tensorboard: bool = True, log_dir: str | None = None, log_per_iter: int = 20,
                 amp: Literal["auto", "bf16", "fp16", False] = "auto",
                 channels_last: bool = True, compile: bool = False,
                 accumulate: int = 1, clip_grad_norm: float = 0.0, ema: float = 0.0,
                 nonfinite: Literal["stop", "skip"] = "stop", max_skipped: int = 10,
                 rank_timeout: float = distributed.RANK_TIMEOUT,
                 finetune_from: str | None = None):
        if val and val_loader is None:
            raise ConfigError("trainer.val is true, but there is no val_loader", "val_loader",
                              "add one, or set trainer.val to false")
        self.config, self.folder, self.device = config, Path(folder), device
        self.train_loader, self.val_loader = train_loader, val_loader if val else None
        self.val_per_epochs, self.log_per_iter = val_per_epochs, log_per_iter
        self.save_period, self.save_every = save_period, save_every
        self.accumulate, self.clip_grad_norm = accumulate, clip_grad_norm
        self.checkpoints = RunCheckpoints(folder, keep, save_async)
        self.requeue, self.rank_timeout = requeue, rank_timeout
        self.nonfinite, self.max_skipped = nonfinite, max_skipped
        self.monitor = Monitor(monitor if val else "off", early_stop)
        self.autocast_dtype = autocast_dtype(amp, device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

        model = model.to(device, memory_format=self.memory_format)
        if distributed.world_size() > 1:
            model = convert_sync_batchnorm(model, every=config["use_synch_bn"])
        self.model = model                      # the network itself: weights are saved from here
        self.criterion, self.normalize = criterion.to(device), normalize.to(device)
        self.val_loss = validation_loss(config, lambda: criterion)
        if self.val_loss is not None:
            self.val_loss.to(device)
        self.num_classes = len(train_loader.dataset.class_names)
        self.dataset_facts = dataset_facts(train_loader.dataset)
        self.optimizer = build_optimizer(config["optimizer"], model)
        self.steps_per_epoch = math.ceil(len(train_loader) / accumulate)
        self.total_steps = iterations or epochs * self.steps_per_epoch
        self.epochs = epochs or math.ceil(iterations / self.steps_per_epoch)
        self.scheduler = build_scheduler(config["lr_scheduler"], self.optimizer,
                                         self.total_steps, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type,
                                           enabled=self.autocast_dtype is torch.float16)
        self.ema = _average(model, ema) if ema else None
        self.iterations = iterations
        self.epoch, self.batches_done, self.step, self.stage = 1, 0, 0, "training"
        self.into_batch = 0     # samples of the next batch that other numbers of ranks have seen
        self.skipped = 0        # steps left out because of a loss or gradient that was not finite
        self.overflows = 0      # steps left out by the loss scaling
        self.resumed = checkpoint is not None
        if checkpoint:
            self._restore(checkpoint)
        elif finetune_from:
            notice(f"fine-tuning from {finetune_from}\n{load_foreign(model, finetune_from)}")
        self.train_model = self._wrap(model, compile)
        self.logger = RunLogger(self.folder, tensorboard, log_dir, self.step)
        # Several ranks agree on stopping; a single one need not wait for a moment to.
        self.stop_signal = StopSignal(at_once=distributed.world_size() == 1)

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """Mistakes in the `trainer` section that types alone do not show."""
        problems = []
        lengths = [settings[k] for k in ("epochs", "iterations") if settings[k] is not None]
        if len(lengths) != 1:
            problems.append("trainer: expected exactly one of epochs and iterations, got "
                            f"{'both' if lengths else 'neither'}")
        least = {"epochs": 1, "iterations": 1, "accumulate": 1, "val_per_epochs": 1,
                 "log_per_iter": 1, "save_period": 0, "save_every": 0, "early_stop": 0,
                 "clip_grad_norm": 0, "keep": 0, "max_skipped": 1, "rank_timeout": 1}
        for key, bound in least.items():
            if settings[key] is not None and settings[key] < bound:
                problems.append(f"trainer.{key}: expected at least {bound}, got {settings[key]}")
        if not 0 <= settings["ema"] < 1:
            problems.append(f"trainer.ema: expected a decay in [0, 1), got {settings['ema']}")
        problem = monitor_problem(settings["monitor"])
        if problem:
            problems.append(f"trainer.monitor: {problem}")
        return problems

    @abstractmethod
    def _check(self):
        """Raise what would otherwise go wrong late in the first epoch."""

    @abstractmethod
    def _train_epoch(self, epoch: int):
        """Take the optimizer steps of one epoch, from batch `self.batches_done` on."""

    @abstractmethod
    def _valid_epoch(self, epoch: int) -> dict:
        """Results of one validation: at least the numbers `monitor` may name."""

    def train(self):
        """Train to the end. Raises Interrupted, after saving, when asked to stop."""
        self.logger.say(f"training {type(self.model).__name__} to epoch {self.epochs} "
                        f"({self.total_steps} steps) on {self.device}, from epoch {self.epoch} "
                        f"step {self.step}; run folder {self.folder}")
        with contextlib.closing(self.logger), self.stop_signal:
            try:
                with self.stop_signal.idle():
                    self._check()
                if self.resumed and distributed.is_main() and self._last_is_lost():
                    self.save("last.pth", required=self._finished)
                while not self._finished:
                    self._train_epoch(self.epoch)
                    self._finish_epoch()
            except StopNow:
                self.stop_if_asked()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory() from error
            self.checkpoints.finish(required=True)
        if self.monitor.exhausted:
            self.logger.say(f"stopped: {self.monitor.waited} validations without a better "
                            f"{self.monitor.metric}")
        if self.monitor.best is not None:
            self.logger.say(f"best {self.monitor.metric} {self.monitor.best:.4f} at epoch "
                            f"{self.monitor.epoch}: {self.folder / 'model_best.pth'}")

    def stop_if_asked(self):
        """Between two steps: save, and leave, when some rank received a signal to."""
        stop = self.stop_signal
        own = stop.signum + STOP if stop.signum else int(stop.save_asked)
        distributed.at(f"{self._moment()}: agreeing on whether to stop")
        asked = distributed.highest(own, self.device)
        if not asked:
            return
        stop.save_asked, leave = False, asked > STOP or self.requeue
        self.save("last.pth", required=leave)
        if not leave:
            self.logger.say(f"saved at {self._moment()}, as asked by a signal")
            return
        on = f"at {self._moment()}; go on with\n  python train.py -r {self.folder / 'last.pth'}"
        if asked > STOP:
            raise Interrupted(asked - STOP, on)
        raise Interrupted(signal.SIGUSR1, on, REQUEUE_STATUS)

    def save(self, name: str, required: bool = False):
        """Write a checkpoint of this moment into the run's folder (rank 0 only); `required`
        where no later one could make up for it."""
        if distributed.is_main():
            self.checkpoints.save(name, self._state(), required)

    def _moment(self):
        return f"epoch {self.epoch} step {self.step}"

    def _finish_epoch(self):
        epoch = self.epoch
        due = epoch % self.val_per_epochs == 0 or epoch == self.epochs
        better = False
        if self.val_loader is not None and due:
            better = self.monitor.update(self._valid_epoch(epoch), epoch)
        self.epoch, self.batches_done, self.into_batch = epoch + 1, 0, 0
        if not self.scheduler.per_iteration:
            # Only now: a run that is stopped in the validation comes here again.
            with warnings.catch_warnings():
                # It may have taken no step since it was resumed, or left out every one.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.scheduler.step()
        if better:
            self.save("model_best.pth")
        if self.save_period and epoch % self.save_period == 0:
            self.save(PERIODIC.format(epoch))
        self.save("last.pth", required=self._finished)

    @property
    def _finished(self):
        return self.epoch > self.epochs or self.monitor.exhausted

    def _last_is_lost(self):
        """Whether another checkpoint saved the run: last.pth is damaged, or older than the end."""
        path = self.folder / "last.pth"
        if not self._finished:
            return not verified(path)
        try:
            saved = read_checkpoint(path)
        except (CheckpointError, OSError):
            return True
        # A kill between the last saves of a run; nothing else would write last.pth any more.
        return (saved["epoch"], saved["step"]) < (self.epoch, self.step)

    def _state(self):
        dataset = self.train_loader.dataset
        return {
            "format": FORMAT, "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch, "step": self.step,
            # Counted in samples over all ranks, so that another number of ranks can go on.
            "samples": self.batches_done * self._samples_per_batch() + self.into_batch,
            "steps_per_epoch": self.steps_per_epoch, "skipped": self.skipped,
            "dataset": self.dataset_facts,
            "monitor": self.monitor.state_dict(), "config": self.config,
            "class_names": list(dataset.class_names),
            "palette": [list(map(int, colour)) for colour in dataset.palette],
            "normalization": self.normalize.state(), "activation": self.criterion.activation,
            "versions": run_facts(),
        }

    def _samples_per_batch(self):
        return self.train_loader.batch_size * distributed.world_size()

    def _restore(self, checkpoint):
        with taking_up(str(self.folder)):
            self._load_state(checkpoint, str(self.folder))
        best = "none yet" if self.monitor.best is None else f"{self.monitor.best:.4f}"
        notice(f"resuming at {self._moment()}, lr {self.optimizer.param_groups[0]['lr']:.3g}, best "
               f"{self.monitor.metric or ''} {best}")

    def _load_state(self, checkpoint, where):
        own = checkpoint["config"]
        if not checkpoint.get("optimizer"):
            raise CheckpointError("the checkpoint holds weights, but no state of a training",
                                  where, "start a training from it with trainer.finetune_from")
        load_exact(self.model, checkpoint["model"], own["arch"]["type"], where)
        if self.ema:
            load_exact(self.ema.module, checkpoint["ema"] or checkpoint["model"],
                       own["arch"]["type"], where)
            self.ema.n_averaged.fill_(checkpoint["step"])
        load_optimizer(self.optimizer, checkpoint["optimizer"], where)
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.skipped = checkpoint.get("skipped", 0)
        self.batches_done, self.into_batch = divmod(checkpoint["samples"],
                                                    self._samples_per_batch())
        self.scheduler.load_state_dict(self._carried_over(checkpoint))
        if own["trainer"]["monitor"] == self.config["trainer"]["monitor"]:
            self.monitor.load_state_dict(checkpoint["monitor"])
            self._agree_with_best()
        else:
            notice("another metric is monitored than before: the first validation is the best "
                   "so far")

    def _carried_over(self, checkpoint):
        """The scheduler's state; counted anew where an epoch has another number of steps now."""
        state, before = checkpoint["scheduler"], checkpoint.get("steps_per_epoch")
        if before in (None, self.steps_per_epoch):
            return state
        done = math.ceil(self.batches_done / self.accumulate)
        if self.iterations:
            left = self.total_steps - self.step + done
            self.epochs = self.epoch - 1 + math.ceil(left / self.steps_per_epoch)
        else:
            self.step = (self.epoch - 1) * self.steps_per_epoch + done
        notice(f"an epoch has {self.steps_per_epoch} steps now, over {distributed.world_size()} "
               f"process(es), instead of {before}: going on with the samples that are left of "
               f"epoch {self.epoch}, at step {self.step}")
        again = -(self._samples_per_batch() - self.into_batch) % distributed.world_size()
        if self.into_batch and again:
            notice(f"{again} of them are seen twice, to give every process as many")
        if not self.scheduler.per_iteration:
            return state
        # What torch's OneCycleLR derives from the length of a run is as the new length has it.
        derived = ("total_steps", "_schedule_phases", "last_epoch", "_step_count")
        return {**{key: value for key, value in state.items() if key not in derived},
                "last_epoch": self.step, "_step_count": self.step + 1}

    def _agree_with_best(self):
        """Never replace model_best.pth by a worse one: a crash may have come between it and
        last.pth, and an older checkpoint may be gone on from."""
        path = self.folder / "model_best.pth"
        if not path.is_file():
            return
        try:
            best = read_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error.what}: the next validation makes a new model_best.pth")
            self.monitor.best = None
            return
        if best["config"]["trainer"]["monitor"] == self.config["trainer"]["monitor"] \
                and self.monitor.adopt(best["monitor"]):
            notice(f"model_best.pth is of a later epoch, {self.monitor.epoch}, and stays until it "
                   "is beaten")

    def _out_of_memory(self):
        loader, key = ((self.train_loader, "train_loader") if self.stage == "training"
                       else (self.val_loader, "val_loader"))
        size = tuple(loader.dataset[1, 0]["image"].shape[1:])
        free = "raise trainer.accumulate for it" if self.stage == "training" \
            else "or set predict.mode to sliding"
        return ConfigError(f"out of GPU memory in {self.stage} at epoch {self.epoch} step "
                           f"{self.step}, with {loader.batch_size} images of about "
                           f"{size[0]}x{size[1]}", f"{key}.args.batch_size",
                           f"lower it, {free}; a smaller crop_size helps too")

    def _wrap(self, model, compile):
        if compile:
            model = torch.compile(model)
        if distributed.world_size() > 1:
            parallel = torch.nn.parallel.DistributedDataParallel
            # Buffers are sent before each validation; between two of them nobody reads them.
            # torch 2.15 renamed the switch.
            names = inspect.signature(parallel).parameters
            switch = ("forward_sync_buffers" if "forward_sync_buffers" in names
                      else "broadcast_buffers")
            # Both find parameters that no output depends on; a static graph costs nothing
            # per step but does not know `no_sync`.
            unused = "static_graph" if self.accumulate == 1 else "find_unused_parameters"
            model = parallel(
                model, device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True, **{switch: False, unused: True})
        return model


def _average(model, decay):
    """Torch's running average of parameters and buffers."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
