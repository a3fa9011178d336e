"""Reads checkpoints safely: nothing in a file is executed, and damage is found.

The checksums of the zip archive are verified before torch reads it, because a flipped bit in a
tensor would otherwise load silently. Then torch's safe loader (weights_only) reads the file; there
is no fallback to unpickling arbitrary objects. The keys are listed in utils.checkpoint.format.
"""
import contextlib
import hashlib
import io
import math
import os
import pickletools
import stat
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import torch

from utils.checkpoint.format import (
    ADDED_LATER,
    FORMAT,
    Checkpoint,
    DamagedCheckpoint,
    TrainingCheckpoint,
    can_resume,
)
from utils.checkpoint.limits import TooMuch, check_pickle, check_values, count_values
from utils.checkpoint.safetensors import is_safetensors, read_safetensors
from utils.cli.console import is_out_of_memory
from utils.errors import CheckpointError, UserError, first_line, listed

# The packages whose functions a file of weights may name: they only build tensors and numbers.
_SAFE_PACKAGES = ("torch", "collections", "numpy", "_codecs")
_OLD_PICKLES = 5            # in a file of torch's old format: magic number, ..., list of storages
MOST_CONFIG = 100_000       # values in the config of a checkpoint
WAITS = (0.0, 0.1, 0.5, 1.5)     # seconds before each further attempt to read a file
PATIENCE = 20.0             # seconds after which a large file is tried no third time

_T = TypeVar("_T")


class MissingCheckpoint(CheckpointError):
    """There is no file of this name."""


class UnreadableCheckpoint(CheckpointError):
    """A file could not be read; that says nothing about its content."""


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read and verify a Segwright checkpoint.

    Raises CheckpointError if the file is missing, damaged, hostile, of another program or of a
    newer format.
    """
    return cast(Checkpoint, _checked(read_state(path), path))


def _checked(state, path, devices=("cpu",)):
    """The state, if it is a Segwright checkpoint whose entries have sound types and values."""
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        kind = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"not a Segwright checkpoint: it holds {kind}", str(path),
                              "convert it with python -m tools.convert_checkpoint, or start "
                              "a training from it with trainer.finetune_from")
    wrong = _wrong_entry(state, devices)
    if wrong:
        raise DamagedCheckpoint(f"checkpoint is damaged: entry {wrong} has the wrong type or "
                                "value", str(path), "use another checkpoint of the run")
    if state["format"] > FORMAT:
        raise CheckpointError(f"checkpoint format {state['format']} is newer than this "
                              f"program's {FORMAT}", str(path), "update Segwright")
    return state


def read_training(path: str | os.PathLike) -> TrainingCheckpoint:
    """Read a checkpoint from which a training can resume; raises as `read_checkpoint` does.

    Also raises CheckpointError if an entry is missing that every training saves.
    """
    return require_training(read_checkpoint(path), str(path))


def peek(path: str | os.PathLike) -> Mapping[str, Any]:
    """The content of a Segwright checkpoint, with the shapes of its tensors and not their values.

    Much faster than reading all of a large file, whose checksums are not compared. Raises
    CheckpointError as `read_checkpoint` does.
    """
    def read(path):
        if is_safetensors(path):
            return read_safetensors(path, values=False)
        with _archive(path) as archive:
            options = {"map_location": "meta"} if archive else {}
        return _load(path, **options)
    return _checked(settled(Path(path), read), path, ("cpu", "meta"))


def require_training(checkpoint: Checkpoint, where: str) -> TrainingCheckpoint:
    """The checkpoint; raises CheckpointError if it lacks what a training needs to resume."""
    if not can_resume(checkpoint) or checkpoint.get("epoch") is None:
        raise CheckpointError("the checkpoint contains weights, but no state of a training", where,
                              "start a training from it with trainer.finetune_from")
    missing = [name for name in TrainingCheckpoint.__annotations__
               if name not in checkpoint and name not in ADDED_LATER]
    if missing:
        raise DamagedCheckpoint(f"checkpoint is damaged: it lacks {', '.join(missing)}", where,
                                "use another checkpoint of the run")
    training = cast(TrainingCheckpoint, checkpoint)
    # A schedule counts steps, epochs or validations.
    counted, most = training["scheduler"].get("last_epoch", 0), max(training["step"],
                                                                    training["epoch"] or 0)
    if not _is_count(counted) or counted > most:
        raise DamagedCheckpoint(f"checkpoint is damaged: its schedule is at {counted!r:.40}, and "
                                f"the training at epoch {training['epoch']} step "
                                f"{training['step']}", where, "use another checkpoint of the run")
    return training


def read_checkpoint_and_digest(path: str | os.PathLike) -> tuple[Checkpoint, str]:
    """(checkpoint, SHA-256 of the file from which it was read, as hex digits).

    A training may replace the file at any time. Raises CheckpointError as read_checkpoint does.
    """
    def read(path):
        digest = file_digest(path)
        verify_archive(path)
        return _load(path), digest
    state, digest = settled(Path(path), read)
    return cast(Checkpoint, _checked(state, path)), digest


def file_digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, as hex digits."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(2 ** 20):
            sha.update(part)
    return sha.hexdigest()


def read_weights(path: str | os.PathLike) -> Any:
    """Read a file of weights of any origin, PyTorch's or Paddle's, without executing anything."""
    from utils.checkpoint.paddle import is_pdparams, read_pdparams
    return read_pdparams(path) if is_pdparams(path) else read_state(path)


def read_state(path: str | os.PathLike) -> Any:
    """Read the content of a .pth or .safetensors file of any origin.

    Besides tensors and plain types only numpy scalars are allowed, because some published
    trainers store their best score as one. Raises CheckpointError, see `settled`.
    """
    def read(path):
        verify_archive(path)
        return _load(path)
    return settled(Path(path), read)


def settled(path: Path, read: Callable[[Path], _T]) -> _T:
    """read(path), tried again until two attempts agree on what is wrong.

    A read error that passes (a network disk, short memory) is no damage, and neither is a file
    that another process replaces meanwhile: damage counts when a second read of the same file
    finds it too. Raises UnreadableCheckpoint if no attempt could read the file, DamagedCheckpoint
    if its content is wrong, CheckpointError if it is missing or refused.
    """
    found, problem = None, "it changes while it is read"
    started, last = time.monotonic(), len(WAITS)
    for number, wait in enumerate((*WAITS, 0.0)):
        try:
            before = _identity(path)
            content = read(path)
            if _identity(path) == before:
                return content
            found, problem = None, "it changes while it is read"
        except DamagedCheckpoint as error:
            if found == (before, error.what):
                raise
            found, problem = (before, error.what), f"it reads differently each time ({error.what})"
            _forget_cached(path)
        except FileNotFoundError:
            raise _missing(path) from None
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            found, problem = None, _reason(error)
        if number == last or number and time.monotonic() - started > PATIENCE:
            break
        time.sleep(wait)
    raise UnreadableCheckpoint(f"the checkpoint could not be read: {problem}", str(path),
                               "nothing was changed; try again, and look at the disk, the free "
                               "memory and the permissions of the file")


def _identity(path):
    """What changes when a file is replaced or written to."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError("is a folder", str(path), f"give a file; {contents_of(path)}")
        raise CheckpointError("is not a regular file", str(path), "give a checkpoint file")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _forget_cached(path):
    """Let the next read come from the disk: a second look should be one."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _reason(error):
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return "there is not enough memory"


def _missing(path):
    return MissingCheckpoint("no such checkpoint", str(path), contents_of(path.parent))


def contents_of(folder: Path) -> str:
    """What a folder contains, for the error that a checkpoint is not in it."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    files = [entry.name for entry in entries if entry.name.endswith(".pth")]
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    return f"the folder contains: {listed(files + folders, 12) or 'no .pth file'}"


def _load(path: Path, **options: Any) -> Any:
    """torch's safe loader on a file whose checksums were verified, or that of safetensors."""
    if is_safetensors(path):
        return read_safetensors(path)
    try:
        check_pickles(path)
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            # torch warns about unusual pickles; the errors below name them.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, weights_only=True, **{"map_location": "cpu", **options})
        check_values(content)
        return content
    except TooMuch as error:
        raise CheckpointError(f"refused: {error}", str(path),
                              "use a file that torch.save wrote") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        refused = _unsafe_global(path)
        if refused:
            raise CheckpointError(f"refused: the file asks to run {refused}", str(path),
                                  "use a file of tensors and plain types only, such as a bare "
                                  "state dict") from None
        # torch's own message would advise to switch the protection off.
        raise DamagedCheckpoint(f"checkpoint is damaged, or contains more than tensors and plain "
                                f"types ({path.stat().st_size} bytes)", str(path),
                                "use another checkpoint of the run") from None


def _wrong_entry(state, devices):
    """The first entry with a wrong type or value, or None. A missing one is not wrong."""
    def is_weights(value):
        return isinstance(value, dict) and all(
            isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
            and tensor.device.type in devices for tensor in value.values())

    sound = {
        "format": lambda value: _is_count(value, 1),
        "model": is_weights,
        "ema": lambda value: not value or is_weights(value),
        # Its content is checked where it is used, see utils.config.load.with_config.
        "config": lambda value: isinstance(value, dict) and count_values(value)[1] <= MOST_CONFIG,
        "class_names": lambda value: isinstance(value, list) and all(type(name) is str
                                                                     for name in value),
        # A short one is filled where it is used.
        "palette": lambda value: isinstance(value, list) and all(map(_is_color, value)),
        "normalization": _is_normalization,
        "activation": lambda value: value in ("softmax", "sigmoid", "scores"),
        "epoch": lambda value: value is None or _is_count(value, 1),
        "versions": lambda value: isinstance(value, dict),
        "optimizer": lambda value: not value or isinstance(value, dict),
        "scheduler": lambda value: isinstance(value, dict),
        "scaler": lambda value: isinstance(value, dict),
        "monitor": _is_monitor,
        "step": _is_count, "samples": _is_count, "skipped": _is_count, "overflows": _is_count,
        "averaged": _is_count, "validated": _is_count,
        "steps_per_epoch": lambda value: _is_count(value, 1),
        "dataset": lambda value: isinstance(value, dict) and _is_count(value.get("length"))
        and isinstance(value.get("ids"), str),
        "lineage": lambda value: isinstance(value, list) and all(
            isinstance(entry, list) and len(entry) == 2 and all(map(_is_count, entry))
            for entry in value),
    }
    return next((name for name, correct in sound.items()
                 if name in state and not correct(state[name])), None)


def _is_count(value, least=0):
    return type(value) is int and least <= value < 1 << 53


def _is_color(value):
    return isinstance(value, (list, tuple)) and len(value) == 3 \
        and all(type(part) is int and 0 <= part <= 255 for part in value)


def _is_normalization(value):
    return isinstance(value, dict) and all(
        isinstance(numbers, list) and all(isinstance(number, (int, float))
                                          and math.isfinite(number) for number in numbers)
        for numbers in (value.get("mean", []), value.get("std", []))) \
        and isinstance(value.get("bands") or {}, dict)


def _is_monitor(value):
    if not isinstance(value, dict) or not {"best", "epoch", "waited"} <= value.keys():
        return False
    best = value["best"]
    return (best is None or isinstance(best, (int, float)) and not math.isnan(best)) \
        and (value["epoch"] is None or _is_count(value["epoch"])) and _is_count(value["waited"])


@contextlib.contextmanager
def as_checkpoint_errors(where: str) -> Iterator[None]:
    """Report any error that a malformed checkpoint causes in the block as a CheckpointError."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError,
            RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"checkpoint is damaged, or was not written by Segwright: it cannot "
                              f"be loaded ({type(error).__name__}: {error})", where,
                              "use another checkpoint of the run") from error


def verified(path: str | os.PathLike) -> bool:
    """Whether a checkpoint file can be read and is complete and undamaged."""
    try:
        verify(path)
        return True
    except CheckpointError:
        return False


def verify(path: str | os.PathLike):
    """Raise CheckpointError unless a file is complete and undamaged; see `settled`."""
    def read(path):
        if not verify_archive(path):
            _load(path)             # the old format has no checksums
    settled(Path(path), read)


def verify_archive(path: Path) -> bool:
    """Raise DamagedCheckpoint if a zip archive written by torch.save is incomplete or damaged.

    Returns False for a file of another format, which its loader has to check.
    """
    if is_safetensors(path):
        return False
    with _archive(path) as archive:
        if archive is None:
            return False
        broken = archive.testzip()
    if broken:
        raise DamagedCheckpoint(f"checkpoint is damaged (record {broken} fails its checksum)",
                                str(path), "use another checkpoint of the run")
    return True


@contextlib.contextmanager
def _archive(path):
    """The open zip archive of a checkpoint, its directory checked; None in torch's old format."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise DamagedCheckpoint("checkpoint is damaged (0 bytes)", str(path),
                                    "use another checkpoint of the run")
        start = stream.read(64)
        # torch decides by these bytes. An archive behind other bytes is none for it.
        if not start.startswith(b"PK\3\4"[:len(start)]):
            _refuse_other_files(start, path)
            yield None
            return
        try:
            with zipfile.ZipFile(stream) as archive:
                _check_directory(archive, size, path)
                yield archive
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error) as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            if isinstance(error.__context__, OSError):      # zipfile hides some read errors
                raise error.__context__ from None
            raise DamagedCheckpoint(f"checkpoint is damaged (incomplete zip of {size} bytes: "
                                    f"{error})", str(path),
                                    "use another checkpoint of the run") from None


def _check_directory(archive, size, path):
    """Refuse an archive that needs more memory than the file has bytes, and programs."""
    records = archive.infolist()
    names = [record.filename.partition("/")[2] for record in records]
    if any(name == "constants.pkl" or name.startswith("code/") for name in names):
        raise CheckpointError("this is a TorchScript program, not a file of weights", str(path),
                              "save the weights of the network with torch.save(model.state_dict(),"
                              " PATH)")
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise CheckpointError("this is a program of torch.export, not a file of weights",
                              str(path), "give the checkpoint that it was exported from")
    # torch does not compress its records. A record that is compressed, or that shares its bytes
    # with another one, could need far more memory than the file has bytes. Bytes in front of the
    # first record or a comment could make torch find another directory than zipfile.
    if any(record.compress_type for record in records) or archive.comment \
            or sum(record.file_size for record in records) > size \
            or min((record.header_offset for record in records), default=0):
        raise CheckpointError(f"refused: the archive would unpack to more than its {size} bytes",
                              str(path), "use a file that torch.save wrote")


def _refuse_other_files(start, path):
    """Name the kind of a file that is no checkpoint, by its first bytes."""
    kinds = {"a Git LFS pointer, not the file itself": start.startswith(b"version https://git-lfs"),
             "a web page": start.lstrip()[:1] == b"<",
             "a compressed file": start[:2] == b"\x1f\x8b" or start[:4] == b"\xfd7zX",
             "an archive behind other bytes": zipfile.is_zipfile(path),
             "an ONNX graph": b"onnx" in start or b"pytorch" in start and start[:1] == b"\x08"}
    for kind, found in kinds.items():
        if found:
            raise CheckpointError(f"this is {kind}", str(path),
                                  "use a file that torch.save or safetensors wrote")


def _numpy_scalars():
    """The globals of a pickled numpy scalar, under the names of NumPy 1 and 2."""
    scalar = np._core.multiarray.scalar     # pyright: ignore[reportAttributeAccessIssue]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
            np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
            type(np.dtype(np.int64))]


def _unsafe_global(path):
    """The first function in a file's pickles that builds no tensor or number, or None.

    It is not called.
    """
    with contextlib.suppress(Exception):
        stream, number = _pickles(path)
        with stream:
            for _ in range(number):
                for name in _globals(stream):
                    if name.split(".")[0] not in _SAFE_PACKAGES:
                        return name
    return None


def check_pickles(path: Path):
    """Raise TooMuch if the instructions in a file would take very long; or a pickle's errors."""
    stream, number = _pickles(path)
    with stream:
        for _ in range(number):
            check_pickle(stream)


def _pickles(path):
    """(a stream at the first pickle of a checkpoint, how many follow each other)."""
    with _archive(path) as archive:
        if archive is None:
            return open(path, "rb"), _OLD_PICKLES
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return io.BytesIO(archive.read(names[0])), 1


def _globals(stream: BinaryIO) -> Iterator[str]:
    """"module.name" of every global in the pickle at the stream's position."""
    strings = []
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
