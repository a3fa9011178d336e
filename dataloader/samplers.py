"""The samples of each batch.

A plan depends only on (seed, epoch), not on workers, ranks or the batch at which
an epoch was interrupted.
"""
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

NO_CENTER = -1     # y and x of a visit whose crop is placed at random


class EpochDraw(ABC):
    """Draws the samples that a training epoch visits; named in a loader's args as "sampler".

    Called with an epoch, it returns integers: indices (N,), or rows (N, 3) of index,
    y and x, where (y, x) is a pixel that the crop must show, or (-1, -1) for a random
    crop. The result depends only on (seed, epoch); N is the same for every epoch.
    """

    provided = ("dataset", "seed")

    @abstractmethod
    def __call__(self, epoch: int) -> np.ndarray:
        """The visits of an epoch, (N,) or (N, 3), before they are shuffled."""


def drawn(count: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int64: indices below `total`, each drawn count // total times or once more.

    The indices that are drawn once more are a random selection without replacement.
    """
    whole, rest = divmod(count, max(total, 1))
    return np.concatenate([np.tile(np.arange(total), whole),
                           np.sort(rng.permutation(total)[:rest])])


def stream(seed: int, epoch: int, purpose: int, number: int) -> np.random.Generator:
    """The random generator of one draw in one epoch.

    purpose: separates these draws from other uses of the seed. number: of the draw.
    """
    return np.random.default_rng(np.random.SeedSequence((seed % 2 ** 64, epoch, purpose),
                                                        spawn_key=(number,)))


class EpochOrder:
    """The visits of an epoch, (N,) or (N, 3), as drawn, or shuffled by (seed, epoch).

    draw: draws the visits of an epoch (see EpochDraw), or the number of samples to visit all.
    """

    def __init__(self, draw: int | Callable[[int], np.ndarray], shuffle: bool, seed: int = 0):
        self.draw, self.shuffle, self.seed = draw, shuffle, seed

    def __call__(self, epoch: int) -> np.ndarray:
        visits = self.draw(epoch) if callable(self.draw) else np.arange(self.draw)
        if self.shuffle:
            seed = np.random.SeedSequence((self.seed % 2 ** 64, epoch))
            visits = visits[np.random.default_rng(seed).permutation(len(visits))]
        return visits


class BatchPlan(Sampler):
    """The batches of one rank, as lists of keys of the dataset.

    A key is (epoch, index), or (epoch, index, repeat, center) if the epoch shows the
    sample again or at a given place.

    Training: global batch k has the samples k·B·world … of the epoch's order, and
    rank r takes every world-th of them, beginning with the r-th. All ranks have the
    same number of batches and samples: a short last batch is filled with samples from
    the start of the order until the ranks have equally many. Evaluation: rank r takes
    whole batches r, r + world, … of the single-process plan, no sample twice.
    """

    def __init__(self, order: EpochOrder, batch_size: int, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1, training: bool = False):
        self.order, self.batch_size, self.drop_last = order, batch_size, drop_last
        self.rank, self.world_size, self.training = rank, world_size, training
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0, skip: int = 0) -> None:
        """Plan an epoch; the next iteration begins with batch `start_batch` of this rank.

        skip: number of samples of that batch, over all ranks, that a run with another number of
        ranks has already seen. The batch is the rest; it is filled with samples from the start
        of the rest until the ranks have equally many.
        """
        self.epoch, self.start = epoch, start_batch
        self._visits = self.order(epoch)
        self._repeats = _occurrences(self._visits.reshape(len(self._visits), -1)[:, 0])
        self._mine = self._batches(np.arange(len(self._visits)))
        if skip and start_batch < len(self._mine):
            group = self.batch_size * self.world_size
            rest = np.arange(len(self._visits))[start_batch * group:][:group][skip:]
            rest = np.resize(rest, len(rest) + -len(rest) % self.world_size)
            self._mine[start_batch] = rest[self.rank::self.world_size]

    def __len__(self) -> int:
        """Number of batches of a whole epoch on this rank."""
        return len(self._mine)

    @property
    def smallest(self) -> int:
        """Number of images in the smallest batch of this rank."""
        return min(map(len, self._mine), default=0)

    def batch(self, number: int) -> list[tuple]:
        """The key of each sample of a batch; empty past the end of the epoch."""
        if number >= len(self._mine):
            return []
        return [self._key(visit) for visit in self._mine[number]]

    def __iter__(self) -> Iterator[list[tuple]]:
        for number in range(self.start, len(self)):
            yield self.batch(number)

    def _key(self, visit):
        """The key of one visit, given by its position in the epoch's order."""
        index, *center = np.atleast_1d(self._visits[visit]).tolist()
        center = tuple(center) if center and center[0] != NO_CENTER else None
        repeat = int(self._repeats[visit])
        return (self.epoch, index, repeat, center) if repeat or center else (self.epoch, index)

    def _batches(self, order):
        """The batches of this rank, as arrays of positions in the epoch's order."""
        if not self.training:
            batches = [order[k:k + self.batch_size] for k in range(0, len(order), self.batch_size)]
            return batches[self.rank::self.world_size]
        group = self.batch_size * self.world_size
        if self.drop_last:
            order = order[:len(order) // group * group]
        elif len(order) % self.world_size:
            order = np.resize(order, len(order) + -len(order) % self.world_size)
        return [order[k + self.rank:k + group:self.world_size]
                for k in range(0, len(order), group)]


def _occurrences(indices):
    """(N,) int64: how often each of the indices (N,) occurred before."""
    by_index = np.argsort(indices, kind="stable")
    ordered = indices[by_index]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty(len(indices), np.int64)
    counts[by_index] = np.arange(len(indices)) - first
    return counts
