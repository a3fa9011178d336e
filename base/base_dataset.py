"""The contract of every dataset."""
import codecs
import functools
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.console import warn
from utils.errors import ConfigError, DataError
from utils.image_io import (IMAGE_SUFFIXES, LABEL_SUFFIXES, Header, UnreadableFile, picture_files,
                            read_header, read_image, read_label, read_pair, shown)
from utils.spread import spread

CHECK_ALL_BELOW = 5000     # pairs; of larger datasets a sample of SPOT_CHECKS headers is read
SPOT_CHECKS = 1000
LABELS_READ_AT_START = 8   # whole labels, evenly spread, so that a wrong id map shows at once
SHOWN_PROBLEMS = 10
# Whether the loader under construction replaces files that cannot be read (`on_corrupt`): then
# they do not keep a training from starting, which may have been interrupted by one of them.
REPLACES_UNREADABLE = ContextVar("replaces unreadable files", default=False)
NO_CLASS = -2 ** 62        # train id of a stored value that means nothing
PADDING_16_BITS = 65535    # stored value that means "outside the picture" in 16-bit labels


class Sample(NamedTuple):
    """One picture of a split. `label` is None where a split has no labels."""

    id: str
    image: Path | None
    label: Path | None


class BaseDataset(Dataset, ABC):
    """Images with a class id for every pixel.

    dataset[index] or dataset[epoch, index] -> {"image": uint8 (3, H, W) RGB,
    "label": uint8 (H, W) train ids, "id": str}. Labels are int16 where a byte
    cannot hold them (255 or more classes, or an ignore_index outside 0..255).

    A subclass says where files are (`find_samples`), what stored labels mean
    (`train_ids`) and fills in the attributes below. Every random draw of a
    sample comes from a generator seeded by (seed, epoch, index), so a sample
    does not depend on workers, ranks or what was read before.

    All files are looked at when the dataset is constructed, by their headers (of
    more than CHECK_ALL_BELOW pairs, SPOT_CHECKS are); everything wrong is raised
    in one DataError.

    data_dir: folder of the dataset. split: one of `splits`, where it is set.
    augmentation: `dataloader.transforms.Augmentation`; None gives whole images.
    """

    num_classes: int
    class_names: list[str]
    palette: list[list[int]]                  # [r, g, b] of each class
    mean: list[float] = [0.485, 0.456, 0.406]    # ImageNet's, for pretrained backbones
    std: list[float] = [0.229, 0.224, 0.225]
    splits: tuple = ()                        # names a config may use; empty: any
    split_sizes: dict = {}                    # published number of images of each split
    flip_label_pairs: tuple = ()              # train ids that mirroring swaps: (left, right), ...
    label_palette: list | None = None         # colours of labels that are stored in colour
    label_suffixes: tuple = LABEL_SUFFIXES    # what pair_by_stem takes for a label
    encodings: int = 1                        # of labels; with more, the folder found decides
    cache = None                              # reads in place of the files: `load(index)`

    provided = ("ignore_index", "seed", "augmentation")    # by the program, not by a config

    def __init__(self, data_dir: str, split: str, ignore_index: int = 255, seed: int = 0,
                 augmentation: Callable | None = None):
        if self.splits and split not in self.splits:
            raise ConfigError(f"unknown split {split!r} of {type(self).__name__}; known: "
                              f"{', '.join(self.splits)}", "split")
        if 0 <= ignore_index < self.num_classes:
            raise ConfigError(f"ignore_index {ignore_index} is one of the {self.num_classes} "
                              "classes", "ignore_index", "use 255, or any value that is no class")
        self.split, self.ignore_index, self.seed = split, ignore_index, seed
        self.augmentation = augmentation
        self.root = Path(data_dir).expanduser()
        self.problems, self._tables = [], {}
        self.samples = list(self.find_samples())
        self.check()

    @abstractmethod
    def find_samples(self) -> Iterable[Sample]:
        """Every sample of `self.split` below `self.root`, in a fixed order."""

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Train ids of stored label values (int64); anything out of range is reported as such."""
        return raw

    def check(self):
        """Raise one DataError for everything that is wrong with `self.samples`.

        A tool that reports on every file by itself overrides it.
        """
        self._check_files()
        self._check_labels()

    def read_label(self, path: Path) -> np.ndarray:
        """A label as stored, (H, W); overridden where labels are no pictures."""
        return read_label(path, self.label_palette)

    def label_header(self, path: Path) -> Header:
        """The size of a label; overridden where labels are no pictures."""
        return read_header(path)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (H, W, 3), and its label as stored, (H, W)."""
        sample = self.samples[index]
        if sample.label is None:
            image = read_image(sample.image)
            return image, np.full(image.shape[:2], PADDING_16_BITS, np.uint16)
        return read_pair(sample.image, sample.label, self.label_palette)

    def read_train_ids(self, path: Path) -> np.ndarray:
        """The train ids of a whole label file, (H, W), without its image."""
        stored = self.read_label(path)
        return self._to_train_ids(stored, stored, path)

    def __len__(self):
        return len(self.samples)

    def load_label(self, index: int) -> np.ndarray:
        """The label as stored, (H, W), as `load` gives it; the image is decoded only if need be."""
        sample = self.samples[index]
        if self.cache is not None:
            return self.cache.load(index)[1]
        if sample.image is not None and sample.label is not None:
            label = self.read_label(sample.label)
            if label.shape == read_header(sample.image).size:
                return label
        return self.load(index)[1]

    def owner(self, index: int) -> tuple["BaseDataset", int]:
        """The dataset that a sample is from, and its index there: another one in a mixture."""
        return self, index

    def draw_epoch(self, epoch: int) -> np.ndarray:
        """The indices that an epoch of training visits, in order of storage."""
        return np.arange(len(self))

    def may_centre(self, class_id: int, indices: np.ndarray) -> np.ndarray:
        """Whether class-uniform sampling may show a class by each of these samples."""
        return np.ones(len(indices), bool)

    def __getitem__(self, key: int | tuple) -> dict:
        """The sample of an index or of (epoch, index[, repeat, centre]).

        repeat: how often the epoch has shown it before; the draws are others each
        time. centre: (y, x) of a pixel that a random crop has to show.
        """
        epoch, index, repeat, centre = (*key, 0, None)[:4] if isinstance(key, tuple) \
            else (0, key, 0, None)
        dataset, place = self.owner(index)
        return {**dataset.sample(place, self._generator(epoch, index, repeat), centre),
                "id": self.samples[index].id}

    def sample(self, index: int, rng: np.random.Generator,
               centre: tuple[int, int] | None = None) -> dict:
        """One sample with its random draws taken from `rng`; see __getitem__."""
        image, stored = (self.cache or self).load(index)
        label, flipped = stored, False
        if self.augmentation is not None:
            table = self._table(label.dtype)
            if table.border is None:
                # No stored value means "ignored": widen the label by one that does.
                label = label.astype(np.uint16)
                table = self._table(label.dtype)
            anchor = {} if centre is None else {"centre": centre}
            image, label, flipped = self.augmentation(
                image, label, rng, image_border=self.border_colour, label_border=table.border,
                train_ids=table.ids, **anchor)
        ids = self._to_train_ids(label, stored, self.samples[index].label)
        if flipped and self.flip_label_pairs:
            ids = _swapped(ids, self.flip_label_pairs)
        image = np.require(image, requirements=["C", "W"])      # a cache cannot be written to
        return {"image": torch.from_numpy(image).permute(2, 0, 1),
                "label": torch.from_numpy(ids), "id": self.samples[index].id}

    @functools.cached_property
    def border_colour(self) -> tuple[int, int, int]:
        """The mean colour: what an image is padded with."""
        return tuple(round(255 * m) for m in self.mean)

    def describe(self, index: int) -> str:
        """The image file of a sample, or its id where it has none, for messages."""
        sample = self.samples[index]
        return shown(sample.image) if sample.image else shown(sample.id)

    def problem(self, text: str):
        """Called by find_samples: add to the list of what is wrong, raised once all is known."""
        self.problems.append(text)

    def read_list(self, path: Path) -> list[tuple[int, str]]:
        """(line number, text) of each non-empty line of a list; an empty list is a problem.

        Any line ends will do, and UTF-8, or UTF-16 that says so.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"split file cannot be read: {error.strerror}", shown(path)) from None
        marked = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)    # by Windows' shell
        text = data.decode("utf-16", "replace") if marked else \
            data.decode("utf-8-sig", "surrogateescape")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
        lines = [(number, line) for number, line in lines if line]
        if not lines:
            self.problem(f"{shown(path)}: the list is empty")
        return lines

    def read_stems(self, path: Path) -> list[tuple[str, str]]:
        """(place in the list, name without extension) of each line of a list of pictures."""
        return [(f"{shown(path)}:{number}", _without_suffix(line))
                for number, line in self.read_list(path)]

    def first_folder(self, *candidates: str) -> Path | None:
        """The first of these folders below the root; it is a problem if there is none."""
        if not self.root.is_dir():
            self.problem(f"{shown(self.root)}: no such folder (data_dir)")
            return None
        for candidate in candidates:
            if (self.root / candidate).is_dir():
                return self.root / candidate
        self.problem(f"{shown(self.root)}: found no folder {' or '.join(candidates)} in it")
        return None

    def listed_file(self, name: str, list_path: Path, number: int) -> Path | None:
        """The file a split list names, relative to the root, with this or another extension.

        A leading slash counts for nothing. A missing file is noted as a problem.
        """
        path = self.root / name.lstrip("/")
        candidates = [path, *([Path(name)] if name.startswith("/") else []),
                      *(path.with_suffix(end) for lower in IMAGE_SUFFIXES
                        for end in (lower, lower.upper()))]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        self.problem(f"{shown(list_path)}:{number}: no such file: {shown(name)}")
        return None

    def pair_by_stem(self, image_dir: Path, label_dir: Path, image_ending: str = "",
                     label_ending: str = "", stems: list | None = None,
                     without: tuple = ()) -> Iterator[Sample]:
        """Pair pictures with labels by their path below the two folders, extension aside.

        image_ending, label_ending: ends of the names before the extension that
        differ, such as "_leftImg8bit" and "_gtFine_labelIds"; other files are
        not looked at. stems: take these only, as (place in a list, stem) pairs.
        without: stems to leave out. A picture without label, a label without
        picture, two files of one name and two folders without any are noted as
        problems.
        """
        images = self._by_stem(image_dir, image_ending, IMAGE_SUFFIXES, without)
        labels = self._by_stem(label_dir, label_ending, self.label_suffixes, without)
        if stems is None:
            if image_dir.is_dir() and not images and not labels:
                self.problem(f"{shown(image_dir)}: no images")
            for stem in sorted(labels.keys() - images.keys()):
                self.problem(f"{shown(labels[stem])}: a label without an image in "
                             f"{shown(image_dir)}")
            stems = [(shown(images[stem]), stem) for stem in sorted(images)]
        for place, stem in stems:
            if stem not in images:
                self.problem(f"{place}: no image {shown(stem)} in {shown(image_dir)}")
            elif stem not in labels:
                self.problem(f"{place}: no label {shown(label_dir / stem)}{label_ending}"
                             f"{self.label_suffixes[0]}")
            else:
                yield Sample(stem, images[stem], labels[stem])

    def images_only(self, folder: Path, ending: str = "",
                    stems: list | None = None) -> Iterator[Sample]:
        """The pictures of a split that has no labels; arguments as those of pair_by_stem."""
        images = self._by_stem(folder, ending, IMAGE_SUFFIXES)
        if stems is None:
            if not images:
                self.problem(f"{shown(folder)}: no images")
            stems = [(shown(images[stem]), stem) for stem in sorted(images)]
        for place, stem in stems:
            if stem in images:
                yield Sample(stem, images[stem], None)
            else:
                self.problem(f"{place}: no image {shown(stem)} in {shown(folder)}")

    def by_table(self, raw: np.ndarray, table: dict[int, int | None]) -> np.ndarray:
        """Train ids by {stored value: train id, or None for ignored}; other values are mistakes."""
        ids = np.full(raw.shape, NO_CLASS, np.int64)
        for value, train_id in table.items():
            ids[raw == value] = self.ignore_index if train_id is None else train_id
        return ids

    def _by_stem(self, folder, ending, suffixes, without=()):
        found, depth = {}, len(folder.parts)
        for path in picture_files(folder, suffixes):
            # Several times faster than relative_to, which counts for 100000 files.
            stem = os.path.splitext("/".join(path.parts[depth:]))[0]
            if not stem.endswith(ending):
                continue
            stem = stem.removesuffix(ending)
            if stem in without:
                continue
            if stem in found:
                self.problem(f"{shown(path)}: same name as {shown(found[stem])}")
            found.setdefault(stem, path)
        return found

    def train_id_table(self, dtype) -> np.ndarray:
        """The train id of each stored value of a dtype; values that mean nothing are none."""
        return self._table(np.dtype(dtype)).ids

    def _generator(self, epoch, index, repeat=0):
        return np.random.default_rng(np.random.SeedSequence(
            (self.seed % 2 ** 64, epoch), spawn_key=(index, repeat) if repeat else (index,)))

    def _to_train_ids(self, label, stored, path):
        import cv2
        table = self._table(label.dtype)
        ids = cv2.LUT(label, table.ids) if label.dtype == np.uint8 else table.ids[label]
        if (ids == table.invalid).any():
            raise self._range_error(stored, path)
        return ids

    def _table(self, dtype):
        """The lookup table of stored values of one dtype."""
        if dtype not in self._tables:
            self._tables[dtype] = self._make_table(np.iinfo(dtype).bits)
        return self._tables[dtype]

    def _make_table(self, bits):
        ids = np.array(self.train_ids(np.arange(2 ** bits, dtype=np.int64)), dtype=np.int64)
        if bits == 16:
            ids[PADDING_16_BITS] = self.ignore_index
        valid = (ids >= 0) & (ids < self.num_classes)
        ignored = ids == self.ignore_index
        border = int(np.flatnonzero(ignored)[-1]) if ignored.any() else None
        if self.num_classes < 255 and 0 <= self.ignore_index <= 255:
            invalid = next(v for v in range(self.num_classes, 256) if v != self.ignore_index)
            kind = np.uint8
        else:
            invalid, kind = np.iinfo(np.int16).min, np.int16
        return _Table(np.where(valid | ignored, ids, invalid).astype(kind), invalid, border)

    def _range_error(self, stored, path):
        values, counts = np.unique(stored, return_counts=True)
        table = self._table(stored.dtype)
        wrong = table.ids[values] == table.invalid
        listed = ", ".join(f"{v} ({n} pixels)" for v, n in
                           list(zip(values[wrong], counts[wrong]))[:8])
        more = f" and {wrong.sum() - 8} more" if wrong.sum() > 8 else ""
        fix = ("map the ids when the data is read (Folder: \"label_map\": "
               f"{{\"{values[wrong][0]}\": \"ignore\"}}), or set ignore_index, if that is what "
               "the value stands for")
        if self.split_sizes:
            fix = (f"{type(self).__name__} as released holds no such value: copy or download the "
                   "file again; labels in an encoding of your own are read by the type Folder, "
                   "with \"label_map\"")
        if set(values.tolist()) <= {0, 255}:
            fix = ("this is a binary mask of 0 and 255: say so with "
                   "\"label_map\": {\"255\": 1} (Folder), or store 0 and 1")
        elif str(path).lower().endswith((".jpg", ".jpeg")):
            fix = "JPEG changes label values: store labels as PNG"
        return DataError(f"label has value {listed}{more}; num_classes is {self.num_classes}, "
                         f"ignore_index is {self.ignore_index}",
                         path and shown(path), fix)

    def _check_files(self):
        """Raise one DataError for everything that names and headers show to be wrong."""
        problems, replaced = self.problems, []
        place = shown(self.root)
        if not self.samples and not problems:
            raise DataError(f"{type(self).__name__} found no images of split {self.split!r}"
                            + ("" if self.root.is_dir() else ": the folder does not exist"), place,
                            "set data_dir to the folder that holds the dataset")
        seen = {}
        for sample in self.samples:
            if sample.id in seen:
                problems.append(f"{shown(sample.image or sample.id)}: sample {shown(sample.id)} "
                                "occurs twice")
            seen[sample.id] = True
        with_files = [sample for sample in self.samples if sample.image is not None]
        for sample in spread(with_files, len(with_files) if len(with_files) <= CHECK_ALL_BELOW
                             else SPOT_CHECKS):
            found, unreadable = _problem_of(sample, self.label_header)
            if found:
                (replaced if unreadable and REPLACES_UNREADABLE.get() else problems).append(found)
        if replaced:
            warn(f"{len(replaced)} unreadable files will be replaced by others: "
                 f"{'; '.join(replaced[:SHOWN_PROBLEMS])}")
        if problems:
            more = len(problems) - SHOWN_PROBLEMS
            listed = "".join(f"\n    {text}" for text in problems[:SHOWN_PROBLEMS])
            raise DataError(f"{type(self).__name__} {self.split}: {len(problems)} "
                            f"{'file is' if len(problems) == 1 else 'files are'} wrong:{listed}"
                            + (f"\n    and {more} more" if more > 0 else ""), place,
                            "mend or remove these files")
        published = self.split_sizes.get(self.split)
        if published and len(self.samples) != published:
            warn(f"{type(self).__name__} {self.split}: {len(self.samples)} images in {place}, "
                 f"{published} in the published split")

    def _check_labels(self):
        """Read a few whole labels: a wrong id map concerns nearly all of them."""
        labelled = [i for i, sample in enumerate(self.samples) if sample.label is not None]
        values = set()
        for index in spread(labelled, LABELS_READ_AT_START):
            try:
                stored = self.read_label(self.samples[index].label)
            except DataError:
                continue            # reported, or replaced, when the sample is read
            if stored.dtype == np.uint8 and self._table(stored.dtype).border is None:
                stored = stored.astype(np.uint16)
            self._to_train_ids(stored, stored, self.samples[index].label)
            values.update(np.unique(stored).tolist())
        ignored = self._table(np.dtype(np.uint8)).ids[255] == self.ignore_index
        if values == {0, 255} and ignored and not self.ignores_on_purpose(255):
            raise DataError("the labels hold 0 and 255 only, and 255 is ignored: nothing but class "
                            "0 would be learnt", shown(self.root),
                            "binary masks of 0 and 255 need \"label_map\": {\"255\": 1} (Folder); "
                            "\"255\": \"ignore\" keeps them as they are")

    def ignores_on_purpose(self, value: int) -> bool:
        """Whether the user said that this stored value is to be ignored."""
        return False


class _Table(NamedTuple):
    """ids: train id of each stored value; `invalid` marks values that are none.

    border: a stored value that means "ignored", or None.
    """

    ids: np.ndarray
    invalid: int
    border: int | None


def _problem_of(sample, label_header):
    """(what the headers of one pair show to be wrong, or None; whether a file is unreadable)."""
    try:
        for path in (sample.image, sample.label):
            if path is not None and not stat.S_ISREG(os.stat(path).st_mode):
                return f"{shown(path)}: not a regular file", True
        image = read_header(sample.image)
        if sample.label is None:
            return None, False
        label = label_header(sample.label)
    except DataError as error:
        return error.in_one_line, isinstance(error, UnreadableFile)
    except OSError as error:
        return f"{shown(error.filename)}: {error.strerror}", True
    if label.size == image.size or (label.orientation == 1 and label.size == image.stored_size):
        return None, False
    return (f"{shown(sample.image)} is {image.size[1]}x{image.size[0]} but its label "
            f"{shown(sample.label)} is {label.size[1]}x{label.size[0]}"), False


def _swapped(ids, pairs):
    """`ids` with the two classes of each pair exchanged."""
    result = ids.copy()
    for left, right in pairs:
        result[ids == left] = right
        result[ids == right] = left
    return result


def _without_suffix(name):
    """A file name without the extension of a picture; other dots belong to the name."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name
