"""The class of the largest logit, for every pixel.

`upsampled_labels` gives the labels of bilinearly resized logits without
resizing them: a bilinear value is a weighted mean of four corners, so where
one class leads in all four it leads in between. Only cells whose corners
disagree are computed, with the very arithmetic of torch's own resize.
"""
import functools

import torch
import torch.nn.functional as F

CELL_BYTES = 1 << 20        # of logits of undecided cells at a time: fits a core's cache
MOST_OPEN = 0.8             # share of such cells beyond which resizing everything is quicker
# torch has other kernels, which round differently, for outputs of H + W up to this and for
# three channels.
SMALL_SIZES = 128


def largest_class(scores: torch.Tensor) -> torch.Tensor:
    """The index of the largest of (N, C, H, W) along C, the first of equals: (N, H, W).

    uint8 up to 255 classes, int16 above. A nan counts as the largest.
    """
    classes = scores.shape[1]
    if scores.device.type != "cpu" or classes > 255 or scores.stride(-1) != 1:
        label = scores.max(dim=1).indices
        return label.to(torch.uint8 if classes <= 255 else torch.int16)
    # Comparing with the maximum and taking the maximum of a byte per value are both
    # vectorised; torch's maximum with its index is not, and takes four times as long.
    best = (scores == scores.amax(1, keepdim=True)).view(torch.uint8)
    best *= torch.arange(classes, 0, -1, dtype=torch.uint8).view(-1, 1, 1)
    best = best.amax(1)
    if not best.all():      # nan equals nothing
        return scores.max(dim=1).indices.to(torch.uint8)
    return best.neg_().add_(classes)


def upsampled_labels(small: torch.Tensor, size: tuple[int, int],
                     align_corners: bool = False) -> torch.Tensor:
    """largest_class(F.interpolate(small, size, mode="bilinear")), exactly, without the resize.

    small: (N, C, h, w); size: (H, W) -> (N, H, W). Other devices than a CPU, other
    types than float32, shrinking, and builds of torch that round in another way
    are resized in full.
    """
    if not _applies(small, size, align_corners):
        full = F.interpolate(small, size, mode="bilinear", align_corners=align_corners)
        return largest_class(full)
    return torch.stack([_labels_of_one(image, size, align_corners) for image in small])


def _applies(small, size, align_corners):
    h, w = small.shape[-2:]
    return (small.device.type == "cpu" and small.dtype == torch.float32
            and small.is_contiguous() and 2 <= small.shape[1] <= 255 and small.shape[1] != 3
            and min(h, w) >= 2 and size[0] >= 2 * h and size[1] >= 2 * w
            and sum(size) > SMALL_SIZES and _rounds_alike(align_corners))


def _labels_of_one(x, size, align_corners):
    """(C, h, w) -> (H, W)."""
    classes, h, w = x.shape
    down, across = _cells(h, size[0], align_corners), _cells(w, size[1], align_corners)
    corner, sure = _leaders(x)
    # (rows, columns) of cells: the leader at each corner, and whether all four are one.
    a, b, c, d = (_grid(corner, rows, columns) for rows in (down.low, down.high)
                  for columns in (across.low, across.high))
    same = (a == b) & (a == c) & (a == d)
    for rows in (down.low, down.high):
        for columns in (across.low, across.high):
            same &= _grid(sure, rows, columns)
    open_rows, open_columns = (~same).nonzero(as_tuple=True)
    if len(open_rows) > MOST_OPEN * same.numel():
        full = F.interpolate(x[None], size, mode="bilinear", align_corners=align_corners)
        return largest_class(full)[0]
    labels = _grid(a, down.cell, across.cell)
    table = x.permute(1, 2, 0).reshape(h * w, classes)
    corners = [table[rows[open_rows] * w + columns[open_columns]] for rows in (down.low, down.high)
               for columns in (across.low, across.high)]           # four of (cells, C)
    # A class can only win where its best corner reaches what some class has everywhere.
    floor = torch.stack(corners).amin(0).amax(1, keepdim=True)
    rival = torch.stack(corners).amax(0) >= floor - _tolerance(x)
    rivals = rival.sum(1)
    flat, width = labels.view(-1), size[1]
    for fewest, most in ((0, 2), (2, 4), (4, 8), (8, classes)):
        most = min(most, classes)
        chosen = ((rivals > fewest) & (rivals <= most)).nonzero().squeeze(1)
        if most == classes:
            # Without a rival at all there are nans: let the full comparison see them.
            chosen = torch.cat((chosen, (rivals == 0).nonzero().squeeze(1)))
        pixels = down.rows.shape[1] * across.rows.shape[1]
        step = max(1, CELL_BYTES // (4 * most * pixels))
        for cells in chosen.split(step) if len(chosen) else ():
            ids = None
            values = [corner[cells] for corner in corners]
            if most < classes:
                # Rivals first, each group in the order of the classes: the first of equals wins.
                ids = rival[cells].view(torch.uint8).topk(most, 1, sorted=False).indices
                ids = ids.sort(1).values
                values = [value.gather(1, ids) for value in values]
            rows, columns = open_rows[cells], open_columns[cells]
            found = _inside(values, down.share[rows], across.share[columns])
            winner = largest_class(found).view(len(cells), -1).long()
            if ids is not None:
                winner = ids.gather(1, winner)
            where = down.rows[rows][:, :, None] * width + across.rows[columns][:, None]
            flat[where.view(-1)] = winner.view(-1).to(labels.dtype)
        if most == classes:
            break
    return labels


def _grid(x, rows, columns):
    return x.index_select(1, columns).index_select(0, rows)


def _inside(corners, down, across):
    """The resized values of cells: four corners (n, k), weights (n, s) and (n, t) -> (n, k, s, t).

    torch's order: along a row first; low * (1 - share) + (high * share), the
    second product rounded and the first one fused into the sum.
    """
    across, down = across[:, None, :], down[:, None, :, None]
    a, b, c, d = (corner[:, :, None] for corner in corners)
    upper = torch.addcmul(b * across, a, 1 - across)[:, :, None]
    lower = torch.addcmul(d * across, c, 1 - across)[:, :, None]
    return torch.addcmul(lower * down, upper, 1 - down)


def _leaders(x):
    """(leading class, whether it leads by more than rounding can undo), each (h, w)."""
    first, leader = x.max(0)
    second = x.scatter(0, leader[None], float("-inf")).amax(0)
    return leader.to(torch.uint8), first - second > _tolerance(x)


def _tolerance(x):
    """More than the rounding of one resized value can amount to."""
    return 8 * torch.finfo(torch.float32).eps * x.abs().amax()


class _Cells:
    """The cells between neighbouring low-resolution samples along one axis.

    cell: (M,) of each output position. low, high: (cells,) samples at their ends.
    rows: (cells, longest) output positions in each, the last one repeated.
    share: (cells, longest) weight of `high` at those positions.
    """

    def __init__(self, low, high, share):
        start = torch.ones_like(low, dtype=torch.bool)
        # Positions before the first sample make a cell of their own, or it would be the longest.
        start[1:] = (low[1:] != low[:-1]) | ((share[1:] > 0) & (share[:-1] == 0) & (low[1:] == 0))
        self.cell = start.cumsum(0) - 1
        first = start.nonzero().squeeze(1)
        length = torch.diff(first, append=torch.tensor([len(low)]))
        offsets = torch.arange(int(length.max()))
        self.rows = first[:, None] + torch.minimum(offsets, length[:, None] - 1)
        self.low, self.high, self.share = low[first], high[first], share[self.rows]


@functools.lru_cache(maxsize=32)
def _cells(n, m, align_corners):
    return _Cells(*_samples(n, m, align_corners))


def _samples(n, m, align_corners):
    """For each of m outputs: the two of n samples around it and the weight of the second."""
    at = torch.arange(m, dtype=torch.float32)
    if align_corners:
        at = at * torch.tensor((n - 1) / max(m - 1, 1), dtype=torch.float32)
    else:
        scale = torch.tensor(float(n)) / torch.tensor(float(m))
        at = ((at + 0.5) * scale - 0.5).clamp_(min=0)
    low = at.long().clamp_(max=n - 1)
    return low, (low + 1).clamp_(max=n - 1), at - low


@functools.lru_cache(maxsize=4)
def _rounds_alike(align_corners):
    """Whether this build of torch resizes with the arithmetic of `_inside`, bit for bit."""
    x = torch.randn(1, 4, 7, 9, generator=torch.Generator().manual_seed(0))
    size = 51, 97
    (low, high, down), (left, right, across) = (
        _samples(n, m, align_corners) for n, m in zip(x.shape[2:], size, strict=True))
    corners = [x[:, :, rows][..., columns].reshape(1, -1) for rows in (low, high)
               for columns in (left, right)]
    # One output pixel per "cell": every weight of the two axes as one list.
    down = down[:, None].expand(size).reshape(-1).repeat(4)
    across = across.expand(size).reshape(-1).repeat(4)
    ours = _inside([corner.T for corner in corners], down[:, None], across[:, None])
    theirs = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    return torch.equal(ours.view(-1), theirs.view(-1))
