"""The training data of SegFix: another dataset's images with borders and directions as targets.

Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269.
"""
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch

from base.base_dataset import BaseDataset
from dataloader.rand_augment import RandAugment
from utils.config import split_args
from utils.config_schema import Component
from utils.errors import ConfigError, DataError
from utils.image_io import shown
from utils.registry import components, lookup
from utils.segfix import (MIN_PIXELS, distance_maps, mirrored_directions, offset_class_names,
                          offset_colours, segfix_targets, stored_angle)
from utils.segfix_files import MatFolder, read_distance_maps

_ID_BITS = 8        # of a packed pixel: train id, then 1 bit of border, then the direction


class SegFixTargets(BaseDataset):
    """Images of another dataset, with "boundary" and "direction" as targets.

    dataset[index] -> {"image": uint8 (3, H, W), "boundary": (H, W), 1 within
    max_distance pixels of a border; "direction": (H, W), 0 to directions - 1, to the inside
    of a pixel's own region; "label": (H, W), both in one map of classes, for validation:
    0 no border, 2 + direction; "id"}. ignore_index where the source has no label.

    source: the section {"type", "args"} of the dataset. targets: folder of the
        distance maps that `python -m tools.segfix_targets` wrote; null computes
        them when an image is read. directions: 4, 8, 16 or 32.
    max_distance: of a border pixel, in whole pixels, so 5 means below 6.
    min_pixels: a class with fewer in the image has no borders of its own, as published:
        all of it is border whose inside lies to the right. Of no effect on files.

    Targets are those of the whole image, cut and mirrored with it. Where the
    augmentation scales or turns, which the paper's does not, they are computed from
    the crop itself (without min_pixels); files cannot follow that.
    """

    def __init__(self, source: Annotated[dict, Component("datasets", name="a_source",
                                                         role="source")],
                 targets: str | None = None, directions: int = 8, max_distance: int = 5,
                 min_pixels: int = MIN_PIXELS, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        problems = self.check_settings({"directions": directions, "max_distance": max_distance,
                                        "min_pixels": min_pixels})
        if problems:
            raise ConfigError("; ".join(problems))
        self.source = _opened(source, ignore_index, seed)
        if self.source.num_classes >= 1 << _ID_BITS:
            raise ConfigError(f"{type(self.source).__name__} has {self.source.num_classes} "
                              f"classes, more than {(1 << _ID_BITS) - 1}", "source")
        self.directions, self.max_distance = directions, max_distance
        self.min_pixels = min_pixels
        self.follows = _keeps_shapes(augmentation)
        self.files = MatFolder(targets) if targets else None
        if self.files and not self.follows:
            raise ConfigError("files of targets cannot follow an augmentation that resizes or "
                              "turns", "targets", "set scale and rotate to false and leave out "
                              "base_size, aspect, val and RandAugment; or leave out targets")
        self.num_classes = directions + 2
        self.class_names = offset_class_names(directions)
        self.palette = offset_colours(directions)
        self.mean, self.std = self.source.mean, self.source.std
        super().__init__("", self.source.split, ignore_index, seed, augmentation)
        self.root = self.source.root

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """Mistakes that show without opening the data, as "key: text"."""
        problems = []
        if settings["directions"] not in (4, 8, 16, 32):
            problems.append(f"directions: expected 4, 8, 16 or 32, found {settings['directions']}")
        for key in ("max_distance", "min_pixels"):
            if settings[key] < 0:
                problems.append(f"{key}: expected at least 0, found {settings[key]}")
        if settings.get("sampler"):
            problems.append("sampler: borders and directions are no classes to draw images by")
        return problems

    def find_samples(self):
        yield from self.source.samples

    def check(self):
        """The source has checked its files; every image needs a label, and its file of targets."""
        missing = [sample.id for sample in self.samples
                   if sample.image is not None and sample.label is None]
        if missing:
            raise DataError(f"{len(missing)} images have no label, such as {shown(missing[0])}",
                            shown(self.source.root), "choose a split with labels")
        if self.files:
            for sample in self.samples:
                self.files.find(sample.id)

    def load(self, index):
        """The image and its train ids."""
        whole = self.source[index]
        return whole["image"].permute(1, 2, 0).numpy(), whole["label"].numpy()

    def load_label(self, index):
        return (self.cache or self).load(index)[1]

    def describe(self, index):
        return self.source.describe(index)

    def sample(self, index: int, rng: np.random.Generator,
               centre: tuple[int, int] | None = None) -> dict:
        image, ids = (self.cache or self).load(index)
        label = _without_sign(ids, self.ignore_index)
        if self.follows:
            label = _packed(label, *self._targets(label, index))
        flipped = False
        if self.augmentation is not None:
            anchor = {} if centre is None else {"centre": centre}
            image, label, flipped = self.augmentation(
                image, label, rng, image_border=self.border_colour, label_border=_VOID,
                train_ids=np.arange(1 << 16, dtype=np.uint16) & _VOID, **anchor)
        if self.follows:
            label, boundary, direction = _unpacked(label)
            if flipped:
                direction = mirrored_directions(self.directions)[direction]
        else:
            boundary, direction = self._targets_of(*distance_maps(label, _VOID, 0))
        void = label == _VOID
        kind = np.uint8 if 0 <= self.ignore_index <= 255 else np.int16
        maps = {"boundary": boundary, "direction": direction,
                "label": (direction + 2) * boundary}
        maps = {name: torch.from_numpy(np.where(void, kind(self.ignore_index), each.astype(kind)))
                for name, each in maps.items()}
        image = np.require(image, requirements=["C", "W"])
        return {"image": torch.from_numpy(image).permute(2, 0, 1), **maps,
                "id": self.samples[index].id}

    def _targets(self, label, index):
        if self.files is None:
            return self._targets_of(*distance_maps(label, _VOID, self.min_pixels))
        path = self.files.find(self.samples[index].id)
        depth, angle = read_distance_maps(path, label.shape)
        return self._targets_of(depth, angle=angle)

    def _targets_of(self, depth, dir_deg=None, angle=None):
        """(boundary, direction) of distance maps, uint8."""
        angle = stored_angle(dir_deg) if angle is None else angle
        tensors = segfix_targets(torch.zeros(depth.shape), torch.from_numpy(depth),
                                 torch.from_numpy(angle), self.directions, self.max_distance)
        return (each.to(torch.uint8).numpy() for each in tensors)


_VOID = (1 << _ID_BITS) - 1


def _opened(section, ignore_index, seed):
    cls = lookup(section["type"], components("datasets"), "source.type")
    if cls is SegFixTargets:
        raise ConfigError("SegFixTargets cannot be its own source", "source.type")
    own, = split_args(section, cls)
    return cls(**own, ignore_index=ignore_index, seed=seed)


def _keeps_shapes(augmentation):
    """Whether all it does to a label is to cut and to mirror it."""
    return augmentation is None or not (
        augmentation.scale != (1.0, 1.0) or augmentation.aspect != (1.0, 1.0)
        or augmentation.max_angle or augmentation.base_size or augmentation.val
        or any(isinstance(each, RandAugment) for each in augmentation.pixel_transforms))


def _without_sign(ids, ignore_index):
    """Train ids as uint16, 255 where ignored."""
    return np.where(ids == ignore_index, _VOID, ids).astype(np.uint16)


def _packed(label, boundary, direction):
    """One number per pixel, so that all of it moves together."""
    code = label | boundary.astype(np.uint16) << _ID_BITS
    return code | direction.astype(np.uint16) << _ID_BITS + 1


def _unpacked(code):
    return code & _VOID, (code >> _ID_BITS & 1).astype(np.uint8), \
        (code >> _ID_BITS + 1).astype(np.uint8)
