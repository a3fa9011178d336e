"""Class-uniform sampling: shows every class equally often, in crops placed over it.

Zhu et al., Improving semantic segmentation via video propagation and label relaxation, CVPR 2019,
arXiv:1812.01593, and NVIDIA's semantic-segmentation code. Each label is cut into tiles; the
centroid of the pixels of every class in a tile is stored. A share of an epoch is drawn from the
centroids, equally many for each class, and the rest from the images; a crop shows its centroid.

Different on purpose: if a centroid is not a pixel of the class (of a ring, or of two objects far
apart), the nearest pixel of the class is used, so that the crop shows the class.
"""
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.pixel_cache import name_below, stamp
from dataloader.samplers import NO_CENTER, EpochDraw, drawn, stream
from utils.cli.arguments import DEFAULT_WORKERS
from utils.cli.console import notice
from utils.errors import ConfigError, DataError, shown
from utils.files.whole_file import write_bytes
from utils.images.headers import UnreadableFile
from utils.machine import distributed

FORMAT = "segwright centroids 1"
_STREAM = 0x636C61      # separates these draws from other uses of the seed
_LABELS_HASHED = 3      # of samples without files, to recognize them by their pixels


class ClassUniform(EpochDraw):
    """A share of each epoch is drawn class by class, in crops that show the class (NVIDIA).

    share: share of the epoch that is drawn from centroids: with C classes and L images,
        int(share · L / C) of each class, at random; the rest are images of the epoch,
        cropped at random.
    tile_size: side of the tiles, in pixels, that give one centroid per class.
    classes: the classes that are drawn; null: all that occur.
    centroids: a file that stores the centroids between runs; it is written if it is missing
        or was made from other labels. null computes them at every start.
    last_epoch: later epochs visit the images as if there were no sampler; null: never.
    """

    def __init__(self, share: float = 0.5, tile_size: int = 1024,
                 classes: list[int] | None = None, centroids: str | None = None,
                 last_epoch: int | None = None, *, dataset: BaseDataset, seed: int = 0):
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, got {share}", "share")
        if tile_size < 1:
            raise ConfigError(f"tile_size must be at least 1, got {tile_size}", "tile_size")
        wrong = [each for each in classes or () if not 0 <= each < dataset.num_classes]
        if wrong or classes == []:
            raise ConfigError(f"expected classes from 0 to {dataset.num_classes - 1}, got "
                              f"{classes}", "classes")
        for part in _owners(dataset):
            if not getattr(part.augmentation, "augment", False):
                raise ConfigError("class-uniform sampling places random crops: it has no effect "
                                  f"on {type(part).__name__} {part.split} without augment",
                                  "augment", "set it to true")
        self.dataset, self.seed, self.last_epoch = dataset, seed, last_epoch
        rows = load_centroids(dataset, tile_size, centroids)
        wanted = range(dataset.num_classes) if classes is None else sorted(set(classes))
        self.centroids = {}     # class -> (M, 3) of index, y, x
        for class_id in wanted:
            of_class = rows[rows[:, 0] == class_id, 1:]
            of_class = of_class[dataset.may_center(class_id, of_class[:, 0])]
            if len(of_class):
                self.centroids[class_id] = of_class
        if not self.centroids:
            raise DataError("no label contains a class that class-uniform sampling may draw",
                            shown(dataset.root))
        length = len(dataset.draw_epoch(1))
        self.per_class = int(share * length / len(self.centroids))
        if not self.per_class:
            raise ConfigError(f"{share} of {length} images are fewer than one for each of "
                              f"{len(self.centroids)} classes", "share", "raise it, or leave the "
                              "sampler out")

    def __call__(self, epoch: int) -> np.ndarray:
        images = self.dataset.draw_epoch(epoch)
        if self.last_epoch is not None and epoch > self.last_epoch:
            return images
        visits = []
        for class_id, rows in self.centroids.items():
            rng = stream(self.seed, epoch, _STREAM, class_id + 1)
            visits.append(rows[drawn(self.per_class, len(rows), rng)])
        rest = len(images) - self.per_class * len(visits)
        plain = np.full((rest, 3), NO_CENTER)
        plain[:, 0] = images[drawn(rest, len(images), stream(self.seed, epoch, _STREAM, 0))]
        return np.concatenate([*visits, plain])


def load_centroids(dataset: BaseDataset, tile_size: int = 1024,
                   path: str | os.PathLike | None = None) -> np.ndarray:
    """The centroids of a dataset, int64 (M, 4): class, index, y and x, in order of index.

    path: a file that is read if it was made from these labels, else written. Raises DataError if
    the file is not a file of centroids.
    """
    if path is None:
        notice(f"computing the centroids of {len(dataset)} labels; to store them, set "
               "\"centroids\" to a file")
        return find_centroids(dataset, tile_size)
    path, made_from = Path(os.path.expanduser(path)), _made_from(dataset, tile_size)
    if not path.parent.is_dir():
        raise DataError("no such folder for the file of centroids", shown(path.parent),
                        "make the folder, or name another file in \"centroids\"")
    known = _read(path)
    if known is not None and known["made_from"] == made_from:
        return np.array(known["centroids"], np.int64).reshape(-1, 4)
    notice(f"{shown(path)} " + ("does not exist" if known is None else
                                "was made from other labels, or with another tile_size")
           + f": computing the centroids of {len(dataset)} labels")
    centroids = find_centroids(dataset, tile_size)
    if distributed.is_main():
        document = {"format": FORMAT, "made_from": made_from, "centroids": centroids.tolist()}
        write_bytes(path, json.dumps(document, separators=(",", ":")).encode() + b"\n")
    return centroids


def find_centroids(dataset: BaseDataset, tile_size: int = 1024) -> np.ndarray:
    """Compute the centroids of a dataset from its labels, int64 (M, 4), as load_centroids."""
    from tqdm import tqdm

    def of_label(index):
        owner, index_there = dataset.owner(index)
        try:
            stored = owner.load_label(index_there)
        except UnreadableFile:
            return []           # reported, or replaced, when the sample is read
        ids = owner.train_id_table(stored.dtype)[stored]
        return [(class_id, index, y, x)
                for class_id, y, x in tile_centroids(ids, tile_size, dataset.num_classes)]

    with ThreadPoolExecutor(DEFAULT_WORKERS) as pool:
        rows = list(tqdm(pool.map(of_label, range(len(dataset))), "centroids", len(dataset),
                         unit="label", leave=False, dynamic_ncols=True,
                         disable=None if distributed.is_main() else True))
    return np.array([row for one in rows for row in one], np.int64).reshape(-1, 4)


def tile_centroids(ids: np.ndarray, tile_size: int, num_classes: int) \
        -> list[tuple[int, int, int]]:
    """(class, y, x) in whole pixels for each class in each tile of train ids (H, W).

    (y, x) is the mean of the class's pixels, rounded down, or the pixel of the class that is
    nearest to it.
    """
    centroids = []
    for top in range(0, ids.shape[0], tile_size):
        for left in range(0, ids.shape[1], tile_size):
            tile = ids[top:top + tile_size, left:left + tile_size]
            classes = np.where((tile >= 0) & (tile < num_classes), tile, num_classes)
            rows = _per_line(classes, num_classes)
            columns = _per_line(classes.T, num_classes)
            for class_id, count in enumerate(rows.sum(0)):
                if count:
                    y, x = (int(np.arange(len(lines)) @ lines[:, class_id] // count)
                            for lines in (rows, columns))
                    if tile[y, x] != class_id:
                        y, x = _nearest(tile == class_id, y, x)
                    centroids.append((class_id, top + y, left + x))
    return centroids


def _per_line(classes, num_classes):
    """(lines, num_classes): how many pixels of each class each row of a tile has."""
    lines = len(classes)
    bins = classes.astype(np.int64) + (num_classes + 1) * np.arange(lines)[:, None]
    counts = np.bincount(bins.ravel(), minlength=lines * (num_classes + 1))
    return counts.reshape(lines, num_classes + 1)[:, :num_classes]


def _nearest(mask, y, x):
    """The (row, column) of the pixel in mask (H, W) that is nearest to (y, x)."""
    rows, columns = np.nonzero(mask)
    best = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    return int(rows[best]), int(columns[best])


def _owners(dataset):
    """The datasets that the samples come from, each once."""
    owners = (dataset.owner(index)[0] for index in range(len(dataset)))
    return {id(owner): owner for owner in owners}.values()


def _made_from(dataset, tile_size):
    """A digest of all that the centroids depend on: files, id tables, tiles."""
    digest, tables = hashlib.blake2b(digest_size=16), {}
    digest.update(json.dumps([dataset.num_classes, tile_size, len(dataset)]).encode())
    hashed = 0
    for index in range(len(dataset)):
        owner, index_there = dataset.owner(index)
        if id(owner) not in tables:
            tables[id(owner)] = [hashlib.blake2b(owner.train_id_table(kind).tobytes(),
                                                 digest_size=16).hexdigest()
                                 for kind in (np.uint8, np.uint16)]
            digest.update(json.dumps([type(owner).__name__, *tables[id(owner)]]).encode())
            if getattr(owner, "drawing", None):     # how outlines become labels
                digest.update(json.dumps(owner.drawing).encode())
        sample = owner.samples[index_there]
        digest.update(json.dumps([name_below(sample.label, owner.root), stamp(sample.label),
                                  sample.id]).encode())
        if sample.image is None and hashed < _LABELS_HASHED:
            hashed += 1
            digest.update(np.ascontiguousarray(owner.load_label(index_there)).tobytes())
    return digest.hexdigest()


def _read(path):
    """The content of a file of centroids, or None if it does not exist.

    Raises DataError for any other file, which must not be overwritten.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format"] == FORMAT and isinstance(document["made_from"], str) \
                and all(len(row) == 4 for row in document["centroids"]):
            return document
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", shown(path)) from None
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError("is not a file of centroids, or is damaged", shown(path),
                    "delete it, or name another file in \"centroids\"")
