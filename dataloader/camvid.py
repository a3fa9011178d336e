"""CamVid, 11 classes. Brostow et al., Semantic object classes in video, PRL 2009.

Frames of 480x360 pixels (width x height): 367 train, 101 val, 233 test, in the folders of the
SegNet tutorial (Badrinarayanan et al., PAMI 2017):

    train.txt  val.txt  test.txt          image and label of a frame on each line
    train/ trainannot/ val/ valannot/ test/ testannot/

Pairs are read from the list file, or found by stem if there is no list; images may
have any extension. Stored 11 (void) is ignored.
"""
from collections.abc import Iterator

import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.errors import shown

CONTAINER_PREFIX = "/SegNet/CamVid/"    # begins every path in the lists of the tutorial


class CamVid(BaseDataset):
    """CamVid in the SegNet layout: data_dir contains train/, trainannot/, train.txt, ..."""

    num_classes = 11
    class_names = ["sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence",
                   "car", "pedestrian", "bicyclist"]
    palette = [[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
               [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
               [0, 128, 192]]
    # Mean and standard deviation of the train split.
    mean = [0.41189, 0.42513, 0.43267]
    std = [0.30707, 0.31161, 0.30722]
    splits = ("train", "val", "test")
    split_sizes = {"train": 367, "val": 101, "test": 233}

    def find_samples(self) -> Iterator[Sample]:
        list_file = self.root / f"{self.split}.txt"
        if not list_file.is_file():
            yield from self.pair_by_stem(self.root / self.split, self.root / f"{self.split}annot")
            return
        for number, line in self.read_list(list_file):
            names = [name.removeprefix(CONTAINER_PREFIX) for name in line.split()]
            if len(names) != 2:
                self.problem(f"{shown(list_file)}:{number}: expected an image and a label, got "
                             f"{shown(line)!r}")
                continue
            image = self.listed_file(names[0], list_file, number)
            label = self.listed_file(names[1], list_file, number)
            if image and label:
                yield Sample(image.stem, image, label)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Stored 0..10 are the classes, 11 is void."""
        return np.where(raw == 11, self.ignore_index, raw)
