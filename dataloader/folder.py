"""Folder: any pictures with a label map for each.

    data_dir/images/**/name.jpg      any readable format
    data_dir/labels/**/name.png      class ids in a grey or palette file, or colours

Splits are sub-folders of both (images/train, labels/train), or lists of names
(data_dir/train.txt), or nothing: then "all" is the only split.
"""
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset
from utils.errors import ConfigError
from utils.image_io import shown
from utils.jsonc import read_jsonc
from utils.palette import voc_palette

EVERYTHING = "all"
_CLASS_KEYS = {"names", "palette", "label_ids", "ignore_ids", "ignore_colors", "mean", "std"}
_LAST_COLOUR_ID = 254     # ids that ignored colours are read as, counted downwards


class Folder(BaseDataset):
    """Your own data: data_dir/images and data_dir/labels, paired by name.

    split: a sub-folder or a list file of that name, or "all".
    classes: a JSON file with "names" and, where needed, "palette" ([r, g, b] of
        each class), "label_ids" (stored value of each class, or a list of
        values), "ignore_ids" and "ignore_colors". Looked for as given and below
        data_dir. class_names, palette and num_classes say the same in place.
    label_map: stored value -> train id or "ignore"; "*" stands for every value
        not named. Without "*", others stand for themselves, unless a named
        value takes their id: then they are mistakes.
    image_dir, label_dir: below data_dir, or anywhere.
    image_ending, label_ending: name parts before the extension in which image and
        label differ, such as "_mask".
    list_file: of the split, looked for like classes; null looks for SPLIT.txt.
    mean, std: of the pixels, in 0..1; null takes the class file's, or ImageNet's.
    """

    def __init__(self, data_dir: str, split: str = EVERYTHING, classes: str | None = None,
                 num_classes: int | None = None, class_names: list[str] | None = None,
                 palette: list[list[int]] | None = None, label_map: dict | None = None,
                 image_dir: str = "images", label_dir: str = "labels", image_ending: str = "",
                 label_ending: str = "", list_file: str | None = None,
                 mean: list[float] | None = None, std: list[float] | None = None,
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        root = Path(data_dir).expanduser()
        stated = _read_classes(classes, root) if classes else {}
        self.class_names = class_names or stated.get("names") or \
            [f"class {i}" for i in range(num_classes or 0)]
        self.num_classes = num_classes or len(self.class_names)
        if self.num_classes < 1 or len(self.class_names) != self.num_classes:
            raise ConfigError(f"num_classes is {num_classes}, {len(self.class_names)} class names "
                              "are given", "classes",
                              "name the classes in a JSON file (\"classes\") or in class_names, or "
                              "give num_classes alone")
        self.palette = palette or stated.get("palette") or voc_palette(self.num_classes)
        # The place of a colour is the class, unless the file says that labels hold other ids.
        self.label_palette = None if stated.get("label_ids") else palette or stated.get("palette")
        if len(self.palette) != self.num_classes:
            raise ConfigError(f"the palette has {len(self.palette)} colours for "
                              f"{self.num_classes} classes", "palette")
        self.mean = mean or stated.get("mean") or self.mean
        self.std = std or stated.get("std") or self.std
        self.label_map = _label_map(label_map, stated, self.num_classes)
        if self.label_palette and stated.get("ignore_colors"):
            self._add_ignored_colours(stated["ignore_colors"])
        self.image_dir, self.label_dir = root / image_dir, root / label_dir
        self.endings = image_ending, label_ending
        self.list_file = _existing(list_file, root, "list_file") if list_file else \
            root / f"{split}.txt"
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self):
        for folder, key in ((self.image_dir, "image_dir"), (self.label_dir, "label_dir")):
            if not folder.is_dir():
                self.problem(f"{shown(folder)}: no such folder ({key})")
                return
        if self.list_file.is_file():
            stems = [(f"{shown(self.list_file)}:{number}", self._stem(line))
                     for number, line in self.read_list(self.list_file)]
            yield from self.pair_by_stem(self.image_dir, self.label_dir, *self.endings, stems)
        elif self.split == EVERYTHING:
            yield from self.pair_by_stem(self.image_dir, self.label_dir, *self.endings)
        elif (self.image_dir / self.split).is_dir():
            yield from self.pair_by_stem(self.image_dir / self.split, self.label_dir / self.split,
                                         *self.endings)
        else:
            self.problem(f"split {self.split!r}: neither {shown(self.list_file)} nor "
                         f"{shown(self.image_dir / self.split)}/ exists (split "
                         f"\"{EVERYTHING}\" takes every pair)")

    def train_ids(self, raw):
        """By label_map; what it does not name stands for itself, if its id is free."""
        named = {int(key): value for key, value in self.label_map.items() if key != "*"}
        rest = self.label_map.get("*")
        ids = np.array(raw, dtype=np.int64)
        if rest is not None:
            ids[:] = self._id(rest)
        elif named:
            taken = [value for value in named.values() if value != "ignore"]
            ids[np.isin(ids, taken) & (ids != self.ignore_index)] = -1 - 2 ** 31
        for value, meaning in named.items():
            ids[raw == value] = self._id(meaning)
        return ids

    def ignores_on_purpose(self, value):
        return str(value) in self.label_map or "*" in self.label_map

    def _id(self, meaning):
        return self.ignore_index if meaning == "ignore" else meaning

    def _stem(self, line):
        """A line of a list file: a name below image_dir, with or without its extension."""
        line = line.removeprefix("./")
        return os.path.splitext(line)[0] if Path(self.image_dir, line).is_file() else line

    def _add_ignored_colours(self, colours):
        """Give colours that mean "no class" ids of their own, far from the classes'."""
        first = _LAST_COLOUR_ID + 1 - len(colours)
        if first < self.num_classes:
            raise ConfigError(f"{self.num_classes} classes and {len(colours)} ignored colours "
                              f"do not fit {_LAST_COLOUR_ID + 1} ids", "ignore_colors")
        gap = [None] * (first - self.num_classes)
        self.label_palette = [*self.label_palette, *gap, *colours]
        self.label_map |= {str(first + i): "ignore" for i in range(len(colours))}


def _existing(path, root, key):
    """A file that is named as seen from here, or from the data."""
    for place in (Path(path).expanduser(), root / path):
        if place.is_file():
            return place
    raise ConfigError(f"no such file: {path}", key, f"it is looked for as given and below {root}")


def _read_classes(path, root):
    place = _existing(path, root, "classes")
    stated = read_jsonc(place)
    if not isinstance(stated, dict) or not isinstance(stated.get("names"), list):
        raise ConfigError("a class file is an object with a list \"names\"", str(place))
    unknown = stated.keys() - _CLASS_KEYS
    if unknown:
        raise ConfigError(f"unknown key {sorted(unknown)[0]!r}; known: "
                          f"{', '.join(sorted(_CLASS_KEYS))}", str(place))
    for key in ("palette", "ignore_colors"):
        if not all(_is_colour(colour) for colour in stated.get(key) or ()):
            raise ConfigError(f"{key} must be a list of [r, g, b] in 0..255", str(place))
    ids = stated.get("label_ids")
    if ids is not None and len(ids) != len(stated["names"]):
        raise ConfigError(f"{len(ids)} label_ids for {len(stated['names'])} names", str(place))
    return stated


def _label_map(given, stated, num_classes):
    """The label map with string keys: the class file's ids, then what the config says."""
    found = {}
    for index, ids in enumerate(stated.get("label_ids") or ()):
        found |= {str(value): index for value in (ids if isinstance(ids, list) else [ids])}
    found |= {str(value): "ignore" for value in stated.get("ignore_ids") or ()}
    found |= {str(key): value for key, value in (given or {}).items()}
    for key, value in found.items():
        if key != "*" and not key.isdecimal():
            raise ConfigError(f"label_map has key {key!r}; expected a stored value or \"*\"",
                              "label_map")
        if value != "ignore" and (type(value) is not int or not 0 <= value < num_classes):
            raise ConfigError(f"label_map sends {key} to {value!r}; expected 0 to "
                              f"{num_classes - 1} or \"ignore\"", "label_map")
    return found


def _is_colour(value):
    return (isinstance(value, list) and len(value) == 3
            and all(type(c) is int and 0 <= c <= 255 for c in value))
