"""Folder: any images with a label map for each.

    data_dir/images/**/name.jpg      any readable format
    data_dir/labels/**/name.png      class ids in a gray or palette file, or colors

Splits are sub-folders of both (images/train, labels/train) or lists (data_dir/train.txt). Without
either, "all" is the only split. A line of a list is the name of an image, or the files of an image
and its label, separated by a tab, a comma or blanks: below image_dir and label_dir, below data_dir
or absolute, with or without the extension, with / or \\.
"""
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from base import dataset_files
from base.base_dataset import BaseDataset, Sample
from dataloader.list_lines import ListLines
from utils.cli.console import notice
from utils.errors import ConfigError, DataError, listed, shown
from utils.files.jsonc import read_jsonc
from utils.images.band_files import BAND_SUFFIXES
from utils.images.bands import chosen_bands
from utils.images.image_io import read_mask
from utils.images.name_pattern import pattern_of
from utils.images.palette import class_palette
from utils.images.picture_files import IMAGE_SUFFIXES, LABEL_SUFFIXES
from utils.images.types import Image, Labels

EVERYTHING = "all"
_CLASS_KEYS = {"names", "palette", "label_ids", "ignore_ids", "ignore_colors", "mean", "std",
               "white", "bands", "band_files", "no_data"}
SMALLEST_STD = 1e-4
_LAST_COLOR_ID = 254      # ignored colors are read as this id and the ones below


class Folder(BaseDataset):
    """Your own data: data_dir/images and data_dir/labels, paired by name.

    split: a sub-folder or a list file of that name, or "all".
    classes: a JSON file with "names" and, if needed, "palette" ([r, g, b] of
        each class), "label_ids" (stored value of each class, or a list of
        values), "ignore_ids" and "ignore_colors". The path is tried as given and
        below data_dir. class_names, palette and num_classes can replace the file.
    label_map: stored value -> train id or "ignore"; "*" is every value that is not
        named. Without "*", the other values are their train ids; a value that is also
        the train id of a named value is an error.
    image_dir, label_dir: folders below data_dir, or absolute paths.
    image_ending, label_ending: different ends of the names of image and label before
        the extension, such as "_mask".
    image_pattern, label_pattern: instead of the endings, patterns of the names: "*" is what
        image and label share, as in "*_mask.png", "mask_*", "images/**". With {stem} only that is
        shared, as in "{stem}/mask_by_*.png". If both folders are one, a file is an image unless
        it fits label_pattern.
    label_threshold: labels are masks of two classes, also as JPEG or in color: a pixel whose
        gray value, 0 to 255, is at least this number is class 1, and no pixel is ignored.
    list_file: the list of the split; tried like classes. null: SPLIT.txt in data_dir.
    mean, std: of the pixels, in 0..1; null uses those of the class file, or ImageNet's.
    bands: images are not read as RGB of 8 bits, but with all their bits: their number of bands,
        or a list of those to use, counted from 1. mean and std are then in stored values.
    band_files: with bands, patterns of further files of each image, relative to image_dir, whose
        bands follow those of the image: "../depth/*.png".
    no_data: with bands, the stored value of pixels without data, or "nan". The network sees the
        mean of the band there, and the label is ignored where no band has data.
    white: the value that becomes 255 in images of more than 8 bits, for example 4095 if 12
        of 16 bits are used; null uses that of the class file, or the largest value of the type.
    """

    takes_bands = True

    def __init__(self, data_dir: str, split: str = EVERYTHING, classes: str | None = None,
                 num_classes: int | None = None, class_names: list[str] | None = None,
                 palette: list[list[int]] | None = None, label_map: dict | None = None,
                 image_dir: str = "images", label_dir: str = "labels", image_ending: str = "",
                 label_ending: str = "", image_pattern: str | None = None,
                 label_pattern: str | None = None, list_file: str | None = None,
                 mean: list[float] | None = None, std: list[float] | None = None,
                 white: float | None = None, label_threshold: int | None = None,
                 bands: int | list[int] | None = None, band_files: list[str] | None = None,
                 no_data: float | Literal["nan"] | None = None,
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        root = Path(os.path.expanduser(data_dir))
        named = re.fullmatch(r"(.+)\.classes\.json", os.path.basename(classes or ""))
        self._name = named[1] if named else os.path.basename(os.path.abspath(root))
        class_file = read_classes(classes, root) if classes else {}
        self.class_names = class_names or class_file.get("names") or \
            [f"class {i}" for i in range(num_classes or 0)]
        self.num_classes = num_classes or len(self.class_names)
        if self.num_classes < 1 or len(self.class_names) != self.num_classes:
            raise ConfigError(f"num_classes is {num_classes}, {len(self.class_names)} class names "
                              "are given", "classes",
                              "name the classes in a JSON file (\"classes\") or in class_names, or "
                              "give num_classes alone")
        palette = palette or class_file.get("palette")
        self.palette = palette or class_palette(self.class_names)
        # The position of a color is its class, unless the file gives other ids in label_ids.
        self.label_palette = None if class_file.get("label_ids") else palette
        if len(self.palette) != self.num_classes:
            raise ConfigError(f"the palette has {len(self.palette)} colors for "
                              f"{self.num_classes} classes", "palette")
        if palette:
            check_colors(palette, self.class_names)
        use_pixels(self, class_file, mean, std, white, bands, band_files, no_data,
                   image_pattern or f"*{image_ending}")
        self.label_map = _label_map(label_map, class_file, self.num_classes)
        self.label_threshold = label_threshold
        if label_threshold is not None:
            self._use_threshold(label_threshold)
        if self.label_palette and class_file.get("ignore_colors"):
            self._add_ignored_colors(self.label_palette, class_file["ignore_colors"])
        self.image_dir, self.label_dir = root / image_dir, root / label_dir
        self.image_folder = self.image_dir
        self.patterns = (pattern_of("image", image_pattern, image_ending),
                         pattern_of("label", label_pattern, label_ending))
        self.list_file = existing_file(list_file, root, "list_file") if list_file else \
            root / f"{split}.txt"
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    @property
    def title(self) -> str:
        """The name of the data and the split: "leaves val".

        The name is that of a class file leaves.classes.json, or of the folder of the data.
        """
        return shown(f"{self._name} {self.split}")

    def find_samples(self) -> Iterator[Sample]:
        if self.list_file.is_file():
            yield from self._listed()
            return
        folders = self.image_dir, self.label_dir
        self._require(*folders)
        if self.split != EVERYTHING:
            folders = self.image_dir / self.split, self.label_dir / self.split
            if not folders[0].is_dir():
                raise DataError(f"split {self.split!r}: neither {shown(self.list_file)} nor "
                                f"{shown(folders[0])}/ exists (split \"{EVERYTHING}\" uses every "
                                "pair)", shown(self.root), f"set split to {self._known_splits()}")
            self._require(*folders)
        yield from dataset_files.pairs_of(self._files(*folders), self.problem)

    def _use_threshold(self, threshold):
        """Read masks. Raises ConfigError if other arguments contradict that."""
        if self.num_classes != 2:
            raise ConfigError(f"label_threshold makes two classes; there are {self.num_classes}",
                              "label_threshold", "name two classes, or remove it")
        if self.label_map:
            raise ConfigError("label_map (or label_ids and ignored values of the class file) and "
                              "label_threshold both say what stored values mean",
                              "label_threshold", "give one of them")
        if not 1 <= threshold <= 255:
            raise ConfigError(f"expected 1 to 255, found {threshold}", "label_threshold",
                              "128 is the middle of black and white")
        self.label_palette = None       # colors are those of pictures, not of the files
        self.label_suffixes = (*LABEL_SUFFIXES, ".jpg", ".jpeg")

    def read_label(self, path: Path) -> Labels:
        if self.label_threshold is None:
            return super().read_label(path)
        return read_mask(path, self.label_threshold)

    def load(self, index: int) -> tuple[Image, Labels]:
        sample = self.samples[index]
        if self.label_threshold is None or sample.image is None or sample.label is None:
            return super().load(index)
        return self.read_pair(sample, self.read_label(sample.label))

    def _require(self, image_dir, label_dir):
        """Raise a DataError if one of the folders does not exist."""
        for folder, key in ((image_dir, "image_dir"), (label_dir, "label_dir")):
            if not folder.is_dir():
                raise DataError(
                    f"{shown(folder)}: no such folder ({key})", shown(self.root),
                    f"set {key} to a folder below data_dir, or to an absolute path"
                    if self.root.is_dir() else
                    f"set data_dir to an existing folder; {shown(os.path.abspath(self.root))} is "
                    "none")

    def _known_splits(self):
        """The splits that exist, as text."""
        folders = [path.name for path in sorted(self.image_dir.iterdir())
                   if path.is_dir() and (self.label_dir / path.name).is_dir()]
        lists = [path.stem for path in sorted(self.root.glob("*.txt"))]
        return listed([*folders, *lists, f'"{EVERYTHING}"'], 8, " or ")

    def _files(self, image_dir, label_dir):
        """The files of both folders by stem; a notice about those that fit no pattern."""
        files = dataset_files.stem_files(image_dir, label_dir, self.problem, self.label_suffixes,
                                         *self.patterns, image_suffixes=BAND_SUFFIXES
                                         if self.bands else IMAGE_SUFFIXES)
        if files.unused:
            say_once(f"{len(files.unused)} pictures below {shown(image_dir)} and "
                      f"{shown(label_dir)} are not used, because their names fit neither "
                      f"{self.patterns[0].text} nor {self.patterns[1].text}: "
                      f"{listed(files.unused, 3, text=shown)}")
        return files

    def _listed(self):
        """The samples of the list file."""
        files = self._files(self.image_dir, self.label_dir)
        lines = ListLines(files, self.patterns[0], self.root, self.problem)
        for number, line in self.read_list(self.list_file):
            sample = lines.sample(f"{shown(self.list_file)}:{number}", line)
            if sample is None:
                self._require(self.image_dir, self.label_dir)
            else:
                yield sample

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids by label_map; a value that it does not name is its train id, if unused."""
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

    def ignores_on_purpose(self, value: int) -> bool:
        return str(value) in self.label_map or "*" in self.label_map

    def _id(self, meaning):
        """The train id of a value of label_map."""
        return self.ignore_index if meaning == "ignore" else meaning

    def _add_ignored_colors(self, palette, colors):
        """Append the ignored colors to the palette, with ids far above those of the classes."""
        first = _LAST_COLOR_ID + 1 - len(colors)
        if first < self.num_classes:
            raise ConfigError(f"{self.num_classes} classes and {len(colors)} ignored colors "
                              f"do not fit into {_LAST_COLOR_ID + 1} ids", "ignore_colors")
        gap = [None] * (first - self.num_classes)
        self.label_palette = [*palette, *gap, *colors]
        self.label_map |= {str(first + i): "ignore" for i in range(len(colors))}


def check_colors(palette, names):
    """Raise ConfigError for a color that is none; print a notice if two classes share one."""
    by_color = {}
    for name, color in zip(names, palette, strict=True):
        if not _is_color(color):
            raise ConfigError(f"the color of {name!r} is {color}; expected [r, g, b] in 0..255",
                              "palette")
        by_color.setdefault(tuple(color), []).append(name)
    for color, same in by_color.items():
        if len(same) > 1:
            notice(f"the classes {listed(same, 3)} have the same color {list(color)}: pictures "
                   "do not tell them apart")


def use_pixels(dataset: BaseDataset, class_file: dict, mean: list[float] | None,
               std: list[float] | None, white: float | None, bands: int | list[int] | None,
               band_files: list[str] | None, no_data: float | str | None, image: str = "*"):
    """Set how a dataset reads its images: bands, what is no data, mean, std and white.

    The arguments are those of `Folder`; null takes what the class file says. image: the pattern of
    the names of the images. Raises ConfigError.
    """
    dataset.bands = chosen_bands(class_file.get("bands") if bands is None else bands,
                                 class_file.get("band_files") if band_files is None
                                 else band_files, image,
                                 class_file.get("no_data") if no_data is None else no_data)
    known = {"mean": dataset.mean, "std": dataset.std}
    if dataset.bands:
        # Those of a class file may be of fewer bands, such as those of RGB before others were
        # added: tools.class_statistics then measures, and training asks for them.
        known = {"mean": [], "std": []}
        class_file = {key: value for key, value in class_file.items() if key not in known or
                      not isinstance(value, list) or len(value) == len(dataset.bands.numbers)}
    dataset.mean = mean or class_file.get("mean") or known["mean"]
    dataset.std = std or class_file.get("std") or known["std"]
    _check_pixels(dataset.mean, dataset.std, dataset.bands)
    if dataset.bands:
        dataset.bands = replace(dataset.bands, fill=tuple(dataset.mean))
    dataset.white = white = class_file.get("white") if white is None else white
    if white is not None and not (type(white) in (int, float) and 0 < white < float("inf")):
        raise ConfigError(f"expected a number above 0, found {white!r}", "white")
    if white is not None and dataset.bands:
        raise ConfigError("bands keep their stored values, and white scales to 8 bits", "white",
                          "remove one of them")


def _check_pixels(mean, std, bands):
    """Raise ConfigError unless mean and std are those of three channels in 0..1, or of bands."""
    if bands:
        count = len(bands.numbers)
        for key, values in (("mean", mean), ("std", std)):
            if not isinstance(values, list) or len(values) not in (0, count) or not all(
                    type(value) in (int, float) and np.isfinite(value) for value in values) or (
                    key == "std" and values and min(values) <= 0) or len(mean) != len(std):
                raise ConfigError(f"expected a number for each of {count} bands"
                                  f"{', above 0' if key == 'std' else ''}, found {values}", key,
                                  "python -m tools.class_statistics prints them")
        return
    for key, values, least in (("mean", mean, 0), ("std", std, SMALLEST_STD)):
        if not isinstance(values, list) or len(values) != 3 or not all(
                isinstance(value, (int, float)) and least <= value <= 1 for value in values):
            raise ConfigError(f"expected three numbers from {least} to 1, found {values}", key,
                              "those of pixels in 0..255 are divided by 255")


@functools.cache
def say_once(text):
    """A notice that several loaders of one program would repeat."""
    notice(text)


def existing_file(path, root, key):
    """The file at `path`, as given or relative to data_dir. Raises ConfigError if missing."""
    for candidate in (Path(os.path.expanduser(path)), root / path):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"no such file: {path}", key, "the path is tried beside the config, in the "
                                                    f"current folder, and below {root}; one in a "
                                                    "checkpoint is relative to the folder in which "
                                                    "its training was started")


def read_classes(path: str, root: Path, more: tuple[str, ...] = ()) -> dict:
    """The content of a class file, checked.

    path: as given, or relative to `root`, the folder of the data. more: further keys that it may
    have, with lists of names. Raises ConfigError.
    """
    place = existing_file(path, root, "classes")
    content = read_jsonc(place)
    if not isinstance(content, dict) or not isinstance(content.get("names"), list):
        raise ConfigError("a class file is an object with a list \"names\"", str(place))
    unknown = content.keys() - _CLASS_KEYS - {*more}
    if unknown:
        raise ConfigError(f"unknown key {sorted(unknown)[0]!r}; known: "
                          f"{', '.join(sorted(_CLASS_KEYS | {*more}))}", str(place))
    for key in more:
        value = content.get(key) or []
        if not isinstance(value, list) or not all(
                isinstance(name, str) for one in value
                for name in (one if isinstance(one, list) else [one] if one is not None else [])):
            raise ConfigError(f"{key} must be a list of names", str(place))
    for key in ("palette", "ignore_colors"):
        if not all(_is_color(color) for color in content.get(key) or ()):
            raise ConfigError(f"{key} must be a list of [r, g, b] in 0..255", str(place))
    ids = content.get("label_ids")
    if ids is not None and len(ids) != len(content["names"]):
        raise ConfigError(f"{len(ids)} label_ids for {len(content['names'])} names", str(place))
    return content


def _label_map(given, class_file, num_classes):
    """The label map with string keys: the ids of the class file, overridden by `given`."""
    label_map = {}
    for index, ids in enumerate(class_file.get("label_ids") or ()):
        label_map |= {str(value): index for value in (ids if isinstance(ids, list) else [ids])}
    for value in class_file.get("ignore_ids") or ():
        index = label_map.get(str(value), None if label_map else value)
        if type(index) is int and 0 <= index < len(class_file["names"]):
            say_once(f"the value {value} is ignored, so class {index} "
                      f"({shown(class_file['names'][index])}) cannot occur: if it is not a class, "
                      "remove its name and color from the class file")
    label_map |= {str(value): "ignore" for value in class_file.get("ignore_ids") or ()}
    label_map |= {str(key): value for key, value in (given or {}).items()}
    for key, value in label_map.items():
        if key != "*" and not key.isdecimal():
            raise ConfigError(f"label_map has key {key!r}; expected a stored value or \"*\"",
                              "label_map")
        if value != "ignore" and (type(value) is not int or not 0 <= value < num_classes):
            raise ConfigError(f"label_map maps {key} to {value!r}; expected 0 to "
                              f"{num_classes - 1} or \"ignore\"", "label_map")
    return label_map


def _is_color(value):
    return (isinstance(value, list) and len(value) == 3
            and all(type(c) is int and 0 <= c <= 255 for c in value))
