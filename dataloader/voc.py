"""PASCAL VOC 2012, 21 classes. Everingham et al., The PASCAL VOC challenge, IJCV 2010.

    VOCdevkit/VOC2012/JPEGImages/ID.jpg
    VOCdevkit/VOC2012/SegmentationClass/ID.png        2913 images
    VOCdevkit/VOC2012/SegmentationClassAug/ID.png     12031, with the labels of SBD
    VOCdevkit/VOC2012/ImageSets/Segmentation/SPLIT.txt

SBD: Hariharan et al., Semantic contours from inverse detectors, ICCV 2011; either as the folder
SegmentationClassAug with its lists, or as released (class SBD).
"""
import re
from collections.abc import Iterator

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.mat_labels import MatLabels
from utils.cli.console import warn
from utils.errors import shown
from utils.images.palette import voc_palette

CLASS_NAMES = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
               "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
               "sheep", "sofa", "train", "tvmonitor"]
STORED = {**{value: value for value in range(21)}, 255: None}     # 255: object borders
# PaddleSeg's trainaug: the labels of VOC if it has them, else those of SBD.
MERGED = {"trainaug": ("train", "aug")}


class VOC(BaseDataset):
    """VOC 2012: data_dir contains VOCdevkit/, or is VOCdevkit or VOC2012 itself.

    Splits with "aug" use SegmentationClassAug; test and test_aug have no
    labels. A list has one id per line, or the paths of image and label below
    VOC2012 (with a leading slash).
    """

    num_classes = 21
    class_names = CLASS_NAMES
    palette = voc_palette(21)
    mean = [0.45734706, 0.43338275, 0.40058118]
    std = [0.23965294, 0.23532275, 0.2398498]
    splits = ("train", "val", "trainval", "test", "train_aug", "val_aug", "trainval_aug",
              "test_aug", "trainaug", "aug")
    split_sizes = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582,
                   "val_aug": 1449, "trainval_aug": 12031, "test_aug": 1456, "trainaug": 10582,
                   "aug": 9118}

    def find_samples(self) -> Iterator[Sample]:
        lists = self.first_folder(*(f"{place}ImageSets/Segmentation" for place in (
            "VOCdevkit/VOC2012/", "VOCtrainval_11-May-2012/VOCdevkit/VOC2012/", "VOC2012/", "")))
        if lists is None:
            return
        self.root = lists.parents[1]    # the lists name files relative to it
        ids = set()
        for name in MERGED.get(self.split, (self.split,)):
            for sample in self._listed(lists / f"{name}.txt", name):
                ids.add(sample.id)
                yield sample
        val_list = lists / "val.txt"
        if self.split in ("train_aug", "trainaug", "aug") and val_list.is_file():
            self._warn_of_validation_images(ids, val_list)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Stored 0..20 are the classes, 255 is the border of an object."""
        return self.by_table(raw, STORED)

    def ignores_on_purpose(self, value: int) -> bool:
        return value == 255

    def _listed(self, path, name):
        """The samples of the list file of one split."""
        labels = "SegmentationClassAug" if "aug" in name else "SegmentationClass"
        for number, line in self.read_list(path):
            files = _columns(line)
            if "/" not in line:
                stem = line.removesuffix(".jpg")
                files = [f"JPEGImages/{stem}.jpg", f"{labels}/{stem}.png"]
            if name.startswith("test"):
                files = files[:1]
            elif len(files) != 2:
                self.problem(f"{shown(path)}:{number}: expected an id, or an image and a label, "
                             f"got {shown(line)!r}")
                continue
            image, *label = [self.listed_file(file, path, number) for file in files]
            if image and all(label):
                yield Sample(image.stem, image, label[0] if label else None)

    def _warn_of_validation_images(self, ids, path):
        """SBD's training list contains images of VOC's validation split."""
        if shared := ids & set(path.read_text("utf-8", "surrogateescape").split()):
            warn(f"VOC {self.split}: {len(shared)} images are also in {shown(path)} (such as "
                 f"{shown(min(shared))}): scores on val will be too high")


class SBD(MatLabels):
    """SBD as released: data_dir is benchmark_RELEASE/dataset, or contains it.

    Its train and val are not VOC's: train and VOC's val have images in common,
    which train_noval leaves out. There is no border value.
    """

    num_classes = 21
    class_names = CLASS_NAMES
    palette = voc_palette(21)
    mean, std = VOC.mean, VOC.std
    splits = ("train", "val", "train_noval")
    split_sizes = {"train": 8498, "val": 2857, "train_noval": 5623}
    mat_variable = "GTcls.Segmentation"

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder("img", "dataset/img", "benchmark_RELEASE/dataset/img")
        if images:
            stems = self.read_stems(images.parent / f"{self.split}.txt")
            yield from self.pair_by_stem(images, images.parent / "cls", stems=stems)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Stored 0..20 are the classes."""
        return self.by_table(raw, STORED)


def _columns(line):
    """The paths in a line; paths with a leading slash may contain spaces."""
    return re.split(r"\s+(?=/)", line) if line.startswith("/") else line.split()
