"""MiniCity, 19 classes: the VIPriors 2020 segmentation challenge, cut from Cityscapes.

    minicity/leftImg8bit/{train,val}/*_leftImg8bit.png     no city folders; 200 and 100
    minicity/gtFine/{train,val}/*_gtFine_labelIds.png
    minicity/leftImg8bit/test/NUMBER.png                   200, without labels

Its tutorial gives void the class 19; here this is ignore_index 19, or 255.
"""
from collections.abc import Iterator

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.cityscapes import CLASS_NAMES, PALETTE, STORED_IDS, CityScapes


class MiniCity(BaseDataset):
    """MiniCity: data_dir is minicity/, or the folder that contains it."""

    num_classes = 19
    class_names = CLASS_NAMES
    palette = PALETTE
    mean, std = CityScapes.mean, CityScapes.std
    splits = ("train", "val", "test")
    split_sizes = {"train": 200, "val": 100, "test": 200}

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder(f"leftImg8bit/{self.split}",
                                   f"minicity/leftImg8bit/{self.split}")
        if images is None:
            return
        if self.split == "test":
            yield from self.images_only(images)
        else:
            yield from self.pair_by_stem(images, images.parents[1] / "gtFine" / self.split,
                                         "_leftImg8bit", "_gtFine_labelIds")

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """The 19 evaluated label ids are the classes; the others up to 33 are ignored."""
        return self.by_table(raw, STORED_IDS)
