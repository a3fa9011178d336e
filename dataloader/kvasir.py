"""Kvasir-SEG, polyp and background. Jha et al., Kvasir-SEG, MMM 2020, arXiv:1911.07069.

The unpacked archive, and the lists of the MediaEval 2020 challenge (Medico), which it does not
contain:

    images/NAME.jpg                    1000, of 332x487 to 1920x1072 pixels
    masks/NAME.jpg                     black and white, stored as JPEG
    train.txt, val.txt                 880 and 120 names, one per line; without them only "all"

or sub-folders of a split of your own, images/SPLIT and masks/SPLIT (or labels/SPLIT).

JPEG changes the values along borders: a pixel is polyp if its gray value is at least 128.
"""
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.errors import DataError, shown
from utils.images.image_io import read_mask, read_pair
from utils.images.picture_files import LABEL_SUFFIXES
from utils.images.types import Image, Labels

THRESHOLD = 128


class KvasirSEG(BaseDataset):
    """Kvasir-SEG: data_dir contains images/ and masks/, or is the folder above Kvasir-SEG.

    split: "all", or "train" and "val" by the lists train.txt and val.txt beside images/ or by
    sub-folders of images/ and masks/.
    """

    aliases = ("Kvasir",)
    num_classes = 2
    class_names = ["background", "polyp"]
    palette = [[0, 0, 0], [230, 159, 0]]
    splits = ("train", "val", "all")
    split_sizes = {"train": 880, "val": 120, "all": 1000}
    label_suffixes = (*LABEL_SUFFIXES, ".jpg", ".jpeg")

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder("images", "Kvasir-SEG/images")
        if images is None:
            return
        self.root = images.parent
        below = "" if self.split == "all" or not (images / self.split).is_dir() \
            else f"/{self.split}"
        labels = self.first_folder(f"masks{below}", f"labels{below}")
        if labels is None:
            return
        stems = None
        if self.split != "all" and not below:
            stems = self._listed()
        yield from self.pair_by_stem(self.root / f"images{below}", labels, stems=stems)

    def _listed(self):
        """The stems of the list of the split."""
        path = self.root / f"{self.split}.txt"
        if not path.is_file():
            raise DataError(f"neither the list {self.split}.txt nor the folder "
                            f"images/{self.split} exists", shown(self.root),
                            "copy train.txt and val.txt of the challenge's repository "
                            "(kvasir-seg-train-val) beside images/, or set split to \"all\"")
        return self.read_stems(path)

    def read_label(self, path: Path) -> Labels:
        return read_mask(path, THRESHOLD)

    def load(self, index: int) -> tuple[Image, Labels]:
        sample = self.samples[index]
        if sample.image is None or sample.label is None:
            return super().load(index)
        return read_pair(sample.image, sample.label, label=self.read_label(sample.label),
                         white=self.white)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """`read_label` returns 0 and 1."""
        return self.by_table(raw, {0: 0, 1: 1})
