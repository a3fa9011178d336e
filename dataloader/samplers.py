"""Which samples make up which batch.

A plan is a function of (seed, epoch) alone: not of workers, of ranks, or of
where an epoch was interrupted.
"""
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochOrder:
    """The order in which an epoch visits the samples: as stored, or shuffled by (seed, epoch)."""

    def __init__(self, length: int, shuffle: bool, seed: int = 0):
        self.length, self.shuffle, self.seed = length, shuffle, seed

    def __call__(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        seed = np.random.SeedSequence((self.seed % 2 ** 64, epoch))
        return np.random.default_rng(seed).permutation(self.length)


class BatchPlan(Sampler):
    """The batches of one rank, as lists of (epoch, index).

    Training: global batch k is samples k·B·world … of the epoch's order, and
    rank r takes every world-th of them from the r-th on; every rank has the
    same number of batches and of samples (a last short batch is filled up from
    the start of the order until the ranks are even). Evaluation: rank r takes
    whole batches r, r + world, … of the single-process plan, nothing twice.
    """

    def __init__(self, order: EpochOrder, batch_size: int, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1, training: bool = False):
        self.order, self.batch_size, self.drop_last = order, batch_size, drop_last
        self.rank, self.world_size, self.training = rank, world_size, training
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0):
        """Plan an epoch; the next iteration begins with batch `start_batch` of this rank."""
        self.epoch, self.start = epoch, start_batch
        self._mine = self._batches(self.order(epoch))

    def __len__(self):
        """Batches of a whole epoch on this rank."""
        return len(self._mine)

    @property
    def smallest(self) -> int:
        """Images of the smallest batch of this rank."""
        return min(map(len, self._mine), default=0)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(epoch, index) of each sample of a batch; empty past the end of the epoch."""
        if number >= len(self._mine):
            return []
        return [(self.epoch, int(index)) for index in self._mine[number]]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(self.start, len(self)):
            yield self.batch(number)

    def _batches(self, order):
        if not self.training:
            count = len(order) // self.batch_size if self.drop_last \
                else -(-len(order) // self.batch_size)
            return [order[k * self.batch_size:(k + 1) * self.batch_size]
                    for k in range(self.rank, count, self.world_size)]
        group = self.batch_size * self.world_size
        if self.drop_last:
            order = order[:len(order) // group * group]
        elif len(order) % self.world_size:
            order = np.resize(order, len(order) + -len(order) % self.world_size)
        return [order[k + self.rank:k + group:self.world_size]
                for k in range(0, len(order), group)]
