"""Checkpoints: one file of plain tensors and plain Python types.

A file is written beside its final name, flushed to the disk and renamed, so a
reader sees the old file or the new one, never a part. It is read with torch's
safe loader only, after the zip's own checksums were verified (a flipped bit in
a tensor otherwise loads silently). Nothing here ever falls back to unpickling
arbitrary objects.

Keys of a Segwright checkpoint: format, model, ema, optimizer, scheduler,
scaler, epoch, iteration, step, monitor, config, class_names, palette,
normalization, activation, versions. Every random draw of a run is a function
of (seed, epoch, sample) or (seed, step, rank), so no generator state is stored.
"""
import os
import re
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from utils.errors import CheckpointError

FORMAT = 1
# More than this share of a network's tensors left at their start values is no fine-tuning.
MAX_DROPPED = 0.5


def write_checkpoint(path, state: dict):
    """Write `state` to `path`, atomically: whatever happens, the old file stays whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch hides a full disk behind "unexpected pos"; say what it is.
        needed = sum(t.numel() * t.element_size() for t in _tensors(state))
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        reason = (f"no space left (about {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)"
                  if free < needed or getattr(error, "errno", None) == 28 else str(error))
        raise CheckpointError(f"cannot write the checkpoint: {reason}", str(path),
                              "free some space or change trainer.save_dir; the previous "
                              "checkpoint is untouched") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path) -> dict:
    """A Segwright checkpoint, verified. Raises CheckpointError that names file and cause."""
    state = read_state(path)
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        kind = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"not a Segwright checkpoint: it holds {kind}", str(path),
                              "convert it with python -m tools.convert_checkpoint, or start "
                              "a training from it with trainer.finetune_from")
    if state["format"] > FORMAT:
        raise CheckpointError(f"checkpoint format {state['format']} is newer than this "
                              f"program's {FORMAT}", str(path), "update Segwright")
    return state


def read_state(path):
    """Whatever a .pth file of any origin holds, through torch's safe loader.

    Beyond tensors and plain types only numpy scalars are allowed: the sources'
    trainers stored their best score as one.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise CheckpointError("no such checkpoint", str(path),
                              f"the folder holds: {', '.join(there) or 'no .pth file'}")
    _verify_zip(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        refused = re.search(r"(?:GLOBAL|global):? ([\w.]+)", text)
        if refused:
            raise CheckpointError(f"refused: the file asks to run {refused[1]}", str(path),
                                  "load only what holds tensors and plain types, such as a bare "
                                  "state dict") from None
        # torch's own text would advise to switch the protection off.
        raise CheckpointError(f"checkpoint is damaged, or no checkpoint of tensors and plain "
                              f"types ({path.stat().st_size} bytes)",
                              str(path), "use another checkpoint of the run") from None


def model_from_checkpoint(checkpoint: dict, device="cpu", where: str = "checkpoint"):
    """The network a checkpoint describes, with its weights (the averaged ones
    where the run kept an average), on `device`, in eval mode."""
    from utils.config import build
    model = build("models", without_download(checkpoint["config"]["arch"]),
                  num_classes=len(checkpoint["class_names"]))
    load_exact(model, checkpoint.get("ema") or checkpoint["model"],
               checkpoint["config"]["arch"]["type"], where)
    return model.to(device).eval()


def without_download(arch: dict) -> dict:
    """An `arch` section that fetches no weights: a checkpoint is about to replace them."""
    args = {key: value for key, value in (arch.get("args") or {}).items() if key != "pretrained"}
    return {**arch, "args": args}


def load_exact(model, state: dict, saved_arch: str, where: str):
    """Load a state dict of the same network; anything missing or left over is an error."""
    report = compare(model, state)
    if not report.exact:
        arch = type(model).__name__
        likely = (f"checkpoint was saved by arch {saved_arch}, the config says {arch}; "
                  if saved_arch != arch else "")
        raise CheckpointError(f"{likely}{len(report.loaded)} of {report.total} tensors match\n"
                              f"{report}", where,
                              "use the checkpoint's own config, or start from its weights "
                              "with trainer.finetune_from")
    _refuse_nonfinite(state, where)
    model.load_state_dict(state)


def load_partial(model, state: dict, where: str) -> "LoadReport":
    """Start `model` from the tensors of `state` that fit it; the report lists the rest.

    `state` is a bare state dict in this network's keys (see `unwrap` and
    BaseModel.rename_foreign). Raises CheckpointError when more than half of
    the network's tensors would stay at their start values.
    """
    report = compare(model, state)
    learnt = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    dropped = 1 - len(set(learnt) & set(report.loaded)) / max(1, len(learnt))
    if dropped > MAX_DROPPED:
        raise CheckpointError(f"only {len(report.loaded)} of {report.total} tensors of "
                              f"{type(model).__name__} are in the file\n{report}", where,
                              "give a checkpoint of the same network or of its backbone's family")
    _refuse_nonfinite({k: state[k] for k in report.loaded}, where)
    model.load_state_dict({k: state[k] for k in report.loaded}, strict=False)
    return report


def load_foreign(model, path) -> "LoadReport":
    """Start `model` from a checkpoint of any origin (`trainer.finetune_from`)."""
    state = unwrap(read_weights(path), str(path))
    return load_partial(model, model.rename_foreign(state), str(path))


def read_weights(path):
    """Whatever a file of weights holds, torch's or Paddle's, without running anything from it."""
    from utils.paddle_io import is_pdparams, read_pdparams
    return read_pdparams(path) if is_pdparams(path) else read_state(path)


def unwrap(state, where: str = "checkpoint") -> dict:
    """The bare state dict inside any usual wrapper: {"state_dict"}, {"model_state_dict"},
    {"model"}, `module.` (DataParallel), `_orig_mod.` (compile), Lightning's `model.`."""
    for key in ("ema", "state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}, not a state dict", where)
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise CheckpointError("holds no tensors", where)
    stripped = True
    while stripped:
        stripped = False
        for prefix in ("module.", "_orig_mod.", "model."):
            # Lightning keeps a stray buffer or loss weight beside the prefixed network.
            inside = [k for k in state if k.startswith(prefix)]
            if len(inside) > 0.9 * len(state):
                state = {k[len(prefix):]: state[k] for k in inside}
                stripped = True
    return state


@dataclass
class LoadReport:
    """What happened to every tensor of a checkpoint and of a network."""

    total: int
    loaded: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    mismatched: list = field(default_factory=list)    # (key, shape in file, shape in network)

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self):
        lines = [f"  loaded {len(self.loaded)} of {self.total} tensors"]
        for title, keys in (("missing in the file", self.missing),
                            ("not in the network", self.unexpected)):
            if keys:
                groups = Counter(k.split(".")[0] for k in keys)
                shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
                counts = ", ".join(f"{name} {n}" for name, n in groups.most_common(5))
                lines.append(f"  {title}: {len(keys)} ({counts}): {shown}")
        for key, theirs, ours in self.mismatched[:5]:
            lines.append(f"  other shape: {key} is {theirs} in the file, {ours} in the network")
        if len(self.mismatched) > 5:
            lines.append(f"  other shape: {len(self.mismatched) - 5} more")
        return "\n".join(lines)


def compare(model, state: dict) -> LoadReport:
    """Which tensors of `state` fit `model`: same key, same shape, both real numbers or both not."""
    own = model.state_dict()
    report = LoadReport(total=len(own))
    for key, tensor in own.items():
        if key not in state:
            report.missing.append(key)
        elif (tuple(state[key].shape) != tuple(tensor.shape)
              or state[key].is_floating_point() != tensor.is_floating_point()):
            report.mismatched.append((key, f"{tuple(state[key].shape)} {state[key].dtype}",
                                      f"{tuple(tensor.shape)} {tensor.dtype}"))
        else:
            report.loaded.append(key)
    report.unexpected = [k for k in state if k not in own]
    return report


def find_checkpoint(text: str, folder: str = "saved") -> str:
    """A path as it is; for "auto" the newest model_best.pth under `folder`."""
    if text != "auto":
        return text
    found = newest_checkpoint(folder, "model_best.pth")
    if found is None:
        raise CheckpointError("there is no model_best.pth to take", folder,
                              "train first, or give a path")
    return str(found)


def newest_checkpoint(folder, name: str = "last.pth") -> Path | None:
    """The newest undamaged file called `name` under `folder`, or None."""
    from utils.console import warn
    candidates = sorted(Path(folder).glob(f"**/{name}"), key=lambda p: p.stat().st_mtime)
    for path in reversed(candidates):
        try:
            _verify_zip(path)
            return path
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error.what} ({path})")
    return None


def remove_stale(folder):
    """Delete temporary files that a killed writer left in `folder`."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _verify_zip(path):
    if path.stat().st_size == 0:
        raise CheckpointError("checkpoint is damaged (0 bytes)", str(path),
                              "use another checkpoint of the run")
    with open(path, "rb") as stream:
        zipped = b"PK".startswith(stream.read(2))
    if not zipped:
        return                      # a legacy file: the safe loader judges it
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint is damaged (incomplete zip of "
                              f"{path.stat().st_size} bytes: {error})", str(path),
                              "use another checkpoint of the run") from None
    if broken:
        raise CheckpointError(f"checkpoint is damaged (record {broken} fails its checksum)",
                              str(path), "use another checkpoint of the run")


def _refuse_nonfinite(state, where):
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(f"{len(bad)} tensors hold NaN or Inf: {', '.join(bad[:5])}", where,
                              "use an earlier checkpoint of the run")


def _numpy_scalars():
    """What pickled numpy scalars need, under the names of NumPy 1 and 2."""
    scalar = np._core.multiarray.scalar
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
            np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
            type(np.dtype(np.int64))]


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
