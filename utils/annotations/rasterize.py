"""Draws outlines and masks into a label map, to the pixel as COCO's own tools do.

Facts of the fill (Lin et al., ECCV 2014, arXiv:1405.0312, and its API): an outline is scaled by
SCALE and its points rounded; an edge is walked in steps of one along its longer axis. Where it
passes from the third to the fourth of the SCALE sub-columns of a pixel column, it ends or begins a
run of pixels in this column.

A label map is made of runs, not of pixels: all edges of all regions are computed at once, a
position of the image is row + height * column, and a run is a range of positions. Which region is
on top is found by range maxima, so the time does not depend on how often regions overlap.
"""
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.annotations.annotation_set import Cutout, Region, Size
from utils.errors import DataError
from utils.images.types import Labels

SCALE = 5
MOST_CROSSINGS = 1 << 25        # of the outlines of one image with columns of pixels;
PER_PIXEL = 8                   # and so many for each pixel, or
FEW_CROSSINGS = 1 << 20         # so many in a small image
MOST_NESTED = 20000             # pairs of outlines of one region, one in the box of the other
_SPARSE = 64                    # pixels to a span: from there on searching is faster than counting
_AT_ONCE = 1 << 20              # crossings that are computed together


class _Spans(NamedTuple):
    """Ranges of positions, start <= position < end, sorted by `owner`; all (N,) int64."""

    start: np.ndarray
    end: np.ndarray
    owner: np.ndarray


def draw(regions: Sequence[Region], values: Sequence[int], size: Size, background: int,
         overlap: str = "order") -> Labels:
    """The label map of an image, uint8 (H, W), or uint16 if a value needs it.

    values: what is stored for each category; negative: its regions are not drawn. size: (H, W).
    overlap: "order", a later region covers an earlier one, or "area", the smaller one is on top
    (of equally large ones the later). Raises DataError.
    """
    drawn = [region for region in regions if values[region.category] >= 0]
    spans = _spans_of_regions(drawn, size)
    colors = np.array([values[region.category] for region in drawn] + [background], np.int64)
    if overlap == "area" and len(drawn) > 1:
        areas = np.bincount(spans.owner, spans.end - spans.start, len(drawn))
        order = np.argsort(-areas, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        owner = place[spans.owner]
        # Numbers of 16 bits are sorted in a tenth of the time.
        by_order = np.argsort(owner.astype(np.uint16) if len(drawn) < 1 << 16 else owner,
                              kind="stable")
        spans = _Spans(spans.start[by_order], spans.end[by_order], owner[by_order])
        colors[:-1] = colors[:-1][order]
    most = colors.max(initial=background)
    return _painted(spans, colors.astype(np.uint8 if most < 256 else np.uint16), size)


def region_masks(regions: Sequence[Region], size: Size) -> list[np.ndarray]:
    """The pixels of each region by itself, bool (H, W)."""
    spans = _spans_of_regions(regions, size)
    return [_painted(_Spans(spans.start[mine], spans.end[mine], np.zeros(mine.sum(), np.int64)),
                     np.array([1, 0], np.uint8), size).astype(bool)
            for mine in (spans.owner == number for number in range(len(regions)))]


def _spans_of_regions(regions, size):
    """The spans of all regions, which do not overlap within a region; owner: its number."""
    parts = []
    outlined = [number for number, region in enumerate(regions) if region.mask is None]
    rings, owners = [], []
    for number in outlined:
        for points in regions[number].rings:
            if len(points) > 2:
                rings.append(points)
                owners.append(number)
    if rings:
        owner_of_ring = np.array(owners)
        spans = _spans_of_rings(rings, size, owner_of_ring, regions)
        several = np.bincount(owner_of_ring, minlength=len(regions)) > 1
        if several.any():
            spans = _joined(spans, rings, owner_of_ring, several, regions)
        else:
            spans = spans._replace(owner=owner_of_ring[spans.owner])
        parts.append(spans)
    for number, region in enumerate(regions):
        if region.mask is not None:
            start, end = _spans_of_mask(region, size)
            parts.append(_Spans(start, end, np.full(len(start), number, np.int64)))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return _Spans(*(np.zeros(0, np.int64) for _ in range(3)))
    start, end, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(owner, kind="stable")
    return _Spans(start[order], end[order], owner[order])


def _spans_of_mask(region, size):
    mask, (height, width) = region.mask, size
    if isinstance(mask, Cutout):
        return _spans_of_cutout(mask, size)
    if mask.size != size:
        raise DataError(f"the mask is {mask.size[0]}x{mask.size[1]}, its image {height}x{width} "
                        "(height x width)", region.place)
    ends = np.cumsum(mask.counts)
    if (ends[-1] if len(ends) else 0) != height * width:
        raise DataError(f"the run lengths of the mask have {ends[-1] if len(ends) else 0} pixels, "
                        f"its image {height * width}", region.place)
    ones = len(ends) // 2
    start, end = ends[0:2 * ones:2], ends[1::2]
    filled = end > start
    return start[filled], end[filled]


def _spans_of_cutout(mask, size):
    """The spans of the part of a Cutout that lies in the image."""
    top, left = max(0, -mask.top), max(0, -mask.left)
    pixels = mask.pixels[top:max(0, size[0] - mask.top), left:max(0, size[1] - mask.left)]
    if not pixels.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # A row of zeros above and below ends every run within its column.
    padded = np.zeros((pixels.shape[1], pixels.shape[0] + 2), bool)
    padded[:, 1:-1] = pixels.T
    column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
    position = row + mask.top + top + (column + mask.left + left) * size[0]
    return position[0::2], position[1::2]


def _spans_of_rings(rings, size, owner, regions):
    """The spans of each ring; owner: its number."""
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    ends = np.cumsum(lengths)
    # The cast cuts towards zero, as C does.
    points = (np.concatenate(rings) * SCALE + 0.5).astype(np.int64)
    following = np.arange(1, ends[-1] + 1)
    following[ends - 1] = ends - lengths
    edges = _Edges(points, following, np.repeat(np.arange(len(rings)), lengths), size)
    most = min(max(PER_PIXEL * size[0] * size[1], FEW_CROSSINGS), MOST_CROSSINGS)
    if edges.total > most:
        crossings = np.bincount(edges.ring, edges.count, len(rings))
        raise DataError(f"the outlines of this image cross {edges.total} columns of pixels; the "
                        f"limit is {most}", regions[owner[np.argmax(crossings)]].place)
    # All crossings of a ring with a column are an even number, so pairs never mix rings or columns.
    area = size[0] * size[1] + 1
    keys = [number * area + position for position, number in edges.parts()]
    key = np.concatenate(keys) if keys else np.zeros(0, np.int64)
    if len(rings) * area < 1 << 31:
        key = key.astype(np.int32)          # sorted in half the time
    key.sort()
    start, end = key[0::2], key[1::2]
    filled = end > start
    start, end = start[filled].astype(np.int64), end[filled].astype(np.int64)
    number = start // area
    first = number * area
    return _Spans(start - first, end - first, number)


class _Edges:
    """The edges of rings that cross columns of the image; those walked along x come first.

    count: how many columns each crosses. total: all together. ring: which each belongs to.
    """

    def __init__(self, points, following, ring, size):
        x, y = (np.ascontiguousarray(column) for column in points.T)
        self.height = size[0]
        other_x, other_y = x[following], y[following]
        left, right = np.minimum(x, other_x), np.maximum(x, other_x)
        begin = np.maximum((left + 2) // SCALE, 0)
        count = np.minimum((right - 3) // SCALE, size[1] - 1) - begin + 1
        along_x, along_y = other_x - x, other_y - y
        flat = np.abs(along_x) >= np.abs(along_y)               # walked along x
        some = np.flatnonzero((count > 0) & flat)
        self.flat = len(some)
        some = np.concatenate((some, np.flatnonzero((count > 0) & ~flat)))
        self.begin, self.count, self.ring = begin[some], count[some], ring[some]
        self.total = int(self.count.sum())
        walked = np.where(flat, along_x, along_y)[some]
        # Edges are walked to the right, or down.
        start = np.where(walked < 0, following[some], some)
        self.x, self.y = x[start], y[start]
        self.slope = np.where(flat, along_y, along_x)[some] / walked

    def parts(self):
        """(position, ring) of the crossings, int64, of about _AT_ONCE together."""
        crossings = np.cumsum(self.count)
        for begin, limit in ((0, self.flat), (self.flat, len(self.count))):
            while begin < limit:
                done = crossings[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(crossings, done + _AT_ONCE)))
                yield self._part(slice(begin, min(end, limit)), begin >= self.flat)
                begin = end

    def _part(self, some, steep):
        count, x, y, slope = self.count[some], self.x[some], self.y[some], self.slope[some]
        edge = np.repeat(np.arange(len(count)), count)
        before = np.cumsum(count) - count
        column = np.arange(len(edge)) + (self.begin[some] - before)[edge]
        border = SCALE * column + 3         # the sub-column right of the crossing
        if steep:
            row = _steep_rows(x[edge], y[edge], slope[edge], border)
        else:       # the smaller y of both sides of the crossing
            steps = border - (x + (slope >= 0))[edge]
            row = (y[edge] + slope[edge] * steps + 0.5).astype(np.int64)
        row = (row + 2) // SCALE
        return np.clip(row, 0, self.height) + column * self.height, self.ring[some][edge]


def _steep_rows(x, y, slope, border):
    """The sub-row before that where an edge, walked along y, has passed `border`."""
    rising = slope > 0
    steps = np.ceil((border - 0.5 - x) / slope)

    def passed(steps):
        return (x + slope * steps + 0.5 >= border) == rising

    # The quotient may be off by its rounding; the walk decides.
    steps -= passed(steps - 1)
    steps += ~passed(steps)
    return y + steps.astype(np.int64) - 1


def _joined(spans, rings, owner_of_ring, several, regions):
    """The spans of regions: rings united, without those that lie inside another one."""
    ring_count = len(rings)
    begin = np.searchsorted(spans.owner, np.arange(ring_count + 1))
    weight = np.full(ring_count, 1)
    firsts = np.flatnonzero(np.diff(owner_of_ring, prepend=-1))
    for first, last in zip(firsts, [*firsts[1:], ring_count], strict=True):
        if last - first > 1:
            place = regions[owner_of_ring[first]].place
            depth = _depths(rings[first:last], [slice(begin[i], begin[i + 1])
                                                for i in range(first, last)], spans, place)
            weight[first:last] -= 2 * (depth % 2)
    owner = owner_of_ring[spans.owner]
    mixed = several[owner]
    single = _Spans(spans.start[~mixed], spans.end[~mixed], owner[~mixed])
    start, end = _summed(spans.start[mixed], spans.end[mixed], owner[mixed],
                         weight[spans.owner[mixed]])
    merged = [np.concatenate(pair) for pair in
              zip(single, (start[0], end[0], start[1]), strict=True)]
    order = np.argsort(merged[2], kind="stable")
    return _Spans(*(column[order] for column in merged))


def _summed(start, end, owner, weight):
    """((start, owner), (end, owner)) of the spans where the weights of an owner sum up above 0."""
    position, whose = np.concatenate((start, end)), np.concatenate((owner, owner))
    change = np.concatenate((weight, -weight))
    order = np.lexsort((position, whose))
    position, whose, change = position[order], whose[order], change[order]
    last = np.append((np.diff(position) != 0) | (np.diff(whose) != 0), True) \
        if len(position) else np.zeros(0, bool)
    covered = np.cumsum(change)[last] > 0       # each owner's changes sum up to 0
    position, whose = position[last], whose[last]
    before = np.concatenate(([False], covered[:-1])) if len(covered) else covered
    begins, ends = covered & ~before, before & ~covered
    return (position[begins], whose[begins]), (position[ends], whose[ends])


def _depths(rings, spans_of, spans, place):
    """In how many others of its region each ring lies, (N,).

    One lies in another if its box does, and its pixels do: pixels decide between outlines that
    touch, and boxes between those that cover the whole image.
    """
    boxes = np.array([(*points.min(0), *points.max(0)) for points in rings])
    areas = [int((spans.end[mine] - spans.start[mine]).sum()) for mine in spans_of]
    depth, tested = np.zeros(len(rings), np.int64), 0
    for inner in range(len(rings)):
        around = np.all((boxes[:, :2] <= boxes[inner, :2]) & (boxes[:, 2:] >= boxes[inner, 2:]), 1)
        for outer in np.flatnonzero(around):
            if outer == inner:
                continue
            tested += 1
            if tested > MOST_NESTED:
                raise DataError(f"more than {MOST_NESTED} pairs of its outlines lie in each other",
                                place)
            smaller = areas[inner] < areas[outer] or (boxes[inner] != boxes[outer]).any()
            depth[inner] += bool(smaller and _covers(spans, spans_of[outer], spans_of[inner]))
    return depth


def _covers(spans, outer, inner):
    """Whether the spans `outer` contain the spans `inner`."""
    start, end = spans.start[outer], spans.end[outer]
    if not len(start):
        return inner.start == inner.stop
    at = np.searchsorted(start, spans.start[inner], side="right") - 1
    return bool(((at >= 0) & (end[at] >= spans.end[inner])).all())


def _painted(spans, colors, size):
    """The map (H, W) in which each pixel has the color of the last owner that covers it.

    colors: one per owner, and that of the background last. spans: sorted by owner.
    """
    height, width = size
    borders, first, last = _pieces(spans, height * width)
    # Between two borders nothing changes. A span of n such pieces is the union of two of 2^level
    # pieces; levels[k, i] is the last owner of the pieces i to i + 2^k - 1.
    level = np.frexp(last - first)[1] - 1
    levels = np.full((level.max(initial=0) + 1, len(borders)), -1, np.int32)
    both = np.stack((first, last - (1 << level)), 1).ravel()
    levels.ravel()[np.repeat(level * len(borders), 2) + both] = np.repeat(spans.owner, 2)
    for k in range(len(levels) - 1, 0, -1):
        half = 1 << (k - 1)
        np.maximum(levels[k - 1], levels[k], out=levels[k - 1])
        np.maximum(levels[k - 1, half:], levels[k, :-half], out=levels[k - 1, half:])
    pieces = np.repeat(colors[levels[0, :-1]], np.diff(borders))
    return cv2.transpose(pieces.reshape(width, height))


def _pieces(spans, area):
    """(the positions where spans begin or end, sorted, with 0 and `area`; the index of each start
    and of each end among them)."""
    if len(spans.start) * _SPARSE < area:
        borders = np.sort(np.concatenate((spans.start, spans.end, [0, area])))
        borders = borders[np.diff(borders, prepend=-1) > 0]
        return borders, np.searchsorted(borders, spans.start), np.searchsorted(borders, spans.end)
    marked = np.zeros(area + 1, bool)
    marked[spans.start] = marked[spans.end] = marked[[0, area]] = True
    borders = np.flatnonzero(marked)
    index = np.empty(area + 1, np.int32)
    index[borders] = np.arange(len(borders), dtype=np.int32)
    return borders, index[spans.start], index[spans.end]
