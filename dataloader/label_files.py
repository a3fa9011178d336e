"""The labels of a dataset without its images: for commands that convert or score label files."""
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.config.registry import components, lookup
from utils.config.signature import fields
from utils.decision.score_files import read_label_array
from utils.errors import ConfigError
from utils.images.picture_files import picture_files


def label_files(cls: type[BaseDataset], folder: Path, paths: Iterable[Path] | None = None,
                args: dict | None = None, ignore_index: int = 255,
                volumes: bool = False) -> BaseDataset:
    """A dataset of the class `cls` whose samples are label files, for `read_train_ids`.

    folder: the ids of the samples are relative to it. paths: the files; None uses every
    label below the folder. volumes: also .npy files of label volumes (D, H, W). args: further
    arguments of the class, such as those that decide the meaning of stored values.
    """
    def find_samples(self):
        suffixes = (*self.label_suffixes, *([".npy"] if volumes else []))
        for path in picture_files(folder, suffixes) if paths is None else paths:
            yield Sample(os.path.splitext(os.path.relpath(path, folder))[0], None, path)

    def read_train_ids(self, path):
        if not volumes or path.suffix.lower() != ".npy":
            return cls.read_train_ids(self, path)
        stored = read_label_array(path)
        if stored.ndim == 3 and len(stored) == 1:
            stored = stored[0]      # as the scores of a volume of one slice, which are an image
        rows = stored.reshape(-1, stored.shape[-1])
        return self.label_to_train_ids(rows, rows, path).reshape(stored.shape)

    # A subclass with the same name, which messages show. It does not look for images.
    labels_only = type(cls.__name__, (cls,),
                       {"find_samples": find_samples, "read_train_ids": read_train_ids,
                        "check": lambda self: None})
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


def stored_ids(section: dict, ignore_index: int = 255) -> list[int]:
    """For each class of a loader section {"type", "args"}, the value that its label files hold.

    A mixture is read by its first part. The class that train_void adds gets the first value that
    labels ignore. Raises ConfigError if the labels of the dataset do not say it: if they come in
    several encodings, or a class stands for no single value up to 65535.
    """
    train_void = section["args"].get("train_void")
    section = next(iter(section["args"].get("parts") or [section]))
    cls = lookup(section["type"], components("datasets"), "train_loader.type")
    if cls.encodings > 1:
        raise ConfigError(f"labels of {section['type']} come in more than one encoding", "--ids",
                          "write train ids: leave --ids out")
    known = set(fields(cls)) - {"data_dir"}
    args = {key: value for key, value in section["args"].items() if key in known}
    with tempfile.TemporaryDirectory() as empty:
        dataset = label_files(cls, Path(empty), [], args, ignore_index)
        table = dataset.train_id_table(np.uint16)
    found = [np.flatnonzero(table == number) for number in range(dataset.num_classes)]
    for name, values in zip(dataset.class_names, found, strict=True):
        if len(values) != 1:
            raise ConfigError(f"class {name!r} stands for {len(values)} values of the label files",
                              "--ids", "write train ids: leave --ids out")
    if train_void:
        found.append(np.flatnonzero(table == ignore_index))     # of 16 bits: one value at least
    return [int(values[0]) for values in found]
