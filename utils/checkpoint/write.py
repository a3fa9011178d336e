"""Writes checkpoints: a file appears complete or not at all.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so a
reader sees the old file or the new one, never a part of it.
"""
import contextlib
import errno
import io
import os
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
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot write {path}: {error.strerror or error}"
    free, files = 0, 1
    with contextlib.suppress(OSError, AttributeError):      # Windows has no statvfs
        disk = os.statvfs(path.parent)
        free, files = disk.f_bavail * disk.f_frsize, disk.f_favail or not disk.f_files
    size = f"needed {needed / 1e6:.1f} MB"
    details = f"{size}, free {free / 1e6:.1f} MB"
    if error.errno == errno.EDQUOT:
        details = f"{size}; your quota is used up"
    elif error.errno == errno.EFBIG:
        details = f"{size}, which is larger than the largest file allowed here"
    elif not files:
        details = "the disk holds as many files as it can (no free inodes)"
    return f"no space left while writing {path} ({details})"
