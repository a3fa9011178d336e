"""SegFix's ground truth: distance maps of labels, and the training targets from them.

Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269, as in the files of openseg.
"""
from collections.abc import Collection

import numpy as np
import torch

from utils.metrics.cityscapes_metrics import EVALUATED_IDS

MAX_DEPTH = 250           # pixels: larger distances are stored as this
DEGREES_PER_STEP = 2      # resolution of a stored angle
MIN_PIXELS = 100          # a class with fewer pixels in an image gets no distances, as published
VOID = 65535              # the value in a map of regions that is not a class


def distance_maps(labels: np.ndarray, void: int | None = 255, min_pixels: int = MIN_PIXELS) \
        -> tuple[np.ndarray, np.ndarray]:
    """Returns (depth, dir_deg) of an integer label map (H, W), both uint8 (H, W), as published.

    depth: Euclidean distance to the nearest pixel of another value, rounded down to whole
        pixels and at most 250. The edge of the image is not a border.
    dir_deg: (angle + 180) / 2, rounded down, of the gradient of that distance
        (two 5x5 kernels, zero outside the image).
    void: a value that gets no distances but is a border for the others; None for no such value,
        as with instance ids.
    min_pixels: values with fewer pixels get no distances either.
    Pixels without distances have depth 0 and dir_deg 90, which is the angle 0.
    """
    import cv2
    labels = np.ascontiguousarray(labels)
    depth = np.zeros(labels.shape, np.uint8)
    gradients = np.zeros((2, *labels.shape), np.float32)
    kernels = _gradient_kernels()
    for value, box in _regions(labels, void, min_pixels):
        mask = labels[box] == value
        if mask.all():                          # one value in the whole image: no border
            distance = np.full(mask.shape, MAX_DEPTH + 1, np.float32)
        else:
            distance = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2,
                                             cv2.DIST_MASK_PRECISE)
        np.copyto(depth[box], np.minimum(distance, MAX_DEPTH).astype(np.uint8), where=mask)
        for axis, kernel in enumerate(kernels):
            np.copyto(gradients[axis][box],
                      cv2.filter2D(distance, cv2.CV_32F, kernel, borderType=cv2.BORDER_CONSTANT),
                      where=mask)
    steps = (np.degrees(np.arctan2(gradients[1], gradients[0])) + 180) / DEGREES_PER_STEP
    return depth, steps.astype(np.uint8)


def semantic_regions(labels: np.ndarray, ids: str = "keep", void: Collection[int] = (255,)) \
        -> np.ndarray:
    """Returns a label map (H, W) as uint16, with VOID for pixels without a class.

    Give the result to distance_maps(..., void=VOID).
    ids: which values are classes. "keep": all except those in `void`. "cityscapes": the 19
        label ids that are evaluated. "ade20k": all except 255.
    """
    known = (np.isin(labels, EVALUATED_IDS) if ids == "cityscapes"
             else ~np.isin(labels, (255,) if ids == "ade20k" else tuple(void)))
    return np.where(known, labels.astype(np.uint16), np.uint16(VOID))


def instance_regions(instance_ids: np.ndarray) -> np.ndarray:
    """Returns Cityscapes' instance ids (H, W) with 255 for stuff that is not evaluated."""
    stuff = (instance_ids < 256) & ~np.isin(instance_ids, EVALUATED_IDS)
    return np.where(stuff, 255, instance_ids)


def stored_angle(dir_deg: np.ndarray, step: float = DEGREES_PER_STEP) -> np.ndarray:
    """Returns the angles float32, in degrees from -180 to 180, of stored angles of any shape."""
    return dir_deg.astype(np.float32) * step - 180


def segfix_targets(label: torch.Tensor, distance: torch.Tensor, angle: torch.Tensor,
                   num_directions: int = 8, max_distance: float = 5.0, ignore_index: int = 255) \
        -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (boundary, direction), int64 (N, H, W); ignore_index where the label has it.

    label: class ids (N, H, W). distance: pixels to the boundary (N, H, W). angle: degrees from
    -180 to 180 (N, H, W).
    boundary: 1 if 0 <= distance <= max_distance, else 0.
    direction: the bin of the angle. Bins are 360 / num_directions degrees wide and centered at
        -180 + bin · width; an angle between two bins belongs to the lower one.
    """
    boundary = ((distance >= 0) & (distance <= max_distance)).long()
    width = 360 / num_directions
    direction = torch.ceil((angle + 180) / width - 0.5).long() % num_directions
    void = label == ignore_index
    return boundary.masked_fill(void, ignore_index), direction.masked_fill(void, ignore_index)


def _regions(labels, void, min_pixels):
    """Yields (value, slices of its bounding box plus 1 pixel) for each value with enough pixels.

    One pixel of margin is enough: the nearest pixel of another value lies inside that box.
    """
    height, width = labels.shape
    if labels.size and 0 <= labels.min() and labels.max() < 1 << 16:
        counts = np.bincount(labels.ravel())        # several times faster than np.unique
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value == void or count < min_pixels:
            continue
        mask = labels == value
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        yield value, (slice(max(rows[0] - 1, 0), min(rows[-1] + 2, height)),
                      slice(max(columns[0] - 1, 0), min(columns[-1] + 2, width)))


def _gradient_kernels():
    """Returns i / (i² + j²) along x, and along y. The gradient of a distance points inside."""
    j, i = np.mgrid[-2:3, -2:3].astype(np.float32)
    square = i * i + j * j
    square[2, 2] = 1
    return i / square, j / square
