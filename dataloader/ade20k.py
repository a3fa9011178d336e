"""ADE20K, 150 classes. Zhou et al., Scene parsing through ADE20K, CVPR 2017, arXiv:1608.05442.

The benchmark release: ADEChallengeData2016/{images,annotations}/{training,validation}/, 20210 and
2000 images. Color palettes of 151 entries that start with black belong to the stored values; the
palette here belongs to the 150 classes.
"""
from collections.abc import Iterator

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.class_tables.ade20k import CLASSES


class ADE20K(BaseDataset):
    """ADE20K as released: data_dir is ADEChallengeData2016, or the folder that contains it."""

    num_classes = 150
    class_names = [name for name, _ in CLASSES]
    palette = [list(color) for _, color in CLASSES]
    mean = [0.48897059, 0.46548275, 0.4294]
    std = [0.22861765, 0.22948039, 0.24054667]
    splits = ("training", "validation")
    split_sizes = {"training": 20210, "validation": 2000}

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder(f"images/{self.split}",
                                   f"ADEChallengeData2016/images/{self.split}")
        if images:
            yield from self.pair_by_stem(images, images.parents[1] / "annotations" / self.split)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Stored 0 ("other") is ignored; stored 1..150 are classes 0..149."""
        return np.where(raw == 0, self.ignore_index, raw - 1)
