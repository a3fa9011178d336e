"""PASCAL-Context, 59 or 60 classes. Mottaghi et al., The role of context, CVPR 2014.

The two unpacked downloads, or the folder that is often made from them:

    VOCtrainval_03-May-2010/VOCdevkit/VOC2010/{JPEGImages,ImageSets/Main}
    trainval/trainval/ID.mat                                LabelMap: 459 ids

    VOC2010_Context/Images/{train,val}/ID.jpg
    VOC2010_Context/Annotations/{train,val}/ID.png          0 background, 1..59 classes

The splits are those of ImageSets/Main: 4998 and 5105 images. Classes are in the order of their ids
among the 459, which is alphabetical; the list of 2014 has another order.
"""
from collections.abc import Iterator

import numpy as np

from base.base_dataset import Sample
from dataloader.class_tables.pascal_context import CLASSES
from dataloader.mat_labels import MatLabels
from utils.images.picture_files import LABEL_SUFFIXES

LARGEST_ID = 459


class _Context(MatLabels):
    """The common part of the tasks with 59 and with 60 classes."""

    splits = ("train", "val", "trainval")
    split_sizes = {"train": 4998, "val": 5105, "trainval": 10103}
    mat_variable = "LabelMap"
    prepared = False           # whether labels contain 0..59 instead of the 459 ids
    encodings = 2

    def find_samples(self) -> Iterator[Sample]:
        folder = self.first_folder("VOCtrainval_03-May-2010/VOCdevkit/VOC2010",
                                   "VOCdevkit/VOC2010", "VOC2010", "Images",
                                   "VOC2010_Context/Images")
        if folder is None:
            return
        parts = ("train", "val") if self.split == "trainval" else (self.split,)
        self.prepared = folder.name == "Images"
        self.label_suffixes = LABEL_SUFFIXES if self.prepared else (".mat",)
        if self.prepared:
            for part in parts:
                yield from self.pair_by_stem(folder / part, folder.parent / "Annotations" / part)
        elif labels := self.first_folder("trainval/trainval", "trainval"):
            stems = [stem for part in parts
                     for stem in self.read_stems(folder / "ImageSets" / "Main" / f"{part}.txt")]
            yield from self.pair_by_stem(folder / "JPEGImages", labels, stems=stems)

    def among_60(self, raw: np.ndarray) -> np.ndarray:
        """0 (background) to 59 for stored values (N,); the 400 other ids are background."""
        if self.prepared:
            return self.by_table(raw, {value: value for value in range(60)})
        table = dict.fromkeys(range(LARGEST_ID + 1), 0)
        return self.by_table(raw, {**table, **{row[0]: i for i, row in enumerate(CLASSES)}})


class VOC2010_Context(_Context):
    """PASCAL-Context without background: 59 classes, everything else is ignored.

    data_dir contains the two downloads, or is VOC2010_Context. If it has both, the
    downloads are read.
    """

    num_classes = 59
    class_names = [name for _, name, _ in CLASSES[1:]]
    palette = [list(color) for _, _, color in CLASSES[1:]]

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Classes 1..59 of the 60 become 0..58, background is ignored."""
        ids = self.among_60(raw)
        return np.where(ids == 0, self.ignore_index, ids - 1)


class VOC2010_Context_60(_Context):
    """PASCAL-Context with background as class 0: 60 classes; data_dir as for VOC2010_Context."""

    num_classes = 60
    class_names = [name for _, name, _ in CLASSES]
    palette = [list(color) for _, _, color in CLASSES]

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """0 is background, 1..59 are the classes."""
        return self.among_60(raw)
