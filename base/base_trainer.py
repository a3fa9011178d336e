"""What every trainer shares: schedule, best and last checkpoint, resume, stopping.

A subclass writes the two loops, `_train_epoch` and `_valid_epoch`.
"""
import inspect
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch

from utils import distributed
from utils.checkpoint import load_exact, load_foreign, remove_stale, write_checkpoint
from utils.console import Interrupted, notice
from utils.errors import CheckpointError, ConfigError
from utils.logger import RunLogger
from utils.losses import build_loss
from utils.lr_scheduler import build_scheduler
from utils.monitor import Monitor, monitor_problem
from utils.optim import build_optimizer
from utils.precision import autocast_dtype
from utils.run_folder import run_facts
from utils.stop_signal import StopSignal
from utils.sync_batchnorm import convert_sync_batchnorm


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
        last.pth). save_every: also write last.pth every N iterations.
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
        that is validated and exported (0: none).
    finetune_from: a checkpoint of any origin whose fitting tensors the network
        starts from.
    """

    provided = ("model", "criterion", "normalize", "train_loader", "val_loader", "config",
                "folder", "device", "checkpoint")

    def __init__(self, model, criterion, normalize, train_loader, val_loader, config: dict,
                 folder, device, checkpoint: dict | None = None, *,
                 epochs: int | None = None, iterations: int | None = None,
                 save_dir: str = "saved", save_period: int = 0, save_every: int = 0,
                 monitor: str = "max Mean_IoU", early_stop: int = 0,
                 val: bool = True, val_per_epochs: int = 1,
                 tensorboard: bool = True, log_dir: str | None = None, log_per_iter: int = 20,
                 amp: Literal["auto", "bf16", "fp16", False] = "auto",
                 channels_last: bool = True, compile: bool = False,
                 accumulate: int = 1, clip_grad_norm: float = 0.0, ema: float = 0.0,
                 finetune_from: str | None = None):
        if val and val_loader is None:
            raise ConfigError("trainer.val is true, but there is no val_loader", "val_loader",
                              "add one, or set trainer.val to false")
        self.config, self.folder, self.device = config, Path(folder), device
        self.train_loader, self.val_loader = train_loader, val_loader if val else None
        self.val_per_epochs, self.log_per_iter = val_per_epochs, log_per_iter
        self.save_period, self.save_every = save_period, save_every
        self.accumulate, self.clip_grad_norm = accumulate, clip_grad_norm
        self.monitor = Monitor(monitor if val else "off", early_stop)
        self.autocast_dtype = autocast_dtype(amp, device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

        model = model.to(device, memory_format=self.memory_format)
        if distributed.world_size() > 1:
            model = convert_sync_batchnorm(model, every=config["use_synch_bn"])
        self.model = model                      # the network itself: weights are saved from here
        self.criterion, self.normalize = criterion.to(device), normalize.to(device)
        self.val_loss = (build_loss(config["val_loss"], config["ignore_index"]).to(device)
                         if config["val_loss"] else criterion.main_loss)
        self.num_classes = len(train_loader.dataset.class_names)
        self.optimizer = build_optimizer(config["optimizer"], model)
        self.steps_per_epoch = math.ceil(len(train_loader) / accumulate)
        self.total_steps = iterations or epochs * self.steps_per_epoch
        self.epochs = epochs or math.ceil(iterations / self.steps_per_epoch)
        self.scheduler = build_scheduler(config["lr_scheduler"], self.optimizer,
                                         self.total_steps, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type,
                                           enabled=self.autocast_dtype is torch.float16)
        self.ema = _average(model, ema) if ema else None
        self.epoch, self.batches_done, self.step, self.stage = 1, 0, 0, "training"
        if checkpoint:
            self._restore(checkpoint)
        elif finetune_from:
            notice(f"fine-tuning from {finetune_from}\n{load_foreign(model, finetune_from)}")
        self.train_model = self._wrap(model, compile)
        self.logger = RunLogger(self.folder, tensorboard, log_dir, self.step)
        self.stop_signal = StopSignal()

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
                 "clip_grad_norm": 0}
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
        self._check()
        with self.stop_signal:
            try:
                while self.epoch <= self.epochs and not self.monitor.exhausted:
                    self._train_epoch(self.epoch)
                    self._finish_epoch()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory() from error
        if self.monitor.exhausted:
            self.logger.say(f"stopped: {self.monitor.waited} validations without a better "
                            f"{self.monitor.metric}")
        if self.monitor.best is not None:
            self.logger.say(f"best {self.monitor.metric} {self.monitor.best:.4f} at epoch "
                            f"{self.monitor.epoch}: {self.folder / 'model_best.pth'}")
        self.logger.close()

    def stop_if_asked(self):
        """Between two steps: save and leave when some rank received a signal."""
        if distributed.any_rank(self.stop_signal.signum is not None, self.device):
            self.save("last.pth")
            signum = self.stop_signal.signum or 15
            self.logger.close()
            raise Interrupted(signum, f"at epoch {self.epoch} step {self.step}; go on with\n"
                                      f"  python train.py -r {self.folder / 'last.pth'}")

    def save(self, name: str):
        """Write a checkpoint of this moment into the run's folder (rank 0 only)."""
        if distributed.is_main():
            write_checkpoint(self.folder / name, self._state())

    def _finish_epoch(self):
        epoch = self.epoch
        due = epoch % self.val_per_epochs == 0 or epoch == self.epochs
        better = False
        if self.val_loader is not None and due:
            better = self.monitor.update(self._valid_epoch(epoch), epoch)
        self.epoch, self.batches_done = epoch + 1, 0
        if better:
            self.save("model_best.pth")
        if self.save_period and epoch % self.save_period == 0:
            self.save(f"checkpoint-epoch{epoch}.pth")
        self.save("last.pth")

    def _state(self):
        dataset = self.train_loader.dataset
        return {
            "format": 1, "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch, "step": self.step,
            # Counted in samples over all ranks, so that another number of ranks can go on.
            "samples": self.batches_done * self.train_loader.batch_size
            * distributed.world_size(),
            "monitor": self.monitor.state_dict(), "config": self.config,
            "class_names": list(dataset.class_names),
            "palette": [list(map(int, colour)) for colour in dataset.palette],
            "normalization": self.normalize.state(), "activation": self.criterion.activation,
            "versions": run_facts(),
        }

    def _restore(self, checkpoint):
        where = str(self.folder)
        if not checkpoint.get("optimizer"):
            raise CheckpointError("the checkpoint holds weights, but no state of a training",
                                  where, "start a training from it with trainer.finetune_from")
        load_exact(self.model, checkpoint["model"], checkpoint["config"]["arch"]["type"], where)
        if self.ema:
            load_exact(self.ema.module, checkpoint["ema"] or checkpoint["model"],
                       checkpoint["config"]["arch"]["type"], where)
            self.ema.n_averaged.fill_(checkpoint["step"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.monitor.load_state_dict(checkpoint["monitor"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        per_batch = self.train_loader.batch_size * distributed.world_size()
        self.batches_done, left = divmod(checkpoint["samples"], per_batch)
        if left:
            notice(f"the checkpoint was taken {left} samples into a batch of {per_batch}: "
                   "those are seen again")
        if distributed.is_main():
            remove_stale(self.folder)
        best = "none yet" if self.monitor.best is None else f"{self.monitor.best:.4f}"
        notice(f"resuming at epoch {self.epoch} step {self.step}, lr "
               f"{self.optimizer.param_groups[0]['lr']:.3g}, best {self.monitor.metric or ''} "
               f"{best}")

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
