"""From the command line to a checked config and the state a run goes on from."""
import sys
from dataclasses import dataclass
from pathlib import Path

from utils import distributed
from utils.config import apply_overrides, load_config, resolve_config, save_config
from utils.console import notice
from utils.run_folder import check_save_dir, create_run_folder

DEFAULT_CONFIG = "config.json"


@dataclass
class Run:
    """What train.py was asked to do: the resolved config, and the checkpoint to go on from."""

    config: dict
    checkpoint: dict | None = None
    checkpoint_path: Path | None = None

    @property
    def arch(self) -> dict:
        """The `arch` section; without pretrained weights where a checkpoint brings its own."""
        from utils.checkpoint import without_download
        return without_download(self.config["arch"]) if self.checkpoint else self.config["arch"]

    def folder(self) -> Path:
        """The run's folder: the checkpoint's, or a new one. The resolved config lies in it."""
        if self.checkpoint_path:
            return self.checkpoint_path.parent
        folder = create_run_folder(self.config["trainer"]["save_dir"], self.config["name"])
        if distributed.is_main():
            save_config(self.config, folder / "config.json")
        return folder

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
    config.json; command-line overrides come on top.
    """
    resumes_path = args.resume and args.resume != "auto"
    checkpoint = path = None
    if args.config or not resumes_path:
        source = args.config or DEFAULT_CONFIG
        config = load_config(source, args.overrides)
        if resumes_path:
            checkpoint, path = _read(args.resume)
    else:
        checkpoint, path = _read(args.resume)
        source = str(path)
        config = apply_overrides(checkpoint["config"], args.overrides)
    config = resolve_config(config, source)
    check_save_dir(config["trainer"]["save_dir"])
    if args.resume == "auto":
        from utils.checkpoint import newest_checkpoint
        found = newest_checkpoint(Path(config["trainer"]["save_dir"]) / config["name"])
        if found:
            checkpoint, path = _read(found)
        else:
            notice(f"no checkpoint of {config['name']!r} to go on from: starting fresh")
    if checkpoint:
        for line in _differences(checkpoint["config"], config):
            notice(f"differs from the checkpoint: {line}")
    return Run(config, checkpoint, path)


def start_processes(run: Run, args):
    """Join or launch the ranks the config asks for, seed them; returns the torch.device."""
    config = run.config
    if not distributed.launched() and not args.dry_run and args.device is None:
        processes = distributed.choose_processes(config["n_gpu"])
        if processes > 1:
            distributed.relaunch(processes, sys.argv[1:])
    device = distributed.start(args.device)
    from utils.seeding import seed_everything, set_deterministic
    seed_everything(config["seed"])
    set_deterministic(config["deterministic"])
    return device


def _read(path):
    from utils.checkpoint import read_checkpoint
    return read_checkpoint(path), Path(path)


def _differences(old, new, path=""):
    """One line for every key whose value differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"
