"""Measures how fast a loop runs and how long it waits for data."""
import contextlib
import time
from collections.abc import Iterable, Iterator


class StepClock:
    """Measures a loop over `waiting(batches)`.

    batch_size: images of one micro-batch, over all ranks.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._start, self._waited, self._batches = time.perf_counter(), 0.0, 0

    def waiting(self, groups: Iterable) -> Iterator:
        """Yield the items of `groups`, measuring the time until each of them is there."""
        groups = iter(groups)
        while True:
            before = time.perf_counter()
            group = next(groups, None)
            self._waited += time.perf_counter() - before
            if group is None:
                return
            self._batches += len(group)
            yield group

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def lap(self) -> tuple[float, float]:
        """(images per second, share of the time spent waiting for data) since the last lap."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        result = self._batches * self.batch_size / elapsed, self._waited / elapsed
        self._start, self._waited, self._batches = now, 0.0, 0
        return result
