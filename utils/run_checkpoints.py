"""The checkpoints of one run: who writes them, and how many are kept."""
import re
import threading
from pathlib import Path

from utils.checkpoint import SaveError, checkpoint_bytes, verified, write_bytes
from utils.console import warn

PERIODIC = "checkpoint-epoch{}.pth"


class RunCheckpoints:
    """Writes into the run's folder, one file at a time.

    keep: how many periodic checkpoints stay (0: all). An older one is deleted
    only once `keep` newer ones were read back and found whole; model_best.pth
    and last.pth are never deleted.
    background: write while the training goes on. The state is copied first, so
    the file holds the same bytes; a save waits for the one before it.

    One failed save costs a warning, the next one in a row raises its SaveError.
    """

    def __init__(self, folder, keep: int = 0, background: bool = False):
        self.folder, self.keep, self.background = Path(folder), keep, background
        self._writer, self._error, self._failed = None, None, False

    def save(self, name: str, state: dict, required: bool = False):
        """Write `state` to the file `name`. `required`: no later save could make up for this
        one, so it is finished before the call returns and fails at once."""
        self.finish()
        data = checkpoint_bytes(state)
        if self.background and not required:
            self._writer = threading.Thread(target=self._write, args=(name, data),
                                            name="checkpoint writer")
            self._writer.start()
            return
        self._write(name, data)
        self._judge(required)

    def finish(self, required: bool = False):
        """Wait for the writer; its error, if any, surfaces here."""
        if self._writer:
            self._writer.join()
            self._writer = None
            self._judge(required)

    def _write(self, name, data):
        try:
            write_bytes(self.folder / name, data)
            if _number(name) is not None:
                self._prune()
        except SaveError as error:
            self._error = error

    def _judge(self, required):
        error, self._error = self._error, None
        if error and (required or self._failed):
            raise error
        if error:
            warn(f"{error}\n  the training goes on; it ends if the next save fails too")
        self._failed = bool(error)

    def _prune(self):
        if not self.keep:
            return
        numbered = [path for path in self.folder.glob(PERIODIC.format("*"))
                    if _number(path.name) is not None]
        if len(numbered) <= self.keep:
            return
        whole = 0
        for path in sorted(numbered, key=lambda path: _number(path.name), reverse=True):
            if whole < self.keep:
                whole += verified(path)
                continue
            try:
                path.unlink()
            except OSError as error:
                warn(f"an old checkpoint could not be deleted: {error}")


def _number(name):
    """The epoch of a periodic checkpoint, None of any other."""
    match = re.fullmatch(PERIODIC.format(r"(\d+)"), name)
    return match and int(match[1])
