"""What --init needs to know of images with exported annotations: pairs, classes, contents."""
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.annotations.annotation_set import AnnotationSet, Findings
from utils.annotations.formats import followed_pattern, format_of
from utils.annotations.image_lookup import STORED_PICTURE, ImageLookup, on_stored_picture
from utils.annotations.outlines import lies_outside
from utils.annotations.rasterize import draw
from utils.config.pair_search import Pair, Place
from utils.errors import DataError, counted, listed, shown, size_text
from utils.images.class_names import mistake_in
from utils.images.headers import read_header
from utils.images.palette import class_palette, named_background
from utils.images.picture_files import evenly_spaced

_SHOWN = 8                          # mistakes, in one message
_IGNORED = ("__ignore__",)          # labelme's name of pixels without a class
_MADE_BACKGROUND = "background"


class AnnotatedPairs(NamedTuple):
    """The usable pairs and what their labels contain.

    names, palette: of the classes. class_lists: further entries of the class file. background: the
    class of pixels in no region, None if every pixel is in one. pixels: of each class, of the
    labels that were read. present: stem -> the classes in its label. lines, remark: what to print
    of the files, and of the classes. path: of the annotations, or the pattern of their files.
    """

    pairs: list[Pair]
    names: list[str]
    palette: list[list[int]]
    class_lists: dict[str, list]
    background: str | None
    pixels: dict[int, int]
    present: dict[str, frozenset[int]]
    title: str
    lines: list[str]
    images_left_out: int
    remark: str
    path: Path


def annotated_pairs(images: Place, labels: str, most_read: int) -> AnnotatedPairs | None:
    """Reads the annotations `labels`, a file, folder or pattern; None if no format fits.

    most_read: how many labels are drawn to see what they contain. Raises DataError if something
    must be mended first.
    """
    path = Path(os.path.expanduser(labels))
    module = format_of(path)
    if module is None and path.is_dir():
        stems = [os.path.splitext(file.name)[0] for file in images.files()]
        pattern = followed_pattern(path, stems)
        if pattern is not None:
            path, module = pattern, format_of(pattern)
    if module is None:
        return None
    findings = Findings()
    found: AnnotationSet = module.read(path, findings)
    if findings.wrong:
        raise DataError(f"{counted(len(findings.wrong), 'mistake')} in the annotations:\n    "
                        + listed(findings.wrong, _SHOWN, "\n    "), shown(path),
                        "mend them in the annotation tool and export again, or take them out of "
                        "the file")
    mistake = mistake_in([category.name for category in found.categories])
    if mistake:
        raise DataError(mistake, shown(path), "give it another name in the annotation tool")
    usable, lines, left_out = _usable(images, found)
    if len(usable) < 2:
        raise DataError(f"{len(usable)} of {counted(len(found.images), 'annotated image')} can be "
                        "used" + "".join(f"\n    {line}" for line in lines), shown(path),
                        "training and validation each need at least one: is --images the folder "
                        "of the annotated images?")
    counts, present, outside = _contents(found, usable, most_read)
    if outside:
        lines.append(f"{len(outside)} x outline lies outside its image and shows nothing: "
                     f"{listed(outside, 3, '; ')}")
    complete = len(usable) <= most_read
    lines = [*findings.lines(), *lines]
    return _classes(found, usable, counts, present, complete, lines, left_out)._replace(path=path)


def _usable(images, found):
    """([(Pair, AnnotatedImage)] sorted by stem, lines about the others, images left out)."""
    files = images.files()
    lookup = ImageLookup(files)
    usable, missing, wrong, taken, turned, stored = {}, [], [], set(), [], []
    for image, file in zip(found.images, lookup.match(found.images), strict=True):
        if isinstance(file, str):
            missing.append(f"{image.place}: {file}")
            continue
        if file.key in taken:
            raise DataError(f"{shown(file.name)} is annotated twice", image.place,
                            "merge the two, or take one out")
        taken.add(file.key)
        try:
            header = read_header(file.path)
        except DataError as error:
            wrong.append(error.in_one_line)
            continue
        if image.size not in (None, header.size, header.stored_size):
            wrong.append(f"{image.place}: {shown(file.name)} is {size_text(header.size)}, "
                         f"annotated as {size_text(image.size)} (height x width)")
            continue
        if on_stored_picture(image.size, header):
            stored.append(file.name)
        elif header.orientation != 1:
            turned.append(file.name)
        stem = os.path.splitext(file.name)[0]
        usable[stem] = Pair(stem, file.path, file.path, header.size), image
    others = [file.name for file in files if file.key not in taken]
    lines = []
    for some, what in ((lookup.respelled, "image found by another spelling of its name"),
                       (missing, "annotated image is missing"), (wrong, "image cannot be used"),
                       (others, "image has no annotation"),
                       (turned, "image is turned by its EXIF tag, and annotated as it is shown"),
                       (stored, STORED_PICTURE)):
        if some:
            lines.append(f"{len(some)} x {what}: {listed(some, 3, '; ', shown)}")
    return [usable[stem] for stem in sorted(usable)], lines, len(others) + len(wrong)


def _contents(found, usable, most_read):
    """(Counter of the pixels of each category, -1: in no region; stem -> its categories; places of
    the outlines outside their image)."""
    counts, present, outside = Counter(), {}, []
    nothing = len(found.categories)
    for pair, image in evenly_spaced(usable, most_read):
        size = image.size or pair.size
        regions = image.regions(size)
        outside += [region.place for region in regions if region.mask is None
                    and all(len(ring) == 0 or lies_outside(ring, size[1], size[0])
                            for ring in region.rings)]
        drawn = draw(regions, range(nothing), size, nothing, found.overlap)
        values, pixels = np.unique(drawn, return_counts=True)
        for value, count in zip(values.tolist(), pixels.tolist(), strict=True):
            counts[-1 if value == nothing else value] += count
        present[pair.stem] = frozenset(value for value in values.tolist() if value < nothing)
    return counts, present, outside


def _classes(found, usable, counts, present, complete, lines, left_out):
    """The AnnotatedPairs, with the classes that the categories suggest."""
    all_names = [category.name for category in found.categories]
    ignored = [name for name in all_names if name in _IGNORED]
    # A category that no image shows would be a class without a score.
    unused = [name for number, name in enumerate(all_names)
              if complete and not counts[number] and name not in ignored]
    kept = [number for number, name in enumerate(all_names)
            if name not in ignored and name not in unused]
    names = [all_names[number] for number in kept]
    colors = [found.categories[number].color for number in kept]
    own, background = named_background(names), None
    if own is not None:
        background = names[own]
    elif counts[-1]:
        background = _MADE_BACKGROUND
        kept, names, colors = [-1, *kept], [background, *names], [[0, 0, 0], *colors]
    if len(names) < 2:
        raise DataError(f"the annotations show {counted(len(names), 'class')}: {listed(names, 3)}",
                        "--labels", "training needs at least two classes")
    palette = colors if all(colors) and len(set(map(tuple, colors))) == len(colors) else \
        class_palette(names)
    class_lists = {"categories": [all_names[number] if number >= 0 else [] for number in kept]}
    class_lists |= {key: value for key, value in (("ignore_categories", ignored),
                                                  ("unused_categories", unused)) if value}
    class_of = {number: place for place, number in enumerate(kept)}
    if background is not None:
        class_of.setdefault(-1, names.index(background))
    pixels: Counter = Counter()
    for number, count in counts.items():
        if number in class_of:
            pixels[class_of[number]] += count
    total = sum(pixels.values())
    remark = listed(range(len(names)), 20,
                    text=lambda k: f"{names[k]} ({100 * pixels[k] / total:.2g} %)")
    if background == _MADE_BACKGROUND and own is None:
        remark += ("\n  pixels in no region are \"background\"; to ignore them, set \"background\" "
                   "to null\n  in the config, and remove its name and color")
    if unused:
        remark += f"\n  categories without a pixel are not used: {listed(unused, 8)}"
    alike = _alike(names)
    if alike:
        remark += (f"\n  {listed(alike, 3, '; ')}: names that differ in spelling only; if they are "
                   "one class,\n  join them in \"categories\" of the class file")
    if ignored:
        remark += f"\n  ignored: {listed(ignored, 8)}"
    shown_classes = {stem: frozenset(class_of[number] for number in numbers if number in class_of)
                     for stem, numbers in present.items()}
    return AnnotatedPairs([pair for pair, _ in usable], names, palette, class_lists, background,
                          dict(pixels), shown_classes, found.format, lines, left_out, remark,
                          Path())


def _alike(names):
    """Texts of the names of classes that differ in upper and lower case, spaces, - and _ only."""
    by_spelling: dict[str, list[str]] = {}
    for name in names:
        by_spelling.setdefault(re.sub(r"[\s_-]", "", name.casefold()), []).append(name)
    return [" and ".join(map(shown, some)) for some in by_spelling.values() if len(some) > 1]
