"""Transforms of a whole batch, on the device it trains on.

Named in train_loader.args as "batch_transforms": [{"type": NAME, "args": {...}}, ...]
and applied in that order by the trainer. A public subclass of BatchTransform in any
file of this package can be named.

Random numbers come from torch's CPU generator, which the trainer seeds by (seed, step,
rank): a resumed run repeats them, and a GPU draws what a CPU draws. Nothing is read
back from the device.
"""
from abc import ABC, abstractmethod

import torch

# Class -> the ground it is put on; hoya012's tutorial, Cityscapes train ids:
# wall and fence on the pavement, bus and train on the road.
TUTORIAL_PAIRS = ((3, 1), (4, 1), (15, 0), (16, 0))


class BatchTransform(ABC):
    """A random operation on {"image": uint8 (N, 3, H, W), "label": (N, H, W), ...}.

    Other tensors of shape (N, ..., H, W), a dataset's own targets, move with the label.
    """

    @abstractmethod
    def __call__(self, batch: dict) -> dict:
        """A new batch; the tensors of the old one are not changed."""


class CutMix(BatchTransform):
    """A box of every image, with its labels, from another image of the batch.

    Yun et al., 2019 (arXiv:1905.04899), with labels pasted as they are, as French et
    al., 2020 (arXiv:1906.01916) and hoya012's tutorial do for segmentation. The box
    has a share 1 - λ of the area, λ from Beta(alpha, alpha); its centre is uniform, and
    what lies outside is cut off. p: how often a batch is mixed.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0):
        if alpha <= 0 or not 0 <= p <= 1:
            raise ValueError(f"alpha must be above 0 and p from 0 to 1, got {alpha} and {p}")
        self.kept, self.p = torch.distributions.Beta(alpha, alpha), p

    def __call__(self, batch):
        number, height, width = batch["label"].shape
        chance, down, right = torch.rand(3, dtype=torch.float64).tolist()
        kept, donors = self.kept.sample().item(), torch.randperm(number)
        if chance >= self.p:
            return batch
        rows, columns = cutmix_box(kept, int(down * height), int(right * width), (height, width))
        donors = donors.to(batch["label"].device, non_blocking=True)
        return {key: _with_box(value, donors, rows, columns) if _is_map(value, batch) else value
                for key, value in batch.items()}


class CopyBlob(BatchTransform):
    """Rare things of one image put onto the ground in another; hoya012's tutorial.

    Every image gets, from one image of the batch (perhaps itself) and for each pair
    [class, ground] in turn: all pixels of the class, moved so that the one with the
    smallest row + column lies on a random pixel of the ground. Where the donor has no
    such class or the image no such ground, nothing happens. p: how often an image
    receives something.

    Different from the tutorial: pixels that would lie outside the image are dropped
    (there they smear along the right and lower edge, or appear on the other side), and
    things are taken from the images as loaded, not as already pasted upon.
    """

    def __init__(self, pairs: tuple[tuple[int, int], ...] = TUTORIAL_PAIRS, p: float = 1.0,
                 num_classes: int | None = None):
        if not pairs or not 0 <= p <= 1:
            raise ValueError(f"pairs must not be empty and p is from 0 to 1, got {list(pairs)} "
                             f"and {p}")
        wrong = [one for pair in pairs for one in pair
                 if one < 0 or (num_classes is not None and one >= num_classes)]
        if wrong:
            raise ValueError(f"pairs names class {wrong[0]}; the dataset has the classes 0 to "
                             f"{num_classes - 1}" if num_classes else
                             f"pairs names class {wrong[0]}, below 0")
        self.pairs, self.p = pairs, p

    def __call__(self, batch):
        label = batch["label"]
        number, height, width = label.shape
        donors = torch.randint(number, (number,))
        draws = torch.rand(len(self.pairs) + 1, number, dtype=torch.float64)
        receives = (draws[-1] < self.p).to(label.device, non_blocking=True)
        donors = donors.to(label.device, non_blocking=True)
        draws = draws[:-1].to(label.device, non_blocking=True)
        origin = torch.arange(number * height * width, device=label.device).view(number, -1)
        given, shown = label[donors], label
        for (kind, ground), place in zip(self.pairs, draws):
            lands, source = blob_origin(given == kind, pick_pixel(shown == ground, place))
            lands &= receives[:, None]
            origin = torch.where(lands, source.add_(donors[:, None] * (height * width)), origin)
            shown = torch.where(lands.view_as(shown), kind, shown)
        return {key: _gathered(value, origin) if _is_map(value, batch) else value
                for key, value in batch.items()}


def cutmix_box(kept: float, row: int, column: int,
               size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a box of the share 1 - kept of the area, around (row, column)."""
    side = (1 - kept) ** 0.5
    spans = []
    for centre, length in zip((row, column), size):
        half = int(length * side) // 2
        spans.append(slice(max(0, centre - half), min(length, centre + half)))
    return tuple(spans)


def pick_pixel(mask: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Per image the row-major index of a pixel in mask (N, H, W) bool; -1 where there is none.

    place: (N,) in [0, 1), which of the pixels: 0 the first, 0.999 the last.
    """
    number, height, width = mask.shape
    # First the row, then the pixel in it: nothing is as large as the mask.
    until = mask.sum(2).cumsum(1)
    total = until[:, -1]
    wanted = torch.minimum((place * total).long(), total - 1)
    row = torch.searchsorted(until, wanted[:, None] + 1)[:, 0].clamp_(max=height - 1)
    image = torch.arange(number, device=mask.device)
    in_row = mask[image, row].cumsum(1)
    wanted = wanted - until[image, row] + in_row[:, -1]
    column = torch.searchsorted(in_row, wanted[:, None] + 1)[:, 0]
    return torch.where(total > 0, row * width + column, -1)


def blob_origin(mask: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(bool, int64), both (N, H·W): whether the blob comes to a pixel, and from where.

    mask: (N, H, W) bool, the blob; it moves so that its pixel of smallest row + column
    (the first of several) comes to `target`, (N,) row-major, -1 for nowhere. Pixels
    that leave the image are dropped. Places are row-major.
    """
    number, height, width = mask.shape
    row = torch.arange(height, device=mask.device)
    column = torch.arange(width, device=mask.device)
    # The best of a row is its first pixel; the remainder of `rank` says which row it was.
    first = torch.where(mask, column.int(), width).amin(2).long()
    rank = torch.where(first < width, (row + first) * height + row, (height + width) * height)
    top = rank.amin(1) % height
    left = first.gather(1, top[:, None])[:, 0]
    down, right = target // width - top, target % width - left
    above, beside = row - down[:, None], column - right[:, None]
    inside = (((above >= 0) & (above < height) & (target >= 0)[:, None])[:, :, None]
              & ((beside >= 0) & (beside < width))[:, None, :]).flatten(1)
    source = torch.arange(height * width, device=mask.device) - (down * width + right)[:, None]
    source.clamp_(0, height * width - 1)
    return inside & mask.flatten(1).gather(1, source), source


def _is_map(value, batch):
    """Whether a value of the batch holds something per pixel."""
    size = batch["label"].shape
    return (isinstance(value, torch.Tensor) and value.dim() >= 3 and len(value) == size[0]
            and value.shape[-2:] == size[1:])


def _with_box(value, donors, rows, columns):
    mixed = value.clone()
    mixed[..., rows, columns] = value[..., rows, columns][donors]
    return mixed


def _gathered(value, origin):
    """value (N, ..., H, W) at the pixels origin (N, H·W) of the flattened batch."""
    # Images lie in memory with their channels last, so this makes a copy only of other maps.
    pixels = value.movedim((-2, -1), (1, 2))
    flat = pixels.reshape(-1, *pixels.shape[3:])
    return flat[origin.view(-1)].view(pixels.shape).movedim((1, 2), (-2, -1))
