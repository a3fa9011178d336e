"""From the command line to a checked config and the state a run goes on from."""
import contextlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from utils import distributed
from utils.config import apply_overrides, load_config, resolve_config, save_config
from utils.console import notice
from utils.errors import CheckpointError, ConfigError
from utils.run_folder import check_save_dir, claimed, create_run_folder, dataset_facts

DEFAULT_CONFIG = "config.json"
ALLOW = "--resume-allow-changes"
# Keys whose change is no business of a resumed run: they change no number of it ...
_HARMLESS = re.compile(r"name|n_gpu|test_loader.*|"
                       r"(train|val)_loader\.args\.(num_workers|pin_memory|prefetch_factor|timeout)|"
                       r"trainer\.(save_dir|save_period|save_every|keep|save_async|requeue|"
                       r"rank_timeout|tensorboard|log_dir|log_per_iter)")
# ... those that change which samples make up which step ...
_ORDER = re.compile(r"seed|train_loader\.(type|args\.(batch_size|shuffle|drop_last|split))|"
                    r"trainer\.accumulate")
# ... and those that the state of the optimizer and the schedule answers for.
_STATE = re.compile(r"optimizer\b.*")


@dataclass
class Run:
    """What train.py was asked to do: the resolved config, and the checkpoint to go on from."""

    config: dict
    checkpoint: dict | None = None
    checkpoint_path: Path | None = None
    allow_changes: bool = False

    @property
    def arch(self) -> dict:
        """The `arch` section; without pretrained weights where a checkpoint brings its own."""
        from utils.checkpoint import without_download
        return without_download(self.config["arch"]) if self.checkpoint else self.config["arch"]

    @contextlib.contextmanager
    def folder(self):
        """The run's folder, claimed for this process: the checkpoint's, or a new one. The
        resolved config lies in it."""
        if self.checkpoint_path:
            folder = self.checkpoint_path.parent
        else:
            folder = create_run_folder(self.config["trainer"]["save_dir"], self.config["name"])
        with claimed(folder) if distributed.is_main() else contextlib.nullcontext():
            if distributed.is_main() and not self.checkpoint_path:
                save_config(self.config, folder / "config.json")
            distributed.remember("run_folder", str(folder.absolute()))
            yield folder

    def require_same_data(self, dataset):
        """ConfigError when the checkpoint's training read other samples, or in another order."""
        saved = (self.checkpoint or {}).get("dataset")
        found = dataset_facts(dataset)
        if not saved or saved == found or self.allow_changes:
            return
        what = (f"{saved['length']} samples when the checkpoint was saved, {found['length']} now"
                if saved["length"] != found["length"] else "other samples than the checkpoint's")
        raise ConfigError(f"the training data has changed: {what}", "train_loader",
                          f"bring the data back, or accept that the run will differ from an "
                          f"uninterrupted one with {ALLOW}")

    def print_config(self):
        import json
        print(json.dumps(self.config, indent=2))

    def report(self, model, train_loader, val_loader):
        """Say what a training would do (--dry-run)."""
        parameters = sum(p.numel() for p in model.parameters())
        notice(f"{type(model).__name__}: {parameters / 1e6:.2f} M parameters, outputs "
               f"{', '.join(model.output_weights)}")
        for title, loader in (("train", train_loader), ("val", val_loader)):
            if loader is not None:
                notice(f"{title}: {len(loader.dataset)} images of "
                       f"{type(loader.dataset).__name__}, {len(loader)} batches of "
                       f"{loader.batch_size}")
        notice("config and data are sound; nothing was run")


def open_run(args) -> Run:
    """Read and check the config; find and verify the checkpoint of -r.

    The config is the one given by -c, else the checkpoint's own, else
    config.json; command-line overrides come on top. A process that torchrun
    starts again goes on in the folder of its predecessor, whatever -r says.
    """
    checkpoint, path = _of_predecessor() or (None, None)
    if not path and args.resume and args.resume != "auto":
        checkpoint, path = _read(args.resume)
    if args.config or not path:
        source = args.config or DEFAULT_CONFIG
        config = load_config(source, args.overrides)
    else:
        source = str(path)
        config = apply_overrides(checkpoint["config"], args.overrides)
    config = resolve_config(config, source)
    check_save_dir(config["trainer"]["save_dir"])
    if args.resume == "auto" and not path:
        from utils.checkpoint import newest_training
        folder = Path(config["trainer"]["save_dir"]) / config["name"]
        checkpoint, path = newest_training(folder) or (None, None)
        if path:
            notice(f"going on from {path}")
        else:
            notice(f"no checkpoint of {config['name']!r} to go on from: starting fresh")
    if checkpoint:
        _compare(checkpoint, config, args.resume_allow_changes)
    return Run(config, checkpoint, path, args.resume_allow_changes)


def start_processes(run: Run, args):
    """Join or launch the ranks the config asks for, seed them; returns the torch.device."""
    config = run.config
    if not distributed.launched() and not args.dry_run and args.device is None:
        processes = distributed.choose_processes(config["n_gpu"])
        if processes > 1:
            distributed.relaunch(processes, sys.argv[1:])
    device = args.device or ("cpu" if config["n_gpu"] == 0 else None)
    device = distributed.start(device, config["trainer"]["rank_timeout"])
    from utils.seeding import seed_everything, set_deterministic
    seed_everything(config["seed"])
    set_deterministic(config["deterministic"])
    return device


def _read(path):
    from utils.checkpoint import newest_training, read_checkpoint
    path = Path(path)
    try:
        return read_checkpoint(path), path
    except CheckpointError as error:
        found = newest_training(path.parent) if path.is_file() else None
        if found:
            error = CheckpointError(error.what, error.where, f"go on from {found[1]}, the newest "
                                                             "whole checkpoint there")
        raise error from None


def _of_predecessor():
    """(checkpoint, path) that the attempt before this one left, under torchrun --max-restarts."""
    folder = distributed.recall("run_folder") if distributed.restarts() else None
    if folder is None:
        return None
    from utils.checkpoint import newest_training
    found = newest_training(folder)
    notice(f"restart {distributed.restarts()}: going on from {found[1]}" if found else
           f"restart {distributed.restarts()}: nothing was saved before, starting again")
    return found


def _compare(checkpoint, config, allow_changes):
    """Tell what differs from the checkpoint's config; refuse what makes its steps other steps."""
    refused = []
    for key, old, new in _differences(checkpoint["config"], config):
        line = f"{key} was {old!r}, is {new!r}"
        if _ORDER.fullmatch(key):
            refused.append(line)
        elif not _HARMLESS.fullmatch(key):
            kept = "; a resumed optimizer keeps the checkpoint's" if _STATE.fullmatch(key) else ""
            notice(f"differs from the checkpoint: {line}{kept}")
    if refused and not allow_changes:
        raise ConfigError("the run would not go on where it stopped:\n  " + "\n  ".join(refused),
                          "config", f"take the checkpoint's values, or accept other batches with "
                                    f"{ALLOW}")
    for line in refused:
        notice(f"differs from the checkpoint: {line}")


def _differences(old, new, path=""):
    """(key, old value, new value) for every key whose value differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if path == "trainer" and key not in old:
                continue               # a setting that an older version did not have
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new
