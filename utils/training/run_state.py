"""Saves the state of a training as a checkpoint, and restores it."""
import math
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.checkpoint.find import BEST, LAST, Peeked, later_than, line_number
from utils.checkpoint.format import FORMAT, Checkpoint, TrainingCheckpoint, can_resume
from utils.checkpoint.load import load_exact, load_optimizer
from utils.checkpoint.read import (
    DamagedCheckpoint,
    MissingCheckpoint,
    as_checkpoint_errors,
    peek,
    require_training,
    verify,
)
from utils.checkpoint.write import set_aside
from utils.cli.console import notice, warn
from utils.errors import CheckpointError, listed
from utils.images.normalize import Normalize
from utils.machine import distributed
from utils.training.criterion import Criterion
from utils.training.lr_scheduler import advance
from utils.training.monitor import Monitor, score_text
from utils.training.parameter_groups import parameter_order
from utils.training.progress import Progress
from utils.training.run_folder import run_facts


class Resumable(Protocol):
    """The parts of a trainer that a checkpoint saves or restores."""

    config: dict
    folder: Path
    train_loader: Any
    dataset_facts: dict
    model: Any         # a base.base_model.BaseModel
    ema: torch.optim.swa_utils.AveragedModel | None
    criterion: Criterion
    normalize: Normalize
    optimizer: torch.optim.Optimizer
    scheduler: Any     # of torch, with `per_iteration` (see build_scheduler)
    scaler: torch.amp.GradScaler
    monitor: Monitor
    progress: Progress


def state_of(trainer: Resumable) -> TrainingCheckpoint:
    """The checkpoint of the trainer's current state. Its tensors are the trainer's own."""
    progress, dataset = trainer.progress, trainer.train_loader.dataset
    return {
        "format": FORMAT, "model": trainer.model.state_dict(),
        "ema": trainer.ema.module.state_dict() if trainer.ema else None,
        "optimizer": trainer.optimizer.state_dict(), "scheduler": trainer.scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "epoch": progress.epoch, "step": progress.step,
        # Counted in samples over all ranks, so that another number of ranks can resume.
        "samples": progress.batches_done * _samples_per_batch(trainer) + progress.into_batch,
        "steps_per_epoch": progress.steps_per_epoch, "skipped": progress.skipped,
        "overflows": progress.overflows, "validated": progress.validated,
        "averaged": int(trainer.ema.n_averaged) if trainer.ema else 0,
        "dataset": trainer.dataset_facts, "lineage": progress.lineage,
        "monitor": trainer.monitor.state_dict(), "config": trainer.config,
        "class_names": list(dataset.class_names),
        "palette": [list(map(int, color)) for color in dataset.palette],
        "normalization": trainer.normalize.state(), "activation": trainer.criterion.activation,
        "versions": run_facts(),
    }


def restore(trainer: Resumable, saved: Checkpoint):
    """Continue from the checkpoint `saved`. Raises CheckpointError if it does not fit."""
    where = str(trainer.folder)
    with as_checkpoint_errors(where):
        checkpoint = require_training(saved, where)
        arch = checkpoint["config"]["arch"]["type"]
        load_exact(trainer.model, checkpoint["model"], arch, where)
        progress = trainer.progress
        assert checkpoint["epoch"] is not None      # of every training
        progress.epoch, progress.step = checkpoint["epoch"], checkpoint["step"]
        progress.skipped = checkpoint.get("skipped", 0)
        progress.overflows = checkpoint.get("overflows", 0)
        progress.validated = checkpoint.get("validated", 0)
        if trainer.ema:
            load_exact(trainer.ema.module, checkpoint["ema"] or checkpoint["model"], arch, where)
            # Without an update the average is not an average yet: the first one replaces it.
            trainer.ema.n_averaged.fill_(checkpoint.get("averaged", progress.updates)
                                         if checkpoint["ema"] else 1)
        _restore_optimizer(trainer, checkpoint, where)
        if checkpoint["scaler"]:        # empty: the run did not scale its loss
            trainer.scaler.load_state_dict(checkpoint["scaler"])
        progress.batches_done, progress.into_batch = divmod(checkpoint["samples"],
                                                            _samples_per_batch(trainer))
        if progress.batches_done > len(trainer.train_loader) + 1 \
                and checkpoint.get("steps_per_epoch") == progress.steps_per_epoch:
            raise CheckpointError(f"the checkpoint is at sample {checkpoint['samples']} of an "
                                  f"epoch of {len(trainer.train_loader)} batches", where,
                                  "use another checkpoint of the run")
        recounted = _recount_steps(trainer, checkpoint)
        _restore_monitor(trainer, checkpoint)
        if recounted and trainer.monitor.step and not trainer.config["trainer"]["iterations"]:
            trainer.monitor.step = round(trainer.monitor.step * progress.steps_per_epoch
                                         / checkpoint["steps_per_epoch"])
        _restore_schedule(trainer, checkpoint, recounted)
        progress.lineage = _lineage(trainer, checkpoint)
    monitor = trainer.monitor
    best = "none yet" if monitor.best is None else score_text(monitor.metric, monitor.best)
    watched = f", best {monitor.metric} {best}" if monitor.metric else ""
    place = progress if progress.epoch <= progress.epochs else \
        f"the end of epoch {progress.epoch - 1}, step {progress.step}"
    notice(f"resuming at {place}, lr {trainer.optimizer.param_groups[0]['lr']:.3g}{watched}")


def last_is_outdated(trainer: Resumable, finished: bool) -> bool:
    """Whether last.pth must be written again: it is missing, damaged, or older than the end.

    Ask this of a run that resumed from another file. finished: it has no more steps to take.
    A damaged file is renamed. Raises CheckpointError for a file that could not be read, or is
    none of a training.
    """
    path = trainer.folder / LAST
    try:
        saved = Peeked.of(path)
        verify(path)
    except MissingCheckpoint:
        return True
    except DamagedCheckpoint as error:
        warn(f"{path}: {error.what}; it is now called {set_aside(path).name}")
        return True
    if not saved.trains:
        raise CheckpointError(f"{LAST} contains weights, but no state of a training", str(path),
                              "move it to another folder")
    # The run was killed between its last saves. No later step would write last.pth.
    return finished \
        and (saved.epoch, saved.step) < (trainer.progress.epoch, trainer.progress.step)


def _lineage(trainer, checkpoint):
    """The lineage of the resumed run, longer by one if this takes it back to an earlier step.

    The checkpoints of later steps stay until the run writes their names again. One notice says so.
    """
    if not distributed.is_main():
        return []                   # rank 0 saves
    lineage = checkpoint.get("lineage", [])
    later = later_than(trainer.folder, checkpoint)
    if not later:
        return lineage
    names = listed([one.path.name for one in later], 6)
    notice(f"going back to {trainer.progress}, from step {max(one.step for one in later)}: {names} "
           f"of the training after that stay until this one writes the same name ({LAST}: at the "
           "next save); copy what you want to keep")
    number = 1 + max(line_number(one.lineage) for one in later)
    return [*lineage, [number, checkpoint["step"]]]


def _samples_per_batch(trainer):
    return trainer.train_loader.batch_size * distributed.world_size()


def _restore_optimizer(trainer, checkpoint, where):
    """Load what the optimizer has kept, unless the run goes on with another optimizer."""
    before, now = (config["optimizer"]["type"] for config in (checkpoint["config"],
                                                              trainer.config))
    if before == now:
        order = parameter_order(checkpoint["config"]["optimizer"], trainer.model)
        load_optimizer(trainer.optimizer, checkpoint["optimizer"], where, order)
    else:
        notice(f"{now} starts without what {before} has kept of the steps before")


def _restore_schedule(trainer, checkpoint, recounted):
    """Move the new schedule to where the run stands. recounted: whether steps are counted anew.

    Its rates are those of the present config and length of the run, as if it had had them from its
    start. The schedule of an unchanged run thus goes on as if it had never stopped.
    """
    schedule, progress, saved = trainer.scheduler, trainer.progress, checkpoint["scheduler"]
    configs = checkpoint["config"], trainer.config
    same_type = len({config["lr_scheduler"]["type"] for config in configs}) == 1
    if schedule.per_validation:
        if not same_type:
            return
        if any(hasattr(type(schedule), key) for key in saved):      # torch sets every key
            raise CheckpointError("the schedule's state does not fit", str(trainer.folder),
                                  "use another checkpoint of the run")
        schedule.load_state_dict(saved)
        if len({config["trainer"]["monitor"] for config in configs}) > 1:
            schedule.forget_best()
    elif not schedule.per_iteration:
        begun = progress.step - _steps_of_epoch(trainer)    # at the beginning of this epoch
        advance(schedule, max(0, min(begun, progress.total_steps)) // progress.steps_per_epoch)
    else:
        taken = progress.step if recounted else progress.updates
        if same_type and not recounted:
            taken = saved["last_epoch"]     # files of older versions do not count overflows
        advance(schedule, max(0, min(taken, progress.total_steps)))


def _recount_steps(trainer, checkpoint):
    """Count the steps anew if an epoch now has another number of them; returns whether it has."""
    before = checkpoint.get("steps_per_epoch")
    progress, done = trainer.progress, _steps_of_epoch(trainer)
    iterations = trainer.config["trainer"]["iterations"]
    if iterations:
        # The last epoch of a shorter run may have been cut.
        left = progress.total_steps - progress.step + done
        progress.epochs = progress.epoch - 1 + math.ceil(left / progress.steps_per_epoch)
    if before in (None, progress.steps_per_epoch):
        return False
    if not iterations:
        validated = progress.validated == progress.step
        progress.step = (progress.epoch - 1) * progress.steps_per_epoch + done
        progress.validated = progress.step if validated else 0
    notice(f"an epoch now has {progress.steps_per_epoch} steps, over {distributed.world_size()} "
           f"process(es), instead of {before}: resuming with the samples that are left of "
           f"epoch {progress.epoch}, at step {progress.step}")
    repeated = -(_samples_per_batch(trainer) - progress.into_batch) % distributed.world_size()
    if progress.into_batch and repeated:
        notice(f"{repeated} of them are used twice, so that every process gets the same number")
    return True


def _steps_of_epoch(trainer):
    """The steps of the present epoch that are done."""
    return math.ceil(trainer.progress.batches_done / trainer.config["trainer"]["accumulate"])


def _restore_monitor(trainer, checkpoint):
    """Restore the best value, unless the checkpoint's run monitored another metric.

    model_best.pth may be newer than the resumed checkpoint: after a crash between two saves, or
    when resuming an older file. Keep it if it is better.
    """
    monitor, spec = trainer.monitor, trainer.config["trainer"]["monitor"]
    if checkpoint["config"]["trainer"]["monitor"] != spec:
        notice("the checkpoint's run monitored another metric: the first validation will be the "
               "best so far")
        return
    monitor.load_state_dict(checkpoint["monitor"])
    # Only rank 0 reads the file: a passing error on one rank would let them disagree.
    best = distributed.from_main(lambda: _best_so_far(trainer.folder / BEST), CheckpointError)
    if best == DAMAGED:         # another object on the ranks that received it
        monitor.best = None
    elif best and best["spec"] == spec and monitor.adopt(best["monitor"]):
        notice(f"model_best.pth is from a later epoch, {monitor.epoch}, and is kept until a "
               "validation is better")


DAMAGED = "damaged"


def _best_so_far(path):
    """The monitor's state and spec in model_best.pth; None if there is none.

    A damaged file is renamed: DAMAGED. Raises CheckpointError for any other file that the next
    best would replace: one that could not be read is probably whole.
    """
    try:
        verify(path)
        best = peek(path)
    except MissingCheckpoint:
        return None
    except DamagedCheckpoint as error:
        warn(f"{path}: {error.what}; it is now called {set_aside(path).name}, and the next "
             f"validation writes a new {BEST}")
        return DAMAGED
    if not can_resume(best) or "monitor" not in best:
        raise CheckpointError(f"{BEST} contains weights, but no state of a training", str(path),
                              "move it to another folder")
    return {"monitor": best["monitor"], "spec": best["config"]["trainer"]["monitor"]}
