"""COCO-Stuff, 171 or 182 classes. Caesar et al., COCO-Stuff, CVPR 2018, arXiv:1612.03716.

    10k (v1.1)  images/*.jpg  annotations/*.mat  imageLists/{train,test,all}.txt
    164k        images/{train2017,val2017}/*.jpg  annotations/{train2017,val2017}/*.png

Ids run from 1 to 182 and 11 of them occur nowhere. The two releases store them differently: 10k
as they are with 0 for unlabeled, 164k less one with 255 for unlabeled.
"""
from collections.abc import Callable
from typing import Literal

from dataloader.coco_stuff_classes import CLASSES
from dataloader.mat_labels import MatLabels
from utils.image_io import LABEL_SUFFIXES

USED = [row for row in CLASSES if row[3]]     # those that occur
SPLITS = {"CocoStuff10k": {"train": 9000, "test": 1000, "all": 10000},
          "CocoStuff164k": {"train2017": 118287, "val2017": 5000, "all": 123287}}


class COCO(MatLabels):
    """COCO-Stuff: data_dir holds images/ and annotations/.

    partition: which release, and with it which splits: train, test, all of
    CocoStuff10k; train2017, val2017, all of CocoStuff164k.
    num_classes: 182, id - 1; or 171, without the ids that occur nowhere. Of 182,
    name the 171 as classes of interest, or a stray prediction of another
    counts as a class of IoU 0.
    """

    num_classes = 182
    class_names = [name for _, name, _, _ in CLASSES]
    palette = [list(colour) for _, _, colour, _ in CLASSES]
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
            self.class_names = [name for _, name, _, _ in USED]
            self.palette = [list(colour) for _, _, _, colour in USED]
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self):
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

    def train_ids(self, raw):
        """The class of each id; unlabeled is ignored, and so are ids that are no class of 171."""
        if self.num_classes == 182:
            classes = {row[0]: row[0] - 1 for row in CLASSES}
        else:
            classes = {**dict.fromkeys(row[0] for row in CLASSES),
                       **{row[0]: index for index, row in enumerate(USED)}}
        if self.partition == "CocoStuff10k":
            return self.by_table(raw, {0: None, **classes})
        return self.by_table(raw, {255: None, **{id - 1: c for id, c in classes.items()}})

    def ignores_on_purpose(self, value):
        return value == 255
