"""PASCAL-Context, 59 or 60 classes. Mottaghi et al., The role of context, CVPR 2014.

The two downloads as unpacked, or the folder that is often made of them:

    VOCtrainval_03-May-2010/VOCdevkit/VOC2010/{JPEGImages,ImageSets/Main}
    trainval/trainval/ID.mat                                LabelMap: 459 ids

    VOC2010_Context/Images/{train,val}/ID.jpg
    VOC2010_Context/Annotations/{train,val}/ID.png          0 background, 1..59 classes

The split is that of ImageSets/Main: 4998 and 5105 pictures. Classes are in the order of their ids
among the 459, which is alphabetical; the list of 2014 names them in another order.
"""
import numpy as np

from dataloader.mat_labels import MatLabels
from dataloader.pascal_context_classes import CLASSES
from utils.image_io import LABEL_SUFFIXES

LARGEST_ID = 459


class _Context(MatLabels):
    """What the tasks of 59 and of 60 classes share."""

    splits = ("train", "val", "trainval")
    split_sizes = {"train": 4998, "val": 5105, "trainval": 10103}
    mat_variable = "LabelMap"
    prepared = False           # labels hold 0..59 instead of the 459 ids
    encodings = 2

    def find_samples(self):
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

    def among_60(self, raw):
        """Stored values as 0 (background) to 59; the 400 ids that are no class are background."""
        if self.prepared:
            return self.by_table(raw, {value: value for value in range(60)})
        table = dict.fromkeys(range(LARGEST_ID + 1), 0)
        return self.by_table(raw, {**table, **{row[0]: i for i, row in enumerate(CLASSES)}})


class VOC2010_Context(_Context):
    """PASCAL-Context without background: 59 classes, everything else is ignored.

    data_dir holds the two downloads, or is VOC2010_Context. With both in one
    folder the downloads are read.
    """

    num_classes = 59
    class_names = [name for _, name, _ in CLASSES[1:]]
    palette = [list(colour) for _, _, colour in CLASSES[1:]]

    def train_ids(self, raw):
        """Classes 1..59 of the 60 become 0..58, background is ignored."""
        ids = self.among_60(raw)
        return np.where(ids == 0, self.ignore_index, ids - 1)


class VOC2010_Context_60(_Context):
    """PASCAL-Context with background as class 0: 60 classes; data_dir as for VOC2010_Context."""

    num_classes = 60
    class_names = [name for _, name, _ in CLASSES]
    palette = [list(colour) for _, _, colour in CLASSES]

    def train_ids(self, raw):
        """0 is background, 1..59 are the classes."""
        return self.among_60(raw)
