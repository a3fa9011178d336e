"""A cache of decoded pixels: the samples of a dataset, mapped into memory.

`python -m tools.pack` writes a folder with pixels-NNNNN.bin and cache.json; "cache": FOLDER in a
loader's args reads it. Images are uint8 RGB and labels the stored values, both exactly as the
dataset decodes its files. Label ids are mapped and crops are cut after reading, so a cache fits
every choice of classes and augmentation. Processes share the mapped pages; nothing is unpickled.

A shard consists of: magic, the pixels of each sample, a table (JSON), and a footer with the start,
length and CRC-32 of the table. cache.json is written last and shows that the shards are complete.
The table contains the size and time of every source file, so that a cache of other files is
refused, and the CRC-32 of the pixels, which is checked when a sample is read for the first time.
"""
import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataset import BaseDataset
from utils.errors import ConfigError, DataError, listed, shown
from utils.files.whole_file import UNFINISHED, WholeFile, remove_abandoned, write_bytes
from utils.images.picture_files import evenly_spaced
from utils.images.types import Image, Labels

VERSION = 1
INDEX = "cache.json"
MAGIC = b"segwright pixels"
SHARD_BYTES = 256 * 2 ** 20
_ALIGNMENT = 64
_FOOTER = struct.Struct("<QQI16s")      # start, length and CRC-32 of the table, magic
_COMPARED = 3                           # samples whose files are compared with the cache
_HEADERS_READ = 200                     # to estimate the size of a cache
_SHOWN = 5
_LABEL_TYPES = ("uint8", "uint16", "int16", "int32")


def use_cache(dataset: BaseDataset, cache: str | None = None) -> BaseDataset:
    """The dataset, set to read decoded pixels from a folder that `python -m tools.pack` wrote.

    cache: the folder; null reads the files. Raises DataError if the cache is damaged or was
    not made from exactly these files.
    """
    if cache is not None:
        if _is_mixture(dataset):
            raise ConfigError("a mixture has no cache", "cache",
                              "set \"cache\" in the args of each of its parts")
        dataset.cache = PixelCache(cache, dataset)
    return dataset


use_cache.provided = ("dataset",)


class PixelCache:
    """The decoded samples of a dataset, read from a folder by `load`, as the dataset's `load`."""

    def __init__(self, folder: str | os.PathLike, dataset: BaseDataset):
        self.folder, self.samples = Path(os.path.expanduser(folder)), dataset.samples
        self._image = _image_of(dataset)
        shards = [_Shard(self.folder / _shard_name(number), self._image, size)
                  for number, size in enumerate(_read_index(self.folder)["shards"])]
        self._paths = [shard.path for shard in shards]
        self._stamps = [_state(path) for path in self._paths]
        self._places = self._locate(dataset, shards)
        self._maps = {}         # number of a shard -> (the mapped file, its bytes, its state)
        # Shared by the worker processes, so that each sample is checked only once.
        self._checked = mmap.mmap(-1, max(len(self.samples), 1))
        self._compare(dataset)

    def load(self, index: int) -> tuple[Image, Labels]:
        """The image, uint8 (H, W, 3), and its label as stored, (H, W); both read-only."""
        number, start, height, width, kind, crc = self._places[index].tolist()
        split, length = _extent((height, width), _LABEL_TYPES[kind], self._image)
        bands, image_type = self._image
        pixels = self._shard(number, start + length)[start:start + length]
        if not self._checked[index]:
            if zlib.crc32(pixels) != crc:
                raise _damaged(self._paths[number], "the pixels of "
                               f"{shown(self.samples[index].id)} have changed since they were "
                               "written", "delete this file, then " + _remedy())
            self._checked[index] = 1
        return (pixels[:bands * image_type.itemsize * height * width].view(image_type)
                .reshape(height, width, bands),
                pixels[split:].view(_LABEL_TYPES[kind]).reshape(height, width))

    def _shard(self, number, end):
        """The mapped bytes of a shard, uint8 (N,), after it was made sure that `end` of them exist.

        A file that has become shorter would end the process (SIGBUS) where the missing bytes are
        touched. If the file was written again, its samples are compared with their CRC again.
        """
        state = _state(self._paths[number])
        if number not in self._maps or state not in (None, self._maps[number][2]):
            self._maps[number] = *_mapped(self._paths[number]), state
        if state not in (None, self._stamps[number]):
            self._stamps[number] = state
            for index in np.flatnonzero(self._places[:, 0] == number).tolist():
                self._checked[index] = 0
        file, pixels, _ = self._maps[number]
        if min(file.size(), len(pixels)) < end:
            raise _damaged(self._paths[number], f"it has {file.size()} bytes now and had more when "
                           "it was opened", "delete this file, then " + _remedy())
        return pixels

    def __getstate__(self):
        """Pickled for worker processes that are not forked; these map the files again."""
        return {**self.__dict__, "_maps": {}, "_checked": bytes(self._checked)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._checked = bytearray(state["_checked"])

    def _locate(self, dataset, shards):
        """(N, 6) int64: shard, start, height, width, label type and CRC-32 of every sample.

        Raises DataError if a sample is missing or its files have changed.
        """
        reading = _reading(dataset)
        if any(shard.reading != reading for shard in shards):
            raise DataError("the cache was decoded in another way than this "
                            f"{type(dataset).__name__} decodes its files (another palette or "
                            "\"white\", or labels of another kind)", shown(self.folder), _remedy())
        entries = {_key(entry): (number, entry) for number, shard in enumerate(shards)
                   for entry in shard.entries}
        rows, missing, changed = [], [], []
        for index in range(len(dataset)):
            source = _source(dataset, index)
            number, entry = entries.get(_key(source), (None, None))
            if entry is None:
                missing.append(source)
            elif entry["files"] != source["files"]:
                changed.append(source)
            else:
                rows.append((number, entry["at"], *entry["size"],
                             _LABEL_TYPES.index(entry["type"]), entry["crc"]))
        for sources, what in ((missing, "are not in the cache"),
                               (changed, "have changed since the cache was written")):
            if sources:
                names = listed(sources, _SHOWN, text=lambda one: shown(one["image"] or one["id"]))
                raise DataError(f"{len(sources)} of {len(dataset)} samples of "
                                f"{dataset.title} {what}: {names}",
                                shown(self.folder), _remedy())
        return np.array(rows, np.int64).reshape(-1, 6)

    def _compare(self, dataset):
        """Raise DataError if a few samples differ from their files.

        Only this shows that another version of a decoder reads other pixels.
        """
        for index in evenly_spaced(range(len(dataset)), _COMPARED):
            if not all(map(np.array_equal, self.load(index), dataset.load(index))):
                name = shown(dataset.samples[index].id)
                raise DataError(f"the cache contains other pixels of {name} than "
                                f"{type(dataset).__name__} reads", shown(self.folder), _remedy())


class CachePlan:
    """Plans and writes a cache of `dataset` in `folder`.

    shards: the indices in each shard. todo: numbers of the shards that do not exist or contain
    other files. bytes: estimated size of the whole cache. Raises DataError if the folder
    contains other files.
    """

    def __init__(self, dataset: BaseDataset, folder: str | os.PathLike):
        if _is_mixture(dataset):
            raise ConfigError("a mixture has no cache", None, "pack its parts one by one")
        self.dataset, self.folder = dataset, Path(os.path.expanduser(folder))
        try:
            _require_cache_folder(self.folder)
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        self.bytes = _estimate(dataset)
        # A power of two, so that adding a few files does not move every sample to another shard.
        mean = max(self.bytes // max(len(dataset), 1), 1)
        per_shard = 1 << int(math.log2(max(SHARD_BYTES / mean, 1)))
        indices = range(len(dataset))
        self.shards = [indices[k:k + per_shard] for k in range(0, len(dataset), per_shard)]
        self.reading = _reading(dataset)
        self._sources = [_source(dataset, index) for index in indices]
        self.todo = [number for number in range(len(self.shards)) if not self._is_written(number)]

    @property
    def complete(self) -> bool:
        """Whether the whole cache is written."""
        try:
            return not self.todo and _read_index(self.folder)["shards"] == self._sizes()
        except DataError:
            return False

    @property
    def bytes_to_write(self) -> int:
        """Estimated size of the missing shards, in bytes."""
        images = sum(len(self.shards[number]) for number in self.todo)
        return self.bytes * images // max(len(self.dataset), 1)

    def write(self, workers: int = 1, progress: Callable[[], Any] | None = None) -> None:
        """Write the missing shards. progress: called after each sample.

        After an interruption, another call continues with the next shard. Raises DataError if
        the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
            if self.todo:
                # Without an index the cache cannot be opened while its shards are replaced.
                (self.folder / INDEX).unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        pool = ThreadPoolExecutor(workers)
        try:
            for number in self.todo:
                self._write_shard(number, pool, progress or (lambda: None))
        finally:
            pool.shutdown(cancel_futures=True)
        for path in self.folder.glob("pixels-*.bin"):
            if path.name not in map(_shard_name, range(len(self.shards))):
                path.unlink()
        index = {"format": "segwright pixel cache", "version": VERSION, "shards": self._sizes(),
                 "dataset": type(self.dataset).__name__, "split": self.dataset.split,
                 "samples": len(self.dataset)}
        write_bytes(self.folder / INDEX, json.dumps(index, indent=1).encode() + b"\n")

    def _write_shard(self, number, pool, progress):
        """Write one shard whole; `pool` decodes its samples."""
        path = self.folder / _shard_name(number)
        try:
            with WholeFile(path, durable=True) as temporary, open(temporary, "wb") as file:
                file.write(MAGIC)
                entries = []
                for index, pixels in zip(self.shards[number],
                                         pool.map(self.dataset.load, self.shards[number]),
                                         strict=True):
                    entries.append({**self._sources[index], **_append(file, *pixels)})
                    progress()
                table = json.dumps({"version": VERSION, "reading": self.reading,
                                    "samples": entries}).encode()
                start = file.tell()
                file.write(table)
                file.write(_FOOTER.pack(start, len(table), zlib.crc32(table), MAGIC))
        except OSError as error:
            raise _cannot_write(path, error) from None

    def _is_written(self, number):
        """Whether a shard exists and contains exactly its samples."""
        try:
            shard = _Shard(self.folder / _shard_name(number), _image_of(self.dataset))
        except DataError:
            return False
        return shard.reading == self.reading and \
            [{key: entry[key] for key in ("id", "image", "label", "files")}
             for entry in shard.entries] == [self._sources[i] for i in self.shards[number]]

    def _sizes(self):
        """The size of each shard, in bytes."""
        return [os.path.getsize(self.folder / _shard_name(number))
                for number in range(len(self.shards))]


def verify_cache(folder: str | os.PathLike, dataset: BaseDataset,
                 progress: Callable[[], Any] | None = None) -> None:
    """Read every sample of a cache. Raises DataError if its bytes have changed.

    progress: called after each sample.
    """
    cache = PixelCache(folder, dataset)
    for index in range(len(dataset)):
        cache.load(index)
        if progress:
            progress()


class _Shard:
    """The checked table of one pixels-NNNNN.bin: how its samples were decoded, and their places.

    image: (bands, type) of the images. size: expected size of the file in bytes; None accepts any.
    Raises DataError if the file is damaged.
    """

    def __init__(self, path, image, size=None):
        self.path = path
        try:
            with open(path, "rb") as file:
                actual = os.fstat(file.fileno()).st_size
                if size is not None and actual != size:
                    raise _damaged(path, f"it has {actual} bytes, {size} were written")
                if file.read(len(MAGIC)) != MAGIC:
                    raise _damaged(path, "it is not a file of a pixel cache")
                file.seek(max(0, actual - _FOOTER.size))
                footer = file.read(_FOOTER.size)
                start, length, crc, magic = _FOOTER.unpack(footer) \
                    if len(footer) == _FOOTER.size else (0, 0, 0, b"")
                if magic != MAGIC or start + length + _FOOTER.size != actual:
                    raise _damaged(path, "its end is missing")
                file.seek(start)
                table = file.read(length)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", shown(path), _remedy()) from None
        if zlib.crc32(table) != crc:
            raise _damaged(path, "its table has changed since it was written")
        try:
            table = json.loads(table)
            _require_version(table, path)
            self.reading, self.entries = table["reading"], table["samples"]
            sound = all(entry["type"] in _LABEL_TYPES and min(*entry["size"], entry["at"]) >= 0
                        and entry["at"] + _extent(entry["size"], entry["type"], image)[1] <= start
                        for entry in self.entries)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            sound = False
        if not sound:
            raise _damaged(path, "its table does not describe pixels")


def stamp(path: Path | None) -> list | None:
    """[size in bytes, time of the last change in ns] of a source file."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", shown(path)) from None
    return [status.st_size, status.st_mtime_ns]


def name_below(path: Path | None, root: Path) -> str | None:
    """The name of a source file in a cache: relative to the root of the dataset if it is below it.

    So a cache remains valid if the dataset is moved.
    """
    if path is None:
        return None
    try:
        return str(path.relative_to(root))
    except ValueError:
        return os.path.abspath(path)


def _is_mixture(dataset):
    return dataset.owner(0)[0] is not dataset


def _state(path):
    """What changes if a file is written again or replaced; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _mapped(path):
    """(a file mapped read-only, its bytes, uint8 (N,))."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped, np.frombuffer(mapped, np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", shown(path), _remedy()) from None


def _source(dataset, index):
    """The table entries that identify a sample and the state of its files."""
    sample = dataset.samples[index]
    further = dataset.bands.further_files(sample.image, dataset.image_folder) \
        if dataset.bands else ()
    return {"id": sample.id, "image": name_below(sample.image, dataset.root),
            "label": name_below(sample.label, dataset.root),
            "files": [stamp(sample.image), stamp(sample.label), *map(stamp, further)]}


def _key(source):
    """Identifies a sample: by the names of its files, or by its id if it has no image file."""
    return (source["image"] or source["id"], source["label"])


def _reading(dataset):
    """Everything that changes how a file is decoded."""
    palette = dataset.label_palette
    return {"load": type(dataset).load.__qualname__,
            "palette": None if palette is None else
            [None if color is None else list(map(int, color)) for color in palette],
            "variable": getattr(dataset, "mat_variable", None),
            **{key: getattr(dataset, key) for key in ("label_threshold", "drawing")
               if getattr(dataset, key, None) is not None},
            **({} if dataset.white is None else {"white": dataset.white}),
            **({} if dataset.bands is None else {"bands": dataset.bands.state()})}


def _append(file, image, label):
    """Write the pixels of one sample; returns its place in the file, size, type and CRC-32."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    entry = {"at": file.tell(), "size": list(label.shape), "type": str(label.dtype)}
    kind = image.shape[2], image.dtype
    gap = bytes(_extent(label.shape, label.dtype, kind)[0] - image.nbytes)
    crc = 0
    for part in (np.ascontiguousarray(image).data.cast("B"), gap,
                 np.ascontiguousarray(label).data.cast("B")):
        file.write(part)
        crc = zlib.crc32(part, crc)
    return {**entry, "crc": crc}


def _image_of(dataset):
    """(the number of bands, their type) of the images of a dataset."""
    return dataset.in_channels, np.dtype(dataset.bands.type if dataset.bands else np.uint8)


def _extent(size, label_type, image):
    """(start of the label, bytes of image and label); the start is even, for 16-bit labels.

    image: as of `_image_of`.
    """
    height, width = size
    split = -(-image[0] * image[1].itemsize * height * width // 2) * 2
    return split, split + height * width * np.dtype(label_type).itemsize


def _estimate(dataset):
    """Estimated size of the decoded samples in bytes, from some of their headers."""
    count = len(dataset)
    pixels = []
    for index in evenly_spaced(range(count), _HEADERS_READ):
        image = dataset.samples[index].image
        height, width = dataset.load(index)[1].shape if image is None else \
            dataset.image_header(image).size
        pixels.append(height * width)
    bands, kind = _image_of(dataset)
    return round((bands * kind.itemsize + 1) * count * sum(pixels) / max(len(pixels), 1))


class _NotACache(DataError):
    """A file with the name of the index belongs to another program."""


def _read_index(folder):
    """The content of cache.json, checked."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        known = index["format"] == "segwright pixel cache" and \
            all(type(size) is int for size in index["shards"])
    except (FileNotFoundError, NotADirectoryError):
        begun = any(folder.glob("pixels-*.bin"))
        raise DataError("the cache is not complete" if begun else
                        f"no cache is here: there is no {INDEX}", shown(folder),
                        _remedy()) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", shown(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise _damaged(path, "it does not describe a pixel cache", kind=_NotACache)
    _require_version(index, path)
    return index


def _require_version(document, path):
    if document.get("version") != VERSION:
        raise DataError(f"a cache of version {document.get('version')}; this program reads "
                        f"{VERSION}", shown(path), _remedy())


def _require_cache_folder(folder):
    """Raise DataError if the folder contains other files, which a cache must not put at risk."""
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file; a cache is a folder", shown(folder))
    others = [path.name for path in folder.iterdir()
              if path.name != INDEX and not path.match("pixels-*.bin")
              and not path.name.startswith(UNFINISHED)] if folder.is_dir() else []
    if others:
        raise DataError(f"the folder contains other files, such as {shown(min(others))}",
                        shown(folder), "name a new folder for the cache")
    if (folder / INDEX).is_file():
        try:
            _read_index(folder)
        except _NotACache:
            raise
        except DataError:       # an index of another version, or an unreadable one, is replaced
            pass


def _shard_name(number):
    return f"pixels-{number:05d}.bin"


def _damaged(path, what, fix=None, kind=DataError):
    return kind(f"the cache is damaged or foreign: {what}", shown(path), fix or _remedy())


def _cannot_write(path, error):
    return DataError(f"cannot be written: {error.strerror or error}", shown(path),
                     "check that the disk has room and the folder can be written to; complete "
                     "shards are kept, and the same command continues after them")


def _remedy():
    return "write it again with `python -m tools.pack`, or leave \"cache\" out to read the files"
