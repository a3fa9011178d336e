"""Writes checkpoints: a file appears complete or not at all.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so a
reader sees the old file or the new one, never a part of it.
"""
import contextlib
import errno
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError
from utils.files.whole_file import WholeFile, remedy


class SaveError(CheckpointError):
    """A checkpoint could not be written; the previous file is unchanged."""

    exit_status = 1


def write_checkpoint(path: str | Path, state: Mapping[str, Any]):
    """Write `state` to `path` atomically. Raises SaveError; the old file is then unchanged."""
    write_bytes(path, checkpoint_bytes(state))


def checkpoint_bytes(state: Mapping[str, Any]) -> memoryview:
    """Serialize `state` as torch.save does. Later changes of its tensors have no effect on it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def write_bytes(path: str | Path, data: bytes | memoryview):
    """Write a file, complete or not at all, and flush it to the disk. Raises SaveError."""
    path, file = Path(path), None
    try:
        file = WholeFile(path, durable=True)
        with file as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        after = "the new checkpoint is there, but may not survive a power failure" \
            if file and file.named else "the previous checkpoint is unchanged"
        raise SaveError(_why_not_written(error, path, len(data)), str(path),
                        f"{remedy(error)} (trainer.save_dir); {after}") from error


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that the next save does not overwrite it; returns its new path."""
    target, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    try:
        os.rename(path, target)
    except OSError as error:
        raise SaveError(f"it is damaged and cannot be renamed: {error.strerror or error}",
                        str(path), "move it to another folder") from None
    return target


def _why_not_written(error, path, needed):
    size, free = f"{needed / 1e6:.1f} MB", 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left while writing {path} (needed {size}, free {free / 1e6:.1f} MB)"
    if error.errno == errno.EFBIG:
        return (f"no space left while writing {path} (needed {size}, which is larger than "
                "the largest file allowed here)")
    return f"cannot write {path}: {error.strerror or error}"
