"""Checkpoints: one file of plain tensors and plain Python types.

A file is written beside its final name, flushed to the disk and renamed, so a
reader sees the old file or the new one, never a part. It is read with torch's
safe loader only, after the zip's own checksums were verified (a flipped bit in
a tensor otherwise loads silently). Nothing here ever falls back to unpickling
arbitrary objects.

Keys of a Segwright checkpoint: format, model, ema, optimizer, scheduler,
scaler, epoch, step, samples, steps_per_epoch, monitor, skipped, config,
dataset, class_names, palette, normalization, activation, versions. Every random
draw of a run is a function of (seed, epoch, sample) or (seed, step, rank), so no
generator state is stored.
"""
import contextlib
import errno
import io
import os
import pickletools
import shutil
import struct
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from utils.errors import CheckpointError, UserError

FORMAT = 1
# More than this share of a network's tensors left at their start values is no fine-tuning.
MAX_DROPPED = 0.5
_WAYS = ("foreach", "fused", "capturable", "differentiable")


class SaveError(CheckpointError):
    """A checkpoint could not be written; what was there before is untouched."""

    exit_status = 1


def write_checkpoint(path, state: dict):
    """Write `state` to `path`, atomically: whatever happens, the old file stays whole."""
    write_bytes(path, checkpoint_bytes(state))


def checkpoint_bytes(state: dict) -> memoryview:
    """What a checkpoint file of `state` holds. Later changes of its tensors do not reach it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def write_bytes(path, data):
    """Write `data` beside `path`, flush it to the disk, rename. Raises SaveError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise SaveError(_why_not_written(error, path, len(data)), str(path),
                        "free some space, or change trainer.save_dir; the previous checkpoint "
                        "is untouched") from error


def read_checkpoint(path) -> dict:
    """A Segwright checkpoint, verified. Raises CheckpointError that names file and cause."""
    state = read_state(path)
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        kind = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"not a Segwright checkpoint: it holds {kind}", str(path),
                              "convert it with python -m tools.convert_checkpoint, or start "
                              "a training from it with trainer.finetune_from")
    wrong = _wrong_entry(state)
    if wrong:
        raise CheckpointError(f"checkpoint is damaged (its entry {wrong} is no such thing)",
                              str(path), "use another checkpoint of the run")
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
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            # What torch has to say about unusual pickles is said below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        refused = _asks_to_run(path)
        if refused:
            raise CheckpointError(f"refused: the file asks to run {refused}", str(path),
                                  "load only what holds tensors and plain types, such as a bare "
                                  "state dict") from None
        # torch's own text would advise to switch the protection off.
        raise CheckpointError(f"checkpoint is damaged, or no checkpoint of tensors and plain "
                              f"types ({path.stat().st_size} bytes)",
                              str(path), "use another checkpoint of the run") from None


def _wrong_entry(state):
    """The name of an entry that is not what others rely on it to be, or None."""
    names, palette = state.get("class_names", []), state.get("palette", [])
    sound = {
        "format": type(state["format"]) is int,
        "model": _is_weights(state["model"]),
        "ema": not state.get("ema") or _is_weights(state["ema"]),
        # What it says is checked where it is used, see utils.checkpoint_config.
        "config": isinstance(state.get("config"), dict),
        "class_names": isinstance(names, list) and all(type(name) is str for name in names),
        "palette": isinstance(palette, list) and all(
            isinstance(colour, (list, tuple)) and len(colour) == 3
            and all(type(part) is int and 0 <= part <= 255 for part in colour)
            for colour in palette),
        "normalization": isinstance(state.get("normalization", {}), dict),
        "activation": state.get("activation", "softmax") in ("softmax", "sigmoid"),
    }
    return next((name for name, holds in sound.items() if not holds), None)


def _is_weights(state):
    return isinstance(state, dict) and all(
        isinstance(value, torch.Tensor) and value.layout is torch.strided
        and value.device.type == "cpu" for value in state.values())


@contextlib.contextmanager
def taking_up(where: str):
    """Turn what a checkpoint with wrong entries raises where it is used into a CheckpointError."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError,
            RuntimeError) as error:
        raise CheckpointError(f"checkpoint is damaged, or not of this program: it cannot be taken "
                              f"up ({type(error).__name__}: {error})", where,
                              "use another checkpoint of the run") from error


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


def load_optimizer(optimizer, state: dict, where: str):
    """Load the state of an optimizer over the same parameters.

    Shapes are compared before anything is copied: a file of a kilobyte can hold
    a view that would fill the memory.
    """
    try:
        if not all(isinstance(group, dict) for group in state["param_groups"]):
            raise ValueError("its param_groups are no groups")
        saved = [key for group in state["param_groups"] for key in group["params"]]
        ours = [p for group in optimizer.param_groups for p in group["params"]]
        if len(saved) != len(ours):
            raise ValueError(f"it has {len(saved)} parameters, the network trains {len(ours)}")
        for key, parameter in zip(saved, ours):
            for name, value in state["state"].get(key, {}).items():
                if isinstance(value, torch.Tensor) and value.numel() > 1 \
                        and value.shape != parameter.shape:
                    raise ValueError(f"{name} of parameter {key} is {tuple(value.shape)}, the "
                                     f"parameter {tuple(parameter.shape)}")
        # Of the groups, what this version of torch has beyond the file's keeps its default.
        _same_kinds(state["param_groups"], [{key: value for key, value in own.items()
                                             if key in group or key == "lr"} for group, own in
                                            zip(state["param_groups"], optimizer.param_groups)])
        kept = list(state["state"].values())
        _same_kinds(kept, [kept[0]] * len(kept) if kept else [])
        # How torch computes a step is the business of this machine.
        ways = [{key: group[key] for key in _WAYS if key in group}
                for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, way in zip(optimizer.param_groups, ways):
            group.update(way)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the optimizer's state does not fit: {error}", where,
                              "use the checkpoint's own config, or start from its weights with "
                              "trainer.finetune_from") from None


def _same_kinds(found, expected):
    """ValueError unless the entries of two lists of dicts are numbers, or tensors, alike."""
    for one, other in zip(found, expected):
        for key, value in other.items():
            for kind in (torch.Tensor, (bool, int, float)):
                if key not in one or isinstance(value, kind) != isinstance(one[key], kind):
                    raise ValueError(f"{key} is {one.get(key)!r:.60}")


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
    """Which tensors of `state` fit `model`: same key, same shape, both fractions or both whole."""
    own = model.state_dict()
    report = LoadReport(total=len(own))
    for key, tensor in own.items():
        if key not in state:
            report.missing.append(key)
        elif (tuple(state[key].shape) != tuple(tensor.shape)
              or state[key].is_floating_point() != tensor.is_floating_point()
              or state[key].is_complex()):
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
    for path in _newest_first(Path(folder).glob(f"**/{name}")):
        try:
            _verify_zip(path)
            return path
        except CheckpointError as error:
            _skipped(path, error)
    return None


def newest_training(folder) -> tuple[dict, Path] | None:
    """(checkpoint, path) of the newest whole checkpoint of a training in `folder` or one folder
    below, whatever it is called; None where there is none. Says what it leaves out, and why."""
    folder = Path(folder)
    for path in _newest_first([*folder.glob("*.pth"), *folder.glob("*/*.pth")]):
        try:
            checkpoint = read_checkpoint(path)
            if checkpoint.get("optimizer"):
                return checkpoint, path
            raise CheckpointError("it holds weights, but no state of a training", str(path))
        except CheckpointError as error:
            _skipped(path, error)
    return None


def _newest_first(paths):
    # Of files written in the same tick last.pth is the later one.
    dated = []
    for path in paths:
        with contextlib.suppress(OSError):      # a broken link, or deleted meanwhile
            if path.is_file():
                dated.append((path.stat().st_mtime_ns, path.name == "last.pth", path))
    return [path for *_, path in sorted(dated, reverse=True)]


def _skipped(path, error):
    from utils.console import warn
    warn(f"skipping {path}: {error.what}")


def verified(path) -> bool:
    """Whether a checkpoint file is there and its records pass their checksums."""
    try:
        _verify_zip(Path(path))
        return True
    except (CheckpointError, OSError):
        return False


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
            records = archive.infolist()
            # torch stores its records as they are: one that is packed, or shares its bytes with
            # another, would grow beyond the file's own size when it is read.
            if any(record.compress_type for record in records) \
                    or sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError("refused: the archive would unpack to more than its "
                                      f"{path.stat().st_size} bytes", str(path),
                                      "use a checkpoint as torch.save writes it")
            broken = archive.testzip()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError,
            struct.error) as error:
        raise CheckpointError(f"checkpoint is damaged (incomplete zip of "
                              f"{path.stat().st_size} bytes: {error})", str(path),
                              "use another checkpoint of the run") from None
    if broken:
        raise CheckpointError(f"checkpoint is damaged (record {broken} fails its checksum)",
                              str(path), "use another checkpoint of the run")


def _refuse_nonfinite(state, where):
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        more = ", …" if len(bad) > 5 else ""
        raise CheckpointError(f"{len(bad)} tensors hold NaN or Inf: {', '.join(bad[:5])}{more}",
                              where,
                              "use an earlier checkpoint of the run")


def _numpy_scalars():
    """What pickled numpy scalars need, under the names of NumPy 1 and 2."""
    scalar = np._core.multiarray.scalar
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
            np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
            type(np.dtype(np.int64))]


# Where the harmless globals of a file of weights live.
_HARMLESS = ("torch", "collections", "numpy", "_codecs")


def _asks_to_run(path):
    """The first function beyond tensors and plain types that a pickle names; it is not run."""
    with contextlib.suppress(Exception):      # anything may be in there; the caller says so
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                stream = io.BytesIO(archive.read(names[0]))
        else:
            stream = open(path, "rb")
        with stream:
            while True:            # one pickle after the other, until one is none
                for name in _globals(stream):
                    if name.split(".")[0] not in _HARMLESS:
                        return name
    return None


def _globals(stream):
    """"module.name" of every global in the pickle at the stream's position."""
    strings = []
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]


def _why_not_written(error, path, needed):
    mega, free = f"{needed / 1e6:.1f} MB", 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left while writing {path} (needed {mega}, free {free / 1e6:.1f} MB)"
    if error.errno == errno.EFBIG:
        return (f"no space left while writing {path} (needed {mega}, which is more than a file "
                "may have here)")
    return f"cannot write {path}: {error.strerror or error}"
