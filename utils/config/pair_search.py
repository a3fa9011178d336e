"""Finds the pairs of image and label in one or two folders, and says what it leaves out.

Each rule of utils/config/name_rules.py is tried on all files, and the one that makes the most pairs
wins. If several rules fit, or images and labels share a folder, the contents decide which files
are labels. What remains unclear is refused with the names of the files.
"""
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.config.name_rules import Rule, guessed_rules
from utils.errors import DataError, counted, listed, nearest, shown, size_text
from utils.images.band_files import band_form, picture_header
from utils.images.headers import read_header
from utils.images.image_io import read_image, read_stored, stored_codes
from utils.images.label_kind import busyness
from utils.images.name_pattern import (
    FoundFile,
    NamePattern,
    find_files,
    is_pattern,
    matching,
    plain_spelling,
    separate,
)
from utils.images.picture_files import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    NO_LABELS,
    evenly_spaced,
    walk_folders,
)

_JUDGED = 8             # files of each kind whose contents are compared
_PHOTO = 50             # how busy one is, at least
_CLEARLY = 4            # times busier: then this file is the image and the other one the label
_SHOWN = 3              # names in one message
_JPEG = (".jpg", ".jpeg")
# JPEG turns the two values of a mask into others near them, and along borders into any.
_BLACK, _MIDDLE, _WHITE, _ALMOST_ALL = 48, 128, 207, 0.95
_RIVALS_FROM = 0.05     # of the images: with fewer, further labels are only mentioned


class Pair(NamedTuple):
    """An image and its label of the same size. size: (height, width) in pixels."""

    stem: str
    image: Path
    label: Path
    size: tuple[int, int]


class Pairing(NamedTuple):
    """All usable pairs, sorted. rule: how their names differ.

    remarks: lines about files that are not used. images_left_out: how many of these are images.
    threshold: the gray from which on a pixel is foreground, if labels are JPEG masks of black and
    white.
    """

    pairs: list[Pair]
    rule: Rule
    remarks: list[str]
    images_left_out: int
    threshold: int | None = None


class Place(NamedTuple):
    """A folder that the command line names, and a pattern of its files or None."""

    flag: str
    folder: Path
    pattern: NamePattern | None

    @property
    def text(self) -> str:
        """The place as the command line gives it."""
        return shown(self.folder / self.pattern.text if self.pattern else self.folder)

    def files(self) -> list[FoundFile]:
        """The pictures there. Raises DataError, which names what is there, if there are none."""
        found = find_files(self.folder, IMAGE_SUFFIXES)
        if not found and self.flag == "--images":
            found = find_files(self.folder, ARRAY_SUFFIXES)
        if self.pattern:
            fitting = matching(found, self.pattern)
            found = [file for file in found if file.key in fitting]
        if not found:
            others = Counter(os.path.splitext(name)[1].lower()
                             for _, _, names in walk_folders(self.folder) for name in names)
            raise DataError(f"no {self.flag[2:-1]} files below {self.text}"
                            + (f", only {_counted(others)}" if others else ""), self.flag,
                            next((NO_LABELS[suffix] for suffix in others if suffix in NO_LABELS),
                                 "give the folder that contains them")
                            if self.flag == "--labels" else "give the folder that contains them")
        return found


class _Tried(NamedTuple):
    """The pairs of a rule: stem -> (image, label), where both are unique."""

    rule: Rule
    pairs: dict[str, tuple[Path, Path]]
    busier: float       # how many times busier the images are than the labels


def place_of(text: str, flag: str) -> Place:
    """The place that --images or --labels names: a folder, or a folder and a pattern."""
    path = Path(text)
    if path.is_dir():
        return Place(flag, path, None)
    parts = path.parts
    stars = [i for i, part in enumerate(parts) if is_pattern(part)]
    if stars and Path(*parts[:stars[0]]).is_dir():
        return Place(flag, Path(*parts[:stars[0]]),
                     NamePattern("/".join(parts[stars[0]:]), flag))
    if path.exists():
        raise DataError(f"{shown(path)} is a file, not a folder", flag,
                        NO_LABELS.get(path.suffix.lower(), "give the folder that contains it")
                        if flag == "--labels" else "give the folder of the images")
    near = nearest(path.name, (one.name for one in path.parent.glob("*") if one.is_dir()))
    raise DataError(f"no such folder: {shown(path)}", flag,
                    f"did you mean {shown(path.with_name(near))}?" if near else
                    "give a folder, or a pattern of files in quotes ('masks/*_box.png')")


def find_pairs(images: Place, labels: Place) -> Pairing:
    """The pairs of the two places, which may be one folder or lie in each other.

    Raises DataError if there are fewer than two, if it is unclear which files belong together, or
    if an image has several labels.
    """
    files = images.files(), labels.files()
    best, rivals = _best((images, labels), files)
    usable = {stem: pair for stem, pair in best.pairs.items()
              if pair[1].suffix.lower() in LABEL_SUFFIXES}
    threshold = None
    if not usable and _black_and_white([label for _, label in best.pairs.values()]):
        usable, threshold = best.pairs, _MIDDLE
    if not usable:
        suffix = next(iter(best.pairs.values()))[1].suffix.lower()
        raise DataError(f"the {len(best.pairs)} labels are {suffix} files, such as "
                        f"{shown(next(iter(best.pairs.values()))[1].name)}", labels.text,
                        NO_LABELS[suffix])
    pairs, unusable = [], []
    for stem, pair in sorted(usable.items()):
        size = _common_size(*pair)
        if isinstance(size, str):
            unusable.append((size, pair))
        else:
            pairs.append(Pair(stem, pair[0], pair[1], size))
    if len(pairs) < 2:
        raise _too_few(pairs, best, unusable, images, labels)
    keys = {file.path: file.key for some in files for file in some}
    used = {keys[path] for pair in pairs for path in (pair.image, pair.label)}
    used |= {keys[path] for _, both in unusable for path in both}
    known = used | {keys[path] for one in rivals for both in one.pairs.values() for path in both}
    _refuse_further_labels(files, pairs, known, labels)
    lines, left_out = _remarks(files, used, unusable)
    lines += _almost_equal(files, used, best.rule)
    if best.busier < _CLEARLY:
        lines.append("the images look much like the labels: are they photos, and not label maps?")
    return Pairing(pairs, best.rule, lines, left_out, threshold)


def _black_and_white(labels):
    """Whether labels are JPEG masks of two values, by a few of them."""
    some = evenly_spaced(labels, _JUDGED)
    if any(path.suffix.lower() not in _JPEG for path in some):
        return False
    try:
        gray = np.concatenate([read_image(path)[::3, ::3].reshape(-1, 3) for path in some])
    except DataError:
        return False
    low, high = (gray < _BLACK).all(1), (gray > _WHITE).all(1)
    return bool(low.any() and high.any() and (low | high).mean() > _ALMOST_ALL)


def _best(places, files):
    """(the rule that explains the files best, those that explain others). Raises DataError."""
    overlap = not {file.key for file in files[0]}.isdisjoint(file.key for file in files[1])
    one_folder = os.path.samefile(places[0].folder, places[1].folder)
    possible = min(map(len, files)) / (1 + overlap)
    judged, fitting = [], []
    for twice in (False, True):
        judged += _judged_rules(places, files, one_folder, twice)
        fitting = [one for one in judged if one.busier >= _CLEARLY
                   or (not overlap and one.busier > 1 / _CLEARLY)]
        # Rules that pair a part only may do so by chance, or know only one of two differences.
        if any(len(one.pairs) > possible / 2 for one in fitting):
            break
    if not fitting:
        raise _unclear(judged, places, files, overlap)
    fitting.sort(key=lambda one: (-len(one.pairs), _in_color(one), one.busier < _CLEARLY,
                                  len(one.rule.image) + len(one.rule.label)))
    return fitting[0], _rivals(fitting, places)


def _judged_rules(places, files, one_folder, twice):
    """The rules that pair more than a few of the files, tried and judged."""
    names = [[file.name if place.pattern is None else
              f"{place.pattern.stem(file.name)}{file.path.suffix}" for file in found]
             for place, found in zip(places, files, strict=True)]
    alike = one_folder and not (places[0].pattern or places[1].pattern)
    rules = guessed_rules(names[0], names[1], alike, twice)
    tried = [_try(rule, places, files) for rule in dict.fromkeys(
        filter(None, (_with_patterns(rule, places) for rule in rules)))]
    most = max((len(one.pairs) for one in tried), default=0)
    # A single pair among many files has its names by chance.
    least = 1 if min(map(len, files)) == 1 + one_folder else 2
    return [_judged(one) for one in tried if len(one.pairs) >= max(least, most * _RIVALS_FROM)]


def _with_patterns(rule, places):
    """The rule with the patterns of the command line; None if it contradicts them."""
    texts = []
    for text, place in zip(rule, places, strict=True):
        if place.pattern is not None and text not in ("*", "**"):
            return None
        texts.append(place.pattern.text if place.pattern else text)
    return Rule(*texts)


def _try(rule, places, files):
    """The pairs that a rule makes of the files; names that occur twice make none."""
    patterns = NamePattern(rule.image), NamePattern(rule.label)
    found = [matching(some, pattern) for some, pattern in zip(files, patterns, strict=True)]
    separate(found[0], found[1], (places[0].folder, places[1].folder), patterns)
    by_stem = []
    for some in found:
        counts = Counter(stem for stem, _ in some.values())
        by_stem.append({stem: path for stem, path in some.values() if counts[stem] == 1})
    return _Tried(rule, {stem: (image, by_stem[1][stem]) for stem, image in by_stem[0].items()
                         if stem in by_stem[1]}, 1.0)


def _judged(tried):
    """The same with `busier`, from a few of the files."""
    pairs = evenly_spaced(list(tried.pairs.values()), _JUDGED)
    image, label = (np.median(values) if (values := list(filter(None, map(_busyness, some)))) else 1
                    for some in zip(*pairs, strict=True))
    return tried._replace(busier=float(image / label))


def _busyness(path):
    try:
        return busyness(path)
    except DataError:
        try:
            band_form(path)
        except DataError:
            return None
        return _PHOTO           # bands, floats and arrays are no label


def _in_color(tried):
    """Whether the labels are color pictures."""
    for _, label in list(tried.pairs.values())[:1]:
        try:
            return read_stored(label).ndim == 3
        except DataError:
            break
    return False


def _rivals(fitting, places):
    """The rules that give images of the first one other labels of the same meaning.

    Raises DataError if their labels differ in meaning, or if labels fit several images.
    """
    best, rivals = fitting[0], []
    of_image = dict(best.pairs.values())
    used = set(of_image) | set(of_image.values())
    least = max(2, _RIVALS_FROM * len(of_image))
    for one in fitting[1:]:
        if one.busier < min(_CLEARLY, best.busier):
            continue            # such as photos with the label drawn over them
        other_labels = [(image, label) for image, label in one.pairs.values()
                        if image in of_image and label not in used]
        other_images = [(image, label) for image, label in one.pairs.values()
                        if image not in used and label in used]
        if len(other_labels) >= least:
            if not _same_meaning(of_image, other_labels):
                image, label = other_labels[0]
                raise _several(f"{len(other_labels)} of {len(of_image)} images have several label "
                               f"files: {shown(image.name)} has {_names(of_image[image], label)}",
                               places[1], best.rule.label)
            rivals.append(one)
        elif len(other_images) >= max(least, len(of_image) / 2):
            image, label = other_images[0]
            first = next(key for key, value in of_image.items() if value == label)
            raise DataError(f"{len(other_images)} labels fit several images: {shown(label.name)} "
                            f"fits {_names(first, image)}", places[0].text,
                            f"choose the images by a pattern: --images "
                            f"'{_pattern_text(places[0], best.rule.image, first)}'")
    return rivals


def _same_meaning(of_image, others):
    """Whether each value of one label stands for one value of the other, on a few of them."""
    for image, label in evenly_spaced(others, _JUDGED):
        try:
            codes = [stored_codes(stored).astype(np.int32)
                     for stored in map(read_stored, (of_image[image], label))]
        except DataError:
            return False
        if codes[0].shape != codes[1].shape:
            return False
        counts = [len(np.unique(code)) for code in codes]
        both = len(np.unique(codes[0].astype(np.int64) << 32 | codes[1]))
        if not both == counts[0] == counts[1]:
            return False
    return True


def _several(what, labels, pattern="*"):
    """The DataError about pictures with several masks. pattern: of one kind of them."""
    return DataError(what, labels.text, "merge the masks of one picture into one label with a "
                     "value for each class; or use one kind of them only: "
                     + ("move the others away" if pattern == "*" else
                        f"--labels '{shown(labels.folder / pattern)}'"))


def _unclear(judged, places, files, overlap):
    """The DataError if no rule makes pairs of images and labels."""
    images, labels = places
    where = images.text if images.text == labels.text else f"{images.text}, {labels.text}"
    if judged and overlap:
        pairs = max(judged, key=lambda one: len(one.pairs))
        first, second = next(iter(pairs.pairs.values()))
        return DataError(f"it is unclear which files are images and which are labels: "
                         f"{_names(first, second)} look alike", where,
                         "say it by patterns, such as --images 'DIR/*_rgb.png' "
                         "--labels 'DIR/*_mask.png'")
    if judged:
        return DataError("the images look like label maps, and the labels do not: this is not a "
                         "label map", shown(next(iter(judged[0].pairs.values()))[1]),
                         "are --images and --labels exchanged?")
    several = _labels_named_after(files[0], files[1], set())
    if several:
        image, names = max(several.items(), key=lambda entry: len(entry[1]))
        if len(names) > 1:
            return _several(f"{len(several)} of {len(files[0])} images have label files that are "
                            f"named after them, up to {len(names)}: {image} has {_names(*names)}",
                            labels)
    if set(files[0]) == set(files[1]):
        return DataError(f"0 pairs: images and labels are the same {len(files[0])} files", where,
                         "give the folder of the labels as --labels")
    return DataError(f"0 pairs: {len(files[0])} images with names such as {files[0][0].name}, "
                     f"{len(files[1])} labels with names such as {files[1][0].name}", where,
                     "a label must have the name of its image, apart from the extension and "
                     "something that is the same in all names")


def _labels_named_after(images, labels, known) -> dict[str, list[Path]]:
    """{image name: label files whose names, or folders, begin with it}.

    Files whose keys are `known` are not counted as labels.
    """
    stems = {os.path.splitext(file.name)[0].rpartition("/")[2]: file for file in images}
    found: dict[str, list[Path]] = {}
    for file in labels:
        if file.key in known or file.path.suffix.lower() not in LABEL_SUFFIXES:
            continue
        parts = os.path.splitext(file.name)[0].split("/")
        beginnings = (part[:end] for part in parts for end in range(len(part), 0, -1)
                      if end == len(part) or part[end] in "_-. ")
        image = next((stems[text] for text in beginnings
                      if text in stems and stems[text].key != file.key), None)
        if image:
            found.setdefault(image.name, []).append(file.path)
    return found


def _common_size(image, label):
    """The size of a pair, (height, width), or the reason why it cannot be used."""
    try:
        first, second = picture_header(image), read_header(label)
    except DataError as error:
        return error.in_one_line
    if os.path.samefile(image, label):
        return f"{shown(image)}: image and label are one file"
    if not first.fits(second):
        return (f"{shown(image.name)} is {size_text(first.size)}, its label "
                f"{size_text(second.size)} (height x width)")
    return first.size


def _too_few(pairs, best, unusable, images, labels):
    where = f"{images.text}, {labels.text}"
    if unusable:
        return DataError(f"{len(pairs)} of {len(best.pairs)} pairs can be used:\n    "
                         + listed(unusable, _SHOWN, "\n    ", lambda entry: entry[0]), where,
                         "give image and label the same size, and a format that can be read")
    return DataError("there is only one pair of image and label: "
                     f"{_names(*next(iter(best.pairs.values())))}", where,
                     "add more: training and validation each need at least one")


def _remarks(files, used, unusable):
    """(lines about files whose keys are not `used`, number of images left out)."""
    images, labels = ({file.key: file.path for file in some if file.key not in used}
                      for some in files)
    both = [images.pop(key) for key in sorted(images.keys() & labels.keys())
            if labels.pop(key)]
    lines = []
    if unusable:
        lines.append(f"{counted(len(unusable), 'pair')} cannot be used: "
                     + listed(unusable, _SHOWN, "; ", lambda entry: entry[0]))
    for paths, noun, one, more in (
            (images.values(), "image", "has no label", "have no label"),
            (labels.values(), "label file", "is not used", "are not used"),
            (both, "other picture", "is not used", "are not used")):
        if paths:
            lines.append(f"{counted(len(paths), noun)} {one if len(paths) == 1 else more}: "
                         f"{_names(*paths)}")
    return lines, len(images) + len(unusable)


def _almost_equal(files, used, rule):
    """A line about images and labels whose keys are not `used` and whose names look alike."""
    by_spelling: list[dict[str, Path]] = []
    for some, text in zip(files, rule, strict=True):
        found = matching([file for file in some if file.key not in used], NamePattern(text))
        by_spelling.append({plain_spelling(stem): path for stem, path in found.values()})
    both = [(path, by_spelling[1][name]) for name, path in by_spelling[0].items()
            if name in by_spelling[1]]
    if not both:
        return []
    names = [" and ".join(shown(path.name) for path in pair) for pair in both]
    return [f"of these, {counted(len(both), 'pair')} would fit but for the spelling (upper and "
            f"lower case, spaces, forms of Unicode): {listed(names, _SHOWN)}; rename the labels "
            "like the images"]


def _refuse_further_labels(files, pairs, known, labels):
    """Raise DataError if many images have label files besides those whose keys are `known`."""
    paired = {pair.image for pair in pairs}
    several = _labels_named_after([file for file in files[0] if file.path in paired], files[1],
                                  known)
    if len(several) < max(2, _RIVALS_FROM * len(pairs)):
        return
    further = [path for paths in several.values() for path in paths]
    busy = [[value for path in evenly_spaced(paths, _JUDGED) if (value := _busyness(path))]
            for paths in (further, [pair.label for pair in pairs])]
    if all(busy) and np.median(busy[0]) < _CLEARLY * np.median(busy[1]):
        own = {pair.image.name: pair.label for pair in pairs}
        image, paths = next(iter(several.items()))
        raise _several(f"{len(several)} of {len(pairs)} images have several label files: {image} "
                       f"has {_names(*filter(None, [own.get(image)]), *paths)}", labels)


def _pattern_text(place, pattern, path):
    """A pattern for --images that fits this file and no other kind."""
    return shown(place.folder / (pattern + path.suffix if pattern == "*" else pattern))


def _names(*paths):
    """The names of a few files, each with its folder, as text."""
    return listed(paths, _SHOWN, text=lambda path: shown("/".join(path.parts[-2:])))


def _counted(suffixes):
    return listed(suffixes.most_common(), _SHOWN,
                  text=lambda entry: f"{entry[1]} {entry[0] or 'without extension'}")
