"""TensorBoard's event files: the record that every training keeps unless it is switched off."""
import json
import threading
from pathlib import Path
from typing import Any

from utils.cli.console import warn
from utils.images.types import Image
from utils.training.trackers.tracker import Outcome, Session, Tracker, flat

NO_TENSORBOARD = ("tensorboard is not installed: no event files are written (pip install "
                  "tensorboard, or set trainer.tensorboard to false)")
# Of a config, what is no hyperparameter: how it is scored and where files are.
_OTHER_SECTIONS = ("val_loader", "test_loader", "predict")
_COMPARED = ("val/Mean_IoU", "val/mIoU_I", "val/loss", "train/loss")     # besides the best


class TensorBoardEvents(Tracker):
    """Event files in the folder `where`. trainer.tensorboard switches them, not trainer.log_to.

    Besides scalars and pictures they have the config as a text, and as hyperparameters of the
    HPARAMS page, which compares runs by their best and last values.
    """

    aliases = ("tensorboard",)
    rewinds = True

    def __init__(self, where: Path):
        self.where = where
        self.writer: Any = None
        self._end: Any = None           # the summary of a finished training

    @property
    def draws(self) -> bool:
        """Whether there is a writer: the package may be missing."""
        return self.writer is not None

    def start(self, session: Session):
        """Open an event file, which takes back what was written after session.step."""
        try:
            from torch.utils.tensorboard import SummaryWriter
            # TensorBoard forgets events from purge_step on; those of session.step hold.
            self.writer = SummaryWriter(str(self.where),
                                        purge_step=session.step + 1 if session.step else None)
        except ImportError:
            warn(NO_TENSORBOARD)
            return
        except (OSError, UnicodeError) as error:    # it cannot write all names of folders
            warn(f"no event files are written: {error}")
            return
        self._failed = session.failed
        self._other_hook, threading.excepthook = threading.excepthook, self._thread_ended
        if session.config:
            self._write_config(session)

    def _write_config(self, session):
        from torch.utils.tensorboard.summary import hparams
        assert self.writer
        text = json.dumps(session.config, indent=2).replace("\n", "\n    ")     # Markdown of code
        self.writer.add_text("config", f"    {text}", session.step)
        numbers = {key: json.dumps(value) if isinstance(value, (list, dict)) else value
                   for name, section in session.config.items() if name not in _OTHER_SECTIONS
                   for key, value in flat(section, name).items()}
        # add_hparams would open a folder of its own, which TensorBoard shows as another run.
        _, _, metric = session.config["trainer"]["monitor"].partition(" ")
        best = [f"best/{metric}"] if metric else []
        *start, self._end = hparams(numbers, dict.fromkeys([*best, *_COMPARED]))
        for summary in start:
            self.writer._get_file_writer().add_summary(summary)

    def log(self, values: dict[str, float], step: int, epoch: int | None):
        """Write scalars; their x axis is the optimizer step."""
        if self.writer:
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: Image, step: int):
        """Write a picture."""
        if self.writer:
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def best(self, values: dict[str, float], step: int):
        """Write scalars: the last one is the best, which HPARAMS shows."""
        self.log(values, step, None)

    def close(self, outcome: Outcome, text: str):
        """Finish the file; of a finished training, HPARAMS says so."""
        if self.writer:
            try:
                if self._end and outcome == "finished":
                    self.writer._get_file_writer().add_summary(self._end)
                self.writer.close()
            finally:
                threading.excepthook = self._other_hook

    def _thread_ended(self, failure: Any):
        """Report an error in TensorBoard's writer thread as a warning instead of a traceback."""
        if type(failure.thread).__name__ == "_AsyncWriterThread":
            self._failed(failure.exc_value)
        else:
            self._other_hook(failure)
