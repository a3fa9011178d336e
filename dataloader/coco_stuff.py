"""COCO-Stuff, 171 or 182 classes. Caesar et al., COCO-Stuff, CVPR 2018, arXiv:1612.03716.

    10k (v1.1)  images/*.jpg  annotations/*.mat  imageLists/{train,test,all}.txt
    164k        images/{train2017,val2017}/*.jpg  annotations/{train2017,val2017}/*.png

Ids run from 1 to 182; 11 of them never occur. 10k stores the ids, with 0 for unlabeled; 164k stores
the ids minus one, with 255 for unlabeled.
"""
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from base.base_dataset import Sample
from dataloader.class_tables.coco_stuff import CLASSES
from dataloader.mat_labels import MatLabels
from utils.images.picture_files import LABEL_SUFFIXES

USED = [(id_, name, color) for id_, name, _, color in CLASSES if color]    # ids that occur
SPLITS = {"CocoStuff10k": {"train": 9000, "test": 1000, "all": 10000},
          "CocoStuff164k": {"train2017": 118287, "val2017": 5000, "all": 123287}}


class COCO(MatLabels):
    """COCO-Stuff: data_dir contains images/ and annotations/.

    partition: the release. CocoStuff10k has the splits train, test and all;
    CocoStuff164k has train2017, val2017 and all.
    num_classes: 182, where the class is id - 1; or 171, without the ids that never
    occur. With 182, name the 171 as classes of interest; otherwise a wrong
    prediction of another class counts as a class of IoU 0.
    """

    num_classes = 182
    class_names = [name for _, name, _, _ in CLASSES]
    palette = [list(color) for _, _, color, _ in CLASSES]
    mean = [0.43931922, 0.41310471, 0.37480941]
    std = [0.24272706, 0.23649098, 0.23429529]
    splits = ("train", "test", "train2017", "val2017", "all")
    mat_variable = "S"

    def __init__(self, data_dir: str, split: str,
                 partition: Literal["CocoStuff10k", "CocoStuff164k"] = "CocoStuff164k",
                 num_classes: Literal[171, 182] = 182, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        self.partition, self.splits = partition, tuple(SPLITS[partition])
        self.split_sizes = SPLITS[partition]
        self.label_suffixes = (".mat",) if partition == "CocoStuff10k" else LABEL_SUFFIXES
        if num_classes == 171:
            self.num_classes = 171
            self.class_names = [name for _, name, _ in USED]
            self.palette = [list(color) for _, _, color in USED]
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        images, labels = self.first_folder("images"), self.first_folder("annotations")
        if images is None or labels is None:
            return
        if self.partition == "CocoStuff10k":
            stems = self.read_stems(self.root / "imageLists" / f"{self.split}.txt")
            yield from self.pair_by_stem(images, labels, stems=stems)
            return
        for split in ("train2017", "val2017") if self.split == "all" else (self.split,):
            image_dir = self.first_folder(f"images/{split}")
            label_dir = self.first_folder(f"annotations/{split}")
            if image_dir and label_dir:
                yield from self.pair_by_stem(image_dir, label_dir)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """The class of each id; ignored are unlabeled and, with 171 classes, the 11 other ids."""
        if self.num_classes == 182:
            classes = {row[0]: row[0] - 1 for row in CLASSES}
        else:
            classes = {**dict.fromkeys(row[0] for row in CLASSES),
                       **{row[0]: index for index, row in enumerate(USED)}}
        if self.partition == "CocoStuff10k":
            return self.by_table(raw, {0: None, **classes})
        return self.by_table(raw, {255: None, **{id_ - 1: c for id_, c in classes.items()}})

    def ignores_on_purpose(self, value: int) -> bool:
        return value == 255
