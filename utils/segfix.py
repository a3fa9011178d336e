"""SegFix's representation: distance maps, directions, offsets, and moving labels by them.

Yuan et al., SegFix: Model-Agnostic Boundary Refinement for Segmentation, ECCV
2020, arXiv:2007.04269, in the form of openseg's files and scripts.

A direction is the angle atan2(dy, dx), y down, from a pixel to the inside of its
own region. An offset (dy, dx) points one step that way; where a pixel is no
border it is (0, 0). A label map is refined by one gather: every pixel takes the
label that lies `scale` offsets further.

Differs from the scripts: labels are gathered, never blended (they interpolate
label numbers and round, which current versions of PyTorch turn into foreign
ids); an angle of exactly 0 or 180 degrees is mirrored like any other, because
targets are made from the mirrored label.
"""
import colorsys
import functools
import math

import numpy as np
import torch

DIRECTIONS = (4, 8, 16, 32)
MAX_DEPTH = 250           # pixels; distances above are stored as this
DEGREES_PER_STEP = 2      # of a stored angle
MIN_PIXELS = 100          # a class with fewer in an image has no distances, as published
VOID = 65535              # in a map of regions: no class
# The label ids of the 19 evaluated classes of Cityscapes.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_REACH = 8192             # pixels; with larger steps, or images, 16 bits are not enough


def direction_vectors(directions: int = 8) -> np.ndarray:
    """The (dy, dx) of each direction class, int8 (directions, 2), by rising angle from -180.

    8: the neighbours of a pixel. 16 and 32: the rings of radius 2 and 4. 4: left, up,
    right, down.
    """
    if directions not in DIRECTIONS:
        raise ValueError(f"directions must be one of {DIRECTIONS}, got {directions}")
    reach = max(1, directions // 8)
    axis = range(-reach, reach + 1)
    ring = [(y, x) for y in axis for x in axis if max(abs(y), abs(x)) == reach]
    # Left is 180 degrees, and -180: the first.
    ring.sort(key=lambda v: -4 if v == (0, -reach) else math.atan2(*v))
    return np.array(ring[::2] if directions == 4 else ring, np.int8)


def offset_class_names(directions: int = 8) -> list[str]:
    """Names of the channels of a SegFix network: no border, border, and the directions."""
    names = (["left", "up left", "up", "up right", "right", "down right", "down", "down left"]
             if directions == 8 else
             [f"{-180 + index * 360 / directions:g} degrees" for index in range(directions)])
    return ["no border", "border", *names]


def offset_colours(directions: int = 8) -> list[list[int]]:
    """A colour for each of `offset_class_names`: black, white, and the hues by angle."""
    hues = [colorsys.hsv_to_rgb(index / directions, 1.0, 1.0) for index in range(directions)]
    return [[0, 0, 0], [255, 255, 255], *([round(255 * part) for part in hue] for hue in hues)]


def mirrored_directions(directions: int = 8) -> np.ndarray:
    """The class each direction becomes when the image is mirrored left to right, uint8."""
    return ((directions // 2 - np.arange(directions)) % directions).astype(np.uint8)


def distance_maps(labels: np.ndarray, void: int | None = 255, min_pixels: int = MIN_PIXELS) \
        -> tuple[np.ndarray, np.ndarray]:
    """(depth, dir_deg) of a label map (H, W), both uint8, as the published ground truth has them.

    depth: Euclidean distance to the nearest pixel of another value, cut to whole
    pixels and to 250; the edge of the image is no border. dir_deg: (angle + 180) / 2
    in whole steps, of the gradient of that distance (two 5x5 kernels, zero outside).
    void: a value without distances, though others end at it; None: there is none, as for
    instance ids. min_pixels: values with fewer pixels are passed over. Pixels passed
    over have depth 0 and dir_deg 90, the angle 0.
    """
    import cv2
    labels = np.ascontiguousarray(labels)
    depth = np.zeros(labels.shape, np.uint8)
    gradients = np.zeros((2, *labels.shape), np.float32)
    kernels = _gradient_kernels()
    for value, box in _regions(labels, void, min_pixels):
        mask = labels[box] == value
        if mask.all():                          # the whole image: no border anywhere
            distance = np.full(mask.shape, MAX_DEPTH + 1, np.float32)
        else:
            distance = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2,
                                             cv2.DIST_MASK_PRECISE)
        np.copyto(depth[box], np.minimum(distance, MAX_DEPTH).astype(np.uint8), where=mask)
        for total, kernel in zip(gradients, kernels, strict=True):
            np.copyto(total[box], cv2.filter2D(distance, cv2.CV_32F, kernel,
                                               borderType=cv2.BORDER_CONSTANT), where=mask)
    steps = (np.degrees(np.arctan2(gradients[1], gradients[0])) + 180) / DEGREES_PER_STEP
    return depth, steps.astype(np.uint8)


def semantic_regions(labels: np.ndarray, ids: str = "keep", void: tuple = (255,)) -> np.ndarray:
    """A label map as uint16 (H, W), 65535 where it is void, for distance_maps(..., 65535).

    ids: "keep": every value but those in `void` is a class. "cityscapes": the 19
    evaluated label ids are, all others are void. "ade20k": all but 255.
    """
    known = (np.isin(labels, CITYSCAPES_IDS) if ids == "cityscapes"
             else ~np.isin(labels, (255,) if ids == "ade20k" else void))
    return np.where(known, labels.astype(np.uint16), np.uint16(VOID))


def instance_regions(instance_ids: np.ndarray) -> np.ndarray:
    """Cityscapes' instance ids with every stuff id outside the 19 evaluated ones as 255."""
    stuff = (instance_ids < 256) & ~np.isin(instance_ids, CITYSCAPES_IDS)
    return np.where(stuff, 255, instance_ids)


def stored_angle(dir_deg: np.ndarray, step: float = DEGREES_PER_STEP) -> np.ndarray:
    """Angles in degrees, -180..180, of stored ones."""
    return dir_deg.astype(np.float32) * step - 180


def segfix_targets(label: torch.Tensor, distance: torch.Tensor, angle: torch.Tensor,
                   num_directions: int = 8, max_distance: float = 5.0, ignore_index: int = 255) \
        -> tuple[torch.Tensor, torch.Tensor]:
    """(boundary, direction) targets, int64, ignore_index where the label has none.

    label, distance (pixels to the boundary), angle (degrees, -180..180): (N, H, W).
    boundary: 1 where 0 <= distance <= max_distance, else 0. direction: the angle's
    bin, of 360 / num_directions degrees, centred at -180 + bin · width; the ends
    of a bin belong to the lower one.
    """
    boundary = ((distance >= 0) & (distance <= max_distance)).long()
    width = 360 / num_directions
    direction = torch.ceil((angle + 180) / width - 0.5).long() % num_directions
    void = label == ignore_index
    return boundary.masked_fill(void, ignore_index), direction.masked_fill(void, ignore_index)


def offset_classes(logits: torch.Tensor) -> torch.Tensor:
    """The class of every pixel by the logits (N, 2 + D, H, W) of a SegFix network, uint8.

    0 where it is no border, else 2 + direction; 1, a border without direction, does not occur.
    """
    direction = logits[:, 2:].max(dim=1).indices + 2
    return (direction * (logits[:, 1] > logits[:, 0])).to(torch.uint8)


def offset_map(mask_probs: torch.Tensor, direction_scores: torch.Tensor) -> torch.Tensor:
    """Offsets int8 (N, H, W, 2), (dy, dx), of what a network says at full size.

    mask_probs (N, 2, H, W): a pixel is border where the second exceeds 0.5.
    direction_scores (N, D, H, W): the largest is its direction. (0, 0) elsewhere.
    """
    vectors = torch.from_numpy(direction_vectors(direction_scores.shape[1]))
    vectors = torch.cat([torch.zeros(1, 2, dtype=torch.int8), vectors])
    border = mask_probs[:, 1] > 0.5
    index = (direction_scores.max(dim=1).indices + 1) * border
    return vectors.to(index.device)[index]


def refine(labels: np.ndarray, offset: np.ndarray, scale: float = 2.0) -> np.ndarray:
    """labels[clamp(y + scale·dy), clamp(x + scale·dx)] for every pixel.

    labels: (H, W) of any dtype, ids or a mask. offset: (H, W, 2), (dy, dx), of any
    integer or float dtype. scale: 2 for semantic labels and 1 for instances, as
    published; where scale · offset is no whole number it is rounded, halves away from 0.
    """
    return Refinement(offset, scale)(labels)


class Refinement:
    """`refine` for several label maps, such as the masks of all instances, by one offset map.

    Raises ValueError for an offset that is not (H, W, 2) of finite numbers.
    """

    def __init__(self, offset: np.ndarray, scale: float = 2.0):
        offset = np.asarray(offset)
        if offset.ndim != 3 or offset.shape[2] != 2 or offset.dtype.kind not in "iuf":
            raise ValueError(f"an offset map is numbers of shape (H, W, 2), got {offset.dtype} "
                             f"{offset.shape}")
        self.size = offset.shape[:2]
        self._steps = _whole_steps(offset, scale)
        self._map = None

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """The refined labels, (H, W) or (H, W, channels), a new array of the same dtype."""
        if labels.shape[:2] != self.size:
            raise ValueError(f"labels of {labels.shape[0]}x{labels.shape[1]} pixels (height x "
                             f"width), offsets of {self.size[0]}x{self.size[1]}")
        if labels.dtype == bool:
            return self(labels.view(np.uint8)).view(bool)
        if not labels.size:
            return labels.copy()
        narrow = self._steps.dtype == np.int16 and max(self.size) <= 32767 - _REACH
        few = labels.ndim == 2 or labels.shape[2] in (3, 4)
        if narrow and few and labels.dtype in (np.uint8, np.uint16, np.int16):
            return self._remap(labels)
        return self._gather(labels)

    def _remap(self, labels):
        import cv2
        if self._map is None:
            self._map = _columns_first(self._steps)
            self._map += _pixel_grid(self.size)
        # Nearest at whole positions; a replicated border is the clamp.
        return cv2.remap(np.ascontiguousarray(labels), self._map, None, cv2.INTER_NEAREST,
                         borderMode=cv2.BORDER_REPLICATE)

    def _gather(self, labels):
        height, width = self.size
        rows = np.arange(height, dtype=np.int64)[:, None] + self._steps[..., 0]
        columns = np.arange(width, dtype=np.int64) + self._steps[..., 1]
        return labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]


def _whole_steps(offset, scale):
    """scale · offset in whole pixels; int16 where 16 bits hold what is added to a position."""
    if offset.dtype.kind == "f" or not float(scale).is_integer():
        steps = offset.astype(np.float64) * scale
        if not np.isfinite(steps).all():
            raise ValueError("the offset map holds values that are not finite")
        offset, scale = np.copysign(np.floor(np.abs(steps) + 0.5), steps), 1
    # Beyond the limit no labels are left to reach; the clamp makes it the edge.
    reach = max(abs(float(offset.min())), abs(float(offset.max()))) if offset.size else 0
    if reach * abs(scale) > _REACH:
        return (offset.astype(np.float64) * scale).clip(-2 ** 30, 2 ** 30).astype(np.int32)
    steps = offset.astype(np.int16)
    steps *= np.int16(scale)
    return steps


def _columns_first(steps):
    """(dy, dx) int16 in any memory order -> (dx, dy), contiguous."""
    import cv2
    if steps.flags.c_contiguous:
        swapped = np.empty_like(steps)
        cv2.mixChannels([steps], [swapped], [1, 0, 0, 1])
        return swapped
    # MATLAB's order, as scipy reads it: two planes, column by column.
    return cv2.merge([cv2.transpose(np.ascontiguousarray(steps[..., axis].T)) for axis in (1, 0)])


@functools.lru_cache(maxsize=2)
def _pixel_grid(size):
    """(x, y) of every pixel, int16 (H, W, 2); kept, since images of one size follow each other."""
    height, width = size
    grid = np.empty((height, width, 2), np.int16)
    grid[..., 0] = np.arange(width, dtype=np.int16)
    grid[..., 1] = np.arange(height, dtype=np.int16)[:, None]
    return grid


def _regions(labels, void, min_pixels):
    """(value, slices of its bounding box with a margin of 1) of each value with enough pixels.

    Beyond the margin nothing changes a distance: what is nearest lies in it or within.
    """
    height, width = labels.shape
    if labels.size and 0 <= labels.min() and labels.max() < 1 << 16:
        counts = np.bincount(labels.ravel())        # several times quicker than sorting
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist()):
        if value == void or count < min_pixels:
            continue
        mask = labels == value
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        yield value, (slice(max(rows[0] - 1, 0), min(rows[-1] + 2, height)),
                      slice(max(columns[0] - 1, 0), min(columns[-1] + 2, width)))


def _gradient_kernels():
    """i / (i² + j²) along x, and along y: correlated with distances they point to the inside."""
    j, i = np.mgrid[-2:3, -2:3].astype(np.float32)
    square = i * i + j * j
    square[2, 2] = 1
    return i / square, j / square

