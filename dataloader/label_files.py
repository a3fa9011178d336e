"""The labels of a dataset without its images: for commands that convert or score label files."""
import os
from collections.abc import Iterable
from pathlib import Path

from base.base_dataset import BaseDataset, Sample
from utils.errors import ConfigError, DataError
from utils.image_io import picture_files, shown


def label_files(cls: type[BaseDataset], folder: Path, paths: Iterable[Path] | None = None,
                args: dict | None = None, ignore_index: int = 255) -> BaseDataset:
    """A dataset of the class `cls` whose samples are label files, for `read_train_ids`.

    folder: what their ids are relative to. paths: the files; None takes every label
    below the folder. args: further arguments of the class, where they decide what
    stored values mean.
    """
    def find_samples(self):
        found = picture_files(folder, self.label_suffixes) if paths is None else paths
        for path in found:
            yield Sample(os.path.splitext(os.path.relpath(path, folder))[0], None, path)

    if not Path(folder).is_dir():
        raise DataError("no such folder", shown(folder))
    # Under its own name, which messages show. What stands beside the labels is not looked at.
    alone = type(cls.__name__, (cls,), {"find_samples": find_samples, "check": lambda self: None})
    args = {"data_dir": str(folder), "ignore_index": ignore_index, **(args or {})}
    if "split" in args or not cls.splits:
        return alone(**{"split": "all", **args})
    for split in cls.splits:
        try:
            return alone(**args, split=split)
        except ConfigError as error:    # which splits there are may hang on the other arguments
            refusal = error
    raise refusal
