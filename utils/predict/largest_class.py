"""The class of the largest logit, for every pixel.

`upsampled_labels` returns the labels of bilinearly resized logits without resizing all of them.
Cut the image into cells whose corners are four neighboring small logits. A resized value is a
weighted mean of the four corners of its cell, so a class that leads at all four corners leads in
the whole cell. Only cells whose corners disagree are computed, with the arithmetic of torch's
resize, bit for bit.
"""
import functools

import torch
import torch.nn.functional as F

from utils.machine.tensors import LabelBatch, Logits, label_dtype

CELL_BYTES = 1 << 20        # of logits of undecided cells at a time: fits in a core's cache
MOST_OPEN = 0.8             # with a larger share of undecided cells, resizing everything is faster
# For outputs with H + W up to this, and for three channels, torch has other kernels, which round
# differently.
SMALL_SIZES = 128


def largest_class(scores: Logits) -> LabelBatch:
    """The index of the largest of (N, C, H, W), any float, along C; the first of equals: (N, H, W).

    Also of volumes (N, C, D, H, W): (N, D, H, W).
    uint8 up to 255 classes, int16 above. A nan counts as the largest.
    """
    classes = scores.shape[1]
    if scores.device.type != "cpu" or classes > 255 or scores.stride(-1) != 1:
        label = scores.max(dim=1).indices
        return label.to(label_dtype(classes))
    # Comparing with the maximum, and a maximum over one byte per value, are both vectorized;
    # torch's maximum with its index is not, and takes four times as long.
    best = (scores == scores.amax(1, keepdim=True)).view(torch.uint8)
    best *= torch.arange(classes, 0, -1, dtype=torch.uint8).view(
        -1, *[1] * (scores.ndim - 2))
    best = best.amax(1)
    if not best.all():      # a nan does not equal the maximum
        return scores.max(dim=1).indices.to(torch.uint8)
    return best.neg_().add_(classes)


def upsampled_labels(small: Logits, size: tuple[int, int],
                     align_corners: bool = False) -> LabelBatch:
    """largest_class(F.interpolate(small, size, mode="bilinear")), exactly, without the resize.

    small: (N, C, h, w); size: (H, W) -> (N, H, W). Logits on other devices than a CPU or not in
    float32, a resize to less than twice the size, and builds of torch that round in another way
    are resized in full.
    """
    if not _applies(small, size, align_corners):
        return largest_class(_resized(small, size, align_corners))
    return torch.stack([_labels_of_one(image, size, align_corners) for image in small])


def _resized(x, size, align_corners):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _applies(small, size, align_corners):
    h, w = small.shape[-2:]
    return (small.device.type == "cpu" and small.dtype == torch.float32
            and small.is_contiguous() and 2 <= small.shape[1] <= 255 and small.shape[1] != 3
            and min(h, w) >= 2 and size[0] >= 2 * h and size[1] >= 2 * w
            and sum(size) > SMALL_SIZES and _rounds_alike(align_corners))


def _labels_of_one(x, size, align_corners):
    """The labels (H, W), uint8, of the logits x (C, h, w) resized to `size`."""
    down = _cells(x.shape[1], size[0], align_corners)
    across = _cells(x.shape[2], size[1], align_corners)
    leader, sure = _leaders(x)
    first, *others = _at_corners(leader, down, across)      # (rows, columns) of cells
    decided = torch.ones_like(first, dtype=torch.bool)
    for other in others:
        decided &= first == other
    for corner in _at_corners(sure, down, across):
        decided &= corner
    rows, columns = (~decided).nonzero(as_tuple=True)
    if len(rows) > MOST_OPEN * decided.numel():
        return largest_class(_resized(x[None], size, align_corners))[0]
    labels = _grid(first, down.cell, across.cell)
    _label_open_cells(labels, x, down, across, rows, columns)
    return labels


def _label_open_cells(labels, x, down, across, rows, columns):
    """Compute the output pixels of the cells at (rows, columns) and write them into `labels`.

    A resized value v[k] of class k is a weighted mean of the corner values c[i, k], so
    min_i c[i, k] <= v[k] <= max_i c[i, k]. Class k can therefore only win in a cell if

        max_i c[i, k] >= max_j min_i c[i, j]

    up to rounding. In most cells that leaves two to four candidates; only they are resized.
    """
    classes, h, w = x.shape
    table = x.permute(1, 2, 0).reshape(h * w, classes)
    corners = [table[low_or_high[rows] * w + left_or_right[columns]]
               for low_or_high in (down.low, down.high)
               for left_or_right in (across.low, across.high)]         # four of (cells, C)
    floor = torch.stack(corners).amin(0).amax(1, keepdim=True)
    candidate = torch.stack(corners).amax(0) >= floor - _tolerance(x)
    flat, width = labels.view(-1), labels.shape[1]
    pixels_per_cell = down.rows.shape[1] * across.rows.shape[1]
    for most, group in _by_candidates(candidate):
        step = max(1, CELL_BYTES // (4 * most * pixels_per_cell))
        for cells in group.split(step) if len(group) else ():
            row, column = rows[cells], columns[cells]
            winner = _winners([corner[cells] for corner in corners], candidate[cells], most,
                              down.share[row], across.share[column])
            pixels = down.rows[row][:, :, None] * width + across.rows[column][:, None]
            flat[pixels.view(-1)] = winner.view(-1).to(labels.dtype)


def _by_candidates(candidate):
    """Yields (most, indices of the cells with up to `most` candidates), each cell once.

    candidate: bool (cells, C). Cells of one group are computed with `most` classes each.
    """
    classes, count, fewest = candidate.shape[1], candidate.sum(1), 0
    for most in (2, 4, 8, classes):
        most = min(most, classes)
        group = ((count > fewest) & (count <= most)).nonzero().squeeze(1)
        if most == classes:
            # A cell without any candidate contains nans, which only the full comparison handles.
            yield most, torch.cat((group, (count == 0).nonzero().squeeze(1)))
            return
        yield most, group
        fewest = most


def _winners(corners, candidate, most, down_share, across_share):
    """The winning class of each output pixel of n cells, (n, pixels) int64.

    corners: four of (n, C); candidate: (n, C), of which up to `most` are True in a row.
    """
    classes = None
    if most < candidate.shape[1]:
        # Rows with fewer candidates are filled up with other classes. The classes stay in
        # ascending order, so that the first of equals wins.
        classes = candidate.view(torch.uint8).topk(most, 1, sorted=False).indices.sort(1).values
        corners = [corner.gather(1, classes) for corner in corners]
    values = _inside(corners, down_share, across_share)
    winner = largest_class(values).view(len(values), -1).long()
    return winner if classes is None else classes.gather(1, winner)


def _at_corners(x, down, across):
    """Yields x (h, w) at the four corners of every cell: (rows of cells, columns of cells)."""
    for rows in (down.low, down.high):
        for columns in (across.low, across.high):
            yield _grid(x, rows, columns)


def _grid(x, rows, columns):
    return x.index_select(1, columns).index_select(0, rows)


def _inside(corners, down, across):
    """The resized values of cells: four corners (n, k), weights (n, s) and (n, t) -> (n, k, s, t).

    torch's order: along a row first; low * (1 - share) + (high * share), where the second
    product is rounded and the first one is fused into the sum.
    """
    across, down = across[:, None, :], down[:, None, :, None]
    a, b, c, d = (corner[:, :, None] for corner in corners)
    upper = torch.addcmul(b * across, a, 1 - across)[:, :, None]
    lower = torch.addcmul(d * across, c, 1 - across)[:, :, None]
    return torch.addcmul(lower * down, upper, 1 - down)


def _leaders(x):
    """(leading class uint8, whether it leads by more than rounding errors), each (h, w)."""
    first, leader = x.max(0)
    second = x.scatter(0, leader[None], float("-inf")).amax(0)
    return leader.to(torch.uint8), first - second > _tolerance(x)


def _tolerance(x):
    """An upper bound of the rounding error of one resized value."""
    return 8 * torch.finfo(torch.float32).eps * x.abs().amax()


class _Cells:
    """The cells between neighboring low-resolution samples along one axis.

    cell: (M,) the cell of each output position. low, high: (cells,) the samples at their ends.
    rows: (cells, longest) the output positions in each, filled up with the last one.
    share: (cells, longest) the weight of `high` at those positions.
    """

    def __init__(self, low, high, share):
        start = torch.ones_like(low, dtype=torch.bool)
        # Positions before the first sample are a separate cell; joined to the next one they would
        # make it the longest.
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
    """For each of m outputs: the two of n samples around it, and the weight of the second one."""
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
    # Each output pixel is a "cell" of one pixel: the weights of the two axes as one list.
    down = down[:, None].expand(size).reshape(-1).repeat(4)
    across = across.expand(size).reshape(-1).repeat(4)
    computed = _inside([corner.T for corner in corners], down[:, None], across[:, None])
    expected = _resized(x, size, align_corners)
    return torch.equal(computed.view(-1), expected.view(-1))
