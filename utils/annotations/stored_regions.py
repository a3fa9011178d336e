"""Keeps the regions of an image in a few arrays.

Workers get a copy of the dataset. Many small arrays would be slow to send to them, and would take
much more memory than their numbers.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from utils.annotations.annotation_set import Cutout, Region, Runs, Size

# A mask, or a function that decodes it: (place for messages) -> mask. The function is pickled.
StoredMask = Runs | Cutout | Callable[[str], Runs | Cutout]


class StoredRegions:
    """The regions of one image: `AnnotatedImage.regions`.

    points: of all rings, float64 (P, 2). ring_ends, (R,): number of points up to the end of each
    ring. region_ends, (N,): number of rings up to the end of each region. categories: (N,).
    place: of the list of items, "instances.json: annotations". numbers: (N,), of each region's
    item in it. masks: of the regions that have one, by their index.
    """

    __slots__ = ("points", "ring_ends", "region_ends", "categories", "place", "numbers", "masks")

    def __init__(self, points: np.ndarray, ring_ends: np.ndarray, region_ends: np.ndarray,
                 categories: np.ndarray, place: str, numbers: np.ndarray,
                 masks: Mapping[int, StoredMask]):
        self.points, self.ring_ends, self.region_ends = points, ring_ends, region_ends
        self.categories, self.place, self.numbers = categories, place, numbers
        self.masks = dict(masks)

    def __call__(self, size: Size) -> list[Region]:
        """The regions, in their order. Raises DataError for a mask that cannot be decoded."""
        ends = self.ring_ends.tolist()
        rings = [self.points[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        regions, first = [], 0
        for index, (category, last, number) in enumerate(zip(
                self.categories.tolist(), self.region_ends.tolist(), self.numbers.tolist(),
                strict=True)):
            place = f"{self.place}[{number}]"
            mask = self.masks.get(index)
            regions.append(Region(category, rings[first:last],
                                  mask(place) if callable(mask) else mask, place))
            first = last
        return regions

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)


def stored(items: Iterable[tuple[int, Sequence[np.ndarray], StoredMask | None, int]],
           place: str) -> StoredRegions:
    """The StoredRegions of (category, rings, mask, number of the item) each."""
    points, ring_ends, region_ends, categories, numbers = [], [], [], [], []
    masks, count = {}, 0
    for index, (category, rings, mask, number) in enumerate(items):
        for ring in rings:
            points.append(ring)
            count += len(ring)
            ring_ends.append(count)
        region_ends.append(len(ring_ends))
        categories.append(category)
        numbers.append(number)
        if mask is not None:
            masks[index] = mask
    ends = np.array(ring_ends, np.int64), np.array(region_ends, np.int64)
    return StoredRegions(np.concatenate(points) if points else np.zeros((0, 2)), *ends,
                         np.array(categories, np.int64), place, np.array(numbers, np.int64), masks)
