"""The training loop."""
import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from base.base_trainer import BaseTrainer
from utils.checkpoint.find import LAST
from utils.cli.console import notice, warn
from utils.cli.stop_signal import StopCheckedLoader
from utils.config.loader_section import read_size
from utils.decision.rules import Decision, build_decision, rule_of
from utils.errors import ConfigError, NumericalError, counted, listed, size_text
from utils.evaluation.evaluate import evaluate
from utils.images.base_size import base_size_text
from utils.images.visualize import confusion_picture, example_grid
from utils.machine import distributed
from utils.machine.memory import memory_in_use
from utils.machine.seeding import seed_everything
from utils.metrics import DatasetMetrics, Scores
from utils.metrics.counts import checked_classes
from utils.metrics.table import format_table
from utils.predict.predictor import Predictor, build_predictor
from utils.training.finite_guard import FiniteGuard, copy_all
from utils.training.log_window import LogWindow
from utils.training.monitor import MONITORED

STOP_CHECK_EVERY = 8    # validation batches between checks for a stop signal on a GPU, which wait
REHEARSED_PIXELS = 1 << 20      # of a step that is only tried, on a CPU
MAX_NAMES = 8           # names of images in a message
EXAMPLES = 4            # pictures of a validation in TensorBoard
TABLE_HELP = "\nAll in %; docs/metrics.md defines each number, docs/rankdice.md the rules."


class Trainer(BaseTrainer):
    """Trains by gradient descent, one optimizer step per `accumulate` micro-batches.

    Between two log lines nothing is read from the device: losses and counts stay there. Only fp16
    (did the step overflow?), nonfinite "skip" and optimizers without a fused step (is the step
    finite?) read a number at every step. Micro-batches and ranks are weighted by their numbers of
    labeled pixels, unless trainer.average says otherwise: for plain means the gradient of a step is
    then the same for any split of it.
    """

    guard: FiniteGuard | None = None    # of the current epoch
    window: LogWindow                   # of the current epoch
    explained = False                   # whether a table with TABLE_HELP was printed

    def _train_epoch(self, epoch):
        progress, settings = self.progress, self.settings
        self._begin_epoch(epoch)
        rule = self._decision("train")
        metrics = DatasetMetrics(self.num_classes, self.config["ignore_index"])
        parts = {}
        self._validate_inside_epoch()       # in which the run may have been stopped
        with self._progress_bar(epoch) as bar:
            for batches in bar:
                if settings.iterations and progress.step >= settings.iterations \
                        or self.monitor.exhausted:
                    break
                outputs, parts = self._step(batches)
                if not progress.step and self.logger.draws:
                    self._draw_batch(batches[0])
                progress.step += 1
                progress.batches_done += len(batches)
                progress.into_batch = 0
                log = progress.step % settings.log_per_iter == 0 \
                    or progress.step == progress.total_steps
                if log and "out" in outputs:
                    metrics.update(rule(outputs["out"].detach().float()), batches[-1]["label"])
                del outputs          # free their memory before the next forward pass
                if log:
                    self._log_step(epoch, parts)
                with self.window.clock.paused():
                    self._validate_inside_epoch()
                if settings.save_every and progress.step % settings.save_every == 0:
                    self.save(LAST)
                # With several GPUs the check waits for them, so it is done only at a log line.
                if log or distributed.world_size() == 1 or self.device.type == "cpu":
                    self.stop_if_asked()
                distributed.mark_place(f"{progress}: reading data")
        if self.window.steps:
            self._log_step(epoch, parts)
        self._log_train_scores(metrics)

    def _begin_epoch(self, epoch):
        progress = self.progress
        progress.stage = "training"
        self.train_model.train()
        self.train_loader.set_epoch(epoch, progress.batches_done, progress.into_batch)
        self.guard = FiniteGuard(self.model, self.optimizer, self.device,
                                 self.settings.nonfinite == "skip")
        self.window = LogWindow(self.device,
                                self.train_loader.batch_size * distributed.world_size(),
                                self.scaler.get_scale())

    def _step(self, batches: list[dict]) -> tuple[dict, dict]:
        """Take one optimizer step and return (outputs, loss parts) of its last micro-batch."""
        assert self.guard, "_train_epoch sets it"
        distributed.mark_place(f"{self.progress}: count of labeled pixels")
        seed_everything(self.config["seed"], self.progress.step, distributed.rank())
        self.guard.before_step()
        self.model.at_progress(self.progress.step / self.progress.total_steps)
        batches[:] = [self._to_device(batch) for batch in batches]
        total = torch.zeros((), device=self.device)
        outputs, parts = {}, {}
        for i, (batch, share) in enumerate(zip(batches, self._shares(batches), strict=True)):
            # Ranks exchange gradients once per step, after the last micro-batch.
            wait = i < len(batches) - 1 and hasattr(self.train_model, "no_sync")
            with self.train_model.no_sync() if wait else contextlib.nullcontext():
                images = self.normalize(batch["image"], self.memory_format)
                outputs = {}         # free those of the previous micro-batch
                with self._autocast():
                    outputs = self._forward(self.train_model, images)
                    loss, parts = self.criterion(outputs, batch)
                if share is not None:
                    loss = loss * share
                if not wait:
                    distributed.mark_place(f"{self.progress}: exchange of gradients")
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self._update(total, batches, parts):
            self.window.add(total)
        return outputs, parts

    def _update(self, loss: torch.Tensor, batches: list[dict], parts: dict) -> bool:
        """Update the weights; returns False if the loss or the gradient was not finite.

        Returns True after an overflow under loss scaling, although the weights did not change.
        """
        assert self.guard, "_train_epoch sets it"
        with self._rates_of_step():
            # A schedule then goes on to the next ones.
            self.window.rates = {group["name"]: group["lr"]
                                 for group in self.optimizer.param_groups}
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        max_norm = self.settings.clip_grad_norm
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), max_norm, norm)
        names = [name for batch in batches for name in batch["id"]]
        # With loss scaling an infinite gradient is normal: the scaler skips the update.
        checked = loss if self.scaler.is_enabled() else loss + norm
        if self.guard.refuses(checked, self.progress.step, names):
            self._refuse_step(loss.item(), norm.item(), parts, names)
            return False
        with self._rates_of_step():
            self.scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self._update_scale():
            self.progress.overflows += 1
            return True
        self.window.grad_norm = norm
        if self.ema:
            self.ema.update_parameters(self.model)
        if self.scheduler.per_iteration:
            self.scheduler.step()
        return True

    def _rates_of_step(self):
        """A block in which the optimizer has the rates of the present step."""
        return self.warmup.applied(self.optimizer, self.progress.updates)

    def _update_scale(self) -> bool:
        """Update the loss scale; returns whether it became smaller, as it does on an overflow."""
        self.scaler.update()
        before, self.window.loss_scale = self.window.loss_scale, self.scaler.get_scale()
        return self.window.loss_scale < before

    def _shares(self, batches):
        """The factor of each micro-batch's loss that makes their sum a mean: see trainer.average.

        None means 1.
        """
        world = distributed.world_size()
        if len(batches) == 1 and (world == 1 or self.settings.average == "ranks"):
            return [None]
        if self.settings.average == "ranks":
            return [1 / len(batches)] * len(batches)
        counts = torch.stack([self.criterion.valid_pixels(batch) for batch in batches]).float()
        # Gradients are averaged over the ranks: undo that division.
        return counts * world / distributed.all_reduce_(counts.sum()).clamp(min=1)

    def _to_device(self, batch):
        batch = {key: value.to(self.device, non_blocking=True)
                 if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        for transform in self.train_loader.batch_transforms:
            batch = transform(batch)
        return batch

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

    def _autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype,
                              enabled=self.autocast_dtype is not None)

    def _decision(self, phase) -> Decision:
        """The decision rule of config key predict.train, predict.val or predict.test."""
        predict = self.config["predict"]
        return build_decision(predict[phase], self.criterion.activation, predict,
                              lambda: self.criterion.inverse)

    def _progress_bar(self, epoch):
        """A bar over the epoch's steps; each of its items is the list of a step's micro-batches."""
        done = math.ceil(self.progress.batches_done / self.settings.accumulate)
        steps = _grouped(self.train_loader, self.settings.accumulate)
        steps = self.window.clock.waiting(self.stop_signal.while_idle(steps))
        distributed.mark_place(f"{self.progress}: reading data")
        return tqdm(steps, f"epoch {epoch}/{self.progress.epochs}", self.progress.steps_per_epoch,
                    initial=done, disable=None if distributed.is_main() else True, leave=False)

    # Before the first epoch

    def _check(self):
        if self.val_loader is not None:
            _check_same_label_colors(self.train_loader.dataset, self.val_loader.dataset)
        self.criterion.require_average(self.settings.average, distributed.world_size())
        checked_classes(self.config["predict"]["CoI"], self.num_classes)
        for phase in ("train", "val", "test"):
            self._decision(phase)(torch.zeros(1, self.num_classes, 1, 1))
        batches, wanted = len(self.train_loader), self.settings.accumulate
        if batches < wanted:
            notice(f"an epoch has {counted(batches, 'batch')}: a step adds up {batches}, not "
                   f"{wanted} (trainer.accumulate)")
        self._check_smallest_batch()

    def _check_smallest_batch(self):
        progress = self.progress
        self.train_loader.set_epoch(progress.epoch, progress.batches_done, progress.into_batch)
        if self.train_loader.smallest_batch == 1:
            self._check_single_image()

    def _check_single_image(self):
        """Raise ConfigError if the network cannot train on a batch of one image.

        A batch norm after global pooling then gets one value per channel.
        """
        progress = self.progress
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        image = self.train_loader.dataset[1, 0]["image"][None].to(self.device)
        try:
            with torch.no_grad():
                self._forward(self.model.train(), self.normalize(image, self.memory_format))
        except ConfigError:
            if not progress.into_batch:
                raise
            notice(f"{progress.into_batch} samples of epoch {progress.epoch} are used again: "
                   "without them the next batch would be a single image")
            progress.into_batch = 0
            self._check_smallest_batch()
        finally:
            copy_all(buffers, self.model.buffers())

    def rehearse(self) -> str:
        """Try what the training would do next: one step, and the validation of one image.

        Raises their errors, writes nothing, and returns a line about what was tried. On a CPU a
        step on large images takes a few of the batch, at least two, because that is often not the
        machine of the training. The step changes the weights: do not use this trainer afterwards.
        """
        if self._finished:
            return "the run is finished: there is no step to try (raise trainer.epochs to go on)"
        started = time.monotonic()
        with self._explained_errors():
            self._check()
            if self.progress.batches_done >= len(self.train_loader):
                self.progress.batches_done = 0      # stopped in a validation: no step is left
            self._begin_epoch(self.progress.epoch)
            batch = self.train_loader.next_batch()
            size = len(batch["id"])
            tried = f"tried one step on a batch of {counted(size, 'image')}"
            if self.device.type == "cpu":
                few = max(2, REHEARSED_PIXELS // math.prod(batch["image"].shape[2:]))
                batch = {key: value[:few] for key, value in batch.items()}
                if few < size:
                    tried = f"tried one step on {few} of the {size} images of a batch"
            tried += f" ({size_text(batch['image'].shape[2:])}, height x width; loss "
            batches = [batch]
            outputs, parts = self._step(batches)
            if "out" in outputs:
                self._decision("train")(outputs["out"].detach().float())
            self._raise_if_bad()
            losses = [value.item() for value in parts.values()]
            tried += " + ".join(f"{value:.4g}" for value in losses) + ")"
            if self.val_loader is not None:
                tried += self._rehearse_validation()
        return f"{tried}, in {time.monotonic() - started:.1f} s"

    def _rehearse_validation(self):
        # Of several ranks the last ones may have no batch; rank 0 has the first one.
        loader = _OneBatch(self.val_loader.next_batch(1) if len(self.val_loader) else None)
        scores, _, _ = self._scores(loader, None)
        size = size_text(loader.batch["image"].shape[2:]) if loader.batch else "no size"
        loss = "" if scores.loss is None else f"; loss {scores.loss:.4g}"
        return f" and one validation image ({size}{loss})"

    # Steps whose loss or gradient is not finite

    def _refuse_step(self, loss, norm, parts, names):
        """Skip a step that is not finite, or end the run."""
        # All ranks have the same gradient, so name the images of the ranks with a bad loss.
        ranks = distributed.gather((loss, names))
        bad_names = [name for rank_loss, rank_names in ranks if not math.isfinite(rank_loss)
                     for name in rank_names]
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        if math.isfinite(loss) and bad_names:
            what = "loss of another rank is not finite"
        details = [*(f"{name} {value.item():.4g}" for name, value in parts.items()),
                   f"lr {next(iter(self.window.rates.values())):.3g}"]
        progress, most = self.progress, self.settings.max_skipped
        message = self._nonfinite_message(what, progress.step, bad_names or names, details)
        progress.skipped += 1
        if self.settings.nonfinite == "stop":
            raise self._nonfinite_error(message)
        if progress.skipped >= most:
            raise self._nonfinite_error(f"{message}; {progress.skipped} steps were not finite "
                                        "(trainer.max_skipped)")
        warn(f"step skipped ({progress.skipped}; the run ends at {most}): {message}")
        self.optimizer.zero_grad(set_to_none=True)
        self._update_scale()

    def _raise_if_bad(self):
        """Raise NumericalError if a step since the last check was not finite."""
        bad = self.guard and self.guard.first_bad_step()
        if bad:
            raise self._nonfinite_error(self._nonfinite_message("loss or gradient is not finite",
                                                                *bad))

    def _nonfinite_message(self, what, step, names, details=()):
        if self.scaler.is_enabled():
            details = [*details, f"loss scale {self.window.loss_scale:.4g}"]
        about = f" ({', '.join(details)})" if details else ""
        images = f", images {listed(names, MAX_NAMES)}" if names else ""
        return f"{what} at epoch {self.progress.epoch} step {step}{about}{images}"

    def _nonfinite_error(self, message):
        last = self.folder / LAST
        resume = f"; resume from {last} with -r" if last.is_file() else ""
        settings, skips = self.settings, self.settings.nonfinite == "skip"
        remedies = ["lower optimizer.args.lr",
                    "set trainer.amp to false" if self.autocast_dtype else "",
                    "" if 0 < settings.clip_grad_norm <= 1 else "set trainer.clip_grad_norm to 1",
                    "raise trainer.max_skipped" if skips else 'set trainer.nonfinite to "skip"']
        return NumericalError(message, str(self.folder),
                              f"{', or '.join(filter(None, remedies))}; no weight was changed by "
                              f"this step{resume}")

    def save(self, *names: str, required: bool = False):
        self._raise_if_bad()
        super().save(*names, required=required)

    # Log

    def _log_step(self, epoch, parts):
        """Log the steps since the last log line; this reads their losses from the device."""
        self._raise_if_bad()
        window = self.window
        if not window.steps:
            return                     # every step since the last line was skipped
        loss, norm = window.means()
        speed, waited = window.clock.lap()
        memory = memory_in_use(self.device)
        rates = window.rates
        values = {"train/loss": loss, "train/grad_norm": norm,
                  "train/images_per_s": speed, "train/data_time_share": waited,
                  "train/memory_GB": memory}
        values |= {f"train/lr/{name}": lr for name, lr in rates.items()}
        if self.scaler.is_enabled():
            values |= {"train/loss_scale": window.loss_scale,
                       "train/overflows": self.progress.overflows}
        if self.progress.skipped:
            values["train/skipped"] = self.progress.skipped
        if len(parts) > 1:
            values |= {f"train/{name}": value.item() for name, value in parts.items()}
        step = self.progress.step
        self.logger.scalars(values, step, epoch)
        self.logger.record("train", step, epoch=epoch, **values)
        text = (f"loss {loss:.4f}  lr {next(iter(rates.values())):.3g}  {speed:.1f} img/s  "
                f"data {waited:.0%}  {memory:.1f} GB")
        self.logger.say(f"epoch {epoch} step {step}/{self.progress.total_steps}  {text}")

    def _log_train_scores(self, metrics):
        """Log the scores of the logged batches, each predicted with the weights of its step."""
        metrics.reduce()
        results = metrics.compute()
        if not math.isnan(results["Mean_IoU"]):
            self.logger.scalars({"train/Mean_IoU": results["Mean_IoU"],
                                 "train/Pixel_Accuracy": results["Pixel_Accuracy"]},
                                self.progress.step, self.progress.epoch)

    # Validation

    def _valid_epoch(self, epoch):
        with self.stop_signal.idle():
            scores, predictor, rule = self._scores(self._with_stop_checks(self.val_loader),
                                                   f"validation {epoch}")
        dataset = self.val_loader.dataset
        read = read_size(self.config["val_loader"])
        size = f", images and labels at {base_size_text(read)}" if read else ""
        # Of the first table of a session, what its numbers are.
        columns, self.explained = "" if self.explained else TABLE_HELP, True
        step = f" step {self.progress.step}" if self.settings.val_per_iterations else ""
        self.logger.say(f"epoch {epoch}{step}: validation on {counted(scores.images, 'image')} of "
                        f"{dataset.title}, rule {rule.name}, {predictor.views_text()}{size}\n"
                        + format_table(scores, dataset.class_names) + columns)
        if not sum(scores.dataset["pixels"]):
            warn(f"not one pixel of the {scores.images} images of the validation has a label: it "
                 "gives no score and no model_best.pth, and trainer.early_stop counts it as no "
                 "better")
        self._record_validation(epoch, scores, rule.name)
        if self.logger.draws:
            self._draw_examples(scores, predictor, rule)
        return scores.numbers()

    def _scores(self, loader, progress) -> tuple[Scores, Predictor, Decision]:
        """Scores over a loader, and what predicted and decided. progress: the text of a bar."""
        self.progress.stage = "validation"
        network = self.ema.module if self.ema else self.model
        distributed.broadcast_buffers(network)
        network.eval()
        predict, activation = self.config["predict"], self.criterion.activation
        predictor = build_predictor(network, self.normalize, predict, activation)
        rule = build_decision(rule_of(network, predict["val"]), activation, predict,
                              lambda: self.criterion.inverse)
        scores = evaluate(predictor, loader, [rule], num_classes=self.num_classes,
                          ignore_index=self.config["ignore_index"],
                          classes_of_interest=predict["CoI"], loss=self.val_loss,
                          device=self.device, progress=progress, published=predict["published"],
                          boundary=predict["boundary"], nonfinite="warn")[rule.name]
        return scores, predictor, rule

    def _with_stop_checks(self, loader):
        """The loader, checking for a stop signal before each batch.

        The check needs all ranks, so batches that only some ranks have are not checked.
        """
        common = -distributed.max_over_ranks(-len(loader), self.device)

        def before_batch(number):
            if number < common:
                distributed.mark_place(f"{self.progress}: validation batch {number}")
                if self.device.type == "cpu" or number % STOP_CHECK_EVERY == 0:
                    self.stop_if_asked()
        return StopCheckedLoader(loader, before_batch)

    def _record_validation(self, epoch: int, scores: Scores, rule: str):
        step, measured = self.progress.step, scores.numbers()
        numbers = {name: measured[name] for name in MONITORED if name in measured}
        ious = dict(zip(self.val_loader.dataset.class_names, scores.dataset["Class_IoU"],
                        strict=False))
        self.logger.record("validation", step, epoch=epoch, rule=rule, images=scores.images,
                           **numbers, Class_IoU=ious)
        classes = {f"IoU/{name}": value for name, value in ious.items() if not math.isnan(value)}
        self.logger.scalars({f"val/{name}": value for name, value in (numbers | classes).items()},
                            step, epoch)

    def _draw_batch(self, batch: dict):
        """The first images that the network was trained on, after all augmentation, and labels."""
        inputs = self.normalize(batch["image"][:EXAMPLES])
        images = self.normalize.pictures(inputs).cpu()
        samples = [{"image": image, "label": label}
                   for image, label in zip(images, batch["label"][:EXAMPLES].cpu(), strict=True)]
        dataset = self.train_loader.dataset
        self.logger.image("train/examples", example_grid(samples, dataset.palette,
                                                         dataset.class_names), self.progress.step)

    def _draw_examples(self, scores: Scores, predictor: Predictor, rule: Decision):
        """Predictions on the first images, and the confusion matrix, for TensorBoard."""
        step, dataset = self.progress.step, self.val_loader.dataset
        samples = [dataset[i] for i in range(min(EXAMPLES, len(dataset)))]
        pictures = [{**one, "image": self.normalize.shown(one["image"])} for one in samples]
        with torch.inference_mode():
            predictions = [predictor.labels(sample["image"][None].to(self.device), rule)[0].cpu()
                           for sample in samples]
        self.logger.image("val/examples", example_grid(pictures, dataset.palette,
                                                       dataset.class_names, predictions), step)
        if scores.dataset["confusion"] is not None:
            self.logger.image("val/confusion", confusion_picture(scores.dataset["confusion"],
                                                                 dataset.class_names), step)


def _check_same_label_colors(train: Any, val: Any):
    """Raise ConfigError if two datasets read labels of other colors (ignored ones included).

    BaseDataset.require_same_classes has compared the classes.
    """
    colors = [getattr(data, "label_palette", None) for data in (train, val)]
    if all(colors) and colors[0] != colors[1]:
        raise ConfigError("the colors of the labels differ between training and validation data",
                          "val_loader", "give both the same palette")


class _OneBatch:
    """A loader of a single batch, or of none."""

    def __init__(self, batch: dict | None):
        self.batch, self.batch_size = batch, 1

    def __len__(self) -> int:
        return int(self.batch is not None)

    def __iter__(self) -> Iterator[dict]:
        if self.batch is not None:
            yield self.batch


def _grouped(batches: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Lists of `size` batches; the last one may be shorter."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
