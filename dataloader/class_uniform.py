"""Class-uniform sampling: every class is shown equally often, in crops placed over it.

Zhu et al., Improving semantic segmentation via video propagation and label relaxation, CVPR 2019,
arXiv:1812.01593, and NVIDIA's semantic-segmentation code. Each label is cut into tiles; of every
class in a tile the centroid of its pixels is stored. A share of an epoch is drawn from the
centroids, as many for each class, and the rest from the images; the crop shows the centroid.

Different on purpose: a centroid that is no pixel of the class (of a ring, or of two things far
apart) gives way to the pixel of the class that is nearest to it, so that the crop shows the class.
"""
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.pixel_cache import name_below, stamp
from dataloader.samplers import NO_CENTRE, EpochDraw, drawn
from utils import distributed
from utils.console import notice
from utils.errors import ConfigError, DataError
from utils.image_io import UnreadableFile, shown, write_bytes

FORMAT = "segwright centroids 1"
_STREAM = 0x636C61      # keeps these draws apart from every other use of the seed
_MADE_AGAIN = 3         # samples that are no files: their pixels are looked at


class ClassUniform(EpochDraw):
    """A share of each epoch is drawn class by class, in crops that show the class (NVIDIA).

    share: of the epoch that is drawn from centroids: with C classes and L images,
        int(share · L / C) of each class, in turn and at random; the rest are images of
        the epoch without a given place.
    tile_size: side of the tiles, in pixels, that give one centroid per class.
    classes: those that are drawn; null: all that occur.
    centroids: a file that keeps them between runs, made where it is missing or belongs
        to other labels; null counts them at every start.
    last_epoch: after it, epochs visit the images as if there were no sampler; null: never.
    """

    def __init__(self, share: float = 0.5, tile_size: int = 1024,
                 classes: list[int] | None = None, centroids: str | None = None,
                 last_epoch: int | None = None, *, dataset: BaseDataset, seed: int = 0):
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, got {share}", "share")
        if tile_size < 1:
            raise ConfigError(f"tile_size must be at least 1, got {tile_size}", "tile_size")
        wrong = [one for one in classes or () if not 0 <= one < dataset.num_classes]
        if wrong or classes == []:
            raise ConfigError(f"expected classes from 0 to {dataset.num_classes - 1}, got "
                              f"{classes}", "classes")
        for part in _owners(dataset):
            if not getattr(part.augmentation, "augment", False):
                raise ConfigError("class-uniform sampling places random crops: it has no effect "
                                  f"on {type(part).__name__} {part.split} without augment",
                                  "augment", "set it to true")
        self.dataset, self.seed, self.last_epoch = dataset, seed, last_epoch
        found = load_centroids(dataset, tile_size, centroids)
        wanted = range(dataset.num_classes) if classes is None else sorted(set(classes))
        self.centroids = {}     # class -> rows of index, y, x
        for class_id in wanted:
            rows = found[found[:, 0] == class_id, 1:]
            rows = rows[dataset.may_centre(class_id, rows[:, 0])]
            if len(rows):
                self.centroids[class_id] = rows
        if not self.centroids:
            raise DataError("no label holds a class that class-uniform sampling may draw",
                            shown(dataset.root))
        length = len(dataset.draw_epoch(1))
        self.per_class = int(share * length / len(self.centroids))
        if not self.per_class:
            raise ConfigError(f"{share} of {length} images are fewer than one for each of "
                              f"{len(self.centroids)} classes", "share", "raise it, or leave the "
                              "sampler out")

    def __call__(self, epoch):
        images = self.dataset.draw_epoch(epoch)
        if self.last_epoch is not None and epoch > self.last_epoch:
            return images
        visits = [rows[drawn(self.per_class, len(rows), self._stream(epoch, class_id + 1))]
                  for class_id, rows in self.centroids.items()]
        rest = len(images) - self.per_class * len(visits)
        plain = np.full((rest, 3), NO_CENTRE)
        plain[:, 0] = images[drawn(rest, len(images), self._stream(epoch, 0))]
        return np.concatenate([*visits, plain])

    def _stream(self, epoch, number):
        return np.random.default_rng(np.random.SeedSequence(
            (self.seed % 2 ** 64, epoch, _STREAM), spawn_key=(number,)))


def load_centroids(dataset: BaseDataset, tile_size: int = 1024,
                   path: str | os.PathLike | None = None) -> np.ndarray:
    """Rows (M, 4) of class, index, y and x: the centroids of a dataset, in order of index.

    path: a file that is read if it was made from these labels, else written.
    DataError: the file holds something else.
    """
    if path is None:
        notice(f"looking for the centroids of {len(dataset)} labels; \"centroids\": FILE would "
               "keep them")
        return find_centroids(dataset, tile_size)
    path, made_from = Path(path).expanduser(), _made_from(dataset, tile_size)
    if not path.parent.is_dir():
        raise DataError("no such folder for the file of centroids", shown(path.parent),
                        "make it, or name another file in \"centroids\"")
    known = _read(path)
    if known is not None and known["made_from"] == made_from:
        return np.array(known["centroids"], np.int64).reshape(-1, 4)
    notice(f"{shown(path)} " + ("does not exist" if known is None else
                                "was made from other labels, or with another tile_size")
           + f": looking for the centroids of {len(dataset)} labels")
    found = find_centroids(dataset, tile_size)
    if distributed.is_main():
        document = {"format": FORMAT, "made_from": made_from, "centroids": found.tolist()}
        write_bytes(path, json.dumps(document, separators=(",", ":")).encode() + b"\n")
    return found


def find_centroids(dataset: BaseDataset, tile_size: int = 1024) -> np.ndarray:
    """As load_centroids, from the labels."""
    from tqdm import tqdm

    def of_label(index):
        owner, place = dataset.owner(index)
        try:
            stored = owner.load_label(place)
        except UnreadableFile:
            return []           # reported, or replaced, when the sample is read
        ids = owner.train_id_table(stored.dtype)[stored]
        return [(class_id, index, y, x)
                for class_id, y, x in tile_centroids(ids, tile_size, dataset.num_classes)]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = list(tqdm(pool.map(of_label, range(len(dataset))), "centroids", len(dataset),
                         unit="label", leave=False, dynamic_ncols=True,
                         disable=None if distributed.is_main() else True))
    return np.array([row for one in rows for row in one], np.int64).reshape(-1, 4)


def tile_centroids(ids: np.ndarray, tile_size: int, num_classes: int) -> list[tuple]:
    """(class, y, x) for each class in each tile of train ids (H, W), in whole pixels.

    The mean place of its pixels, rounded down, or the pixel of the class nearest to it.
    """
    found = []
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
                    found.append((class_id, top + y, left + x))
    return found


def _per_line(classes, num_classes):
    """(lines, classes): how many pixels each row of a tile has of each class."""
    lines = len(classes)
    places = classes.astype(np.int64) + (num_classes + 1) * np.arange(lines)[:, None]
    counts = np.bincount(places.ravel(), minlength=lines * (num_classes + 1))
    return counts.reshape(lines, num_classes + 1)[:, :num_classes]


def _nearest(mask, y, x):
    rows, columns = np.nonzero(mask)
    best = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    return int(rows[best]), int(columns[best])


def _owners(dataset):
    """The datasets that the samples are from."""
    found = (dataset.owner(index)[0] for index in range(len(dataset)))
    return {id(one): one for one in found}.values()


def _made_from(dataset, tile_size):
    """A digest of everything that decides the centroids: files, id tables, tiles."""
    digest, tables = hashlib.blake2b(digest_size=16), {}
    digest.update(json.dumps([dataset.num_classes, tile_size, len(dataset)]).encode())
    made = 0
    for index in range(len(dataset)):
        owner, place = dataset.owner(index)
        if id(owner) not in tables:
            tables[id(owner)] = [hashlib.blake2b(owner.train_id_table(kind).tobytes(),
                                                 digest_size=16).hexdigest()
                                 for kind in (np.uint8, np.uint16)]
            digest.update(json.dumps([type(owner).__name__, *tables[id(owner)]]).encode())
        sample = owner.samples[place]
        digest.update(json.dumps([name_below(sample.label, owner.root), stamp(sample.label),
                                  sample.id]).encode())
        if sample.image is None and made < _MADE_AGAIN:
            made += 1
            digest.update(np.ascontiguousarray(owner.load_label(place)).tobytes())
    return digest.hexdigest()


def _read(path):
    """What the file holds, None where there is none; another file is never overwritten."""
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
    raise DataError("is no file of centroids, or a damaged one", shown(path),
                    "delete it, or name another file in \"centroids\"")
