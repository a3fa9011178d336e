"""BDD100K, semantic segmentation with the 19 classes of Cityscapes. Yu et al., CVPR 2020.

arXiv:1805.04687. The archives "10K Images" and "Segmentation", unpacked into one folder
(https://doc.bdd100k.com), or the older archive of the segmentation part:

    images/10k/{train,val,test}/NAME.jpg                7000, 1000 and 2000 of 720x1280 pixels
    labels/sem_seg/masks/{train,val}/NAME.png           train ids, 255 unknown

    seg/images/{train,val,test}/NAME.jpg
    seg/labels/{train,val}/NAME_train_id.png

with or without a folder bdd100k around them. These images are not a subset of the 100000.
"""
from collections.abc import Iterator

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.cityscapes import CLASS_NAMES, PALETTE


class BDD100K(BaseDataset):
    """BDD100K's 10000 labeled images: data_dir contains images/ and labels/, or seg/."""

    num_classes = 19
    class_names = CLASS_NAMES
    palette = PALETTE
    splits = ("train", "val", "test")
    split_sizes = {"train": 7000, "val": 1000, "test": 2000}

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder(*(f"{outer}{inner}/{self.split}"
                                     for inner in ("images/10k", "seg/images")
                                     for outer in ("", "bdd100k/")))
        if images is None:
            return
        older = images.parents[1].name == "seg"
        if self.split == "test":
            yield from self.images_only(images)
        elif older:
            yield from self.pair_by_stem(images, images.parents[1] / "labels" / self.split,
                                         label_ending="_train_id")
        else:
            labels = images.parents[2] / "labels" / "sem_seg" / "masks" / self.split
            yield from self.pair_by_stem(images, labels)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids; 255 is unknown."""
        return self.by_table(raw, {**{value: value for value in range(19)}, 255: None})

    def ignores_on_purpose(self, value: int) -> bool:
        return value == 255
