"""CamVid, 11 classes. Brostow et al., Semantic object classes in video, PRL 2009.

The layout of the SegNet tutorial (Badrinarayanan et al., PAMI 2017): 367, 101
and 233 frames of 480x360,

    train.txt  val.txt  test.txt          image and label of a frame on each line
    train/ trainannot/ val/ valannot/ test/ testannot/

Pairs come from the list file, or by stem where there is none; images may have
any extension. Stored 11 (void) is ignored.
"""
import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.image_io import shown

CONTAINER_PREFIX = "/SegNet/CamVid/"    # where the tutorial's container had the data


class CamVid(BaseDataset):
    """CamVid in the SegNet layout: data_dir holds train/, trainannot/, train.txt, ..."""

    num_classes = 11
    class_names = ["sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence",
                   "car", "pedestrian", "bicyclist"]
    palette = [[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
               [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
               [0, 128, 192]]
    # Of the train split.
    mean = [0.41189, 0.42513, 0.43267]
    std = [0.30707, 0.31161, 0.30722]
    splits = ("train", "val", "test")
    split_sizes = {"train": 367, "val": 101, "test": 233}

    def find_samples(self):
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

    def train_ids(self, raw):
        """Stored 0..10 are the classes, 11 is void."""
        return np.where(raw == 11, self.ignore_index, raw)
