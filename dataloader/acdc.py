"""ACDC, 19 classes of Cityscapes in fog, night, rain and snow. Sakaridis et al., ICCV 2021.

arXiv:2104.13395. The two archives, unpacked into one folder or each into a folder of its name:

    rgb_anon/CONDITION/{train,val,test}/GOPR0475/GOPR0475_frame_000041_rgb_anon.png
    rgb_anon/CONDITION/{train,val,test}_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png
    gt/CONDITION/{train,val}/GOPR0475/GOPR0475_frame_000041_gt_{labelTrainIds,labelIds}.png

Each condition has 400, 100 (night: 106) and 500 images of 1080x1920 pixels. The labels of test are
kept by the benchmark's server. The splits with "_ref" are the same places in good weather; the
second edition has labels for 1503 of these 4006, under names whose spelling here
(_gt_ref_labelTrainIds) was taken from public code and not compared with the release.
"""
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.cityscapes import CLASS_NAMES, PALETTE, STORED_IDS
from utils.images.name_pattern import NamePattern, find_files, matching
from utils.images.picture_files import LABEL_SUFFIXES

CONDITIONS = ("fog", "night", "rain", "snow")
SIZES = {"train": {"fog": 400, "night": 400, "rain": 400, "snow": 400},
         "val": {"fog": 100, "night": 106, "rain": 100, "snow": 100},
         "test": {"fog": 500, "night": 500, "rain": 500, "snow": 500}}


class ACDC(BaseDataset):
    """ACDC as released: data_dir contains rgb_anon/ and gt/.

    condition: one of the four, or "all". labels: which label files are read, those of train ids
        or those of Cityscapes' ids; the classes are the same.
    splits with "_ref" are the pictures in good weather. If gt/CONDITION/SPLIT exists, they are
    those that have a label.
    """

    num_classes = 19
    class_names = CLASS_NAMES
    palette = PALETTE
    splits = ("train", "val", "test", "train_ref", "val_ref", "test_ref")
    split_sizes = {split: sum(sizes.values()) for split, sizes in SIZES.items()}

    def __init__(self, data_dir: str, split: str,
                 condition: Literal["all", "fog", "night", "rain", "snow"] = "all",
                 labels: Literal["labelTrainIds", "labelIds"] = "labelTrainIds",
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        self.conditions = CONDITIONS if condition == "all" else (condition,)
        self.labels = labels
        self.split_sizes = {name: sum(sizes[one] for one in self.conditions)
                            for name, sizes in SIZES.items()}
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        for condition in self.conditions:
            for sample in self._of_condition(condition):
                # Without the folder: the name is unique, and the server expects it.
                yield sample._replace(id=PurePosixPath(sample.id).name)

    def _of_condition(self, condition):
        below, ref = f"{condition}/{self.split}", "_ref" if self.split.endswith("_ref") else ""
        images = self.first_folder(f"rgb_anon/{below}", f"rgb_anon_trainvaltest/rgb_anon/{below}")
        if images is None:
            return
        places = [f"gt/{below}", f"gt_trainval/gt/{below}"]
        ending = f"_rgb{ref}_anon"
        if self.split not in ("train", "val") \
                and not any((self.root / place).is_dir() for place in places):
            yield from self.images_only(images, ending)
        elif labels := self.first_folder(*places):
            label_ending = f"_gt{ref}_{self.labels}"
            stems = None
            if ref:         # not all of them have labels
                pattern = NamePattern(f"*{label_ending}", any_suffix=True)
                stems = sorted((str(path), stem) for stem, path in matching(
                    find_files(labels, LABEL_SUFFIXES), pattern).values())
            yield from self.pair_by_stem(images, labels, ending, label_ending, stems=stems)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids and 255, or the ids of Cityscapes."""
        if self.labels == "labelIds":
            return self.by_table(raw, STORED_IDS)
        return self.by_table(raw, {**{value: value for value in range(19)}, 255: None})

    def ignores_on_purpose(self, value: int) -> bool:
        return value == 255
