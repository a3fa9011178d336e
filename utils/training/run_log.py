"""The logs of a run: log.txt, metrics.jsonl, TensorBoard.

Only rank 0 writes. If a log cannot be written (a full disk, a deleted folder), one warning is
printed and the training continues.
"""
import json
import threading
import time
from pathlib import Path
from typing import Any

from utils.cli.console import notice, warn
from utils.files.json_values import plain_json
from utils.images.types import Image
from utils.machine import distributed


class RunLogger:
    """The logs of one run folder.

    folder: the run's folder. tensorboard: also write event files, into
    `log_dir`/<run name> if log_dir is given, else into the folder itself.
    first_step: lines of metrics.jsonl after this optimizer step are deleted,
    because a resumed run will write them again.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, log_dir: str | None = None,
                 first_step: int = 0):
        self.folder = Path(folder)
        self._broken = set()
        self._writer = None
        self._active = distributed.is_main()
        if not self._active:
            return
        self._guard("metrics.jsonl", self._drop_lines_after, first_step)
        if tensorboard:
            where = self.folder if log_dir is None else \
                Path(log_dir) / self.folder.parent.name / self.folder.name
            try:
                from torch.utils.tensorboard import SummaryWriter
                self._writer = SummaryWriter(str(where), purge_step=first_step or None)
                self._other_hook, threading.excepthook = threading.excepthook, self._thread_ended
            except ImportError:
                warn("tensorboard is not installed: no event files are written "
                     "(pip install tensorboard, or set trainer.tensorboard to false)")
            except OSError as error:
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
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            self._guard("log.txt", self._append, "log.txt", f"{stamp} {text}\n")

    def record(self, kind: str, step: int, **values: Any):
        """Append one object to metrics.jsonl: {"kind", "step", …}."""
        if self._active:
            line = json.dumps(plain_json({"kind": kind, "step": step, **values}))
            self._guard("metrics.jsonl", self._append, "metrics.jsonl", line + "\n")

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
        with open(self.folder / name, "a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)

    def _drop_lines_after(self, step):
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = []
            for line in lines:
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    pass                         # an incomplete line of a killed writer
            path.write_text("".join(kept), encoding="utf-8")

    def _guard(self, what, call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            if what not in self._broken:
                self._broken.add(what)
                warn(f"{what} can no longer be written, the training continues: {error}")


def _raise(error):
    raise error
