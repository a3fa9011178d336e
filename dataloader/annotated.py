"""Annotated: images with the outlines or masks that an annotation tool has exported.

    data_dir/images/**/name.jpg      any readable format
    data_dir/instances.json          COCO JSON; or a folder of labelme JSON, a CVAT file, ...

utils/annotations/ reads the formats. A label is drawn when it is read. Splits are lists of image
names (data_dir/train.txt); without one, "all" is the only split.
"""
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from base.dataset_files import Problem
from dataloader.folder import (
    EVERYTHING,
    check_colors,
    existing_file,
    read_classes,
    say_once,
    use_pixels,
)
from utils.annotations.annotation_set import AnnotatedImage, AnnotationSet, Findings
from utils.annotations.formats import read_annotations
from utils.annotations.image_lookup import STORED_PICTURE, ImageLookup, on_stored_picture
from utils.annotations.rasterize import draw
from utils.errors import ConfigError, DataError, listed, shown
from utils.images.band_files import BAND_SUFFIXES
from utils.images.headers import Header
from utils.images.name_pattern import FoundFile, find_files
from utils.images.palette import class_palette
from utils.images.picture_files import IMAGE_SUFFIXES, walk_folders
from utils.images.types import Image, Labels

_MEND = "mend the annotation in its tool and export it again, or take the item out"
_KEYS = ("categories", "ignore_categories", "unused_categories")


class _LabelPlace(type(Path())):    # pyright: ignore[reportGeneralTypeIssues]
    """The file of an annotation, with the image in it whose label is meant."""

    image: AnnotatedImage
    picture: Path

    def __reduce__(self):
        return _label_place, (str(self), self.image, self.picture)


def _label_place(file, image, picture) -> _LabelPlace:
    place = _LabelPlace(file)
    place.image, place.picture = image, picture
    return place


class Annotated(BaseDataset):
    """Your own data: images, and what an annotation tool exported about them.

    annotations: a file or folder, or a pattern of masks ("masks/{stem}_{class}.png"); tried as
        given and below data_dir. The format is recognized.
    split: a list file of that name, or "all".
    classes: a JSON file with "names" and, if needed, "palette" ([r, g, b] of each class),
        "categories" (for each class the category of the annotations, or a list of several; default:
        that of its name), "ignore_categories" (their pixels are ignored) and "unused_categories"
        (not drawn). The path is tried as given and below data_dir.
    background: the class of pixels in no region. null: they are ignored.
    overlap: which of two regions an overlap shows: "order", the later one of the file, or "area",
        the smaller one; null: as the tool draws it.
    image_dir: a folder below data_dir, or an absolute path.
    list_file: the list of the split; tried like classes. null: SPLIT.txt in data_dir.
    mean, std: of the pixels, in 0..1; null uses those of the class file, or ImageNet's.
    bands, band_files, no_data: as of Folder, for images that are not read as RGB of 8 bits.
    white: the value that becomes 255 in images of more than 8 bits, for example 4095 if 12
        of 16 bits are used; null uses that of the class file, or the largest value of the type.
    """

    takes_bands = True

    def __init__(self, data_dir: str, annotations: str, classes: str, split: str = EVERYTHING,
                 background: str | None = "background",
                 overlap: Literal["order", "area"] | None = None, image_dir: str = "images",
                 list_file: str | None = None, mean: list[float] | None = None,
                 std: list[float] | None = None, white: float | None = None,
                 bands: int | list[int] | None = None, band_files: list[str] | None = None,
                 no_data: float | Literal["nan"] | None = None,
                 ignore_index: int = 255, seed: int = 0, augmentation: Callable | None = None):
        root = Path(os.path.expanduser(data_dir))
        named = re.fullmatch(r"(.+)\.classes\.json", os.path.basename(classes))
        self._name = named[1] if named else os.path.basename(os.path.abspath(root))
        class_file = read_classes(classes, root, _KEYS)
        self.class_names = class_file["names"]
        self.num_classes = len(self.class_names)
        self.palette = class_file.get("palette") or class_palette(self.class_names)
        if len(self.palette) != self.num_classes:
            raise ConfigError(f"the palette has {len(self.palette)} colors for "
                              f"{self.num_classes} classes", "palette")
        check_colors(self.palette, self.class_names)
        use_pixels(self, class_file, mean, std, white, bands, band_files, no_data)
        # Pixels that are ignored get the last value of the label's type.
        self.ignored_value = 255 if self.num_classes < 255 else 65535
        if background is not None and background not in self.class_names:
            raise ConfigError(f"there is no class {background!r} for pixels in no region",
                              "background", "name the class of such pixels; null ignores them")
        self.background = self.ignored_value if background is None else \
            self.class_names.index(background)
        self.annotations, self.overlap = _place(annotations, root), overlap
        self.image_dir = self.image_folder = root / image_dir
        self.list_file = existing_file(list_file, root, "list_file") if list_file else \
            root / f"{split}.txt"
        self._class_file, self._findings = class_file, Findings()
        super().__init__(data_dir, split, ignore_index, seed, augmentation)

    @property
    def title(self) -> str:
        """The name of the data and the split: "leaves val", as that of Folder."""
        return shown(f"{self._name} {self.split}")

    def find_samples(self) -> Iterator[Sample]:
        if not self.image_dir.is_dir():
            raise DataError(f"{shown(self.image_dir)}: no such folder (image_dir)",
                            shown(self.root), "set image_dir to a folder below data_dir, or to an "
                                              "absolute path")
        if self.split != EVERYTHING and not self.list_file.is_file():
            raise DataError(f"split {self.split!r}: {shown(self.list_file)} does not exist (split "
                            f"\"{EVERYTHING}\" uses every image)", shown(self.root),
                            "name a list of images in list_file")
        found = read_annotations(self.annotations, self._findings)
        for line in self._findings.wrong:
            self.problem(Problem(line, _MEND))
        self.values = _values(found, self._class_file, self.class_names, self.ignored_value)
        self.overlap = self.overlap or found.overlap
        self.drawing = {"values": {category.name: value for category, value in
                                   zip(found.categories, self.values, strict=True)},
                        "background": self.background, "overlap": self.overlap}
        files = find_files(self.image_dir, BAND_SUFFIXES if self.bands else IMAGE_SUFFIXES)
        return self._samples(found, files)

    def _samples(self, found, files):
        """The samples of the list, or of all annotated images."""
        annotated, missing = {}, []
        for image, file in zip(found.images, ImageLookup(files).match(found.images), strict=True):
            if isinstance(file, str):
                missing.append(f"{image.place}: {file} below {shown(self.image_dir)}")
            elif file.key in annotated:
                self.problem(Problem(
                    f"{image.place}: {shown(file.name)} is annotated before, in "
                    f"{annotated[file.key][1].place}", _MEND, "annotated twice"))
            else:
                annotated[file.key] = file, image
        fallback = _some_file(self.annotations)
        if self.list_file.is_file():
            chosen = self._listed({_stem(file.name): file for file in files}, annotated)
        else:
            for line in missing:
                self.problem(Problem(line, "copy the image there, or list the images to use in a "
                                           "list_file", "missing image"))
            if len(annotated) < len(files):
                others = [file.name for file in files if file.key not in annotated]
                say_once(f"{len(others)} of {len(files)} images below {shown(self.image_dir)} have "
                         f"no annotation and are not used: {listed(others, 3, text=shown)}")
            chosen = list(annotated.values())
        for file, image in chosen:
            yield Sample(_stem(file.name), file.path,
                         _label_place(str(image.file or fallback), image, file.path))

    def _listed(self, by_stem: dict[str, FoundFile], annotated) -> list:
        """The (file, annotated image) of each line of the list."""
        chosen = []
        for number, line in self.read_list(self.list_file):
            name = line.replace("\\", "/").removeprefix("./")
            file = by_stem.get(name) or by_stem.get(_stem(name))
            place = f"{shown(self.list_file)}:{number}"
            if file is None:
                self.problem(Problem(f"{place}: no image {shown(line)} in {shown(self.image_dir)}",
                                     "a line is the name of an image below image_dir",
                                     "no files of a line"))
            elif file.key not in annotated:
                self.problem(Problem(f"{place}: {shown(file.name)} is not annotated in "
                                     f"{shown(self.annotations)}",
                                     "take the line out, or annotate the image",
                                     "an image without annotation"))
            else:
                chosen.append(annotated[file.key])
        return chosen

    def read_label(self, path: Path) -> Labels:
        assert isinstance(path, _LabelPlace), "labels of this dataset are not files of their own"
        size = path.image.size or self.image_header(path.picture).size
        return draw(path.image.regions(size), self.values, size, self.background,
                    self.overlap or "order")

    def label_header(self, path: Path) -> Header:
        assert isinstance(path, _LabelPlace), "labels of this dataset are not files of their own"
        if path.image.size is None:
            return self.image_header(path.picture)._replace(bits=8)
        return Header(path.image.size[1], path.image.size[0])

    def load(self, index: int) -> tuple[Image, Labels]:
        sample = self.samples[index]
        assert sample.image is not None and sample.label is not None
        return self.read_pair(sample, self.read_label(sample.label))

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        return np.where(raw == self.ignored_value, self.ignore_index, raw)

    def ignores_on_purpose(self, value: int) -> bool:
        return value == self.ignored_value

    def unused_parts(self, images, labels) -> list[str]:
        sizes = {sample.image: sample.label.image.size for sample in self.samples
                 if isinstance(sample.label, _LabelPlace)}
        stored = [path.name for path, header in images
                  if on_stored_picture(sizes.get(path), header)]
        return [*super().unused_parts(images, []), *self._findings.lines(),
                *([f"{len(stored)} x {STORED_PICTURE}: {listed(stored, 3, text=shown)}"]
                  if stored else [])]


def _values(found: AnnotationSet, class_file: dict, names: list[str], ignored: int) -> list[int]:
    """For each category the value that is drawn; -1: none. Raises ConfigError."""
    classes = class_file.get("categories") or names
    if len(classes) != len(names):
        raise ConfigError(f"{len(classes)} categories for {len(names)} names", "classes")
    value_of: dict[str, int] = {}
    for group, value in (*((group, value) for value, group in enumerate(classes)),
                         (class_file.get("ignore_categories") or [], ignored),
                         (class_file.get("unused_categories") or [], -1)):
        for name in [group] if isinstance(group, str) else group or []:
            if value_of.setdefault(name, value) != value:
                raise ConfigError(f"the category {name!r} is given twice", "classes",
                                  "give each category one class")
    strangers = [category.name for category in found.categories if category.name not in value_of]
    if strangers:
        raise ConfigError(
            f"no class has the categories {listed(strangers, 8, text=repr)} of the {found.format}",
            "classes", "in the class file, add them to \"names\", give them to a class in "
                       "\"categories\", or list them in \"ignore_categories\" or "
                       "\"unused_categories\"")
    return [value_of[category.name] for category in found.categories]


def _place(text, root):
    """The path of the annotations: as given, or below data_dir."""
    given = Path(os.path.expanduser(text))
    return given if given.exists() or given.is_absolute() or "{" in text and \
        given.parent.is_dir() else root / text


def _some_file(path):
    """The file itself, or the first file below a folder: a label must be a file."""
    if path.is_file():
        return path
    folder = path if path.is_dir() else next(above for above in path.parents if above.is_dir())
    return next((Path(place, name) for place, _, names in walk_folders(folder) for name in names),
                path)


def _stem(name):
    return os.path.splitext(name)[0]
