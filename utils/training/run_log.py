"""The logs of a run: log.txt, metrics.jsonl, TensorBoard.

Only rank 0 writes. If a log cannot be written (a full disk, a deleted folder), one warning is
printed and the training continues; every further line is tried, and `close` counts those missing.
"""
import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from utils.cli.console import VERSION, notice, warn
from utils.errors import counted, listed, shown
from utils.files.json_values import plain_json
from utils.files.whole_file import WholeFile
from utils.images.types import Image
from utils.machine import distributed
from utils.training.run_folder import run_facts

_SHOWN = 5              # line numbers in a notice
NO_TENSORBOARD = ("tensorboard is not installed: no event files are written (pip install "
                  "tensorboard, or set trainer.tensorboard to false)")


class RunLogger:
    """The logs of one run folder.

    folder: the run's folder. tensorboard: also write event files, into
    `log_dir`/<run name> if log_dir is given, else into the folder itself.
    first_step: lines of metrics.jsonl after this optimizer step are deleted,
    because a resumed run will write them again. Lines that are none of ours
    are moved to metrics.jsonl.unreadable, with a notice.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, log_dir: str | None = None,
                 first_step: int = 0):
        self.folder = Path(folder)
        self._broken = set()
        self._missing = {}              # name of a log -> lines that could not be written
        self._writer = None
        self._active = distributed.is_main()
        if not self._active:
            return
        try:
            _drop_lines_after(self.folder / "metrics.jsonl", first_step)
        except OSError as error:
            warn(f"metrics.jsonl keeps its lines after step {first_step}, which will occur twice "
                 f"(the last one holds): {error}")
        if tensorboard:
            where = self.folder if log_dir is None else \
                Path(log_dir) / self.folder.parent.name / self.folder.name
            try:
                from torch.utils.tensorboard import SummaryWriter
                self._writer = SummaryWriter(str(where), purge_step=first_step or None)
                self._other_hook, threading.excepthook = threading.excepthook, self._thread_ended
            except ImportError:
                warn(NO_TENSORBOARD)
            except (OSError, UnicodeError) as error:    # it cannot write all names of folders
                warn(f"no event files are written: {error}")

    @property
    def draws(self) -> bool:
        """Whether pictures are written: only TensorBoard shows them."""
        return self._writer is not None

    def say(self, text: str):
        """Print a line on stderr and append it to log.txt."""
        if self._active:
            from tqdm import tqdm
            with tqdm.external_write_mode():      # keep the progress bar in one piece
                notice(text)
            self.write(text)

    def write(self, text: str):
        """Append a line to log.txt."""
        if self._active:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            self._append("log.txt", f"{stamp} {text}\n")

    def write_origin(self):
        """Append what is needed to repeat this session to log.txt: the command and the versions."""
        facts = run_facts()
        self.write(f"command: {facts['command']}")
        self.write(f"segwright {VERSION}, revision {facts['revision'] or 'unknown'}, python "
                   f"{facts['python']}, torch {facts['torch']}")

    def record(self, kind: str, step: int, **values: Any):
        """Append one object to metrics.jsonl: {"kind", "step", …}."""
        if self._active:
            line = json.dumps(plain_json({"kind": kind, "step": step, **values}))
            self._append("metrics.jsonl", line + "\n")

    def scalars(self, values: dict, step: int):
        """Write TensorBoard scalars; their x axis is always the optimizer step."""
        for tag, value in values.items():
            self._event("add_scalar", tag, value, step)

    def image(self, tag: str, image: Image, step: int):
        """Write a TensorBoard image. image: uint8 (H, W, 3), RGB."""
        self._event("add_image", tag, image, step, dataformats="HWC")

    def close(self):
        if self._writer:
            self._guard("tensorboard", self._writer.close)
            threading.excepthook = self._other_hook
        for name, lines in self._missing.items():
            notice(f"{shown(self.folder / name)} lacks {lines} lines, which could not be written")

    def _thread_ended(self, failure):
        """Report an error in TensorBoard's writer thread as a warning instead of a traceback."""
        if type(failure.thread).__name__ == "_AsyncWriterThread":
            self._guard("tensorboard", _raise, failure.exc_value)
        else:
            self._other_hook(failure)

    def _event(self, method, *args, **kwargs):
        if self._writer:
            self._guard("tensorboard", getattr(self._writer, method), *args, **kwargs)

    def _append(self, name, text):
        data = text.encode("utf-8", "backslashreplace")
        if not self._guard(name, _append, self.folder / name, data):
            self._missing[name] = self._missing.get(name, 0) + 1

    def _guard(self, what, call, *args, **kwargs):
        """Call a function that writes; returns whether that succeeded. Its first error is told."""
        try:
            call(*args, **kwargs)
            return True
        except (OSError, RuntimeError, UnicodeError) as error:
            if what not in self._broken:
                self._broken.add(what)
                warn(f"{what} can no longer be written, the training continues: {error}")
            return False


def training_facts(trainer: Any) -> list[str]:
    """What a training uses, a line each: network, data, rates, length and device.

    trainer: a BaseTrainer.
    """
    from utils.machine.precision import device_name
    model, progress = trainer.model, trainer.progress
    numbers = [p.numel() for p in model.parameters()]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = "all" if trained == sum(numbers) else f"{trained / 1e6:.2f} M"
    lines = [f"network: {type(model).__name__}, {sum(numbers) / 1e6:.2f} M parameters, {share} of "
             f"them trained, outputs {', '.join(model.output_weights)}"]
    for title, loader in (("train", trainer.train_loader), ("val", trainer.val_loader)):
        if loader is not None:
            lines.append(f"{title}: {len(loader.dataset)} images of {loader.dataset.title}, "
                         f"{counted(trainer.num_classes, 'class')}, "
                         f"{counted(len(loader), 'batch')} of {loader.batch_size}")
    groups = trainer.optimizer.param_groups
    for group in groups if len(groups) > 1 else ():
        decay = f", weight decay {group['weight_decay']:g}" if "weight_decay" in group else ""
        lines.append(f"parameters {group['name']}: {len(group['params'])} tensors, learning rate "
                     f"{group.get('initial_lr', group['lr']):.3g}{decay}")
    dtype = trainer.autocast_dtype
    precision = "fp32" if dtype is None else str(dtype).removeprefix("torch.")
    ranks = distributed.world_size()
    lines.append(f"{counted(progress.epochs, 'epoch')}, {counted(progress.total_steps, 'step')}, "
                 f"on {device_name(trainer.device)}, {precision}"
                 + (f", {ranks} processes" if ranks > 1 else ""))
    return lines


def _append(path, lines: bytes):
    """Append whole lines or nothing: a part of a line would also spoil the next one."""
    with open(path, "ab", buffering=0) as stream:
        end = stream.tell()
        try:
            while lines:
                lines = lines[stream.write(lines):]
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(end)
            raise


def _drop_lines_after(path, step):
    """Delete the lines of metrics.jsonl after an optimizer step. A kill or a full disk loses none.

    If these are the last lines, as is usual, the file is cut there, which takes no room. Otherwise
    a whole new file replaces it. Lines that are no entries are moved to another file first.
    """
    path = Path(os.path.realpath(path))     # of a link, the file that it leads to is replaced
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    kept = [line if line.endswith(b"\n") else line + b"\n"
            for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    unreadable = [number for number, at in enumerate(steps) if at is None and lines[number].strip()]
    if unreadable:
        aside = path.with_name(f"{path.name}.unreadable")
        _append(aside, b"".join(lines[number].rstrip(b"\r\n") + b"\n" for number in unreadable))
        places = listed(unreadable, _SHOWN, text=lambda number: str(number + 1))
        notice(f"{shown(path)}: {len(unreadable)} lines are no entries of this log (line {places})"
               f"; they are now in {shown(aside.name)}")
    if lines[:len(kept)] == kept:
        if len(kept) < len(lines):
            os.truncate(path, sum(map(len, kept)))
        return
    with WholeFile(path) as temporary:
        temporary.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None if the line is no entry."""
    try:
        step = json.loads(line.decode("utf-8"))["step"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return step if type(step) is int else None


def _raise(error):
    raise error
