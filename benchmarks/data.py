"""Compares the CPU time of sample preparation: the pipeline of the sources and ours.

    python -m benchmarks.data       about a minute on one core

Both run in turns in one process on one thread, each with its own random draws. The numbers are
mean CPU times per sample. The cache of `tools.pack` is timed after every sample was read once,
because the first read also compares its checksum. The pipeline of the sources was written from
its description: arrays are float32 and int32 from the start; the whole image is resized, rotated,
padded, cropped, flipped and blurred in this order; ids are mapped by one comparison each; floats
are copied to the device.
"""
import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from base.base_dataset import BaseDataset
from benchmarks.measure import interleaved
from dataloader.augmentation.transforms import Augmentation
from dataloader.folder import Folder
from dataloader.pixel_cache import CachePlan, use_cache
from dataloader.shapes import Shapes
from utils.files.whole_file import write_bytes
from utils.images.image_io import write_image, write_label

IDS = 35                              # stored values of a Cityscapes label
FILES = 4
CLASSES = 19


def main(argv: list[str] | None = None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.
                            RawDescriptionHelpFormatter).parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    image, label = Shapes(size=(1024, 2048), length=1).load(0)
    label = _stored_ids(label)
    print(f"{'':44s}{'source':>9s}{'ours':>9s}{'ratio':>8s}{'goal':>7s}")
    for base, goal in ((1024, 4.0), (2048, 12.0)):
        _augmentation(image, label, base, goal)
    with tempfile.TemporaryDirectory() as folder:
        street, photo = Path(folder, "street"), Path(folder, "photo")
        _write(street, ".png", (1024, 2048))
        _write(photo, ".jpg", (375, 500))
        packed = Path(folder, "packed")
        CachePlan(_dataset(street, 1024, 512), packed).write()
        for name, place, base, crop, goal, cache in (
                ("PNG 1024x2048, base 1024", street, 1024, 512, 1.8, None),
                ("PNG 1024x2048, base 2048", street, 2048, 512, 2.4, None),
                ("JPEG 375x500, base 400", photo, 400, 380, 2.2, None),
                ("pack 1024x2048, base 1024", street, 1024, 512, 20.0, packed),
                ("pack 1024x2048, base 2048", street, 2048, 512, 20.0, packed)):
            _whole_item(name, place, base, crop, goal, cache)


def _augmentation(image, label, base, goal):
    """Times arrays in memory -> crop. Each pipeline gets arrays of the dtypes that it loads."""
    floats, ints = image.astype(np.float32), label.astype(np.int32)
    rng = np.random.default_rng(0)
    ours = _ours(base, 512)
    _compare(f"augmentation 1024x2048 to 512, base {base}",
             lambda i: _source_augmentation(floats, ints, base, 512, rng),
             lambda i: ours(image, label, np.random.default_rng(i), image_border=(73, 83, 72),
                            label_border=0), 60, goal)


def _whole_item(name, place, base, crop, goal, cache):
    """Times files -> tensors; ours reads the files, or the cache of them if one is given."""
    dataset = use_cache(_dataset(place, base, crop), cache)
    rng = np.random.default_rng(0)
    _compare(f"item from {name}, crop {crop}",
             lambda i: _source_item(dataset, i % FILES, base, crop, rng),
             lambda i: dataset[i, i % FILES], 24, goal)
    if place.name == "street" and base == 1024 and not cache:
        source = _bytes(_source_item(dataset, 0, base, crop, rng))
        ours = _bytes([v for v in dataset[0].values() if isinstance(v, torch.Tensor)])
        print(f"{'bytes to the device':44s}{source / 2**20:7.2f}MB{ours / 2**20:7.2f}MB"
              f"{source / ours:7.1f}x{4.0:6.1f}x")


def _dataset(place, base, crop):
    return Folder(str(place), num_classes=CLASSES, label_map=_label_map(),
                  augmentation=_ours(base, crop))


def _ours(base, crop):
    return Augmentation(base_size=base, crop_size=crop, augment=True, scale=True, flip=True,
                        rotate=True, blur=True)


def _source_item(dataset: BaseDataset, index, base, crop, rng):
    """(image, label) tensors of one sample, computed by the pipeline of the sources."""
    sample = dataset.samples[index]
    image = np.asarray(Image.open(sample.image).convert("RGB"), dtype=np.float32)
    stored = np.asarray(Image.open(sample.label), dtype=np.int32)
    label = stored.copy()
    for value in range(-1, IDS - 1):
        label[stored == value] = value % CLASSES if value > 6 else 255
    image, label = _source_augmentation(image, label, base, crop, rng)
    tensor = torch.from_numpy(np.uint8(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean = torch.tensor(dataset.mean)[:, None, None]
    std = torch.tensor(dataset.std)[:, None, None]
    return tensor.sub_(mean).div_(std), torch.from_numpy(np.array(label, dtype=np.int32)).long()


def _source_augmentation(image, label, base, crop, rng):
    """The crop (image, label) of float32 and int32 arrays, as the sources compute it."""
    height, width = label.shape
    long_side = int(rng.integers(int(0.5 * base), int(2.0 * base) + 1))
    if height > width:
        height, width = long_side, int(width * long_side / height + 0.5)
    else:
        height, width = int(height * long_side / width + 0.5), long_side
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), int(rng.integers(-10, 11)), 1.0)
    image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    label = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST)
    bottom, right = max(crop - height, 0), max(crop - width, 0)
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=0)
        label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=0)
    top = int(rng.integers(0, label.shape[0] - crop + 1))
    left = int(rng.integers(0, label.shape[1] - crop + 1))
    image, label = (a[top:top + crop, left:left + crop] for a in (image, label))
    if rng.random() < 0.5:
        image, label = np.fliplr(image).copy(), np.fliplr(label).copy()
    sigma = rng.random()
    side = int(3.3 * sigma)
    side += side % 2 == 0
    return cv2.GaussianBlur(image, (side, side), sigmaX=sigma, sigmaY=sigma,
                            borderType=cv2.BORDER_REFLECT_101), label


def _compare(what, source, ours, rounds, goal):
    """Prints one row. Both functions get the number of the round; the first rounds warm up."""
    source_round, our_round = itertools.count(), itertools.count()
    seconds = interleaved({"source": lambda: source(next(source_round)),
                           "ours": lambda: ours(next(our_round))}, rounds, warmup=FILES)
    # Means, not ratios per round: the two pipelines draw different sizes in a round.
    source_mean, our_mean = map(statistics.fmean, seconds.values())
    print(f"{what:44s}{1000 * source_mean:7.2f}ms{1000 * our_mean:7.2f}ms"
          f"{source_mean / our_mean:7.1f}x{goal:6.1f}x",
          flush=True)


def _bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stored_ids(label):
    """Class ids as values in 7..33, as Cityscapes stores them; 0 for an ignored pixel."""
    return np.where(label < CLASSES, label + 7, 0).astype(np.uint8)


def _label_map():
    return {str(v): v % CLASSES if v > 6 else "ignore" for v in range(IDS - 1)}


def _write(folder, suffix, size):
    """Writes FILES image and label files; the suffix decides the format of the images."""
    scenes = Shapes(size=size, length=FILES)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(FILES):
        image, label = scenes.load(index)
        image = cv2.GaussianBlur(image, (0, 0), 1.5)       # camera noise is less fine than drawn
        if suffix == ".png":
            _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                                   [cv2.IMWRITE_PNG_COMPRESSION, 6])
            write_bytes(folder / "images" / f"{index}.png", data.tobytes())
        else:
            write_image(folder / "images" / f"{index}{suffix}", image)
        write_label(folder / "labels" / f"{index}.png", _stored_ids(label), [])


if __name__ == "__main__":
    main()
