"""Reads checkpoints safely: nothing in a file is executed, and damage is found.

The checksums of the zip archive are verified before torch reads it, because a flipped bit in a
tensor would otherwise load silently. Then torch's safe loader (weights_only) reads the file; there
is no fallback to unpickling arbitrary objects. The keys are listed in utils.checkpoint.format.
"""
import contextlib
import io
import os
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from utils.checkpoint.format import FORMAT, Checkpoint
from utils.errors import CheckpointError, UserError

# The packages whose functions a file of weights may name: they only build tensors and numbers.
_SAFE_PACKAGES = ("torch", "collections", "numpy", "_codecs")


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read and verify a Segwright checkpoint.

    Raises CheckpointError if the file is missing, damaged, hostile, of another program or of a
    newer format.
    """
    state = read_state(path)
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        kind = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"not a Segwright checkpoint: it holds {kind}", str(path),
                              "convert it with python -m tools.convert_checkpoint, or start "
                              "a training from it with trainer.finetune_from")
    wrong = _wrong_entry(state)
    if wrong:
        raise CheckpointError(f"checkpoint is damaged: entry {wrong} has the wrong type or value",
                              str(path), "use another checkpoint of the run")
    if state["format"] > FORMAT:
        raise CheckpointError(f"checkpoint format {state['format']} is newer than this "
                              f"program's {FORMAT}", str(path), "update Segwright")
    return cast(Checkpoint, state)


def read_weights(path: str | os.PathLike) -> Any:
    """Read a file of weights of any origin, PyTorch's or Paddle's, without executing anything."""
    from utils.checkpoint.paddle import is_pdparams, read_pdparams
    return read_pdparams(path) if is_pdparams(path) else read_state(path)


def read_state(path: str | os.PathLike) -> Any:
    """Read the content of a .pth file of any origin with torch's safe loader.

    Besides tensors and plain types only numpy scalars are allowed, because some published
    trainers store their best score as one. Raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise CheckpointError("no such checkpoint", str(path),
                              f"the folder holds: {', '.join(others) or 'no .pth file'}")
    verify_archive(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            # torch warns about unusual pickles; the errors below name them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        refused = _unsafe_global(path)
        if refused:
            raise CheckpointError(f"refused: the file asks to run {refused}", str(path),
                                  "use a file of tensors and plain types only, such as a bare "
                                  "state dict") from None
        # torch's own message would advise to switch the protection off.
        raise CheckpointError(f"checkpoint is damaged, or contains more than tensors and plain "
                              f"types ({path.stat().st_size} bytes)",
                              str(path), "use another checkpoint of the run") from None


def _wrong_entry(state):
    """The first entry with a wrong type or value, or None."""
    names, palette = state.get("class_names", []), state.get("palette", [])
    sound = {
        "format": type(state["format"]) is int,
        "model": _is_weights(state["model"]),
        "ema": not state.get("ema") or _is_weights(state["ema"]),
        # Its content is checked where it is used, see utils.config.load.with_config.
        "config": isinstance(state.get("config"), dict),
        "class_names": isinstance(names, list) and all(type(name) is str for name in names),
        "palette": isinstance(palette, list) and all(
            isinstance(color, (list, tuple)) and len(color) == 3
            and all(type(part) is int and 0 <= part <= 255 for part in color)
            for color in palette),
        "normalization": isinstance(state.get("normalization", {}), dict),
        "activation": state.get("activation", "softmax") in ("softmax", "sigmoid"),
    }
    return next((name for name, correct in sound.items() if not correct), None)


def _is_weights(state):
    return isinstance(state, dict) and all(
        isinstance(value, torch.Tensor) and value.layout is torch.strided
        and value.device.type == "cpu" for value in state.values())


@contextlib.contextmanager
def as_checkpoint_errors(where: str) -> Iterator[None]:
    """Report any error that a malformed checkpoint causes in the block as a CheckpointError."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError,
            RuntimeError) as error:
        raise CheckpointError(f"checkpoint is damaged, or was not written by Segwright: it cannot "
                              f"be loaded ({type(error).__name__}: {error})", where,
                              "use another checkpoint of the run") from error


def verified(path: str | os.PathLike) -> bool:
    """Whether a checkpoint file exists and its records pass their checksums."""
    try:
        verify_archive(Path(path))
        return True
    except (CheckpointError, OSError):
        return False


def verify_archive(path: Path):
    """Raise CheckpointError if a zip archive written by torch.save is incomplete or damaged."""
    if path.stat().st_size == 0:
        raise CheckpointError("checkpoint is damaged (0 bytes)", str(path),
                              "use another checkpoint of the run")
    with open(path, "rb") as stream:
        zipped = b"PK".startswith(stream.read(2))
    if not zipped:
        return                      # a file in torch's old format: the safe loader checks it
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # torch does not compress its records. A record that is compressed, or that shares its
            # bytes with another one, could need far more memory than the file has bytes.
            if any(record.compress_type for record in records) \
                    or sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError("refused: the archive would unpack to more than its "
                                      f"{path.stat().st_size} bytes", str(path),
                                      "use a file that torch.save wrote")
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
    with contextlib.suppress(Exception):      # not a pickle: the caller reports a damaged file
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                stream = io.BytesIO(archive.read(names[0]))
        else:
            stream = open(path, "rb")
        with stream:
            while True:            # a file in the old format contains several pickles
                for name in _globals(stream):
                    if name.split(".")[0] not in _SAFE_PACKAGES:
                        return name
    return None


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
