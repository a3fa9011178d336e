"""Writes the checkpoints of one run, and deletes the old ones."""
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.checkpoint.find import PERIODIC, Peeked, epoch_of
from utils.checkpoint.read import DamagedCheckpoint, verified
from utils.checkpoint.write import SaveError, checkpoint_bytes, write_bytes
from utils.cli.console import warn
from utils.errors import CheckpointError


class RunCheckpoints:
    """Writes checkpoints into the run's folder, one file at a time.

    keep: how many periodic checkpoints stay (0: all). An older one is deleted
    only after `keep` newer ones were read again and are undamaged; model_best.pth,
    last.pth, and what a run that was taken back left behind, are never deleted.
    background: write in a thread while the training continues. The state is
    serialized first, so the file contains the same bytes; a save waits for the
    previous one.

    The first failed save prints a warning, the next one in a row raises its SaveError. A save has
    failed if one of its files was not written.
    """

    def __init__(self, folder: str | Path, keep: int = 0, background: bool = False):
        self.folder, self.keep, self.background = Path(folder), keep, background
        self._thread: threading.Thread | None = None
        self._results: list[SaveError | None] = []      # of the files written since the last check
        self._failed = False                            # whether the last save failed
        self._lineage: list[list[int]] = []             # of the last state

    def save(self, state: Mapping[str, Any], *names: str, required: bool = False):
        """Serialize `state` once and write it to each of the files `names`, in this order.

        required: no later save follows. All files are then written before the call returns, and it
        raises SaveError if one fails.
        """
        self.finish()       # so that the bytes of one state at most are in memory
        data = checkpoint_bytes(state)
        self._lineage = state.get("lineage", [])
        if self.background and not required:
            self._thread = threading.Thread(target=self._write, args=(data, names),
                                            name="checkpoint writer")
            self._thread.start()
            return
        self._write(data, names)
        self._check_results(required)

    def finish(self, required: bool = False):
        """Wait until everything is written. Warns or raises SaveError if a file was not.

        required: raise if a file of the last save was not written.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
            self._check_results(required)

    def _write(self, data: memoryview, names: Sequence[str]):
        for name in names:
            try:
                write_bytes(self.folder / name, data)
                self._results.append(None)
                if epoch_of(name) is not None:
                    self._delete_old(self.folder / name)
            except SaveError as error:
                self._results.append(error)

    def _check_results(self, required: bool):
        results, self._results = self._results, []
        errors = [error for error in results if error]
        if errors and (self._failed or required):
            raise errors[-1]
        for error in errors:
            warn(f"{error}\n  the training continues; it ends if the next save fails too")
        if results:
            self._failed = bool(errors)

    def _delete_old(self, written: Path):
        """Delete periodic checkpoints of this line of training, if `keep` newer ones are sound."""
        if not self.keep:
            return
        epochs = {path: epoch for path in self.folder.glob(PERIODIC.format("*"))
                  if (epoch := epoch_of(path.name)) is not None}
        if len(epochs) <= self.keep:
            return              # without reading a file
        newest_first = sorted(filter(self._is_of_this_line, epochs),
                              key=lambda path: (path == written, epochs[path]), reverse=True)
        if len(newest_first) <= self.keep:
            return
        undamaged = 0
        for path in newest_first:
            if undamaged < self.keep:
                undamaged += verified(path)
                continue
            try:
                path.unlink()
            except OSError as error:
                warn(f"an old checkpoint could not be deleted: {error}")

    def _is_of_this_line(self, path):
        # A run that was taken back leaves the checkpoints of later epochs, until it writes them
        # again: they are nobody's old files.
        try:
            return Peeked.of(path).is_before(self._lineage)
        except DamagedCheckpoint:
            return True
        except CheckpointError:
            return False
