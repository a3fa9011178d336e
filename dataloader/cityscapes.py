"""Cityscapes, 19 classes. Cordts et al., CVPR 2016, arXiv:1604.01685.

The zip files of the official site, unpacked into one folder or each into a folder of its name:

    leftImg8bit_trainvaltest/leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
    leftImg8bit_trainextra/leftImg8bit/train_extra/CITY/*_leftImg8bit.png
    gtFine_trainvaltest/gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png
    gtCoarse/gtCoarse/{train,val,train_extra}/CITY/*_gtCoarse_labelIds.png

with or without the outer folders. The official label ids are read; files that other programs
derive from them (labelTrainIds, 19classes) are not used.

One image of train_extra, troisdorf_000000_000073, is black in the release: it is left out with its
label, whether or not the files exist. "val" has fine annotation, except in CityScapes with the mode
"coarse".
"""
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.samplers import drawn
from utils.errors import ConfigError
from utils.images.picture_files import picture_files

CLASS_NAMES = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
               "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
               "bus", "train", "motorcycle", "bicycle"]
PALETTE = [[128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156], [190, 153, 153],
           [153, 153, 153], [250, 170, 30], [220, 220, 0], [107, 142, 35], [152, 251, 152],
           [70, 130, 180], [220, 20, 60], [255, 0, 0], [0, 0, 142], [0, 0, 70], [0, 60, 100],
           [0, 80, 100], [0, 0, 230], [119, 11, 32]]
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
STORED_IDS = {value: LABEL_IDS.index(value) if value in LABEL_IDS else None for value in range(34)}
LEFTOVERS = "tmp"     # a folder of the auto-labeled release that contains no labels
CORRUPT = ("troisdorf/troisdorf_000000_000073",)


class _Cityscapes(BaseDataset):
    """The common part of all selections from the Cityscapes folders."""

    num_classes = 19
    class_names = CLASS_NAMES
    palette = PALETTE
    mean = [0.28689529, 0.32513294, 0.28389176]
    std = [0.17613647, 0.18099176, 0.17772235]

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """The 19 evaluated label ids are the classes; the others up to 33 are ignored."""
        return self.by_table(raw, STORED_IDS)

    def part(self, split: str, kind: str = "gtFine") -> Iterator[Sample]:
        """The samples of one official split; kind: "gtFine" or "gtCoarse"."""
        images = self._images(split)
        labels = [f"{kind}_trainvaltest/{kind}/{split}", f"{kind}/{kind}/{split}",
                  f"{kind}/{split}"]
        if images is None:
            return
        if split == "test" and not any((self.root / place).is_dir() for place in labels):
            samples = self.images_only(images, "_leftImg8bit")
        elif label_dir := self.first_folder(*labels):
            samples = self.pair_by_stem(images, label_dir, "_leftImg8bit", f"_{kind}_labelIds",
                                        without=CORRUPT)
        else:
            return
        yield from map(_named_without_city, samples)

    def _images(self, split):
        """The folder of images of a split, or None (reported as a problem)."""
        archive = "trainextra" if split == "train_extra" else "trainvaltest"
        return self.first_folder(f"leftImg8bit_{archive}/leftImg8bit/{split}",
                                 f"leftImg8bit/{split}")


class CityScapes(_Cityscapes):
    """Cityscapes with fine or coarse annotation.

    mode: "fine" has train, val, trainval and test; "coarse" has train, val,
    trainval and train_extra. test has no labels if its label folder does not exist.
    """

    aliases = ("Cityscapes",)
    splits = ("train", "val", "trainval", "test", "train_extra")
    split_sizes = {"train": 2975, "val": 500, "trainval": 3475, "test": 1525, "train_extra": 19997}

    def __init__(self, data_dir: str, split: str, mode: Literal["fine", "coarse"] = "fine",
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        missing = {"fine": ("train_extra",), "coarse": ("test",)}[mode]
        if split in missing:
            raise ConfigError(f"Cityscapes has no {mode} annotation of {split}", "split",
                              f"use one of {', '.join(s for s in self.splits if s not in missing)}"
                              ", or another mode")
        self.mode = mode
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        kind = {"fine": "gtFine", "coarse": "gtCoarse"}[self.mode]
        for split in ("train", "val") if self.split == "trainval" else (self.split,):
            yield from self.part(split, kind)


class Cityscapes_coarse(_Cityscapes):
    """The coarsely annotated extra images (train, or train_extra); val and test are fine."""

    splits = ("train", "train_extra", "val", "test")
    split_sizes = {"train": 19997, "train_extra": 19997, "val": 500, "test": 1525}

    def find_samples(self) -> Iterator[Sample]:
        if self.split in ("train", "train_extra"):
            yield from self.part("train_extra", "gtCoarse")
        else:
            yield from self.part(self.split)


class Cityscapes_fine_coarse(_Cityscapes):
    """train: all fine images and a share of the coarsely annotated ones; val and test are fine.

    coarse_portion: share of train_extra, drawn once from the seed. A Mixture of
    CityScapes and Cityscapes_coarse draws again for every epoch.
    """

    splits = ("train", "val", "test")
    split_sizes = {"val": 500, "test": 1525}

    def __init__(self, data_dir: str, split: str, coarse_portion: float = 1.0,
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        if not 0 <= coarse_portion <= 1:
            raise ConfigError(f"coarse_portion must be in 0..1, got {coarse_portion}",
                              "coarse_portion")
        self.coarse_portion = coarse_portion
        if coarse_portion == 1:
            self.split_sizes = {**self.split_sizes, "train": 22972}
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        yield from self.part(self.split)
        if self.split == "train" and self.coarse_portion:
            coarse = list(self.part("train_extra", "gtCoarse"))
            count = round(self.coarse_portion * len(coarse))
            rng = np.random.default_rng(self.seed % 2 ** 64)
            yield from (coarse[index] for index in drawn(count, len(coarse), rng))


class Cityscapes_autolabelled(_Cityscapes):
    """train_extra with the labels of a network (Tao et al., 2020, arXiv:2005.10821); val is fine.

    The labels are convert_autolabelled/CITY/*_leftImg8bit.png (train ids, as
    PaddleSeg prepares them) if that folder exists, else refinement_final/train_extra/CITY/
    as released (label ids; its tmp/ is skipped). "train", "train_extra" and
    "autolabelled" are the same images; to add the fine ones, use a Mixture.
    """

    aliases = ("CityscapesAutolabeling",)
    splits = ("train", "train_extra", "autolabelled", "val")
    split_sizes = {"train": 19997, "train_extra": 19997, "autolabelled": 19997, "val": 500}
    has_train_ids = False
    encodings = 2

    def find_samples(self) -> Iterator[Sample]:
        if self.split == "val":
            yield from self.part("val")
            return
        images = self._images("train_extra")
        labels = self.first_folder("convert_autolabelled", "refinement_final/train_extra")
        if images and labels:
            self.has_train_ids = labels.name == "convert_autolabelled"
            leftovers = {path.relative_to(labels).as_posix().removesuffix("_leftImg8bit.png")
                         for path in picture_files(labels / LEFTOVERS)}
            samples = self.pair_by_stem(images, labels, "_leftImg8bit", "_leftImg8bit",
                                        without=(*CORRUPT, *leftovers))
            yield from map(_named_without_city, samples)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids and 255, or label ids; both encodings may contain 255 for void."""
        if self.has_train_ids:
            return self.by_table(raw, {**{value: value for value in range(19)}, 255: None})
        return self.by_table(raw, STORED_IDS if self.split == "val" else {**STORED_IDS, 255: None})

    def ignores_on_purpose(self, value: int) -> bool:
        return value == 255


def _named_without_city(sample):
    """The sample with the id CITY_000000_000000, which is unique without the folder CITY/."""
    return sample._replace(id=PurePosixPath(sample.id).name)
