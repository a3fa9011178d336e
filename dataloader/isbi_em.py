"""ISBI 2012 EM, membranes of neurons, two classes. Arganda-Carreras et al., Front. Neuroanat. 2015.

Sections of a fly's nerve cord under an electron microscope, 512x512, gray; as released:

    train-volume.tif, train-labels.tif      two stacks of 30 pages; labels 0 membrane, 255 cell
    test-volume.tif                         30 pages, without labels

or one file per section, as it is often unpacked:

    {train,test}/images/NAME.png            the sections
    train/labels/NAME.png                   their labels, 0 and 255

There is no validation split. Neighboring sections are alike, so take a block of them: `slices`.
The number and size of the sections are those of the paper; the names of the stacks are those that
public code reads, and were not compared with the challenge's site.
"""
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset, Sample
from utils.errors import ConfigError, DataError, shown
from utils.images.headers import UnreadableFile, pillow_open
from utils.images.types import PADDING_16_BITS, Image, Labels

SECTIONS = 30
_READABLE = ("1", "L")      # Pillow's modes of black and white and of 8 bits


class ISBI_EM(BaseDataset):
    """ISBI 2012: data_dir contains the TIFF stacks, or train/ and test/ with one file per section.

    slices: [first, end], the sections to use, end not included; null: all. [0, 24] for training and
        [24, 30] for validation leave no section on both sides.
    """

    num_classes = 2
    class_names = ["membrane", "cell"]
    palette = [[213, 94, 0], [0, 114, 178]]
    splits = ("train", "test")
    split_sizes = {"train": SECTIONS, "test": SECTIONS}

    def __init__(self, data_dir: str, split: str, slices: list[int] | None = None,
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        if slices is not None:
            if len(slices) != 2 or not 0 <= slices[0] < slices[1]:
                raise ConfigError(f"expected [first, end] with 0 <= first < end, found {slices}",
                                  "slices")
            self.split_sizes = {}
        self.slices = slices
        self.stacks: tuple[Path, Path | None] | None = None
        self.pages: list[int] = []          # of each sample, if stacks are read
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    def find_samples(self) -> Iterator[Sample]:
        volume = self.root / f"{self.split}-volume.tif"
        if volume.is_file():
            yield from self._of_stack(volume)
            return
        images = self.first_folder(f"{self.split}/images")
        if images is None:
            self.problem(f"{shown(volume)}: no such file")
            return
        if self.split == "test":
            samples = self.images_only(images)
        else:
            samples = self.pair_by_stem(images, images.parent / "labels")
        found = list(samples)
        numbers = self._chosen(len(found)) if found else []
        yield from (found[number] for number in numbers)

    def _of_stack(self, volume):
        label = self.root / f"{self.split}-labels.tif" if self.split == "train" else None
        pages, size = _pages(volume)
        if label is not None:
            if not label.is_file():
                self.problem(f"{shown(label)}: no such file")
                return
            if _pages(label) != (pages, size):
                self.problem(f"{shown(volume)} has {pages} pages of {size[0]}x{size[1]}, its "
                             f"labels {shown(label)} have {_pages(label)[0]} of "
                             f"{_pages(label)[1][0]}x{_pages(label)[1][1]} (width x height)")
                return
        self.stacks, self.pages = (volume, label), self._chosen(pages)
        for page in self.pages:
            yield Sample(f"{volume.stem}_{page:02d}", None, None)

    def _chosen(self, count):
        """The numbers of the sections that `slices` names, of so many."""
        if self.slices is None:
            return list(range(count))
        if self.slices[1] > count:
            raise ConfigError(f"slices {self.slices} of {count} sections", "slices",
                              f"the end is at most {count}")
        return list(range(*self.slices))

    def load(self, index: int) -> tuple[Image, Labels]:
        """One section: the image, uint8 (H, W, 3), and its label as stored, (H, W)."""
        if self.stacks is None:
            return super().load(index)
        volume, label = self.stacks
        gray = _page(volume, self.pages[index])
        image = np.repeat(gray[..., None], 3, axis=2)
        if label is None:
            return image, np.full(gray.shape, PADDING_16_BITS, np.uint16)
        return image, _page(label, self.pages[index])

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Stored 0 (black) is membrane, 255 (white) the inside of a cell; no pixel is ignored."""
        return self.by_table(raw, {0: 0, 255: 1})


def _pages(path):
    """(number of pages of a TIFF stack, (width, height))."""
    with pillow_open(path, path) as image:
        return getattr(image, "n_frames", 1), image.size


def _page(path, number):
    """One page of a TIFF stack, uint8 (H, W)."""
    try:
        with pillow_open(path, path) as image:
            image.seek(number)
            if image.mode not in _READABLE:
                raise DataError(f"page {number} has the kind {image.mode!r}; expected 8 bits of "
                                "gray", shown(path), "download the stack again")
            return np.array(image.convert("L"))
    except (OSError, EOFError, ValueError) as error:
        raise UnreadableFile(f"page {number} cannot be read: {error}", shown(path),
                             "copy or download the file again") from None
