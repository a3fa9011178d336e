"""The logs of a run: log.txt, metrics.jsonl, TensorBoard, and those of trainer.log_to.

Only rank 0 writes. If a log cannot be written (a full disk, a deleted folder, a service that does
not answer), one warning is printed and the training continues; every further line is tried, and
`close` counts those missing.
"""
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from utils.checkpoint.find import line_number
from utils.cli.console import VERSION, notice, warn
from utils.config.build import build
from utils.errors import counted, listed, shown
from utils.files.json_values import plain_json
from utils.files.whole_file import WholeFile, append_whole
from utils.images.types import Image
from utils.machine import distributed
from utils.training.run_folder import run_facts
from utils.training.tensorboard_events import TensorBoardEvents
from utils.training.trackers.channel import Channel, Line, close_all
from utils.training.trackers.tracker import Outcome, Session, Tracker, refuse_passwords

_ABOUT = ("kind", "step", "epoch", "rule", "images")      # of a validation, besides its numbers
_SHOWN = 5              # line numbers in a notice
RECORDS = "trackers.json"       # in the run's folder: what each tracker continues after a resume


class RunLogger:
    """The logs of one run folder.

    folder: the run's folder. tensorboard: also write event files, into
    `log_dir`/<run name> if log_dir is given, else into the folder itself.
    first_step: lines of metrics.jsonl after this optimizer step are deleted,
    because a resumed run will write them again. Lines that are none of ours
    are moved to metrics.jsonl.unreadable, with a notice.
    log_to: the sections of further trackers. config: the resolved config, which trackers show.
    lineage: that of the checkpoint. A run that was taken back to an earlier step gets new records
    in trackers that cannot forget steps.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, log_dir: str | None = None,
                 first_step: int = 0, log_to: Sequence[dict] = (), config: dict | None = None,
                 lineage: list[list[int]] | None = None):
        self.folder = Path(folder)
        self._broken = set()
        self._missing = {}              # name of a log -> lines that could not be written
        self._channels: list[Channel] = []
        self._lock = threading.Lock()   # of RECORDS, which several threads of trackers write
        self._active = distributed.is_main()
        if not self._active:
            return
        logged: dict[str, int] = {}
        try:
            logged = _drop_lines_after(self.folder / "metrics.jsonl", first_step)
        except OSError as error:
            warn(f"metrics.jsonl keeps its lines after step {first_step}, which will occur twice "
                 f"(the last one holds): {error}")
        run = self.folder.parent.name, self.folder.name
        session = Session(self.folder, " ".join(run), config or {}, first_step, say=self.say)
        if tensorboard:
            where = self.folder if log_dir is None else Path(log_dir).joinpath(*run)
            self._channels.append(Channel(TensorBoardEvents(where), session))
        for section in log_to:
            self._open(build("trackers", section), session, line_number(lineage or []), logged)

    def _open(self, tracker: Tracker, session: Session, line: int, logged: dict[str, int]):
        """Let a tracker begin, or go on with the record of an earlier session."""
        name, step, folder = tracker.title, session.step, self.folder
        entry = _record(folder, name)
        known: dict[str, Any] = entry["record"] if entry and entry["line"] == line else {}
        if tracker.rewinds:
            self._channels.append(Channel(tracker, session))
            return
        if entry and known:
            # A session that was killed early has written fewer lines than the one before it.
            before = entry["logged"]
            logged = {kind: max(logged.get(kind, 0), before.get(kind, 0))
                      for kind in {*logged, *before}}
            last = max(logged.values(), default=0)
            if last > step:
                self.say(f"{name}: what it has of the steps {step + 1} to {last} stays as it is "
                         "while the training repeats them")
        else:
            logged = {}
            if step:
                why = f", because the training was taken back to step {step}; the one before " \
                      "stays as it is" if entry else ""
                self.say(f"{name}: a new record begins, with the steps to {step} from "
                         f"metrics.jsonl{why}")
        keep = partial(self._keep_record, name, line, logged)
        if known:
            keep(known)
        session = replace(session, record=known, keep=keep)
        # A session that resumes within a validation logs it again, at the same step, perhaps
        # before the tracker has started: only the lines of earlier sessions are its history.
        numbers = folder / "metrics.jsonl"
        size = numbers.stat().st_size if numbers.is_file() else 0
        history = partial(_lines_to, numbers, step, size)
        self._channels.append(Channel(tracker, session, logged, history))

    def _keep_record(self, name, line, logged, record):
        """Note in RECORDS what a tracker needs to continue; if that fails, warn."""
        entry = {"line": line, "logged": logged, "record": record}
        try:
            with self._lock, WholeFile(self.folder / RECORDS) as temporary:
                content = {**_records(self.folder), name: entry}
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            warn(f"{RECORDS} cannot be written, the training continues; a resumed one will not "
                 f"find what this one logs to {name}: {error}")

    @property
    def draws(self) -> bool:
        """Whether pictures are written: TensorBoard and some trackers show them."""
        return any(channel.draws for channel in self._channels)

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

    def scalars(self, values: dict[str, float], step: int, epoch: int | None = None):
        """Write a log line to TensorBoard and all trackers; tags begin with "train/" or "val/".

        step: their x axis, the optimizer step.
        """
        for channel in self._channels:
            channel.log(values, step, epoch)

    def image(self, tag: str, image: Image, step: int):
        """Write a picture to TensorBoard and the trackers that take some.

        image: uint8 (H, W, 3), RGB.
        """
        for channel in self._channels:
            channel.image(tag, image, step)

    def best(self, values: dict[str, float], step: int):
        """Replace the best values in TensorBoard and all trackers, by tags like "best/Mean_IoU"."""
        for channel in self._channels:
            channel.best(values, step)

    def close(self, outcome: Outcome = "finished", text: str = "finished"):
        """End all logs. text: why the session ended."""
        close_all(self._channels, outcome, text)
        for name, lines in self._missing.items():
            notice(f"{shown(self.folder / name)} lacks {lines} lines, which could not be written")

    def _append(self, name, text):
        try:
            append_whole(self.folder / name, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self._missing[name] = self._missing.get(name, 0) + 1
            if name not in self._broken:
                self._broken.add(name)
                warn(f"{name} can no longer be written, the training continues: {error}")


def require_trackers(config: dict):
    """Raise ConfigError if a tracker of trainer.log_to cannot be used here. Reads no data."""
    for section in config["trainer"].get("log_to", ()):
        refuse_passwords(section)
        build("trackers", section).require()


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
            lines.append(f"{title}: {counted(len(loader.dataset), 'image')} of "
                         f"{loader.dataset.title}, "
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


def _records(folder):
    """The content of RECORDS: name of a tracker -> its entry. Raises OSError."""
    try:
        content = json.loads((folder / RECORDS).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _record(folder, name):
    """The entry of a tracker in RECORDS; None if it has none that is sound."""
    try:
        entry = _records(folder).get(name)
    except OSError as error:
        warn(f"{RECORDS} cannot be read: {error}")
        return None
    sound = isinstance(entry, dict) and type(entry.get("line")) is int \
        and isinstance(entry.get("record"), dict) and isinstance(entry.get("logged"), dict) \
        and all(type(step) is int for step in entry["logged"].values())
    return entry if sound else None


def _drop_lines_after(path, step):
    """Delete the lines of metrics.jsonl after an optimizer step. A kill or a full disk loses none.

    Returns the last step of each kind of line that the file had: "train", "val".

    If these are the last lines, as is usual, the file is cut there, which takes no room. Otherwise
    a whole new file replaces it. Lines that are no entries are moved to another file first.
    """
    path = Path(os.path.realpath(path))     # of a link, the file that it leads to is replaced
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    entries = [_entry_of(line) for line in lines]
    steps = [entry and entry[0] for entry in entries]
    logged: dict[str, int] = {}
    for at, kind in filter(None, entries):
        logged[kind] = max(at, logged.get(kind, 0))
    kept = [line if line.endswith(b"\n") else line + b"\n"
            for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    unreadable = [number for number, at in enumerate(steps) if at is None and lines[number].strip()]
    if unreadable:
        aside = path.with_name(f"{path.name}.unreadable")
        append_whole(aside, b"".join(lines[number].rstrip(b"\r\n") + b"\n"
                                     for number in unreadable))
        places = listed(unreadable, _SHOWN, text=lambda number: str(number + 1))
        notice(f"{shown(path)}: {len(unreadable)} lines are no entries of this log (line {places})"
               f"; they are now in {shown(aside.name)}")
    if lines[:len(kept)] == kept:
        if len(kept) < len(lines):
            os.truncate(path, sum(map(len, kept)))
        return logged
    with WholeFile(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return logged


def _lines_to(path: Path, step: int, size: int) -> Iterator[Line]:
    """The lines in the first `size` bytes of metrics.jsonl that are of no later step.

    Their tags are those of `RunLogger.scalars`.
    """
    if not size:
        return
    with open(path, "rb") as stream:
        while stream.tell() < size:
            line = stream.readline()
            found = _entry_of(line)
            if found is None or found[0] > step:
                continue
            entry = json.loads(line)
            if found[1] == "val":
                classes = entry.pop("Class_IoU", None) or {}
                entry = {f"val/{key}": value for key, value in entry.items() if key not in _ABOUT} \
                    | {f"val/IoU/{name}": value for name, value in classes.items()} \
                    | {"epoch": entry.get("epoch")}
            values = {tag: value for tag, value in entry.items()
                      if "/" in tag and type(value) in (int, float)}
            if values:
                yield values, found[0], entry.get("epoch")


def _entry_of(line: bytes) -> tuple[int, str] | None:
    """(step, kind) of a line of metrics.jsonl; None if the line is no entry."""
    try:
        entry = json.loads(line.decode("utf-8"))
        step, kind = entry["step"], entry.get("kind")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None
    return (step, "val" if kind == "validation" else str(kind)) if type(step) is int else None
