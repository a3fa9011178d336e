"""The labels of a dataset without its images: for commands that convert or score label files."""
import os
from collections.abc import Iterable
from pathlib import Path

from base.base_dataset import BaseDataset, Sample
from utils.errors import ConfigError
from utils.images.picture_files import picture_files


def label_files(cls: type[BaseDataset], folder: Path, paths: Iterable[Path] | None = None,
                args: dict | None = None, ignore_index: int = 255) -> BaseDataset:
    """A dataset of the class `cls` whose samples are label files, for `read_train_ids`.

    folder: the ids of the samples are relative to it. paths: the files; None uses every
    label below the folder. args: further arguments of the class, such as those that decide
    the meaning of stored values.
    """
    def find_samples(self):
        for path in picture_files(folder, self.label_suffixes) if paths is None else paths:
            yield Sample(os.path.splitext(os.path.relpath(path, folder))[0], None, path)

    # A subclass with the same name, which messages show. It does not look for images.
    labels_only = type(cls.__name__, (cls,),
                       {"find_samples": find_samples, "check": lambda self: None})
    args = {"data_dir": str(folder), "ignore_index": ignore_index, **(args or {})}
    if "split" in args or not cls.splits:
        return labels_only(**{"split": "all", **args})
    *others, last = cls.splits
    for split in others:
        try:
            return labels_only(**args, split=split)
        except ConfigError:     # the other arguments may decide which splits exist
            pass
    return labels_only(**args, split=last)
