"""Mapillary Vistas, 65 or 123 classes. Neuhold et al., The Mapillary Vistas dataset, ICCV 2017.

The unpacked archive (edition 2.0 contains the labels of both versions, older ones those of 1.2):

    {training,validation,testing}/images/NAME.jpg             18000, 2000 and 5000
    {training,validation}/v1.2/labels/NAME.png                palette PNG: 0..64, 65 unlabeled
    {training,validation}/v2.0/labels/NAME.png                palette PNG: 0..122, 123 unlabeled
    {training,validation}/labels/NAME.png                     of the editions up to 1.2
    config_v1.2.json, config_v2.0.json (or config.json)       names and colors; compared if present

The panoptic, instance and polygon files are not used. The tables are those that the config files of
the release are reported to have. Two public copies of the list of 2.0 differ in the order of the
six traffic lights (values 90 to 95); the order here is the one that two of them share, and the
config file in your folder decides: another order there is a warning.
"""
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader import cityscapes
from dataloader.class_tables.mapillary import CLASSES_1_2, CLASSES_2_0
from utils.cli.console import warn
from utils.errors import UserError, shown
from utils.files.jsonc import read_jsonc

TABLES = {"1.2": CLASSES_1_2, "2.0": CLASSES_2_0}


class Mapillary(BaseDataset):
    """Mapillary Vistas as released: data_dir contains training/, validation/ and testing/.

    version: of the labels. "1.2" has 65 classes, "2.0" has 123; pixels that are unlabeled are
        ignored, or with train_void a class of their own (66, 124). testing has no labels.
    mapping: "cityscapes" reads the labels as the 19 classes of Cityscapes. There is no published
        mapping; the table is in dataloader/class_tables/mapillary.py. Classes without one are
        ignored.
    """

    aliases = ("MapillaryVistas",)
    splits = ("training", "validation", "testing")
    split_sizes = {"training": 18000, "validation": 2000, "testing": 5000}
    num_classes = 65
    class_names = [name for name, _, _ in CLASSES_1_2]
    palette = [list(color) for _, color, _ in CLASSES_1_2]

    def __init__(self, data_dir: str, split: str, version: Literal["1.2", "2.0"] = "1.2",
                 mapping: Literal["cityscapes"] | None = None, ignore_index: int = 255,
                 seed: int = 0, augmentation: Callable | None = None):
        self.version, self.mapping, self.table = version, mapping, TABLES[version]
        if mapping == "cityscapes":
            self.num_classes = len(cityscapes.CLASS_NAMES)
            self.class_names, self.palette = cityscapes.CLASS_NAMES, cityscapes.PALETTE
        else:
            self.num_classes = len(self.table)
            self.class_names = [name for name, _, _ in self.table]
            self.palette = [list(color) for _, color, _ in self.table]
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        images = self.first_folder(f"{self.split}/images")
        if images is None:
            return
        if self.split == "testing":
            yield from self.images_only(images)
            return
        older = (f"{self.split}/labels",) if self.version == "1.2" else ()
        labels = self.first_folder(f"{self.split}/v{self.version}/labels", *older)
        if labels:
            self._compare_with_release()
            yield from self.pair_by_stem(images, labels)

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """The stored value is the class, or that of Cityscapes; unlabeled is ignored."""
        stored = {value: value for value in range(len(self.table))}
        if self.mapping == "cityscapes":
            known = {name: number for number, name in enumerate(cityscapes.CLASS_NAMES)}
            stored = {value: known[city] if city else None
                      for value, (_, _, city) in enumerate(self.table)}
        return self.by_table(raw, {**stored, len(self.table): None})

    def _compare_with_release(self):
        """Warn if the config file of the release gives other names to the stored values."""
        names = (f"config_v{self.version}.json", *(("config.json",) if self.version == "1.2"
                                                   else ()))
        path = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if path is None:
            return
        try:
            entries = [entry["readable"] for entry in read_jsonc(path)["labels"]]
        except (UserError, KeyError, TypeError) as error:
            warn(f"{shown(path)} cannot be compared with the class table: {error!r:.80}")
            return
        ours = [*(name for name, _, _ in self.table), "Unlabeled"]
        differing = [value for value, (here, there) in enumerate(zip(ours, entries, strict=False))
                     if _letters(here) != _letters(there)]
        if len(entries) != len(ours):
            warn(f"{shown(path)} lists {len(entries)} labels, version {self.version} has "
                 f"{len(ours)}: is it the file of another version?")
        elif differing:
            first = differing[0]
            warn(f"{shown(path)} names {len(differing)} of {len(ours)} labels otherwise; the first "
                 f"is {first}: {str(entries[first])!r:.60} there, {ours[first]!r} here")


def _letters(name):
    """A name without case and signs. "Test" is how the release spells one "Text"."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum()).replace(
        "onlytest", "onlytext")
