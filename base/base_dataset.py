"""The contract of every dataset: finds samples, maps stored labels to classes, checks both.

Files are found by base/dataset_files.py; BaseDataset has methods of the same names. The stored
values of labels are mapped, and values that are not a class are refused, in `label_to_train_ids`.
"""
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from base import dataset_files
from base.dataset_files import Sample
from utils.cli.console import notice, warn
from utils.errors import ConfigError, DataError, counted, listed, shown, unknown
from utils.images.band_files import input_header, read_input, read_input_pair, types_of
from utils.images.bands import TYPES, Bands
from utils.images.class_names import first_difference, mistake_in
from utils.images.headers import Header, UnreadableFile, read_header
from utils.images.image_io import read_label
from utils.images.label_kind import mixing
from utils.images.normalize import Normalize
from utils.images.partly_used import USE_ALL, partly_used, unused_bands
from utils.images.picture_files import LABEL_SUFFIXES, evenly_spaced
from utils.images.types import (
    IGNORE_INDICES,
    MOST_CLASSES,
    PADDING_16_BITS,
    Image,
    Labels,
    train_id_type,
)

CHECK_ALL_BELOW = 5000     # pairs; of larger datasets SPOT_CHECKS pairs are checked
SPOT_CHECKS = 1000
LABELS_READ_AT_START = 8   # whole labels, evenly spaced, so that a wrong id map is found at once
SHOWN_PROBLEMS = 10
SHOWN_VALUES = 8           # of the stored values that a label must not contain
# True while a loader with on_corrupt="skip" is built: unreadable files are reported, not fatal, so
# that a run they interrupted can resume.
SKIP_UNREADABLE = ContextVar("SKIP_UNREADABLE", default=False)
VOID_NAME = "void"         # of the class that train_void adds
NO_CLASS = -2 ** 62        # train id of a stored value without a meaning; always out of range


LOST_FOREGROUND = ("the labels contain only 0 and 255, and 255 is ignored: the network would learn "
                   "class 0 only")
BINARY_FIX = ("binary masks of 0 and 255 need \"label_map\": {\"255\": 1} (Folder); \"255\": "
              "\"ignore\" keeps them as they are")


class PixelSource(Protocol):
    """Reads decoded samples in place of the files: a pixel cache, or the dataset."""

    def load(self, index: int) -> tuple[Image, Labels]: ...


class BaseDataset(Dataset, ABC):
    """Images with a class id for every pixel.

    dataset[index] or dataset[epoch, index] -> {"image": uint8 (3, H, W) RGB,
    "label": uint8 (H, W) train ids, "id": str}. With `bands` the image is (C, H, W) of uint8,
    uint16 or float32, as stored, and pixels without data are ignored. Labels are int16 or int32
    where a byte cannot hold them (255 or more classes, or an ignore_index outside 0..255).

    A subclass finds the files (`find_samples`), maps stored labels to classes
    (`train_ids`) and sets the attributes below. Every random draw of a sample
    comes from a generator seeded by (seed, epoch, index), so a sample does not
    depend on workers, ranks or the samples read before it.

    The constructor checks the headers of all files (of SPOT_CHECKS pairs if there
    are more than CHECK_ALL_BELOW) and raises all problems in one DataError.

    data_dir: folder of the dataset. split: one of `splits`, if these are set.
    augmentation: `dataloader.augmentation.transforms.Augmentation`; None gives whole images.
    """

    num_classes: int
    class_names: list[str]
    palette: list[list[int]]                  # [r, g, b] of each class
    mean: list[float] = [0.485, 0.456, 0.406]    # ImageNet's, for pretrained backbones
    std: list[float] = [0.229, 0.224, 0.225]
    channel_order: str = "RGB"                # this and the next: see Normalize
    pixel_scale: float = 255.0
    splits: tuple[str, ...] = ()              # names a config may use; empty: any
    split_sizes: dict[str, int] = {}          # published number of images of each split
    flip_label_pairs: tuple = ()              # train ids that mirroring swaps: (left, right), ...
    label_palette: list | None = None         # colors of labels that are stored in color
    white: float | None = None                # of pictures of more than 8 bits: see image_io
    bands: Bands | None = None                # of images that are not read as RGB
    takes_bands: bool = False                 # whether its arguments can ask for them
    image_folder: Path | None = None          # of which further files of an image are found
    label_suffixes: tuple[str, ...] = LABEL_SUFFIXES    # what pair_by_stem takes for a label
    encodings: int = 1                        # of labels; if several, the folder decides which
    cache: PixelSource | None = None          # replaces the files
    void: int | None = None                   # id of the class that add_void has added
    trains_void: bool = False                 # whether samples show it in place of ignore_index
    ignored_classes: tuple[int, ...] = ()     # their pixels count as ignored: see ignore

    provided = ("ignore_index", "seed", "augmentation")    # by the program, not by a config

    def __init__(self, data_dir: str, split: str, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        if self.splits and split not in self.splits:
            raise ConfigError(f"unknown split {split!r} of {type(self).__name__}; known: "
                              f"{', '.join(self.splits)}", "split")
        mistake = mistake_in(self.class_names)
        if mistake:
            raise ConfigError(mistake, "class_names", "give every class a name of its own")
        if self.num_classes > MOST_CLASSES:
            raise ConfigError(f"{self.num_classes} classes; the limit is {MOST_CLASSES}",
                              "num_classes")
        if ignore_index not in IGNORE_INDICES:
            raise ConfigError(f"ignore_index {ignore_index} does not fit 32 bits", "ignore_index",
                              f"use 255, or another value from {IGNORE_INDICES[0]} to "
                              f"{IGNORE_INDICES[-1]}")
        if 0 <= ignore_index < self.num_classes:
            raise ConfigError(f"ignore_index {ignore_index} is one of the {self.num_classes} "
                              "classes", "ignore_index",
                              "use 255, or another value that is not a class")
        self.split, self.ignore_index, self.seed = split, ignore_index, seed
        self.augmentation = augmentation
        self.root = Path(os.path.expanduser(data_dir))
        self.problems: list[str] = []
        self._tables: dict[np.dtype, _LabelTable] = {}
        self.samples = list(self.find_samples())
        self._settle_bands()
        self.check()

    # What a subclass defines or overrides.

    @property
    def in_channels(self) -> int:
        """The number of channels of the images."""
        return len(self.bands.numbers) if self.bands else 3

    @property
    def title(self) -> str:
        """The name of this data in messages: "CamVid val"."""
        return f"{type(self).__name__} {self.split}"

    @abstractmethod
    def find_samples(self) -> Iterable[Sample]:
        """Every sample of `self.split` below `self.root`, in a fixed order."""

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids, int64, of stored label values, int64, both (N,).

        Ids that are neither a class nor ignore_index mark values that a label must not contain.
        """
        return raw

    def check(self) -> None:
        """Raise one DataError for all problems of `self.samples`.

        Overridden by commands that report on every file themselves.
        """
        self._check_files()
        self._check_labels()

    def read_label(self, path: Path) -> Labels:
        """A label as stored, (H, W); overridden where labels are not images."""
        return read_label(path, self.label_palette)

    def label_header(self, path: Path) -> Header:
        """The size of a label; overridden where labels are not images."""
        return read_header(path)

    def load(self, index: int) -> tuple[Image, Labels]:
        """The image (H, W, C), as `sample` describes it, and its label as stored, (H, W)."""
        sample = self.samples[index]
        assert sample.image is not None, "a dataset of samples without files overrides load"
        if sample.label is None:
            image = read_input(sample.image, self.white, self.bands, self.image_folder)
            return image, np.full(image.shape[:2], PADDING_16_BITS, np.uint16)
        return self.read_pair(sample)

    def read_pair(self, sample: Sample, values: Labels | None = None) -> tuple[Image, Labels]:
        """What `load` returns, of a sample with both files; values: of its label, already read."""
        assert sample.image is not None and sample.label is not None
        return read_input_pair(sample.image, sample.label, self.bands, self.image_folder,
                               self.label_palette, values, self.white)

    def image_header(self, path: Path) -> Header:
        """The header of an image, with all its files."""
        return input_header(path, self.bands, self.image_folder)

    def ignores_on_purpose(self, value: int) -> bool:
        """Whether the config, or the dataset's definition, ignores this stored value."""
        return False

    def owner(self, index: int) -> tuple["BaseDataset", int]:
        """The dataset that a sample comes from (another one in a mixture) and its index there."""
        return self, index

    def require_same_classes(self, other: "BaseDataset | None"):
        """Raise ConfigError unless the other dataset, of validation, has these classes and colors.

        None: there is no validation. Warns if the two read pictures of more than 8 bits by other
        ranges.
        """
        if other is None:
            return
        difference = first_difference(self.class_names, other.class_names, self.palette,
                                      other.palette)
        if difference:
            raise ConfigError(f"the classes of training and validation differ: {difference}",
                              "train_loader, val_loader",
                              "give both the same names and colors in the same order")
        if self.bands != other.bands:
            found = [data.bands.text if data.bands else "RGB of 8 bits" for data in (self, other)]
            raise ConfigError(f"the images of training are {found[0]}, those of validation "
                              f"{found[1]}", "train_loader, val_loader",
                              "give both the same bands, of one type")
        if self.white != other.white:
            warn(f"\"white\" is {self.white} in train_loader and {other.white} in val_loader; "
                 "predictions will use the former")

    def ignore(self, classes: Sequence[int | str]) -> None:
        """Ignore the pixels of these classes, given by id or name. Call it before add_void.

        Raises ConfigError for a class that does not exist, and if no class is left.
        """
        ids = set()
        for one in classes:
            if one in self.class_names:
                ids.add(self.class_names.index(one))
            elif type(one) is int and 0 <= one < self.num_classes:
                ids.add(one)
            else:
                known = f"; ids are 0 to {self.num_classes - 1}" if type(one) is int else ""
                raise ConfigError(unknown("class", str(one), self.class_names) + known,
                                  "ignore_classes")
        if len(ids) == self.num_classes:
            raise ConfigError("all classes are ignored", "ignore_classes", "leave the data out")
        self.ignored_classes, self._tables = tuple(sorted(ids)), {}

    def add_void(self, train_void: bool = False, training: bool = False) -> None:
        """The classes, with one for pixels that have none.

        train_void: a last class "void" is trained on all pixels without a label, borders
            included. Validation leaves these pixels out, and counts void as wrong elsewhere.
            Set it in every loader, and list the other classes in predict.CoI.
        """
        if not train_void:
            return
        if self.ignore_index == self.num_classes:
            raise ConfigError(f"train_void makes {self.ignore_index} a class, and ignore_index is "
                              f"{self.ignore_index}", "train_void", "set ignore_index to 255")
        if self.ignored_classes:
            raise ConfigError("train_void would train the pixels of ignore_classes as void",
                              "train_void", "leave one of them out")
        if VOID_NAME in self.class_names:
            raise ConfigError(f"there is a class {VOID_NAME!r} already", "train_void", "remove it")
        self.void, self.trains_void = self.num_classes, training
        self.num_classes += 1
        self.class_names = [*self.class_names, VOID_NAME]
        self.palette = [*self.palette, [0, 0, 0]]
        self._tables = {}

    def draw_epoch(self, epoch: int) -> np.ndarray:
        """The indices (N,) that a training epoch visits, before they are shuffled."""
        return np.arange(len(self))

    def may_center(self, class_id: int, indices: np.ndarray) -> np.ndarray:
        """Bool (N,): whether class-uniform sampling may show a class by each sample (N,)."""
        return np.ones(len(indices), bool)

    # Finding files; called by find_samples. What they do is documented in base/dataset_files.py.

    def problem(self, text: str) -> None:
        """Add to the problems that are raised together when all samples have been found."""
        self.problems.append(text)

    def first_folder(self, *candidates: str) -> Path | None:
        """The first of these folders that exists below the root; a problem if there is none."""
        return dataset_files.first_folder(self.root, candidates, self.problem)

    def read_list(self, path: Path) -> list[tuple[int, str]]:
        """(line number, text) of each non-empty line of a list; a problem if there is none."""
        return dataset_files.read_list(path, self.problem)

    def read_stems(self, path: Path) -> list[tuple[str, str]]:
        """(place in the list, name without extension) of each line of a list of images."""
        return dataset_files.read_stems(path, self.problem)

    def listed_file(self, name: str, list_path: Path, number: int) -> Path | None:
        """The file that line `number` of a split list names; a problem if it is missing."""
        return dataset_files.listed_file(self.root, name, list_path, number, self.problem)

    def pair_by_stem(self, image_dir: Path, label_dir: Path, image_ending: str = "",
                     label_ending: str = "", stems: list[tuple[str, str]] | None = None,
                     without: tuple[str, ...] = ()) -> Iterator[Sample]:
        """Pairs of images and labels with the same path below the two folders."""
        return dataset_files.pair_by_stem(image_dir, label_dir, self.problem, self.label_suffixes,
                                          image_ending, label_ending, stems, without)

    def images_only(self, folder: Path, ending: str = "",
                    stems: list[tuple[str, str]] | None = None) -> Iterator[Sample]:
        """The images of a split that has no labels."""
        return dataset_files.images_only(folder, self.problem, ending, stems)

    # Reading samples.

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        """The sample of an index, of (epoch, index) or of (epoch, index, repeat, center).

        repeat: how often the epoch has shown it before; each time the draws differ.
        center: (y, x) of a pixel that a random crop must show, or None.
        """
        if not isinstance(key, tuple):
            key = (0, key)
        epoch, index, repeat, center = key if len(key) == 4 else (*key, 0, None)
        dataset, index_there = self.owner(index)
        return {**dataset.sample(index_there, self._generator(epoch, index, repeat), center),
                "id": self.samples[index].id}

    def sample(self, index: int, rng: np.random.Generator,
               center: tuple[int, int] | None = None) -> dict[str, Any]:
        """One sample, as __getitem__ returns it; `rng` makes its random draws."""
        image, stored = (self.cache or self).load(index)
        label, mirrored = stored, False
        if self.augmentation is not None:
            table = self._label_table(label.dtype)
            if table.border is None:
                # No stored value is ignored: in 16 bits there is one, PADDING_16_BITS.
                label = label.astype(np.uint16)
                table = self._label_table(label.dtype)
            anchor = {} if center is None else {"center": center}
            image, label, mirrored, *_ = self.augmentation(
                image, label, rng, image_border=self.border_color, label_border=table.border,
                train_ids=table.ids, **anchor)
        ids = self.label_to_train_ids(label, stored, self.samples[index].label)
        if mirrored and self.flip_label_pairs:
            ids = _swap_classes(ids, self.flip_label_pairs)
        if self.trains_void:
            ids = np.where(ids == self.ignore_index, ids.dtype.type(self.void), ids)
        image = np.require(image, requirements=["C", "W"])    # the arrays of a cache are read-only
        return {"image": torch.from_numpy(image).permute(2, 0, 1),
                "label": torch.from_numpy(ids), "id": self.samples[index].id}

    def load_label(self, index: int) -> Labels:
        """The label of `load`, (H, W); the image is decoded only if the label depends on it."""
        sample = self.samples[index]
        if self.cache is not None:
            return self.cache.load(index)[1]
        of_image = self.bands is not None and self.bands.no_data is not None
        if sample.image is not None and sample.label is not None and not of_image:
            label = self.read_label(sample.label)
            if label.shape == self.image_header(sample.image).size:
                return label
        return self.load(index)[1]

    def read_train_ids(self, path: Path) -> Labels:
        """The train ids of a label file, (H, W), without its image."""
        stored = self.read_label(path)
        return self.label_to_train_ids(stored, stored, path)

    @functools.cached_property
    def border_color(self) -> tuple[float, ...]:
        """The mean color (r, g, b) in 0..255, which pads images: the network sees it as 0."""
        return self.normalization().zero_color

    def normalization(self) -> Normalize:
        """How images of this dataset become the input of a network.

        Raises ConfigError if mean and std of its bands are not given.
        """
        if self.bands and not self.mean:
            raise ConfigError(f"mean and std of the {self.in_channels} bands are not given", "mean",
                              "python -m tools.class_statistics prints them for this loader; give "
                              "them as \"mean\" and \"std\", in stored values")
        return Normalize(self.mean, self.std, self.channel_order, self.pixel_scale, self.white,
                         self.bands)

    def normalize_by(self, section: Mapping[str, Any] | None) -> None:
        """Replace the dataset's own normalization by the section `normalize` of a config.

        What the section leaves out (null) stays the dataset's. Call it before samples are read.
        Raises ConfigError for a section that says anything of images with bands.
        """
        if self.bands:
            if section and (section["mean"] or (section["order"], section["scale"])
                            != ("RGB", 255)):
                raise ConfigError("the section is for RGB, and the images are "
                                  f"{self.bands.text}", "normalize",
                                  "remove it; give mean and std in the args of the dataset")
        elif section:
            self.mean = section["mean"] or self.mean
            self.std = section["std"] or self.std
            self.channel_order, self.pixel_scale = section["order"], section["scale"]

    def _settle_bands(self):
        """Find out the types of the bands from the first readable image; check what uses them."""
        if not self.bands:
            return
        self.pixel_scale = 1.0
        for sample in self.samples:
            if self.bands.types or sample.image is None:
                break
            try:
                self.bands = self.bands.typed(types_of(sample.image, self.bands,
                                                       self.image_folder))
            except DataError:
                continue            # reported by `check`, or when it is read
        if not self.bands.types:
            self.bands = self.bands.typed([TYPES[0]] * (1 + len(self.bands.files)))
        if self.augmentation is not None:
            self.augmentation.require_bands(self.bands.text)

    def describe(self, index: int) -> str:
        """The image file of a sample, or the id of a sample without files, for messages."""
        sample = self.samples[index]
        return shown(sample.image) if sample.image else shown(sample.id)

    def _generator(self, epoch, index, repeat=0):
        return np.random.default_rng(np.random.SeedSequence(
            (self.seed % 2 ** 64, epoch), spawn_key=(index, repeat) if repeat else (index,)))

    # From stored label values to train ids.

    def by_table(self, raw: np.ndarray, table: dict[int, int | None]) -> np.ndarray:
        """Train ids, int64 (N,), of the stored values `raw` (N,), for use in `train_ids`.

        table: {stored value: train id, or None for ignored}; a label must not contain others.
        """
        ids = np.full(raw.shape, NO_CLASS, np.int64)
        for value, train_id in table.items():
            ids[raw == value] = self.ignore_index if train_id is None else train_id
        return ids

    def train_id_table(self, dtype: np.dtype | type) -> np.ndarray:
        """(V,): the train id of each of the V stored values of a label dtype.

        Values without a train id have one that is neither a class nor ignore_index.
        """
        return self._label_table(np.dtype(dtype)).ids

    def label_to_train_ids(self, label: Labels, stored: Labels, path: Path | None) -> Labels:
        """Train ids (H, W), of `train_id_type`, of a crop `label` (H, W) of the label `stored`.

        Raises DataError, with counts over `stored`, if `label` contains a value out of range.
        """
        import cv2
        table = self._label_table(label.dtype)
        ids = cv2.LUT(label, table.ids) if label.dtype == np.uint8 else table.ids[label]
        if (ids == table.invalid).any():
            raise self._value_out_of_range(stored, path)
        return ids

    def _label_table(self, dtype):
        """The _LabelTable of one dtype, made once."""
        if dtype not in self._tables:
            self._tables[dtype] = self._make_label_table(np.iinfo(dtype).bits)
        return self._tables[dtype]

    def _make_label_table(self, bits):
        ids = np.array(self.train_ids(np.arange(2 ** bits, dtype=np.int64)), dtype=np.int64)
        if bits == 16:
            ids[PADDING_16_BITS] = self.ignore_index
        ids[np.isin(ids, self.ignored_classes)] = self.ignore_index
        valid = (ids >= 0) & (ids < (self.num_classes if self.void is None else self.void))
        ignored = ids == self.ignore_index
        border = int(np.flatnonzero(ignored)[-1]) if ignored.any() else None
        kind = train_id_type(self.num_classes, self.ignore_index)
        candidates = (np.iinfo(kind).max, np.iinfo(kind).max - 1) if kind is np.uint8 else \
            (np.iinfo(kind).min, np.iinfo(kind).max)
        invalid = next(value for value in candidates if value != self.ignore_index)
        return _LabelTable(np.where(valid | ignored, ids, invalid).astype(kind), invalid, border)

    def _value_out_of_range(self, stored, path):
        """The DataError for a label with values that are neither a class nor ignored."""
        values, counts = np.unique(stored, return_counts=True)
        table = self._label_table(stored.dtype)
        wrong = table.ids[values] == table.invalid
        pairs = list(zip(values[wrong], counts[wrong], strict=True))
        counts_text = listed(pairs, SHOWN_VALUES,
                             text=lambda pair: f"{pair[0]} ({counted(pair[1], 'pixel')})")
        fix = (f"map the value (Folder: \"label_map\": {{\"{values[wrong][0]}\": \"ignore\"}}), "
               "or set ignore_index to it if it means \"ignored\"")
        if self.split_sizes:
            fix = (f"the released {type(self).__name__} does not contain this value: copy or "
                   "download the file again. For labels that you encoded differently, use the "
                   "type Folder with \"label_map\"")
        if mixing(stored):
            fix = ("the label was smoothed, or stored as JPEG: make it again as PNG without "
                   "smoothing (for a mask of 0 and 255: 255 from 128 on)")
        elif set(values.tolist()) <= {0, 255}:
            fix = ("this is a binary mask of 0 and 255: set \"label_map\": {\"255\": 1} (Folder), "
                   "or store 0 and 1")
        elif str(path).lower().endswith((".jpg", ".jpeg")):
            fix = "JPEG changes label values: store labels as PNG"
        return DataError(f"label has value {counts_text}; num_classes is {self.num_classes}, "
                         f"ignore_index is {self.ignore_index}",
                         path and shown(path), fix)

    # Checks by the constructor.

    def _check_files(self):
        """Raise one DataError for all problems that names and headers show."""
        name, place = self.title, shown(self.root)
        if not self.samples and not self.problems:
            raise DataError(f"{type(self).__name__} found no images of split {self.split!r}"
                            + ("" if self.root.is_dir() else ": the folder does not exist"), place,
                            "set data_dir to the folder that contains the dataset")
        self._check_ids()
        headers = self._check_headers()
        if self.white is None and not self.bands:
            for path, header in headers[0]:
                if header.bits > 16:
                    self.problem(f"{shown(path)}: {header.bits} bits have no fixed range; say with "
                                 "\"white\" (Folder) which value becomes 255")
        if self.problems:
            raise DataError(f"{name}: {len(self.problems)} "
                            f"{'file is' if len(self.problems) == 1 else 'files are'} wrong:\n    "
                            + listed(self.problems, SHOWN_PROBLEMS, "\n    "), place,
                            dataset_files.fix_of(self.problems))
        published = self.split_sizes.get(self.split)
        if published and len(self.samples) != published:
            warn(f"{name}: {len(self.samples)} images in {place}, {published} in the published "
                 "split")
        for line in self.unused_parts(*headers):
            notice(f"{name}: {line}")

    def _check_ids(self):
        """Add a problem for each sample whose id occurred before."""
        seen = set()
        for sample in self.samples:
            if sample.id in seen:
                self.problem(f"{shown(sample.image or sample.id)}: sample {shown(sample.id)} "
                             "occurs twice")
            seen.add(sample.id)

    def _check_headers(self):
        """Add a problem for each pair whose headers do not fit; see SKIP_UNREADABLE.

        Returns [(path, header)] of the images that were read, and of the labels.
        """
        pairs = [(sample.image, sample.label) for sample in self.samples
                 if sample.image is not None]
        count = len(pairs) if len(pairs) <= CHECK_ALL_BELOW else SPOT_CHECKS
        replaced, images, labels = [], [], []
        for image, label in evenly_spaced(pairs, count):
            text, unreadable = dataset_files.header_problem(
                image, label, self.label_header, (images, labels), self.image_header)
            if text:
                (replaced if unreadable and SKIP_UNREADABLE.get() else self.problems).append(text)
        if replaced:
            warn(f"{len(replaced)} unreadable files will be replaced by others: "
                 f"{listed(replaced, SHOWN_PROBLEMS, '; ')}")
        return images, labels

    def unused_parts(self, images: list[tuple[Path, Header]],
                     labels: list[tuple[Path, Header]]) -> list[str]:
        """Sentences on parts of the files that are not used. Each file comes with its header.

        Raises ConfigError if white has no effect.
        """
        if self.bands:
            return [*unused_bands(images, self.bands), *partly_used(labels, "labels")]
        if self.white is not None and len(images) == len(self.samples) \
                and all(header.bits <= 8 for _, header in images):
            raise ConfigError(f"white has no effect: none of the {len(images)} images of "
                              f"{self.title} has more than 8 bits", "white",
                              "remove it")
        parts = partly_used(images, white=self.white)
        if parts and self.takes_bands:
            parts[-1] += f"; {USE_ALL}"
        return [*parts, *partly_used(labels, "labels")]

    def _check_labels(self):
        """Read a few whole labels: a wrong id map affects nearly all of them."""
        labels = [sample.label for sample in self.samples if sample.label is not None]
        values, mixed, ignored_labels = set(), [], []
        for path in evenly_spaced(labels, LABELS_READ_AT_START):
            try:
                stored = self.read_label(path)
            except UnreadableFile:
                continue            # reported, or replaced, when the sample is read
            ids = self.label_to_train_ids(stored, stored, path)
            values.update(np.unique(stored).tolist())
            ignored_labels.append(bool((ids == self.ignore_index).all()))
            if found := mixing(stored):
                mixed.append((path, found))
        if ignored_labels and all(ignored_labels):
            warn(f"{self.title}: none of the {len(ignored_labels)} labels "
                 f"that were read has a pixel of a class; all are ignored ({shown(self.root)})")
        if values == {0, 255} and self.loses_foreground():
            raise DataError(LOST_FOREGROUND, shown(self.root), BINARY_FIX)
        if mixed and len(mixed) >= min(2, len(ignored_labels)):
            path, found = max(mixed, key=lambda entry: entry[1].share)
            warn(f"{self.title}: {len(mixed)} of {len(ignored_labels)} "
                 f"labels look smoothed or stored as JPEG: {shown(path)} has {found.count} values "
                 f"along borders only, on {100 * found.share:.2g} % of its pixels; store labels as "
                 "PNG without smoothing")

    def loses_foreground(self) -> bool:
        """Whether masks of 0 and 255 would train one class only, and not on purpose."""
        ignored = self._label_table(np.dtype(np.uint8)).ids[255] == self.ignore_index
        return bool(ignored) and not self.ignores_on_purpose(255)


class _LabelTable(NamedTuple):
    """ids (V,): the train id of each of the V stored values; `invalid` for values out of range.

    border: a stored value that means "ignored", or None.
    """

    ids: np.ndarray
    invalid: int
    border: int | None


def _swap_classes(ids, pairs):
    """`ids` with the two classes of each pair exchanged."""
    result = ids.copy()
    for left, right in pairs:
        result[ids == left] = right
        result[ids == right] = left
    return result
