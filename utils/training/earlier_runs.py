"""What earlier runs have left: whether one is finished, and its checkpoint to start from."""
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint.find import BEST, LAST, newest_file
from utils.checkpoint.read import contents_of, peek
from utils.cli.console import notice, warn
from utils.config.load import RUN
from utils.errors import CheckpointError, nearest
from utils.images.bands import Bands, bands_of_state
from utils.images.normalize import Normalize
from utils.machine import distributed
from utils.training.run_folder import runs_folder


def start_file(text: str, save_dir: str) -> str:
    """The file that trainer.finetune_from means.

    text: a path, which is returned; "run:NAME" for the newest model_best.pth of the runs of a name
        below `save_dir`; or "run:NAME/FILE" for the newest file of that name, such as last.pth.
    Says which file it is, and warns if its run is not finished. Raises CheckpointError if there
    is none.
    """
    named = named_run(text)
    if not named:
        return text
    name, file = named
    folder = runs_folder(save_dir, name)
    path = newest_file(folder, file or BEST)
    if path is None:
        raise CheckpointError(f"no run called {name!r} has a {file or BEST}",
                              f"trainer.finetune_from: {text}", _remedy(folder, name, file))
    notice(f"{text} is {path}")
    last = path.parent / LAST
    if last.is_file() and not is_finished(peek(last)):
        warn(f"the run in {path.parent} is not finished; its {path.name} may still change")
    return str(path)


def named_run(text: str | None) -> tuple[str, str] | None:
    """(NAME, FILE or "") of a trainer.finetune_from "run:NAME/FILE"; None of a path or of none."""
    if not text or not text.startswith(RUN):
        return None
    name, _, file = text.removeprefix(RUN).partition("/")
    return name, file


def require_start(trainer: Mapping[str, Any]):
    """Raise CheckpointError if the file that finetune_from of this section means is missing."""
    start = trainer["finetune_from"]
    if start and not Path(start_file(start, trainer["save_dir"])).is_file():
        raise CheckpointError(f"{start} does not exist", "trainer.finetune_from",
                              "train the stage before it first, or download the file")


def warn_of_other_input(key: str, saved: Mapping[str, Any] | None, normalize: Normalize):
    """Warn, with the numbers, if the weights to start from need images normalized otherwise.

    key: the config key that names the weights. saved: their normalization, as in the entry
    "normalization" of a checkpoint; None: it is not known. Rank 0 warns.
    """
    now = normalize.state()
    was = bands_of_state((saved or {}).get("bands"))
    if saved and _kind(was) != _kind(normalize.bands):
        if distributed.is_main():
            notice(f"{key}: {_other_images(was, normalize)}")
        return
    differences = [f"{key} was {_numbers(saved[key])}, is {_numbers(now[key])}"
                   for key in ("mean", "std", "order", "scale")
                   if saved and key in saved and not _alike(saved[key], now[key])]
    if differences and distributed.is_main():
        warn(f"{key}: its network was trained on images that were normalized "
             f"otherwise: {'; '.join(differences)}; to keep its input, "
             f"{_override(saved or {}, now)}")


def _kind(bands: Bands | None):
    return bands and (bands.numbers, bands.types)


def _other_images(was: Bands | None, normalize: Normalize):
    """What becomes of the first convolution of weights for other images."""
    now, channels = normalize.bands, len(was.numbers) if was else 3
    if was is None and now:
        return (f"the first convolution, of weights for RGB, is adapted to {now.text} "
                "(docs/own_data.md)")
    done = "is used as it is, each weight for the band in its place" \
        if channels == normalize.channels else "is adapted" if channels == 3 else \
        "begins with new weights"
    return (f"its network was trained on {was.text if was else 'RGB'}, and the images are "
            f"{now.text if now else 'RGB'}: the first convolution {done}")


def _override(saved, now):
    """How to set the normalization of the weights."""
    if "bands" in now:
        lists = ", ".join(f'"{key}": {json.dumps(saved[key])}' for key in ("mean", "std"))
        return f"give the data\n  {lists}"
    section = {key: saved.get(key, now[key]) for key in ("mean", "std", "order", "scale")}
    return f"add\n  'normalize={json.dumps(section)}'"


def _alike(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    pairs = zip(*(value if isinstance(value, (list, tuple)) else [value]
                  for value in (one, other)), strict=False)
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)


def _numbers(value):
    if not isinstance(value, list):
        return value
    return "[" + ", ".join(f"{one:.4g}" for one in value) + "]"


def is_finished(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run has no more steps to take, by its last.pth and the config in it."""
    settings = checkpoint["config"]["trainer"]
    if settings.get("iterations"):
        # An epoch's samples are counted from 0 again after its validation. (Epochs say nothing of
        # steps: they are shorter or longer with another number of ranks.)
        done = checkpoint["step"] >= settings["iterations"] and not checkpoint["samples"]
    else:
        done = checkpoint["epoch"] > settings["epochs"]
    waited = checkpoint.get("monitor", {}).get("waited", 0)
    return done or 0 < settings.get("early_stop", 0) <= waited


def _remedy(folder: Path, name, file):
    if not file and newest_file(folder, LAST):
        return f"write run:{name}/{LAST}: the run keeps no best, because it monitors nothing"
    runs = folder.parent
    names = [one.name for one in runs.iterdir() if one.is_dir()] if runs.is_dir() else []
    near = nearest(name, names)
    return f"did you mean run:{near}?" if near and near != name else \
        f"train it first, or give a path; {contents_of(folder if folder.is_dir() else runs)}"
