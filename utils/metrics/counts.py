"""Pixel counts of a batch: everything the scores of both conventions are made of.

One histogram over (image, target, prediction) serves label maps. Masks, which
may overlap or leave pixels to nobody, are counted class by class. Counts are
integers, so sums over batches and processes are exact in any order.

Nothing here reads a value back from a GPU.
"""
import dataclasses

import numpy as np
import torch

from utils.errors import ConfigError

# An (image, target, prediction) index of int16 is twice as quick to form as one of int32.
INT16_CELLS = 2 ** 15


@dataclasses.dataclass
class PixelCounts:
    """Counts of N images and C classes, int64 on the device of the prediction.

    hits, predicted, labelled: (N, C) pixels of P & T, P and T, ignored pixels left out.
    predicted_on_ignored: (N, C) pixels predicted where the target is ignored.
    valid: (N,) pixels that are not ignored. pixels: all pixels of one image.
    confusion: (C, C + 1) sum over the images, rows are targets, the last column void
        predictions; None for masks.
    """
    hits: torch.Tensor
    predicted: torch.Tensor
    labelled: torch.Tensor
    predicted_on_ignored: torch.Tensor
    valid: torch.Tensor
    pixels: int
    confusion: torch.Tensor | None
    one_hot_target: bool = False


def count_pixels(prediction: torch.Tensor, target: torch.Tensor, num_classes: int,
                 ignore_index: int = 255) -> PixelCounts:
    """Counts a batch once, for `DatasetMetrics.add` and `ImageMetrics.add` together.

    prediction: label map (N, H, W) of any integer type, or bool masks (N, C, H, W).
        A label outside 0..C-1 is void: wrong on a valid pixel, and no class's false positive.
    target: (N, H, W) of any integer type, or one-hot (N, C, H, W) of any type, where a
        pixel without a class is ignored. Every value outside 0..C-1 is ignored, and so is
        `ignore_index` if it lies inside.
    Labels other than uint8 are read as int16.
    """
    one_hot = target.ndim == 4
    if one_hot:
        target = labels_of_one_hot(target)
    masks = prediction.ndim == 4
    expected = (len(target), num_classes, *target.shape[1:]) if masks else tuple(target.shape)
    if target.ndim != 3 or tuple(prediction.shape) != expected:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
                         f" do not fit each other with {num_classes} classes")
    if masks and prediction.dtype != torch.bool:
        raise TypeError(f"masks must be bool, got {prediction.dtype}")
    if prediction.is_floating_point() or target.is_floating_point():
        raise TypeError("label maps must be of an integer type, got"
                        f" {prediction.dtype} and {target.dtype}")
    target = target.to(prediction.device, non_blocking=True)
    count = _count_masks if masks else _count_labels
    return count(prediction, target, num_classes, ignore_index, one_hot)


def labels_of_one_hot(target: torch.Tensor) -> torch.Tensor:
    """One-hot (N, C, H, W) -> int16 labels (N, H, W), -1 where no class is set."""
    value, label = target.to(torch.uint8).max(dim=1)
    return torch.where(value > 0, label, -1).to(torch.int16)


def checked_classes(classes, num_classes: int) -> list[int]:
    """The classes of interest as a sorted list; None and "all" mean every class."""
    if classes is None or classes == "all":
        return list(range(num_classes))
    if isinstance(classes, str):
        raise ConfigError(f'classes of interest must be "all" or a list of class ids, got '
                          f'{classes!r}', "predict.CoI")
    wrong = [c for c in classes
             if isinstance(c, bool) or not isinstance(c, (int, np.integer))
             or not 0 <= c < num_classes]
    if wrong or not len(classes) or len(set(classes)) != len(classes):
        raise ConfigError(f"classes of interest {list(classes)} must be different class ids in "
                          f"0..{num_classes - 1}", "predict.CoI")
    return sorted(int(c) for c in classes)


def _count_labels(prediction, target, num_classes, ignore_index, one_hot):
    matrix = _matrices(prediction, target, num_classes)      # (N, C + 1, C + 1)
    if 0 <= ignore_index < num_classes:
        matrix[:, num_classes] += matrix[:, ignore_index]
        matrix[:, ignore_index] = 0
    rows = matrix[:, :num_classes]                           # valid targets only
    labelled = rows.sum(2)
    return PixelCounts(
        hits=rows.diagonal(dim1=1, dim2=2).clone(),
        predicted=rows[:, :, :num_classes].sum(1),
        labelled=labelled,
        predicted_on_ignored=matrix[:, num_classes, :num_classes].clone(),
        valid=labelled.sum(1), pixels=target[0].numel() if len(target) else 0,
        confusion=rows.sum(0), one_hot_target=one_hot)


def _matrices(prediction, target, num_classes):
    """(N, C + 1, C + 1) int64: [n, t, p] pixels; index C collects what is no class."""
    images, void = len(target), num_classes
    # Signed labels are clamped to -1..C and shifted by one, so that row and column 0
    # take the negative ones; unsigned labels need neither.
    shift = int(prediction.dtype != torch.uint8 or target.dtype != torch.uint8)
    side = num_classes + 1 + shift
    narrow = torch.int16 if side * side <= INT16_CELLS else torch.int32

    def index(p, t):
        cell = _clamp(_small(t), void).to(narrow).mul_(side).add_(_clamp(_small(p), void))
        return cell.add_(side + 1) if shift else cell

    if target.is_cuda:
        # torch.bincount reads the largest index back to size its result.
        offset = torch.arange(images, device=target.device).view(-1, 1, 1) * (side * side)
        cells = (index(prediction, target) + offset).flatten()
        one = torch.ones((), dtype=torch.int64, device=target.device)
        matrix = torch.zeros(images * side * side, dtype=torch.int64, device=target.device)
        matrix.scatter_add_(0, cells, one.expand_as(cells))
        matrix = matrix.view(images, side, side)
    else:
        # One image at a time, so that its index stays in the cache.
        matrix = torch.zeros(images, side * side, dtype=torch.int64)
        for n in range(images):
            cells = index(prediction[n], target[n])
            matrix[n] = torch.bincount(cells.flatten(), minlength=side * side)
        matrix = matrix.view(images, side, side)
    if shift:
        matrix[:, -1] += matrix[:, 0]
        matrix[:, :, -1] += matrix[:, :, 0]
        matrix = matrix[:, 1:, 1:]
    return matrix


def _small(labels):
    return labels if labels.dtype == torch.uint8 else labels.to(torch.int16)


def _clamp(labels, void):
    if labels.dtype != torch.uint8:
        return labels.clamp(-1, void)
    return labels.clamp(max=void) if void < 255 else labels


def _count_masks(masks, target, num_classes, ignore_index, one_hot):
    if 0 <= ignore_index < num_classes:
        target = torch.where(target == ignore_index, -1, target.to(torch.int16))
    target = _small(target)
    count = _mask_counts_batched if masks.is_cuda else _mask_counts_by_row
    hits, everywhere, on_ignored, labelled = count(masks, target, num_classes)
    return PixelCounts(
        hits=hits, predicted=everywhere - on_ignored, labelled=labelled,
        predicted_on_ignored=on_ignored, valid=labelled.sum(1),
        pixels=target[0].numel() if len(target) else 0, confusion=None, one_hot_target=one_hot)


def _mask_counts_by_row(masks, target, num_classes):
    """numpy counts the ones of a bool row several times quicker than torch on a CPU."""
    counts = np.zeros((4, len(target), num_classes), np.int64)
    hits, everywhere, on_ignored, labelled = counts
    for n, (image, labels) in enumerate(zip(masks.numpy(), target.numpy())):
        ignored = (labels < 0) | (labels >= num_classes)
        some_ignored = ignored.any()
        for k in range(num_classes):
            truth = labels == k
            labelled[n, k] = np.count_nonzero(truth)
            everywhere[n, k] = np.count_nonzero(image[k])
            if everywhere[n, k]:
                hits[n, k] = np.count_nonzero(image[k] & truth)
                if some_ignored:
                    on_ignored[n, k] = np.count_nonzero(image[k] & ignored)
    return torch.from_numpy(counts).unbind(0)


def _mask_counts_batched(masks, target, num_classes):
    ignored = (target < 0) | (target >= num_classes)
    label = target.clamp(0, num_classes - 1).long()
    hit = masks.gather(1, label[:, None])[:, 0]
    row = torch.where(ignored, num_classes, label)
    offset = torch.arange(len(target), device=target.device).view(-1, 1, 1) * (num_classes + 1)
    cells = ((row + offset) * 2 + hit).flatten()
    one = torch.ones((), dtype=torch.int64, device=target.device)
    missed_hit = torch.zeros(len(target) * (num_classes + 1) * 2, dtype=torch.int64,
                             device=target.device)
    missed_hit.scatter_add_(0, cells, one.expand_as(cells))
    missed_hit = missed_hit.view(len(target), num_classes + 1, 2)[:, :num_classes]
    everywhere = masks.flatten(2).sum(2)
    on_ignored = torch.stack([(m & i).flatten(1).sum(1) for m, i in zip(masks, ignored)])
    return missed_hit[..., 1], everywhere, on_ignored, missed_hit.sum(2)
