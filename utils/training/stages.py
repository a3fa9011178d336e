"""The stages of a chain: trainings in turn, each from the best checkpoint of the one before.

A chain has no state of its own. Which stages are finished is read from the folders of their runs:
with -r auto the newest run of a stage's name that has the stage's config counts.
"""
import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.cli.console import Interrupted, notice
from utils.config.cross_checks import settings_without_effect
from utils.config.load import RUN, has_stages, load_stages
from utils.errors import CheckpointError, ConfigError
from utils.machine import distributed
from utils.training.run_folder import check_save_dir, is_run_of, runs_folder
from utils.training.run_setup import (
    DEFAULT_CONFIG,
    Run,
    compare_configs,
    is_same_training,
    open_run,
    read_resumed,
    resolved,
)
from utils.training.trackers.tracker import masked


def open_runs(args: argparse.Namespace) -> Iterator[Run]:
    """The runs of train.py in turn: one, or those stages of a chain that are not finished.

    Ask for the next one when a run has trained. All configs are checked before the first run.
    Raises ConfigError and CheckpointError.
    """
    configs = _configs(args)
    if configs is None:
        yield open_run(args)
        return
    for number, config in enumerate(configs):
        for line in settings_without_effect(config):
            notice(f"stage {number + 1}: {line}")
        check_save_dir(config["trainer"]["save_dir"], config["name"])
    resumed, first = _resumed(args, configs)
    _require_starts(args, configs, first)
    start = None
    for number, config in enumerate(configs[first:], first):
        title = f"stage {number + 1} of {len(configs)}, {config['name']!r}"
        trainer = config["trainer"]
        if number > first and trainer["finetune_from"] == f"{RUN}{configs[number - 1]['name']}":
            trainer["finetune_from"] = start
        given = resumed if number == first else None
        finished = _finished_folder(config, args, given)
        if finished:
            notice(f"{title} is finished: {finished}")
            start = _best(finished)
            continue
        run = _run(config, args, given)
        notice(f"{title}: " + (f"resuming from {run.checkpoint_path}" if run.checkpoint else
                               f"starting from {trainer['finetune_from']}"
                               if trainer["finetune_from"] else "starting")
               + "; after an interruption the same command with -r auto goes on")
        yield run
        if run.stopped_by and config is not configs[-1]:
            raise Interrupted(run.stopped_by, f"{title} is finished; the same command with -r auto "
                              "goes on with the next one")
        start = distributed.broadcast_object(_best(run.place) if run.place else None)


def print_configs(args: argparse.Namespace):
    """Print the resolved config, or those of all stages (--print-config)."""
    configs = _configs(args)
    if configs is None:
        return open_run(args).print_config()
    print(json.dumps(masked({"stages": configs}), indent=2))


def _configs(args) -> list[dict[str, Any]] | None:
    """The resolved configs of a chain, or None for a config without stages."""
    source = args.config or (DEFAULT_CONFIG if args.resume in (None, "auto") else None)
    if source is None or not os.path.isfile(source) or not has_stages(source):
        return None
    return resolve_stages(load_stages(source, args.overrides), source)


def resolve_stages(stages: Sequence[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """The resolved configs of the stages that `load_stages` has read from the file `source`.

    Raises one ConfigError with the mistakes of all stages.
    """
    configs, mistakes = [], []
    for number, config in enumerate(stages, 1):
        try:
            configs.append(resolved(
                config, f"stage {number} of {source}" if len(stages) > 1 else source))
        except ConfigError as error:
            mistakes.append(error)
    if len(stages) == 1 and mistakes:
        raise mistakes[0]
    if mistakes:
        raise ConfigError("\n".join(map(str, mistakes)))
    names = [config["name"] for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two stages are called {twice!r}", f"stages in {source}",
                          "give each its own name")
    if len({config["n_gpu"] for config in configs}) > 1:
        raise ConfigError("the stages have different n_gpu", f"stages in {source}",
                          "give all of them the same")
    return configs


def _resumed(args, configs):
    """((checkpoint, path) that -r names or None, the number of its stage or 0)."""
    if args.resume in (None, "auto"):
        return None, 0
    checkpoint, path = read_resumed(args.resume)
    names = [config["name"] for config in configs]
    name = checkpoint["config"].get("name")
    if name not in names:
        raise CheckpointError(f"the checkpoint is of the run {name!r}; the stages are called "
                              f"{', '.join(names)}", str(path), "give a checkpoint of a stage, or "
                                                                "-r auto")
    number = names.index(name)
    compare_configs(checkpoint["config"], configs[number], path, args.resume_allow_changes)
    return (checkpoint, path), number


def _require_starts(args, configs, first):
    """Raise CheckpointError if a later stage starts from a file, or another run, that is missing.

    That of the first stage is read at once.
    """
    from utils.checkpoint.find import newest_peeked
    from utils.training.earlier_runs import named_run, require_start
    names = [config["name"] for config in configs]
    for number, config in enumerate(configs[first + 1:], first + 1):
        named = named_run(config["trainer"]["finetune_from"])
        if not (named and named[0] in names[:number]) and \
                not (_resumes(args) and newest_peeked(*_runs_of(config))):
            require_start(config["trainer"])


def _finished_folder(config, args, resumed) -> Path | None:
    """The folder of the run of a stage if nothing is left to train in it, as `_run` chooses it.

    Only what orders checkpoints is read: the next stage reads the file it starts from.
    """
    from utils.checkpoint.find import LAST, newest_peeked
    from utils.training.earlier_runs import is_finished
    if resumed:
        checkpoint, path = resumed
        return path.parent if is_finished({**checkpoint, "config": config}) else None
    newest = newest_peeked(*_runs_of(config)) if _resumes(args) else None
    if newest is None or not is_finished(newest.content):
        return None
    folder = newest.path.parent
    start = Path(_best(folder))
    # If the last file is damaged and there is no best one, _run goes on from an earlier one.
    return folder if start.name != LAST or _is_sound(start) else None


def _run(config, args, resumed) -> Run:
    """The run of a stage: that of -r, with -r auto the newest of this config, or a new one."""
    if resumed is None and _resumes(args):
        from utils.checkpoint.find import newest_training
        resumed = newest_training(*_runs_of(config))
    checkpoint, path = resumed or (None, None)
    if checkpoint:
        config["trainer"]["finetune_from"] = checkpoint["config"]["trainer"]["finetune_from"]
    return Run(config, checkpoint, path, args.resume_allow_changes)


def _resumes(args) -> bool:
    return args.resume == "auto" or distributed.restarts() > 0


def _runs_of(config) -> tuple[Path, Callable[[Mapping[str, Any]], bool]]:
    """(the folder of the runs of a stage, whether a checkpoint in it is of this stage)."""
    name = config["name"]
    return runs_folder(config["trainer"]["save_dir"], name), \
        lambda saved: is_run_of(name, saved) and is_same_training(saved["config"], config)


def _is_sound(path: Path) -> bool:
    from utils.checkpoint.read import DamagedCheckpoint, verify
    try:
        verify(path)
    except DamagedCheckpoint:
        return False
    return True


def _best(folder: Path) -> str:
    """The checkpoint of a finished stage from which the next one starts."""
    from utils.checkpoint.find import BEST, LAST
    return str(folder / (BEST if (folder / BEST).is_file() else LAST))
