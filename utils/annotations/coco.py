"""COCO JSON: one file with the outlines or run lengths of many images.

The format is described at cocodataset.org (Lin et al., ECCV 2014, arXiv:1405.0312). CVAT, Label
Studio, Roboflow, Darwin, VIA and others export it. Categories have any ids. A crowd is a region
like any other: it shows its class. The file has no order of overlaps, so the smaller region is on
top.
"""
import functools
import re
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.annotations.annotation_set import (
    FARTHEST,
    AnnotatedImage,
    AnnotationSet,
    Category,
    Findings,
    Runs,
    hex_color,
    image_name,
    image_size,
    ring,
    shortly,
)
from utils.annotations.json_file import head_and_tail, json_files, read_bytes
from utils.annotations.outline_scan import parse_outlines
from utils.annotations.stored_regions import StoredMask, StoredRegions
from utils.errors import DataError, listed, shown
from utils.images.run_lengths import runs_of_text

TITLE = "COCO JSON"
BEYOND = 2.0                # pixels that an outline may reach beyond its image without a remark
_KEYS = ("images", "annotations", "categories")
_LISTS = re.compile(rb'"(%s)"\s*:\s*\[' % "|".join(_KEYS).encode())
_SHORT = 3                  # points of the shortest outline


class _Outlines(NamedTuple):
    """The rings of all annotations.

    points: float64 (P, 2). ring_ends: number of points up to the end of each ring. rings: those of
    the regions, one region after another, as indices into ring_ends. region_ends: in `rings`.
    """

    points: np.ndarray
    ring_ends: np.ndarray
    rings: np.ndarray
    region_ends: np.ndarray


def recognizes(path: Path) -> bool:
    """Whether a file, or the first JSON file of a folder, begins and ends as COCO's do."""
    files = json_files(path)
    if not files:
        return False
    text = head_and_tail(files[0])
    return text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and len(set(_LISTS.findall(text))) > 1


def read(path: Path, findings: Findings) -> AnnotationSet:
    """The annotations of a COCO file, or of the only one in a folder. Raises DataError."""
    files = json_files(path)
    if len(files) != 1:
        raise DataError(f"{len(files)} JSON files: {listed(files, 3, text=lambda f: f.name)}",
                        shown(path), "name the file whose images are used")
    source = shown(files[0].name)
    content, scanned = parse_outlines(read_bytes(files[0]), shown(files[0]))
    if not isinstance(content, dict):
        raise DataError(f"the file contains {shortly(content)}; expected an object", source)
    for key in _KEYS:
        if not isinstance(content.get(key), list):
            raise DataError(f"{key!r} is {shortly(content.get(key))}; expected a list", source)
    annotations = content["annotations"]
    if any(isinstance(one, dict) and "segments_info" in one for one in annotations[:1]):
        raise DataError("this is a panoptic file: its segments are in PNG files", source,
                        "use the file of the instances or of stuff, or the label maps")
    categories, index_of = _categories(content["categories"], source, findings)
    images = _images(content["images"], source, findings)
    found = _Annotations(annotations, scanned, images, index_of, source, findings)
    return AnnotationSet(TITLE, categories,
                         [AnnotatedImage(name, size, place, regions) for
                          (name, size, place), regions in
                          zip(images.values(), found.of_images(len(images)), strict=True)],
                         overlap="area")


def _categories(entries, source, findings):
    """(the categories, {id: index}). Categories of one name are one class."""
    categories: list[Category] = []
    index_of: dict[int, int] = {}
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        place = f"{source}: categories[{number}]"
        if not isinstance(entry, dict) or type(entry.get("id")) is not int \
                or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            findings.refuse(place, "expected an object with a whole number \"id\" and a \"name\"")
            continue
        name = entry["name"].strip()
        if entry["id"] in index_of:
            findings.refuse(place, f"the id {shortly(entry['id'])} is used before")
            continue
        if name in first:
            findings.remark(place, f"a second category {shortly(name)} is the same class")
        else:
            first[name] = len(categories)
            categories.append(Category(name, _color(entry.get("color"))))
        index_of[entry["id"]] = first[name]
    return categories, index_of


def _color(value):
    """[r, g, b] of a list, or of "#rrggbb"; None: there is none."""
    if isinstance(value, list) and len(value) == 3 and all(
            type(part) is int and 0 <= part <= 255 for part in value):
        return list(value)
    return hex_color(value)


def _images(entries, source, findings):
    """{id: (name, size, place)}; the order is that of the file."""
    images: dict[int, tuple[str, tuple[int, int] | None, str]] = {}
    first: dict[str, str] = {}
    for number, entry in enumerate(entries):
        place = f"{source}: images[{number}]"
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            findings.refuse(place, "expected an object with an \"id\" and a \"file_name\"")
            continue
        try:
            name = image_name(entry.get("file_name"), place)
            size = None if entry.get("height") is None and entry.get("width") is None else \
                image_size(entry.get("height"), entry.get("width"), place)
        except DataError as error:
            findings.refuse(place, error.what)
            continue
        if entry["id"] in images:
            findings.refuse(place, f"the id {shortly(entry['id'])} is used before, in "
                                   f"{images[entry['id']][2]}")
        elif name in first:
            findings.refuse(place, f"the name {shortly(name)} is used before, in {first[name]}")
        else:
            images[entry["id"]] = name, size, place
            first[name] = place
    return images


class _Annotations:
    """The annotations that can be drawn: arrays over regions, in the order of the file."""

    def __init__(self, entries, scanned, images, index_of, source, findings):
        self.source, self.findings = f"{source}: annotations", findings
        image_at = {key: number for number, key in enumerate(images)}
        self.sizes = [size for _, size, _ in images.values()]
        self.masks: dict[int, StoredMask] = {}          # by the number in the file
        numbers, image_of, category_of, outlines = [], [], [], []
        strangers = "annotations of images that are not in the list \"images\""
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._refuse(number, f"expected an object, found {shortly(entry)}")
                continue
            image, category = entry.get("image_id"), entry.get("category_id")
            if type(image) not in (int, str) or image not in image_at:
                findings.leave_out(f"{self.source}[{number}]", strangers)
                continue
            if type(category) is not int or category not in index_of:
                self._refuse(number, f"there is no category {shortly(category)}")
                continue
            outline = self._outline(number, entry.get("segmentation"), self.sizes[image_at[image]])
            if outline is not None:
                numbers.append(number)
                image_of.append(image_at[image])
                category_of.append(index_of[category])
                outlines.append(outline)
        self.numbers, self.image_of, self.category_of = (
            np.array(column, np.int64) for column in (numbers, image_of, category_of))
        self.outlines = self._without_short(self._together(outlines, scanned))
        self._judge_places()

    def _refuse(self, number, what):
        self.findings.refuse(f"{self.source}[{number}]", what)

    def _outline(self, number, segmentation, size):
        """The list of rings of an annotation, or the range of those that were cut out; [] if it
        has a mask; None: it is not used."""
        if isinstance(segmentation, range):
            return segmentation
        if isinstance(segmentation, list):
            if segmentation and not isinstance(segmentation[0], list):
                segmentation = [segmentation]       # one ring without the list around it
            if segmentation and any(segmentation):
                return segmentation
        elif isinstance(segmentation, dict):
            try:
                self.masks[number] = _mask(segmentation, size, f"{self.source}[{number}]")
            except DataError as error:
                self._refuse(number, error.what)
                return None
            return []
        elif segmentation is not None:
            self._refuse(number, f"\"segmentation\" is {shortly(segmentation)}; expected outlines "
                                 "or run lengths")
            return None
        self.findings.leave_out(f"{self.source}[{number}]",
                                "annotations without an outline or a mask")
        return None

    def _together(self, outlines, scanned):
        """The outlines of all annotations, those that were cut out and the others."""
        counts = np.fromiter(map(len, outlines), np.int64, len(outlines))
        was_cut = np.fromiter((type(one) is range for one in outlines), bool, len(outlines))
        others = [() if cut else one for one, cut in zip(outlines, was_cut.tolist(), strict=True)]
        listed_ones = _flat(others) or self._flat_with_care(others)
        # The rings of the others follow those that were cut out.
        counts[~was_cut] = np.diff(listed_ones.region_ends, prepend=0)[~was_cut]
        firsts = len(scanned.ring_ends) + listed_ones.region_ends - counts
        firsts[was_cut] = [one.start for one in outlines if type(one) is range]
        return _Outlines(np.concatenate((scanned.points, listed_ones.points))
                         if len(listed_ones.points) else scanned.points,
                         np.concatenate((scanned.ring_ends,
                                         listed_ones.ring_ends + len(scanned.points))),
                         _ranges(firsts, counts), np.cumsum(counts))

    def _flat_with_care(self, outlines):
        """The outlines as arrays; those with a mistake are refused and become empty."""
        checked: list[list[list[float]]] = []
        for number, rings in zip(self.numbers.tolist(), outlines, strict=True):
            try:
                checked.append([ring(one, "").ravel().tolist() for one in rings])
            except DataError as error:
                self._refuse(number, error.what)
                checked.append([])
        flat = _flat(checked)
        assert flat is not None
        return flat

    def _without_short(self, outlines):
        """The outlines without rings of fewer than three points, which are noted."""
        short = np.diff(outlines.ring_ends, prepend=0)[outlines.rings] < _SHORT
        if not short.any():
            return outlines
        regions = np.searchsorted(outlines.region_ends, np.flatnonzero(short), side="right")
        for number in self.numbers[regions].tolist():
            self.findings.leave_out(f"{self.source}[{number}]",
                                    "outlines of fewer than three points")
        kept = np.concatenate(([0], np.cumsum(~short)))
        return outlines._replace(rings=outlines.rings[~short],
                                 region_ends=kept[outlines.region_ends])

    def _judge_places(self):
        """Note outlines outside their image, and drop regions that have nothing to draw."""
        counts = np.diff(self.outlines.region_ends, prepend=0)
        self.drawn = (counts > 0) | np.isin(self.numbers, list(self.masks))
        if not counts.any():
            return
        some = np.flatnonzero(counts)
        firsts = (self.outlines.region_ends - counts)[some]
        low, high = (function.reduceat(box[self.outlines.rings], firsts) for function, box in zip(
            (np.minimum, np.maximum), _boxes(self.outlines), strict=True))
        known = np.array([size or (0, 0) for size in self.sizes])[self.image_of[some], ::-1]
        outside = (known[:, 0] > 0) & ((high <= 0) | (low >= known)).any(1)
        beyond = (known[:, 0] > 0) & ~outside & ((low < -BEYOND) | (high > known + BEYOND)).any(1)
        for number in self.numbers[some[outside]].tolist():
            self.findings.leave_out(f"{self.source}[{number}]", "outlines outside their image")
        for number in self.numbers[some[beyond]].tolist():
            self.findings.remark(f"{self.source}[{number}]",
                                 f"outlines more than {BEYOND:g} pixels beyond their image")
        self.drawn[some[outside]] = False

    def of_images(self, count) -> list[StoredRegions]:
        """The regions of each image."""
        drawn = np.flatnonzero(self.drawn)
        order = drawn[np.argsort(self.image_of[drawn], kind="stable")]
        ends = np.searchsorted(self.image_of[order], np.arange(count), side="right").tolist()
        outlines = self.outlines
        # The number and the first one of the rings of each region, and of the points of each ring.
        counts = np.diff(outlines.region_ends, prepend=0), np.diff(outlines.ring_ends, prepend=0)
        firsts = outlines.region_ends - counts[0], outlines.ring_ends - counts[1]
        found = []
        for begin, end in zip([0, *ends], ends, strict=False):
            some = order[begin:end]
            rings = outlines.rings[_ranges(firsts[0][some], counts[0][some])]
            numbers = self.numbers[some]
            masks = {index: self.masks[number] for index, number in enumerate(numbers.tolist())
                     if number in self.masks} if self.masks else {}
            points = outlines.points[_ranges(firsts[1][rings], counts[1][rings])]
            found.append(StoredRegions(points,
                                       np.cumsum(counts[1][rings]), np.cumsum(counts[0][some]),
                                       self.category_of[some], self.source, numbers, masks))
        return found


def _boxes(outlines):
    """The smallest and the largest x and y of each ring, (R, 2) each; 0 for a ring without points.
    """
    lengths = np.diff(outlines.ring_ends, prepend=0)
    filled = np.flatnonzero(lengths)
    boxes = np.zeros((2, len(lengths), 2))
    for box, function in zip(boxes, (np.minimum, np.maximum), strict=True):
        box[filled] = function.reduceat(outlines.points, (outlines.ring_ends - lengths)[filled])
    return boxes


def _ranges(begins, lengths):
    """The whole numbers of all ranges, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(begins - ends + lengths, lengths)


def _flat(outlines) -> _Outlines | None:
    """The outlines as arrays; None if they contain anything but pairs of numbers near the image."""
    if not all(isinstance(one, list) for one in chain.from_iterable(outlines)):
        return None
    rings = list(chain.from_iterable(outlines))
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    numbers = list(chain.from_iterable(rings))
    if (lengths % 2).any() or not set(map(type, numbers)) <= {int, float}:
        return None
    try:
        flat = np.array(numbers, np.float64)
    except OverflowError:
        return None
    if flat.size and not max(flat.max(), -flat.min()) <= FARTHEST:
        return None
    counts = np.fromiter(map(len, outlines), np.int64, len(outlines))
    return _Outlines(flat.reshape(-1, 2), np.cumsum(lengths) // 2, np.arange(len(rings)),
                     np.cumsum(counts))


def _mask(segmentation: dict[str, Any], size, place) -> StoredMask:
    """The mask of run lengths; those in a text are decoded when they are used."""
    stated = segmentation.get("size")
    if not isinstance(stated, list) or len(stated) != 2:
        raise DataError(f"\"size\" of the mask is {shortly(stated)}; expected [height, width]",
                        place)
    mask_size = image_size(stated[0], stated[1], place)
    if size is not None and mask_size != size:
        raise DataError(f"the mask is {mask_size[0]}x{mask_size[1]}, its image "
                        f"{size[0]}x{size[1]} (height x width)", place)
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return functools.partial(_decoded, counts, mask_size)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        raise DataError(f"\"counts\" of the mask is {shortly(counts)}; expected whole numbers or "
                        "a text", place)
    if counts and (min(counts) < 0 or sum(counts) != mask_size[0] * mask_size[1]):
        raise DataError(f"the run lengths of the mask have {shortly(sum(counts))} pixels, its "
                        f"image {mask_size[0] * mask_size[1]}" if min(counts) >= 0 else
                        "a run length of the mask is negative", place)
    return Runs(np.array(counts, np.int64), mask_size)


def _decoded(text: str, size, place: str) -> Runs:
    try:
        return Runs(runs_of_text(text), size)
    except ValueError as error:
        raise DataError(f"\"counts\" of the mask: {error}", place) from None


