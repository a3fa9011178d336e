"""Transforms of a whole training batch, on the device.

They are named in train_loader.args as "batch_transforms": [{"type": NAME, "args": {...}},
...] and applied in that order by the trainer. To add one, write a public subclass of
BatchTransform in any file of this package.

Random numbers come from torch's CPU generator, which the trainer seeds by (seed, step,
rank): a resumed run repeats them, and the draws are the same on CPU and GPU. Nothing is
read back from the device.
"""
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from utils.machine import distributed

# (class, ground class it is pasted onto) of hoya012's tutorial, Cityscapes train ids: wall and
# fence onto the pavement, bus and train onto the road.
TUTORIAL_PAIRS = ((3, 1), (4, 1), (15, 0), (16, 0))


class BatchTransform(ABC):
    """A random operation on {"image": uint8 (N, 3, H, W), "label": (N, H, W), ...}.

    Other tensors of shape (N, ..., H, W), such as a dataset's targets, move with the label.
    """

    least_images: int = 1       # that a batch must have for the operation to change it

    @abstractmethod
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A new batch; the tensors of the given one are not changed."""


class CutMix(BatchTransform):
    """Replaces a box of every image and its label by that of another image of the batch.

    Yun et al., 2019 (arXiv:1905.04899); labels are pasted unchanged, as French et al.,
    2020 (arXiv:1906.01916) and hoya012's tutorial do for segmentation. The box has a
    share 1 - λ of the area, λ from Beta(alpha, alpha); its center is uniform, and it is
    cut off at the edges of the image. p: probability that a batch is mixed. all_ranks: the images
    of all processes are one batch, with one box.
    """

    least_images = 2

    def __init__(self, alpha: float = 1.0, p: float = 1.0, all_ranks: bool = False):
        if alpha <= 0 or not 0 <= p <= 1:
            raise ValueError(f"alpha must be above 0 and p from 0 to 1, got {alpha} and {p}")
        self.kept, self.p = torch.distributions.Beta(alpha, alpha), p
        self.all_ranks = all_ranks
        if all_ranks and distributed.world_size() > 1:
            self.least_images = 1

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return over_all_ranks(self._mixed, batch) if self.all_ranks else self._mixed(batch)

    def _mixed(self, batch):
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
    """Pastes rare objects of one image onto the ground in another; hoya012's tutorial.

    Every image receives, from one image of the batch (perhaps itself) and for each pair
    [class, ground] in turn: all pixels of the class, moved so that the pixel with the
    smallest row + column lies on a random pixel of the ground. Nothing is pasted if the
    donor has no pixel of the class or the image none of the ground. p: probability that
    an image receives objects. all_ranks: the images of all processes are one batch.

    Different from the tutorial: pixels that would lie outside the image are dropped
    (there they smear along the right and lower edge, or appear on the other side), and
    objects are taken from the images as loaded, not from those already pasted onto.
    """

    def __init__(self, pairs: tuple[tuple[int, int], ...] = TUTORIAL_PAIRS, p: float = 1.0,
                 all_ranks: bool = False, num_classes: int | None = None):
        if not pairs or not 0 <= p <= 1:
            raise ValueError(f"pairs must not be empty and p is from 0 to 1, got {list(pairs)} "
                             f"and {p}")
        wrong = [id_ for pair in pairs for id_ in pair
                 if id_ < 0 or (num_classes is not None and id_ >= num_classes)]
        if wrong:
            raise ValueError(f"pairs names class {wrong[0]}; the dataset has the classes 0 to "
                             f"{num_classes - 1}" if num_classes else
                             f"pairs names class {wrong[0]}, below 0")
        self.pairs, self.p, self.all_ranks = pairs, p, all_ranks

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return over_all_ranks(self._pasted, batch) if self.all_ranks else self._pasted(batch)

    def _pasted(self, batch):
        label = batch["label"]
        number, height, width = label.shape
        donors = torch.randint(number, (number,))
        draws = torch.rand(len(self.pairs) + 1, number, dtype=torch.float64)
        receives = (draws[-1] < self.p).to(label.device, non_blocking=True)
        donors = donors.to(label.device, non_blocking=True)
        draws = draws[:-1].to(label.device, non_blocking=True)
        origin = torch.arange(number * height * width, device=label.device).view(number, -1)
        given, shown = label[donors], label
        for (class_id, ground), place in zip(self.pairs, draws, strict=True):
            pasted, source = blob_origin(given == class_id, pick_pixel(shown == ground, place))
            pasted &= receives[:, None]
            origin = torch.where(pasted, source.add_(donors[:, None] * (height * width)), origin)
            shown = torch.where(pasted.view_as(shown), class_id, shown)
        return {key: _gathered(value, origin) if _is_map(value, batch) else value
                for key, value in batch.items()}


def over_all_ranks(transform: Callable[[dict[str, Any]], dict[str, Any]],
                   batch: dict[str, Any]) -> dict[str, Any]:
    """This rank's images of `transform` applied to the images of all ranks as one batch.

    All ranks draw the same numbers: their generators are set to a seed that rank 0 draws, and
    afterwards set back. The maps of all ranks must be of one size; their numbers may differ.
    """
    if distributed.world_size() == 1:
        return transform(batch)
    counts = distributed.gather(len(batch["label"]))
    seed = distributed.broadcast_object(int(torch.randint(2 ** 62, (1,))))
    names = [name for name, value in batch.items() if _is_map(value, batch)]
    whole = {name: distributed.gather_images(batch[name], counts) for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixed = transform(whole)
    first = sum(counts[:distributed.rank()])
    mine = slice(first, first + counts[distributed.rank()])
    return {**batch, **{name: mixed[name][mine] for name in names}}


def cutmix_box(kept: float, row: int, column: int,
               size: tuple[int, int]) -> tuple[slice, slice]:
    """(rows, columns) of a box around (row, column) with a share 1 - kept of size (H, W)."""
    side = (1 - kept) ** 0.5

    def span(center, length):
        half = int(length * side) // 2
        return slice(max(0, center - half), min(length, center + half))

    return span(row, size[0]), span(column, size[1])


def pick_pixel(mask: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """(N,) int64: the row-major index of one pixel of each mask (N, H, W) bool; -1 if empty.

    place: (N,) float in [0, 1) that selects the pixel: 0 the first, 0.999 the last.
    """
    number, height, width = mask.shape
    # First the row, then the pixel in it: no other tensor is as large as the mask.
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
    """(bool, int64), both (N, H·W): whether a pixel is pasted onto, and its row-major source.

    mask: (N, H, W) bool, the blob. It is moved so that its pixel with the smallest row +
    column (the first of several) comes to `target`, int64 (N,), row-major, -1 for nowhere.
    Pixels that leave the image are dropped.
    """
    number, height, width = mask.shape
    row = torch.arange(height, device=mask.device)
    column = torch.arange(width, device=mask.device)
    # The best pixel of a row is its first; the remainder of `rank` is the number of the row.
    first = torch.where(mask, column.int(), width).amin(2).long()
    rank = torch.where(first < width, (row + first) * height + row, (height + width) * height)
    top = rank.amin(1) % height
    left = first.gather(1, top[:, None])[:, 0]
    down, right = target // width - top, target % width - left
    from_row, from_column = row - down[:, None], column - right[:, None]
    inside = (((from_row >= 0) & (from_row < height) & (target >= 0)[:, None])[:, :, None]
              & ((from_column >= 0) & (from_column < width))[:, None, :]).flatten(1)
    source = torch.arange(height * width, device=mask.device) - (down * width + right)[:, None]
    source.clamp_(0, height * width - 1)
    return inside & mask.flatten(1).gather(1, source), source


def _is_map(value, batch):
    """Whether a value of the batch is a tensor (N, ..., H, W)."""
    size = batch["label"].shape
    return (isinstance(value, torch.Tensor) and value.dim() >= 3 and len(value) == size[0]
            and value.shape[-2:] == size[1:])


def _with_box(value, donors, rows, columns):
    """value (N, ..., H, W) with the box of each image taken from its donor (N,)."""
    if value.dtype == torch.uint16:     # GPUs cannot index it
        return _with_box(value.view(torch.int16), donors, rows, columns).view(torch.uint16)
    mixed = value.clone()
    mixed[..., rows, columns] = value[..., rows, columns][donors]
    return mixed


def _gathered(value, origin):
    """value (N, ..., H, W) at the pixels origin (N, H·W) of the flattened batch."""
    if value.dtype == torch.uint16:
        return _gathered(value.view(torch.int16), origin).view(torch.uint16)
    # Images are stored with channels last, so only other maps are copied here.
    pixels = value.movedim((-2, -1), (1, 2))
    flat = pixels.reshape(-1, *pixels.shape[3:])
    return flat[origin.view(-1)].view(pixels.shape).movedim((1, 2), (-2, -1))
