"""The folder of one run: saved/<name>/<MM-DD_HH-MM-SS>[-n]/."""
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from utils import distributed
from utils.errors import ConfigError


def create_run_folder(save_dir: str, name: str) -> Path:
    """A new folder that no other run shares; made by rank 0, the same on every rank."""
    folder = None
    if distributed.is_main():
        try:
            folder = _create(Path(save_dir) / _safe(name))
        except (OSError, ConfigError) as error:
            folder = error
    folder = distributed.broadcast_object(folder)
    if isinstance(folder, Exception):
        raise ConfigError(f"cannot create a run folder: {folder}", f"trainer.save_dir: {save_dir}",
                          "choose a folder that can be written") from None
    return folder


def check_save_dir(save_dir: str):
    """Fail before any work is done when runs cannot be kept in `save_dir`."""
    existing = Path(save_dir).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "cannot be written" if existing.is_dir() else "is a file"
        raise ConfigError(f"cannot keep runs in {save_dir!r}: {existing} {reason}",
                          "trainer.save_dir", "choose a folder that can be written")


def run_facts() -> dict:
    """What a reader needs to repeat a run: versions, command line, git revision."""
    import torch
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "command": " ".join(sys.argv), "revision": _revision()}


def _create(parent):
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%m-%d_%H-%M-%S")
    for n in range(1000):
        folder = parent / (stamp if n == 0 else f"{stamp}-{n}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        return folder
    raise ConfigError(f"a thousand runs share the second {stamp} in {parent}")


def _safe(name):
    """A run name as one path component: it never leaves save_dir."""
    cleaned = "".join("_" if c in '/\\:\0' else c for c in name).strip(". ")
    return cleaned[:100] or "run"


def _revision():
    try:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short",
                               "HEAD"], capture_output=True, text=True, timeout=5,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
