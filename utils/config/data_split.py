"""Divides images into training and validation, or into folds, for `train.py --init`.

Images of one group (a video, a patient, a scene) never stand on both sides. Folds, and a validation
split by groups, are stratified: each part gets its share of the images and, as far as the groups
allow, of the images that show each class.
"""
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.errors import ConfigError, DataError, counted, listed, shown

VAL_EVERY = 5               # one image in five is for validation
PARTS = ("train", "val", "test")
# Names of folders, without numbers at their end.
_FOLDERS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"},
            "test": {"test", "testing"}}
_SERIES_FROM = 3            # images in a series of numbered names
_SERIES_COVER = 0.8         # of all images, at least: then the names are said to be series
_FRAMES = re.compile(r"(?:^|[^a-z])(?:frames?|frm|slices?|shots?|video|clip|z|t)[^a-z0-9]*$", re.I)
_EXAMPLES = "'^(.+)_' keeps what is before the last _, '^(.+)/' the folder"


class DataSplit(NamedTuple):
    """parts: "train", "val", perhaps "test" -> names. origin: how they were found, for people.

    folds: the names that each fold holds out, none without folds. With folds, train and val are
    those of the first one. remarks: further lines for people.
    """

    parts: dict[str, list[str]]
    origin: str
    folds: list[list[str]]
    remarks: list[str]


class SplitLists(NamedTuple):
    """Lists that came with the data.

    parts: name -> its part, for all names. place: of the lists, for people.
    """

    parts: dict[str, str]
    place: str


def split_data(names: Sequence[str], present: Mapping[str, frozenset[str]],
               group_by: str | None = None, folds: int | None = None,
               lists: SplitLists | None = None) -> DataSplit:
    """Divide the images of these names, which are paths without suffix ("scene1/7").

    present: the classes in the label of a name; names that are missing there are divided by number
    alone. group_by: a regular expression; images in whose names it has the same text (in its
    parentheses, if it has some) are a group. It is compared with names without folders train, val
    and test. folds: so many instead of one division. lists: decide all. Without them sub-folders
    train, val and test decide what they can; folds divide train and val again. Raises ConfigError
    or DataError, with a remedy, for options that do not fit the names.
    """
    split, rest = _by_folders(names) if lists is None else (
        {part: [name for name in names if lists.parts[name] == part] for part in PARTS}, [])
    source = "sub-folders of the data" if lists is None else f"lists of {lists.place}"
    groups = _groups(names, group_by) if group_by is not None else {}
    _require_apart(split, groups, folds)
    of_test = "test by the sub-folder, " if split["test"] else ""
    if folds:
        pool = [*split["train"], *split["val"]] or rest
        held_out, origin, remarks = _folds(pool, groups, present, folds)
        if split["val"]:
            remarks.insert(0, f"train and val of the {source} are divided again")
        first = set(held_out[0])
        parts = {"train": [name for name in pool if name not in first], "val": held_out[0],
                 "test": split["test"]}
        return DataSplit(_without_empty(parts), of_test + origin, held_out,
                         [*remarks, *([] if groups else _series(pool))])
    if split["val"]:
        return DataSplit(_without_empty(split), f"by the {source}"
                         + _group_counts(split, groups), [], [])
    pool = split["train"] or rest
    if len(pool) < 2:
        raise DataError(f"{len(pool)} pairs besides {len(split['test'])} for test: training "
                        "and validation each need at least one", "--images", "add more")
    held = set(_one_in_five(pool, groups, present) if groups else _drawn(pool))
    split["val"] = [name for name in pool if name in held]
    split["train"] = [name for name in pool if name not in held]
    origin = of_test + ("val " if of_test else "") + ("by groups" if groups else "drawn at random")
    return DataSplit(_without_empty(split), origin + _group_counts(split, groups), [],
                     [] if groups else _series(pool))


def _drawn(pool):
    """One name in five, the same ones each time."""
    order = np.random.default_rng(0).permutation(len(pool))
    return [pool[i] for i in order[:max(1, len(pool) // VAL_EVERY)]]


def _without_empty(split):
    return {part: names for part, names in split.items() if names}


def _by_folders(names):
    """({part: names by sub-folders}, the names that are in none of them)."""
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    rest = []
    for name in names:
        split.get(part_of(name), rest).append(name)
    if not split["train"]:      # names such as val/1 alone do not make a split
        rest = [name for name in names if name not in set(split["test"])]
        split["val"] = []
    elif rest:
        folders = sorted({name.rpartition("/")[0] or "." for name in rest})
        raise DataError(f"{len(rest)} of {len(names)} pairs are in no folder train, val or test: "
                        f"{listed(rest, 3, text=shown)} in {listed(folders, 3, text=shown)}",
                        "--images", "move them into one of these folders, or out of the data")
    return split, rest


def part_of(name: str) -> str:
    """The part whose name is one of the folders of a name ("val2017/x", "a/Train/x"), or ""."""
    return next(filter(None, map(_part, name.split("/")[:-1])), "")


def _part(folder):
    """The part that a folder is named after, or ""."""
    plain = re.sub(r"[\d_-]+$", "", folder.lower())
    return next((part for part, spellings in _FOLDERS.items() if plain in spellings), "")


def _groups(names, pattern):
    """{name: its group}. Raises ConfigError unless the pattern divides all names into groups."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}", "--group-by",
                          f"in quotes: {_EXAMPLES}") from None
    found = {}
    for name in names:
        *folders, last = name.split("/")
        found[name] = expression.search("/".join([*(one for one in folders if not _part(one)),
                                                  last]))
    groups = {name: "\0".join(text or "" for text in match.groups()) if expression.groups
              else match[0] for name, match in found.items() if match}
    without = [name for name in names if name not in groups]
    if without:
        which = f"{len(without)} of {len(names)} names do not fit" if groups else "no name fits"
        raise ConfigError(f"{which} the pattern {pattern!r}: {listed(without, 3, text=shown)}",
                          "--group-by",
                          "names are compared without suffix, with the folders below --images; "
                          f"{_EXAMPLES}")
    if len(set(groups.values())) < 2:
        only = next(iter(groups.values())).replace("\0", " ")
        raise ConfigError(f"all {len(names)} names are in one group, {shown(only)!r}: it cannot be "
                          "on one side alone", "--group-by", f"names are {listed(names, 3)}; "
                          f"{_EXAMPLES}")
    return groups


def _require_apart(split, groups, folds):
    """Raise DataError if sub-folders divide a group, as far as these decide."""
    if not groups:
        return
    sides = defaultdict(set)
    for part, names in split.items():
        for name in names:
            side = "train" if folds and part == "val" else part
            sides[groups[name]].add(side)
    torn = sorted(group for group, parts in sides.items() if len(parts) > 1)
    if torn:
        raise DataError(f"the sub-folders put {counted(len(torn), 'group')} on several sides: "
                        + listed(torn, 3, text=lambda one: f"{shown(one.replace(chr(0), ' '))} in "
                                 f"{' and '.join(sorted(sides[one]))}"), "--group-by",
                        "move their files to one side, or give --images the folder of one part")


def _group_counts(split, groups):
    if not groups:
        return ""
    sizes = ", ".join(f"{len({groups[name] for name in names})} {part}"
                      for part, names in split.items() if names)
    return f"; {len(set(groups.values()))} groups: {sizes}"


def _folds(pool, groups, present, folds):
    """(the held-out names of each fold, what is said of them, remarks)."""
    units = len({groups[name] for name in pool}) if groups else len(pool)
    kind = "group" if groups else "image"
    if folds < 2:
        raise ConfigError(f"{folds} folds: at least 2 are needed", "--folds", "5 is usual")
    if units < folds:
        raise ConfigError(f"{folds} folds of {units} {kind}s: each fold needs one of its own",
                          "--folds", f"use --folds {units}" + (
                              ", or a pattern with more groups" if groups else "")
                          if units > 1 else "add more data")
    held_out = _divided(pool, groups, present, folds)
    sizes = ", ".join(str(len(part)) for part in held_out)
    text = f"{folds} folds of {sizes} images"
    if groups:
        counts = ", ".join(str(len({groups[name] for name in part})) for part in held_out)
        text += f"; {units} groups: {counts}"
    known = [name for name in pool if name in present]
    if known and len(known) < len(pool):
        text += f"; the classes of {len(known)} labels were looked at"
    return held_out, text, _missing_classes(held_out, groups, present)


def _missing_classes(held_out, groups, present):
    """A line on the classes that some fold does not hold out."""
    shows = [set().union(*(present.get(name, ()) for name in part)) for part in held_out]
    lacking = {}
    for name in sorted(set().union(*shows)):
        without = [number for number, found in enumerate(shows, 1) if name not in found]
        if without:
            lacking[name] = without
    if not lacking:
        return []
    return ["some folds show no pixel of a class: "
            + listed(lacking, 5, "; ", lambda name: f"{shown(name)} in fold "
                                                    f"{listed(lacking[name], 8)}")]


def _one_in_five(pool, groups, present):
    """The names of whole groups that make about a fifth of the images and show all classes."""
    count = len({groups[name] for name in pool})
    parts = _divided(pool, groups, present, min(VAL_EVERY, count))
    everything = set().union(*(present.get(name, ()) for name in pool))

    def fitness(part):
        rest = set(pool) - set(part)
        seen = [set().union(*(present.get(name, ()) for name in side)) for side in (part, rest)]
        missing = len(everything - seen[1]) * 2 + len(everything - seen[0])
        return missing, abs(len(part) - len(pool) / VAL_EVERY)
    return min(parts, key=fitness)


def _divided(pool, groups, present, count):
    """The names of `pool` in `count` parts, each in the order of `pool`.

    Greedy: the unit (a group, or an image) with the largest share of some class first, each to
    the part after which images and classes are spread most evenly. Ties are drawn, always alike.
    """
    values = sorted(set().union(*(present.get(name, ()) for name in pool)))
    column = {value: i for i, value in enumerate(values, start=1)}
    sums: dict[str, np.ndarray] = {}
    for name in pool:
        row = sums.setdefault(groups.get(name, name), np.zeros(1 + len(values)))
        row[0] += 1
        row[[column[value] for value in present.get(name, ())]] += 1
    units = list(sums)
    table = np.stack([sums[unit] for unit in units])
    table /= table.sum(0)
    # The number of images counts as much as all classes together.
    weight = np.r_[max(1, len(values)), np.ones(len(values))]
    drawn = np.random.default_rng(0).permutation(len(units))
    order = np.lexsort((drawn, -table.max(1)))
    with_classes = table[:, 1:].any(1).tolist()
    filled, place, empty = np.zeros((count, table.shape[1])), {}, set(range(count))
    images = [0.0] * count              # the first column of `filled`
    for position, i in enumerate(order.tolist()):
        row = table[i]
        spread = _spread(filled, row, weight) if with_classes[i] else images
        # Every part gets a unit, so the last ones fill what is still empty.
        allowed = sorted(empty) if len(order) - position <= len(empty) else range(count)
        best = min(allowed, key=lambda part: (round(spread[part], 9), images[part], part))
        place[units[i]] = best
        filled[best] += row
        images[best] += float(row[0])
        empty.discard(best)
    return [[name for name in pool if place[groups.get(name, name)] == part]
            for part in range(count)]


def _spread(filled, row, weight):
    """For each part how unevenly the columns are spread over the parts if it gets the row."""
    mean = (filled.sum(0) + row) / len(filled)
    squares = (filled ** 2).sum(0) + 2 * filled * row + row ** 2
    return (np.sqrt(np.maximum(squares / len(filled) - mean ** 2, 0)) @ weight).tolist()


def _series(names):
    """A line about names that are numbered series, such as the frames of videos."""
    series = Counter(match[1] for name in names if (match := re.fullmatch(r"(.*?)\d+", name)))
    long = {prefix: count for prefix, count in series.items() if count >= _SERIES_FROM}
    if not long or sum(long.values()) < _SERIES_COVER * len(names):
        return []
    if len(long) > 1:
        return [f"the names are {len(long)} numbered series ("
                + listed(sorted(long), 3, text=lambda one: f"{shown(one)}… {long[one]}")
                + "): if each is a video, a patient or a scene, neighbors are near-copies;\n"
                "    --group-by '^(.*?)\\d+$' keeps each series on one side"]
    prefix = next(iter(long))
    if _FRAMES.search(prefix):
        return [f"the names look like the frames of one video ({shown(prefix)}…): neighbors are "
                "near-copies, so a score on images between them says little; put a block "
                "of them into the list of val"]
    return []
