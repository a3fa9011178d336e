"""Pixel counts of a batch, from which the scores of both conventions are computed.

Label maps are counted with one histogram over (image, target, prediction). Masks, which can
overlap or leave pixels without a class, are counted class by class. Counts are integers, so sums
over batches and processes are exact in any order.

Nothing here reads a value back from a GPU.
"""
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from utils.errors import ConfigError

# Computing a (target, prediction) index in int16 is twice as fast as in int32.
INT16_CELLS = 2 ** 15


@dataclasses.dataclass
class PixelCounts:
    """Counts of N images and C classes, int64 on the device of the prediction.

    hits, predicted, labeled: (N, C) pixels of P & T, P and T, without ignored pixels; P is the
        predicted set of a class, T the true one.
    predicted_on_ignored: (N, C) predicted pixels whose target is ignored.
    valid: (N,) pixels that are not ignored. pixels: the number of pixels of one image.
    confusion: (C, C + 1) pixels, summed over the images; rows are targets, the last column is
        void predictions. None for masks.
    one_hot_target: whether the target was one-hot.
    """
    hits: torch.Tensor
    predicted: torch.Tensor
    labeled: torch.Tensor
    predicted_on_ignored: torch.Tensor
    valid: torch.Tensor
    pixels: int
    confusion: torch.Tensor | None
    one_hot_target: bool = False


def count_pixels(prediction: torch.Tensor, target: torch.Tensor, num_classes: int,
                 ignore_index: int = 255) -> PixelCounts:
    """Counts a batch once, for both `DatasetMetrics.add` and `ImageMetrics.add`.

    prediction: label map (N, H, W) of any integer dtype, or bool masks (N, C, H, W).
        A label outside 0..C-1 is void: wrong on a valid pixel, but not a false positive of any
        class.
    target: (N, H, W) of any integer dtype, or one-hot (N, C, H, W) of any dtype, in which a
        pixel without a class is ignored. Values outside 0..C-1 are ignored, and so is
        `ignore_index` inside that range.
    Labels other than uint8 are limited to -1..C and converted to int16. Raises ValueError if the
    shapes do not fit and TypeError for a wrong dtype.
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
    """One-hot (N, C, H, W) of any dtype -> int16 labels (N, H, W), -1 if no class is set."""
    value, label = target.to(torch.uint8).max(dim=1)
    return torch.where(value > 0, label, -1).to(torch.int16)


def checked_classes(classes: Sequence[int] | str | None, num_classes: int) -> list[int]:
    """The classes of interest as a sorted list; None and "all" mean every class.

    Raises ConfigError unless they are different class ids in 0..num_classes - 1.
    """
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
    labeled = rows.sum(2)
    return PixelCounts(
        hits=rows.diagonal(dim1=1, dim2=2).clone(),
        predicted=rows[:, :, :num_classes].sum(1),
        labeled=labeled,
        predicted_on_ignored=matrix[:, num_classes, :num_classes].clone(),
        valid=labeled.sum(1), pixels=target[0].numel() if len(target) else 0,
        confusion=rows.sum(0), one_hot_target=one_hot)


def _matrices(prediction, target, num_classes):
    """(N, C + 1, C + 1) int64: pixels at [n, t, p]; index C collects ids that are not a class."""
    images, void = len(target), num_classes
    # Signed labels are clamped to -1..C and shifted by one, so that row and column 0
    # collect the negative ones. Unsigned labels are not shifted.
    shift = int(prediction.dtype != torch.uint8 or target.dtype != torch.uint8)
    side = num_classes + 1 + shift
    narrow = torch.int16 if side * side <= INT16_CELLS else torch.int32

    def index(p, t):
        cell = _small(t, void).to(narrow).mul_(side).add_(_small(p, void))
        return cell.add_(side + 1) if shift else cell

    if target.is_cuda:
        # Not torch.bincount, which reads the largest index back to allocate its result.
        offset = torch.arange(images, device=target.device).view(-1, 1, 1) * (side * side)
        cells = (index(prediction, target) + offset).flatten()
        one = torch.ones((), dtype=torch.int64, device=target.device)
        matrix = torch.zeros(images * side * side, dtype=torch.int64, device=target.device)
        matrix.scatter_add_(0, cells, one.expand_as(cells))
        matrix = matrix.view(images, side, side)
    else:
        # One image at a time, so that the index tensor stays in the cache.
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


def _small(labels, void):
    """Labels limited to -1..void, in uint8 as they are, else in int16 if void fits it."""
    if labels.dtype == torch.uint8:
        return labels.clamp(max=void) if void < 255 else labels
    if labels.dtype != torch.int16:
        if not labels.dtype.is_signed:      # torch cannot limit the wide unsigned types
            labels = labels.to(torch.int64)
        # Before it is narrowed: 65536 + c would become class c.
        labels = labels.clamp(-1, void).to(torch.int16 if void < 2 ** 15 else torch.int32)
    return labels.clamp(-1, void)


def _count_masks(masks, target, num_classes, ignore_index, one_hot):
    if 0 <= ignore_index < num_classes:
        target = torch.where(target == ignore_index, -1, target.to(torch.int64))
    target = _small(target, num_classes)
    count = _mask_counts_batched if masks.is_cuda else _mask_counts_by_row
    hits, everywhere, on_ignored, labeled = count(masks, target, num_classes)
    return PixelCounts(
        hits=hits, predicted=everywhere - on_ignored, labeled=labeled,
        predicted_on_ignored=on_ignored, valid=labeled.sum(1),
        pixels=target[0].numel() if len(target) else 0, confusion=None, one_hot_target=one_hot)


def _mask_counts_by_row(masks, target, num_classes):
    """(hits, predicted, predicted on ignored, labeled), (N, C) int64 each, for a CPU.

    Uses numpy, which counts the ones of a bool row several times faster than torch.
    """
    counts = np.zeros((4, len(target), num_classes), np.int64)
    hits, everywhere, on_ignored, labeled = counts
    for n, (image, labels) in enumerate(zip(masks.numpy(), target.numpy(), strict=True)):
        ignored = (labels < 0) | (labels >= num_classes)
        some_ignored = ignored.any()
        for k in range(num_classes):
            truth = labels == k
            labeled[n, k] = np.count_nonzero(truth)
            everywhere[n, k] = np.count_nonzero(image[k])
            if everywhere[n, k]:
                hits[n, k] = np.count_nonzero(image[k] & truth)
                if some_ignored:
                    on_ignored[n, k] = np.count_nonzero(image[k] & ignored)
    return torch.from_numpy(counts).unbind(0)


def _mask_counts_batched(masks, target, num_classes):
    """The same counts as `_mask_counts_by_row`, computed on the device of the masks."""
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
    on_ignored = torch.stack([(m & i).flatten(1).sum(1)
                              for m, i in zip(masks, ignored, strict=True)])
    return missed_hit[..., 1], everywhere, on_ignored, missed_hit.sum(2)
