"""The training loop."""
import contextlib
import math

import torch
from tqdm import tqdm

from base.base_trainer import BaseTrainer
from utils import distributed
from utils.console import notice, warn
from utils.decision import build_decision, rule_of
from utils.errors import ConfigError, NumericalError
from utils.evaluate import evaluate
from utils.finite import FiniteGuard, copy_all
from utils.metrics import DatasetMetrics
from utils.metrics.counts import checked_classes
from utils.metrics.table import format_table
from utils.monitor import MONITORED
from utils.predictor import build_predictor
from utils.progress import StepClock, memory_in_use
from utils.seeding import seed_everything
from utils.stop_signal import Heeded
from utils.visualize import confusion_picture, prediction_grid

HEEDED = 8      # validation batches between two looks for signals, which GPUs wait for
SHOWN = 8       # names of images in a message
EXAMPLES = 4    # pictures of a validation in TensorBoard


class Trainer(BaseTrainer):
    """Trains by gradient descent, one optimizer step per `accumulate` micro-batches.

    Between two log lines nothing is read back from the device: losses and
    counts stay there. Only fp16 (did the step overflow?) and nonfinite "skip"
    (may it be taken?) read a number at every step. A step's gradient is the
    mean over all labelled pixels of the step, whatever their split into
    micro-batches and ranks.
    """

    guard = None          # of the epoch that is being trained
    loss_scale = 0.0

    def _check(self):
        predict = self.config["predict"]
        checked_classes(predict["CoI"], self.num_classes)
        for phase in ("train", "val", "test"):
            rule = build_decision(predict[phase], self.criterion.activation, predict)
            rule(torch.zeros(1, self.num_classes, 1, 1))
        self.train_loader.set_epoch(self.epoch, self.batches_done, self.into_batch)
        if self.train_loader.smallest_batch > 1:
            return
        # A batch norm on pooled features fails on one image: now, not at the epoch's end.
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        image = self.train_loader.dataset[1, 0]["image"][None].to(self.device)
        try:
            with torch.no_grad():
                self._forward(self.model.train(), self.normalize(image, self.memory_format))
        except ConfigError:
            if not self.into_batch:
                raise
            notice(f"{self.into_batch} samples of epoch {self.epoch} are seen again: a batch of "
                   "the rest would be a single image")
            self.into_batch = 0
            self._check()
        finally:
            copy_all(buffers, self.model.buffers())

    def _train_epoch(self, epoch):
        self.stage = "training"
        self.train_model.train()
        self.train_loader.set_epoch(epoch, self.batches_done, self.into_batch)
        self.clock = StepClock(self.train_loader.batch_size * distributed.world_size())
        self.window = torch.zeros((), device=self.device)     # summed loss since the last log line
        self.window_steps = 0
        self.grad_norm = torch.full((), math.nan, device=self.device)
        self.loss_scale = self.scaler.get_scale()
        train_rule = build_decision(self.config["predict"]["train"], self.criterion.activation,
                                    self.config["predict"])
        metrics = DatasetMetrics(self.num_classes, self.config["ignore_index"])
        first = math.ceil(self.batches_done / self.accumulate)
        groups = _grouped(self.train_loader, self.accumulate)
        groups = self.clock.waiting(self.stop_signal.while_idle(groups))
        self.guard = FiniteGuard(self.model, self.optimizer, self.device,
                                 self.nonfinite == "skip")
        distributed.at(f"{self._moment()}: reading data")
        with tqdm(groups, f"epoch {epoch}/{self.epochs}", self.steps_per_epoch, initial=first,
                  disable=None if distributed.is_main() else True, leave=False) as bar:
            for batches in bar:
                if self.iterations and self.step >= self.iterations:
                    break
                outputs, parts = self._step(batches)
                self.step += 1
                self.batches_done += len(batches)
                self.into_batch = 0
                logged = self.step % self.log_per_iter == 0 or self.step == self.total_steps
                if logged and "out" in outputs:
                    metrics.update(train_rule(outputs["out"].detach().float()),
                                   batches[-1]["label"])
                del outputs          # room for the next forward pass
                if logged:
                    self._log_step(epoch, bar, parts)
                if self.save_every and self.step % self.save_every == 0:
                    self.save("last.pth")
                # Several GPUs agree on stopping where they are read anyway.
                if logged or distributed.world_size() == 1 or self.device.type == "cpu":
                    self.stop_if_asked()
                distributed.at(f"{self._moment()}: reading data")
        if self.window_steps:
            self._log_step(epoch, None, parts)
        metrics.reduce()
        results = metrics.compute()
        if not math.isnan(results["Mean_IoU"]):
            # Counted on the logged batches only, with the weights of that moment.
            self.logger.scalars({"train/Mean_IoU": results["Mean_IoU"],
                                 "train/Pixel_Accuracy": results["Pixel_Accuracy"]}, self.step)

    def _step(self, batches):
        """One optimizer step; returns the outputs and loss parts of its last micro-batch."""
        distributed.at(f"{self._moment()}: count of labelled pixels")
        seed_everything(self.config["seed"], self.step, distributed.rank())
        self.guard.before_step()
        batches[:] = [self._to_device(batch) for batch in batches]
        total = torch.zeros((), device=self.device)
        for i, (batch, share) in enumerate(zip(batches, self._shares(batches))):
            # Ranks exchange gradients once per step, with the last micro-batch.
            wait = i < len(batches) - 1 and hasattr(self.train_model, "no_sync")
            with self.train_model.no_sync() if wait else contextlib.nullcontext():
                images = self.normalize(batch["image"], self.memory_format)
                outputs = None       # those of the micro-batch before make room
                with self._autocast():
                    outputs = self._forward(self.train_model, images)
                    loss, parts = self.criterion(outputs, batch)
                if share is not None:
                    loss = loss * share
                if not wait:
                    distributed.at(f"{self._moment()}: exchange of gradients")
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self._update(total, batches, parts):
            self.window += total
            self.window_steps += 1
        return outputs, parts

    def _update(self, loss, batches, parts):
        """Take the step, unless the loss or the gradient is not finite; whether it was taken."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm,
                                                 norm)
        scaling = self.scaler.is_enabled()        # then infinite gradients are part of the game
        names = [name for batch in batches for name in batch["id"]]
        if self.guard.objects(loss if scaling else loss + norm, self.step, names):
            self._refuse_step(loss.item(), norm.item(), parts, names)
            return False
        self.scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self._update_scale():
            self.overflows += 1
            return True
        self.grad_norm = norm
        if self.ema:
            self.ema.update_parameters(self.model)
        if self.scheduler.per_iteration:
            self.scheduler.step()
        return True

    def _update_scale(self):
        """Update the loss scale; whether it fell, as it does after an overflow."""
        self.scaler.update()
        before, self.loss_scale = self.loss_scale, self.scaler.get_scale()
        return self.loss_scale < before

    def _refuse_step(self, loss, norm, parts, names):
        """A step that is not finite: leave it out, or end the run."""
        # Gradients are those of all ranks; name the images of the ranks whose loss it is.
        ranks = distributed.gather((loss, names))
        culprits = [name for value, its in ranks if not math.isfinite(value) for name in its]
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        if math.isfinite(loss) and culprits:
            what = "loss of another rank is not finite"
        details = [f"{name} {value.item():.4g}" for name, value in parts.items()]
        said = self._nonfinite_message(what, self.step, culprits or names, details)
        self.skipped += 1
        if self.nonfinite == "stop":
            raise self._nonfinite_error(said)
        if self.skipped >= self.max_skipped:
            raise self._nonfinite_error(f"{said}; it is the {self.skipped}th step that is not "
                                        "finite (trainer.max_skipped)")
        warn(f"step left out ({self.skipped} of at most {self.max_skipped}): {said}")
        self.optimizer.zero_grad(set_to_none=True)
        self._update_scale()

    def _nonfinite_message(self, what, step, names, details=()):
        details = [*details, f"lr {self.optimizer.param_groups[0]['lr']:.3g}"]
        if self.scaler.is_enabled():
            details.append(f"loss scale {self.loss_scale:.4g}")
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        images = f", images {', '.join(map(str, names[:SHOWN]))}{more}" if names else ""
        return f"{what} at epoch {self.epoch} step {step} ({', '.join(details)}){images}"

    def _nonfinite_error(self, said):
        last = self.folder / "last.pth"
        resume = f"; go on from {last} with -r" if last.is_file() else ""
        return NumericalError(said, str(self.folder),
                              "lower optimizer.args.lr, or set trainer.amp to false, "
                              "trainer.clip_grad_norm to 1 or trainer.nonfinite to \"skip\"; no "
                              f"weight was changed by this step{resume}")

    def _raise_if_noted(self):
        noted = self.guard and self.guard.noted()
        if noted:
            raise self._nonfinite_error(self._nonfinite_message("loss or gradient is not finite",
                                                                *noted))

    def save(self, name, required=False):
        self._raise_if_noted()
        super().save(name, required)

    def _forward(self, model, images):
        try:
            return model(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(f"a batch norm got a single value per channel: the network pools "
                              f"to 1x1 and a batch holds {len(images)} image",
                              "train_loader.args.batch_size",
                              "use a batch of at least 2 and drop_last true, or another "
                              "norm") from None

    def _shares(self, batches):
        """Each micro-batch's weight, so that the step averages over labelled pixels; None is 1."""
        world = distributed.world_size()
        if world == 1 and len(batches) == 1:
            return [None]
        counts = torch.stack([self.criterion.valid_pixels(batch) for batch in batches]).float()
        # Gradients are averaged over the ranks: undo that division.
        return counts * world / distributed.all_reduce_(counts.sum()).clamp(min=1)

    def _to_device(self, batch):
        batch = {key: value.to(self.device, non_blocking=True)
                 if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        for transform in self.train_loader.batch_transforms:
            batch = transform(batch)
        return batch

    def _autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype,
                              enabled=self.autocast_dtype is not None)

    def _log_step(self, epoch, bar, parts):
        """Read the window's mean loss from the device; the one place that does."""
        self._raise_if_noted()
        if not self.window_steps:
            return                     # every step since the last line was left out
        means = torch.stack([self.window / self.window_steps, self.grad_norm])
        means = (distributed.all_reduce_(means) / distributed.world_size()).tolist()
        self.window.zero_()
        self.window_steps = 0
        lr = self.optimizer.param_groups[0]["lr"]
        speed, waited = self.clock.lap()
        memory = memory_in_use(self.device)
        values = {"train/loss": means[0], "train/grad_norm": means[1],
                  "train/images_per_s": speed, "train/data_time_share": waited,
                  "train/memory_GB": memory}
        values |= {f"train/lr/{group['name']}": group["lr"]
                   for group in self.optimizer.param_groups}
        if self.scaler.is_enabled():
            values |= {"train/loss_scale": self.loss_scale,
                       "train/overflows": self.overflows}
        if self.skipped:
            values["train/skipped"] = self.skipped
        if len(parts) > 1:
            values |= {f"train/{name}": value.item() for name, value in parts.items()}
        self.logger.scalars(values, self.step)
        self.logger.record("train", self.step, epoch=epoch, **values)
        text = (f"loss {means[0]:.4f}  lr {lr:.3g}  {speed:.1f} img/s  data {waited:.0%}  "
                f"{memory:.1f} GB")
        if bar is not None and not bar.disable:
            bar.set_postfix_str(text, refresh=False)
        else:
            self.logger.say(f"epoch {epoch} step {self.step}/{self.total_steps}  {text}")

    def _valid_epoch(self, epoch):
        self.stage = "validation"
        network = self.ema.module if self.ema else self.model
        distributed.broadcast_buffers(network)
        network.eval()
        predict = self.config["predict"]
        predictor = build_predictor(network, self.normalize, predict, self.criterion.activation)
        rule = build_decision(rule_of(network, predict["val"]), self.criterion.activation, predict)
        with self.stop_signal.idle():
            results = evaluate(predictor, self._heeded(self.val_loader), [rule],
                               num_classes=self.num_classes,
                               ignore_index=self.config["ignore_index"],
                               classes_of_interest=predict["CoI"], loss=self.val_loss,
                               device=self.device, progress=f"validation {epoch}",
                               published=predict["published"],
                               boundary=predict["boundary"])[rule.name]
        dataset = self.val_loader.dataset
        self.logger.say(f"epoch {epoch} validation on {results['images']} images of "
                        f"{type(dataset).__name__} ({rule.name}, {predictor.mode})\n"
                        + format_table(results, dataset.class_names))
        self._record_validation(epoch, results, predictor, rule)
        return results

    def _heeded(self, loader):
        """The loader, with signals heeded before each batch that all ranks have."""
        common = -distributed.highest(-len(loader), self.device)

        def heed(number):
            if number < common:
                distributed.at(f"{self._moment()}: validation batch {number}")
                if self.device.type == "cpu" or number % HEEDED == 0:
                    self.stop_if_asked()
        return Heeded(loader, heed)

    def _record_validation(self, epoch, results, predictor, rule):
        names = self.val_loader.dataset.class_names
        numbers = {name: results[name] for name in MONITORED if name in results}
        self.logger.record("validation", self.step, epoch=epoch, rule=rule.name,
                           images=results["images"], **numbers,
                           Class_IoU=dict(zip(names, results["Class_IoU"])))
        self.logger.scalars({f"val/{name}": value for name, value in numbers.items()}, self.step)
        self.logger.scalars({f"val/IoU/{name}": value for name, value
                             in zip(names, results["Class_IoU"]) if value == value}, self.step)
        if self.logger.draws:
            dataset = self.val_loader.dataset
            samples = [dataset[i] for i in range(min(EXAMPLES, len(dataset)))]
            with torch.inference_mode():
                predictions = [predictor.labels(s["image"][None].to(self.device), rule)[0].cpu()
                               for s in samples]
            self.logger.image("val/examples", prediction_grid(samples, predictions,
                                                              dataset.palette), self.step)
            if results.get("confusion") is not None:
                self.logger.image("val/confusion",
                                  confusion_picture(results["confusion"], names), self.step)


def _grouped(loader, size):
    """Lists of `size` batches, the last one as long as it comes."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
