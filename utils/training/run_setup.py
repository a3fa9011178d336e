"""Reads the config and the checkpoint of a run, checks them, and starts the processes."""
import argparse
import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli.console import notice, warn
from utils.config.cross_checks import settings_without_effect
from utils.config.load import RUN, apply_overrides, load_config, save_config
from utils.config.registry import STEP_IMPLEMENTATION
from utils.config.schema import resolve_config, trains_without_val
from utils.errors import CheckpointError, ConfigError
from utils.machine import distributed
from utils.training.run_folder import (
    check_save_dir,
    claimed,
    create_run_folder,
    dataset_facts,
    is_run_of,
    runs_folder,
)
from utils.training.run_log import require_trackers, training_facts
from utils.training.tensorboard_events import NO_TENSORBOARD
from utils.training.trackers.tracker import masked

if TYPE_CHECKING:
    import torch

    from utils.checkpoint.format import Checkpoint

DEFAULT_CONFIG = "config.json"
ALLOW = "--resume-allow-changes"
# Keys that may differ on resume because they do not affect the result.
HARMLESS = re.compile(r"name|n_gpu|test_loader.*|"
                      r"(train|val)_loader\.args\.(num_workers|pin_memory|prefetch_factor|timeout)|"
                      rf"optimizer\.args\.({'|'.join(STEP_IMPLEMENTATION)})|"
                      r"trainer\.(save_dir|save_period|save_every|keep|save_async|requeue|"
                      r"rank_timeout|tensorboard|log_dir|log_to|log_per_iter)")
# Keys that determine which samples a step uses: a difference must be allowed with ALLOW.
_ORDER = re.compile(r"seed|trainer\.accumulate|train_loader\.(type|args\.("
                    r"batch_size|shuffle|drop_last|split|sampler(\..*)?))")
# Keys of the steps themselves: a difference must be allowed with ALLOW as well.
_UPDATE = re.compile(r"optimizer\..*|normalize(\..*)?")


@dataclass
class Run:
    """A run of train.py: the resolved config, and the checkpoint to resume from."""

    config: dict
    checkpoint: "Checkpoint | None" = None
    checkpoint_path: Path | None = None
    allow_changes: bool = False     # --resume-allow-changes
    place: Path | None = None       # the folder in which it trains or has trained
    stopped_by: int | None = None   # a stop signal that came when it had ended

    @property
    def arch(self) -> dict:
        """The `arch` section; without pretrained weights if a checkpoint replaces them."""
        from utils.checkpoint.load import without_download
        return without_download(self.config["arch"]) if self.checkpoint else self.config["arch"]

    @property
    def intended_folder(self) -> Path:
        """The folder of --dry-run, which writes nothing: the checkpoint's, or the run name's."""
        if self.checkpoint_path:
            return self.checkpoint_path.parent
        return runs_folder(self.config["trainer"]["save_dir"], self.config["name"])

    def network(self, num_classes: int, in_channels: int = 3) -> Any:
        """Build the network, a BaseModel with new weights.

        in_channels: of the images (BaseDataset.in_channels). Raises CheckpointError if the network
        is far larger than the weights of the checkpoint to resume.
        """
        from utils.checkpoint.limits import network_within
        from utils.config.build import build
        limit = network_within(self.checkpoint["model"], str(self.checkpoint_path)) \
            if self.checkpoint else contextlib.nullcontext()
        with limit:
            return build("models", self.arch, num_classes=num_classes, in_channels=in_channels)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """The run's folder, claimed for this process: the checkpoint's, or a new one.

        A new folder gets the resolved config.
        """
        if self.checkpoint_path:
            folder = self.checkpoint_path.parent
        else:
            folder = create_run_folder(self.config["trainer"]["save_dir"], self.config["name"])
        with claimed(folder) if distributed.is_main() else contextlib.nullcontext():
            if distributed.is_main() and not self.checkpoint_path:
                save_config(self.config, folder / "config.json")
            distributed.remember("run_folder", str(folder.absolute()))
            self.place = folder
            yield folder

    def settle_start(self):
        """Write the file that trainer.finetune_from means into the config, on every rank.

        So the config of a run says which file it started from. Raises CheckpointError.
        """
        from utils.training.earlier_runs import start_file
        trainer = self.config["trainer"]
        if trainer["finetune_from"] and not self.checkpoint:
            # Only rank 0 reads the files, which it verifies as a whole.
            trainer["finetune_from"] = distributed.from_main(
                lambda: start_file(trainer["finetune_from"], trainer["save_dir"]), CheckpointError)

    def require_same_data(self, dataset: Any):
        """Raise ConfigError if the checkpoint's run used other samples, or in another order."""
        saved = self.checkpoint.get("dataset") if self.checkpoint else None
        if not saved or self.allow_changes:
            return
        now = dataset_facts(dataset)
        if saved == now:
            return
        what = (f"{saved['length']} samples when the checkpoint was saved, {now['length']} now"
                if saved["length"] != now["length"] else "other samples than the checkpoint's")
        raise ConfigError(f"the training data has changed: {what}", "train_loader",
                          f"restore the data, or accept that the run will differ from an "
                          f"uninterrupted one with {ALLOW}")

    def print_config(self):
        """Print the resolved config (--print-config)."""
        print(json.dumps(masked(self.config), indent=2))

    def report(self, trainer: Any, tried: str):
        """Print what a training would use, and what was tried (--dry-run). trainer: a Trainer."""
        for line in training_facts(trainer):
            notice(line)
        if trainer.settings.tensorboard and not importlib.util.find_spec("tensorboard"):
            warn(NO_TENSORBOARD)
        notice(tried)
        notice("config and data are correct; nothing was written")


def open_run(args: argparse.Namespace) -> Run:
    """Read and check the config; find and verify the checkpoint of -r.

    The config is that of -c, else that of the checkpoint, else config.json; then overrides of the
    command line are applied. A process that torchrun restarts resumes in the folder of the
    previous attempt, and ignores -r. Raises ConfigError and CheckpointError.
    """
    checkpoint, path = _of_previous_attempt() or (None, None)
    if not path and args.resume and args.resume != "auto":
        checkpoint, path = read_resumed(args.resume)
    _correct_record(checkpoint)
    if args.config or not checkpoint:
        source = args.config or DEFAULT_CONFIG
        config = load_config(source, args.overrides)
    else:
        source = str(path)
        config = apply_overrides(checkpoint["config"], args.overrides)
    config = resolved(config, source)
    for line in settings_without_effect(config):
        notice(line)
    check_save_dir(config["trainer"]["save_dir"], config["name"])
    if args.resume == "auto" and not path:
        from utils.checkpoint.find import newest_training
        name = config["name"]
        checkpoint, path = newest_training(runs_folder(config["trainer"]["save_dir"], name),
                                           partial(is_run_of, name)) or (None, None)
        if path:
            notice(f"resuming from {path}")
            _correct_record(checkpoint)
        else:
            notice(f"no checkpoint of {name!r} to resume from: starting fresh")
    if checkpoint:
        compare_configs(checkpoint["config"], config, path, args.resume_allow_changes)
    return Run(config, checkpoint, path, args.resume_allow_changes)


def resolved(config: dict, source: str) -> dict:
    """The resolved config of a training, in which class weights are numbers. Raises ConfigError.

    Says so if the training will not validate because there is no val_loader.
    """
    from utils.losses.class_weights import with_numbers
    result = resolve_config(config, source)
    if trains_without_val(config):
        notice(f"{source} has no val_loader: the training does not validate (trainer.val is "
               "false), and last.pth is its only checkpoint")
    return {**result, **{key: with_numbers(result[key], key) for key in ("loss", "val_loss")}}


def start_processes(run: Run, args: argparse.Namespace) -> "torch.device":
    """Start or join the processes that the config sets, seed them, and return their device."""
    config = run.config
    if not distributed.launched() and args.device is None:
        processes = distributed.choose_processes(config["n_gpu"])
        if processes > 1 and not args.dry_run:
            distributed.relaunch(processes, sys.argv[1:])
    if args.device and config["n_gpu"] not in (None, 0 if args.device == "cpu" else 1):
        notice(f"n_gpu {config['n_gpu']} has no effect: --device {args.device} trains on that "
               "one device")
    device = args.device or ("cpu" if config["n_gpu"] == 0 else None)
    trainer = config["trainer"]
    device = distributed.start(device, trainer["rank_timeout"])
    # Recipes say it for any number of processes.
    if trainer["average"] == "ranks" and trainer["accumulate"] == distributed.world_size() == 1:
        notice('trainer.average "ranks" has no effect: one process, and accumulate is 1')
    from utils.machine.seeding import seed_everything, set_deterministic
    distributed.from_main(lambda: require_trackers(config), ConfigError)
    run.settle_start()
    seed_everything(config["seed"])
    set_deterministic(config["deterministic"])
    return device


def read_resumed(text: str) -> "tuple[Checkpoint, Path]":
    """The checkpoint that -r names, and its path. Raises CheckpointError."""
    from utils.checkpoint.find import newest_training, training_checkpoint
    from utils.checkpoint.read import DamagedCheckpoint, read_training
    path = training_checkpoint(text)
    try:
        return read_training(path), path
    except DamagedCheckpoint as error:
        newest = newest_training(path.parent)
        if newest:
            error = DamagedCheckpoint(error.what, error.where, f"resume from {newest[1]}, the "
                                      "newest undamaged checkpoint there")
        raise error from None


def _of_previous_attempt():
    """(checkpoint, path) of the attempt before this one, under torchrun --max-restarts, or None."""
    folder = distributed.recall("run_folder") if distributed.restarts() else None
    if folder is None:
        return None
    from utils.checkpoint.find import newest_training
    newest = newest_training(folder)
    notice(f"restart {distributed.restarts()}: resuming from {newest[1]}" if newest else
           f"restart {distributed.restarts()}: nothing was saved before, starting again")
    return newest


def is_same_training(saved: dict, config: dict) -> bool:
    """Whether two configs train the same, so that a run of the first one is one of the second."""
    config = {**config, "trainer": dict(config["trainer"])}
    _keep_start(saved, config)
    return all(HARMLESS.fullmatch(key)
               for key, _, _ in _differences(_with_defaults(saved), config))


def _correct_record(checkpoint):
    """Write the optimizer's settings that were used into the config of an older checkpoint.

    A resumed run recorded what its command line asked for, but went on with the saved settings.
    """
    if not checkpoint or "averaged" in checkpoint:
        return              # nothing to correct: this version uses what it records
    with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError):
        group, args = checkpoint["optimizer"]["param_groups"][0], \
            checkpoint["config"]["optimizer"]["args"]
        used = dict(group)
        # A cyclic schedule of torch has rates of its own; a schedule may change the momentum.
        if "max_lrs" not in checkpoint["scheduler"] and group["name"] != "backbone":
            used["initial_lr"] = used.get("max_lr", used["initial_lr"])
            args["lr"] = used["initial_lr"]
        for key in args.keys() & used.keys() - {"lr", "betas", "momentum"}:
            if type(args[key]) in (int, float):
                args[key] = used[key]


def _keep_start(saved, config):
    """Keep the file that the run started from, where the config names a run instead."""
    start = saved.get("trainer", {}).get("finetune_from")
    if start and str(config["trainer"]["finetune_from"]).startswith(RUN):
        config["trainer"]["finetune_from"] = start


def compare_configs(saved: dict, config: dict, path: Path | None, allow_changes: bool):
    """Print what differs from the checkpoint's config.

    Raises ConfigError if the order of samples or the optimizer changes and that is not allowed.
    """
    _keep_start(saved, config)
    refused = []
    for key, old, new in _differences(_with_defaults(saved), config):
        line = f"{key} was {old!r}, is {new!r}"
        if _ORDER.fullmatch(key) or _UPDATE.fullmatch(key) and not HARMLESS.fullmatch(key):
            refused.append(line)
        elif not HARMLESS.fullmatch(key):
            notice(f"differs from the checkpoint: {line}")
    if refused and not allow_changes:
        raise ConfigError("the run would not continue where it stopped:\n  " + "\n  ".join(refused),
                          "config", "use the checkpoint's values, or go on with the new ones and "
                                    f"{ALLOW}, or start a training from its weights: without -r, "
                                    f"with trainer.finetune_from={path}")
    for line in refused:
        notice(f"differs from the checkpoint: {line}; the new value holds from here on")


def _with_defaults(saved):
    """A saved config with the settings that were added since, whose defaults change nothing."""
    try:
        return resolved(saved, "the checkpoint's config")
    except ConfigError:
        return saved           # it names what no longer exists: compare it as it is


def _differences(old, new, path=""):
    """(key, old value, new value) for every key whose value differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        if path in ("optimizer", "lr_scheduler") and old.get("type") != new.get("type"):
            # The arguments of two classes cannot be compared.
            keys = ["type", *(key for key in keys if key not in ("type", "args"))]
        for key in keys:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new
