"""The training data of SegFix: images of another dataset, with borders and directions as targets.

Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269.
"""
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch

from base.base_dataset import BaseDataset, Sample
from dataloader.augmentation.rand_augment import RandAugment
from utils.config.build import split_args
from utils.config.registry import components, lookup
from utils.config.schema import Component
from utils.errors import ConfigError, DataError, shown
from utils.images.types import Image, Labels, train_id_type
from utils.segfix.mat_files import MatFolder, read_distance_maps
from utils.segfix.offsets import (
    DIRECTIONS,
    moved_directions,
    offset_class_names,
    offset_colors,
)
from utils.segfix.targets import MIN_PIXELS, distance_maps, segfix_targets, stored_angle

_ID_BITS = 8        # of a packed pixel for the train id; then 1 bit of border, then the direction


class SegFixTargets(BaseDataset):
    """Images of another dataset, with "boundary" and "direction" as targets.

    dataset[index] -> {"image": uint8 (3, H, W), "boundary": (H, W), 1 within
    max_distance pixels of a border; "direction": (H, W), 0 to directions - 1, towards
    the inside of a pixel's region; "label": (H, W), both in one map of classes, for
    validation: 0 no border, 2 + direction; "id"}. The three maps are uint8, or wider for
    an ignore_index outside 0..255; pixels that the source ignores have ignore_index.

    source: the section {"type", "args"} of the dataset. targets: folder of the
        distance maps that `python -m tools.segfix_targets` wrote; null computes
        them when an image is read. directions: 4, 8, 16 or 32.
    max_distance: of a border pixel, in whole pixels, so 5 means below 6.
    min_pixels: as published, a class with fewer pixels in the image has no borders: all
        its pixels are border, with the inside to the right. Not with files.

    Targets are computed for the whole image, and cut, mirrored and turned with it. If the
    augmentation scales or rotates, unlike the paper's, they are computed from the
    crop (without min_pixels); this is not possible with files.
    """

    def __init__(self, source: Annotated[dict, Component("datasets", name="a_source",
                                                         role="source")],
                 targets: str | None = None, directions: int = 8, max_distance: int = 5,
                 min_pixels: int = MIN_PIXELS, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        problems = self.check_settings({"directions": directions, "max_distance": max_distance,
                                        "min_pixels": min_pixels, "targets": targets})
        if problems:
            raise ConfigError("; ".join(problems))
        self.source = _opened(source, ignore_index, seed)
        if self.source.num_classes >= 1 << _ID_BITS:
            raise ConfigError(f"{type(self.source).__name__} has {self.source.num_classes} "
                              f"classes, more than {(1 << _ID_BITS) - 1}", "source")
        self.directions, self.max_distance = directions, max_distance
        self.min_pixels = min_pixels
        self.cuts_targets = _keeps_shapes(augmentation)    # else computed from the crop
        self.files = MatFolder(targets) if targets else None
        if self.files and not self.cuts_targets:
            raise ConfigError("files of targets cannot follow an augmentation that resizes or "
                              "rotates", "targets", "set scale and rotate to false and leave out "
                              "base_size, aspect, val and RandAugment; or leave out targets")
        self.num_classes = directions + 2
        self.class_names = offset_class_names(directions)
        self.palette = offset_colors(directions)
        self.mean, self.std = self.source.mean, self.source.std
        self.white = self.source.white
        if self.source.bands:
            raise ConfigError(f"SegFix is for RGB, and the images are {self.source.bands.text}",
                              "source", "train it on RGB images")
        super().__init__("", self.source.split, ignore_index, seed, augmentation)
        self.root = self.source.root

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """Mistakes that can be found without opening the data, as "key: text"."""
        problems = []
        if settings["directions"] not in DIRECTIONS:
            problems.append(f"directions: expected 4, 8, 16 or 32, found {settings['directions']}")
        for key in ("max_distance", "min_pixels"):
            if settings[key] < 0:
                problems.append(f"{key}: expected at least 0, found {settings[key]}")
        if settings.get("targets") and settings["min_pixels"] != MIN_PIXELS:
            problems.append("min_pixels: has no effect on targets that are read from files")
        if settings.get("train_void"):
            problems.append("train_void: borders and directions of void are not defined")
        if settings.get("sampler"):
            problems.append("sampler: borders and directions are not classes to draw images by")
        return problems

    def find_samples(self) -> Iterator[Sample]:
        yield from self.source.samples

    def check(self) -> None:
        """Raise DataError if an image has no label or no file of targets.

        The source has checked the image files.
        """
        missing = [sample.id for sample in self.samples
                   if sample.image is not None and sample.label is None]
        if missing:
            raise DataError(f"{len(missing)} images have no label, such as {shown(missing[0])}",
                            shown(self.source.root), "choose a split with labels")
        if self.files:
            for sample in self.samples:
                self.files.find(sample.id)

    def load(self, index: int) -> tuple[Image, Labels]:
        """The image, uint8 (H, W, 3), and the train ids of the source, (H, W)."""
        whole = self.source[index]
        return whole["image"].permute(1, 2, 0).numpy(), whole["label"].numpy()

    def load_label(self, index: int) -> Labels:
        """The train ids of the source, (H, W)."""
        return (self.cache or self).load(index)[1]

    def describe(self, index: int) -> str:
        """The image file or id of a sample, for messages."""
        return self.source.describe(index)

    def sample(self, index: int, rng: np.random.Generator,
               center: tuple[int, int] | None = None) -> dict[str, Any]:
        """One sample with its targets; `rng` makes its random draws."""
        image, ids = (self.cache or self).load(index)
        label = _without_sign(ids, self.ignore_index)
        if self.cuts_targets:
            label = _packed(label, *self._targets(label, index))
        moves = ()
        if self.augmentation is not None:
            anchor = {} if center is None else {"center": center}
            image, label, _, *moves = self.augmentation(
                image, label, rng, image_border=self.border_color, label_border=_VOID,
                train_ids=np.arange(1 << 16, dtype=np.uint16) & _VOID, **anchor)
        if self.cuts_targets:
            label, boundary, direction = _unpacked(label)
            if any(moves):
                direction = moved_directions(self.directions, *moves)[direction]
        else:
            boundary, direction = self._computed_targets(label, 0)
        void = label == _VOID
        kind = train_id_type(self.directions + 2, self.ignore_index)
        maps = {"boundary": boundary, "direction": direction,
                "label": (direction + 2) * boundary}
        maps = {name: torch.from_numpy(np.where(void, kind(self.ignore_index), each.astype(kind)))
                for name, each in maps.items()}
        image = np.require(image, requirements=["C", "W"])
        return {"image": torch.from_numpy(image).permute(2, 0, 1), **maps,
                "id": self.samples[index].id}

    def _targets(self, label, index):
        """(boundary, direction), uint8 (H, W), of a whole label: from its file, or computed."""
        if self.files is None:
            return self._computed_targets(label, self.min_pixels)
        path = self.files.find(self.samples[index].id)
        return self._targets_of(*read_distance_maps(path, label.shape))

    def _computed_targets(self, label, min_pixels):
        """(boundary, direction), uint8 (H, W), computed from a label or a crop of it."""
        depth, degrees = distance_maps(label, _VOID, min_pixels)
        return self._targets_of(depth, stored_angle(degrees))

    def _targets_of(self, depth, angle):
        """(boundary, direction), uint8 (H, W), of a distance and an angle as files store them."""
        tensors = segfix_targets(torch.zeros(depth.shape), torch.from_numpy(depth),
                                 torch.from_numpy(angle), self.directions, self.max_distance)
        return (each.to(torch.uint8).numpy() for each in tensors)


_VOID = (1 << _ID_BITS) - 1


def _opened(section, ignore_index, seed):
    """Build the dataset that the section of `source` describes."""
    cls = lookup(section["type"], components("datasets"), "source.type")
    if cls is SegFixTargets:
        raise ConfigError("SegFixTargets cannot be its own source", "source.type")
    args, = split_args(section, cls)
    return cls(**args, ignore_index=ignore_index, seed=seed)


def _keeps_shapes(augmentation):
    """Whether an augmentation only cuts labels, mirrors them and turns them by quarters."""
    return augmentation is None or not (
        augmentation.scale != (1.0, 1.0) or augmentation.aspect != (1.0, 1.0)
        or augmentation.max_angle or augmentation.base_size or augmentation.val
        or any(isinstance(each, RandAugment) for each in augmentation.pixel_transforms))


def _without_sign(ids, ignore_index):
    """Train ids as uint16; ignored ones are 255."""
    return np.where(ids == ignore_index, _VOID, ids).astype(np.uint16)


def _packed(label, boundary, direction):
    """Label, boundary and direction in one uint16 per pixel, so that one crop cuts all three."""
    code = label | boundary.astype(np.uint16) << _ID_BITS
    return code | direction.astype(np.uint16) << _ID_BITS + 1


def _unpacked(code):
    """(label, boundary, direction) of what _packed returns."""
    return code & _VOID, (code >> _ID_BITS & 1).astype(np.uint8), \
        (code >> _ID_BITS + 1).astype(np.uint8)
