"""Writes a first config for a folder of images and a folder of labels.

Writes files that are all meant to be edited: the config, a class file (names, colors, and the class
of each stored value) and the image names of each split; with folds, lists for each of them and a
study of all. utils/config/pair_search.py finds the pairs, utils/config/data_split.py divides them.
"""
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.annotations.formats import annotations_near
from utils.config.annotated_pairs import annotated_pairs
from utils.config.data_split import PARTS, DataSplit, SplitLists, split_data
from utils.config.measured_bands import bands_in, measured, moments
from utils.config.pair_search import Pair, find_pairs, place_of
from utils.config.registry import load
from utils.errors import ConfigError, DataError, counted, listed, shown, size_text
from utils.files.whole_file import write_bytes
from utils.images.class_names import mistake_in
from utils.images.headers import pillow_open
from utils.images.image_io import read_image, read_mask, read_stored, stored_codes
from utils.images.label_kind import mixing
from utils.images.palette import background_of, class_palette, voc_palette
from utils.images.partly_used import unused_in
from utils.images.picture_files import IMAGE_SUFFIXES, evenly_spaced

LABELS_READ = 400           # at most, evenly spaced; small datasets are read completely
IMAGES_READ = 60            # at most, evenly spaced; for mean and standard deviation
MAX_COLORS = 256
LABELS_JUDGED = 60          # of these, at most: whether they were smoothed
SMOOTHED_FROM = 0.2         # share of the judged labels
LONG_SIDE = 512             # larger images are trained at this size, so that a CPU is fast enough
IGNORED = 255
MOST_EPOCHS, MOST_STEPS = 60, 2000      # of the training: a small set ends at the first
_NAMES_FILE = "class_names.txt"     # labelme writes it beside the folder of its VOC labels
_MOST_NAMES_BYTES = 1 << 20
_VOC_LISTS = "ImageSets/Segmentation"
_VOC_CLASSES = 21
RARE = 0.02                 # share of the pixels of a class that may need a weight in the loss
GRAY_GAPS = 3               # of the others, at most, lie between them and 255 if it is a class


class Classes(NamedTuple):
    """The contents of the class file. remark: the line about it that is printed."""

    names: list[str]
    palette: list[list[int]]
    label_ids: list[int] | None
    ignore_ids: list[int]
    ignore_colors: list[list[int]]
    remark: str


class _Names(NamedTuple):
    """Names of class ids, and a line about where they come from."""

    names: list[str]
    origin: str


class _Contents(NamedTuple):
    """What labels contain. pixels: of each value, or of each color as 0xRRGGBB.

    equal_channels: some of them store ids in three equal channels. present: stem -> the values or
    colors of its label, of the labels that were read.
    """

    pixels: dict[int, int]
    in_color: bool
    equal_channels: bool
    present: dict[str, frozenset[int]]


class _Source(NamedTuple):
    """The data: type and arguments of its dataset, its pairs, and what the labels contain.

    shown_classes: stem -> names of the classes in its label, of the labels that were read. rarest:
    the smallest share of the pixels. lines: what is printed. class_lists: of the class file.
    split_lists: those that came with the data.
    """

    type: str
    arguments: dict
    pairs: list[Pair]
    classes: Classes
    shown_classes: dict[str, frozenset[str]]
    rarest: float
    lines: list[str]
    class_lists: dict[str, list[str]]
    split_lists: SplitLists | None = None


def make_config(images: str, labels: str, out: str, group_by: str | None = None,
                folds: int | None = None):
    """Write the config `out` (JSON) and the files it needs; print a summary.

    images, labels: folders, which may be the same, or patterns of files ("masks/*_box.png"); labels
    may also be what an annotation tool has exported (utils/annotations/formats.py). A name `out`
    without the ending .json gets it, and missing folders above it are made. group_by, folds: see
    `split_data`; with folds a study is written as well. Raises ConfigError if one of the files
    exists or an option does not fit the names, DataError if there are no pairs, if it is unclear
    which files belong together, or if the labels are not label maps or have mistakes.
    """
    files = _output_files(Path(out if out.lower().endswith(".json") else f"{out}.json"), folds)
    source = _source(images, labels, files, group_by, folds)
    pairs, classes = source.pairs, source.classes
    stems = [pair.stem for pair in pairs]
    divided = split_data(stems, source.shown_classes, group_by, folds, source.split_lists)
    split = divided.parts
    sizes = Counter(pair.size for pair in pairs)
    images_read = [pair.image for pair in pairs]
    bands = bands_in(images_read)
    found = measured(images_read, bands) if bands else None
    bands = found and found.bands
    mean, std = (found.mean, found.std) if found else _pixel_statistics(pairs)

    files["config"].parent.mkdir(parents=True, exist_ok=True)
    more = {**source.class_lists, **({"bands": len(bands.numbers)} if bands else {})}
    if bands and bands.no_data is not None:
        more["no_data"] = bands.no_data
    write_bytes(files["classes"], _class_file(classes, mean, std, more,
                                              bool(source.class_lists)).encode())
    lists = _lists(divided, stems, files)
    for path, names in lists.items():
        write_bytes(path, "".join(f"{name}\n" for name in names)
                    .encode("utf-8", "surrogateescape"))
    rarest = source.rarest
    write_bytes(files["config"], _config_text(source, files, split, sizes, rarest).encode())
    if folds:
        write_bytes(files["study"], _study_text(files, folds, "test" in split).encode())

    for line in source.lines:
        print(line)
    print(f"sizes (height x width): {_sizes_text(sizes)}")
    print("split: " + ("" if folds else ", ".join(
        f"{len(names)} {part}" for part, names in split.items()) + ", ") + divided.origin)
    for remark in divided.remarks:
        print(f"  {remark}")
    if found and bands:
        print(f"images: {bands.text}, used as stored (\"bands\", \"mean\" and \"std\" of "
              f"{shown(files['classes'])}; docs/own_data.md)")
        if bands.no_data is not None:
            print(f"  {100 * found.missing:.2g} % of the pixels have no data, in {found.images} of "
                  f"{counted(found.of, 'image')} looked at: their labels are ignored (\"no_data\")")
    else:
        for line in unused_in(images_read):
            print(f"images: {line}")
    print(f"classes: {len(classes.names)}; {classes.remark}")
    if rarest < RARE:
        print(f"  the rarest class covers {100 * rarest:.2g} % of the pixels: if the training does "
              f"not find it, weights help: python -m tools.class_statistics -c "
              f"{shown(files['config'])}")
    for path in (files["config"], files["classes"], *lists, *([files["study"]] if folds else [])):
        print(f"wrote {shown(path)}")
    print(f"Edit the class names in {shown(files['classes'])}, then:\n"
          + (f"  python -m tools.study {shown(files['study'])}" if folds else
             f"  python train.py --config {shown(files['config'])}"))


def _source(images, labels, files, group_by, folds):
    """The Source of the data. Raises DataError, which names annotations near `labels`."""
    annotated = _annotated(images, labels, files)
    if annotated is not None:
        return annotated
    try:
        return _paired(images, labels, files, group_by, folds)
    except DataError as error:
        near = annotations_near(Path(labels)) if os.path.isdir(labels) else None
        if near is None:
            raise
        raise DataError(error.what, error.where,
                        f"did you mean --labels {shown(near[0])} ({near[1]})?") from None


def _paired(images, labels, files, group_by, folds) -> "_Source":
    """The Source of images and label maps."""
    places = place_of(images, "--images"), place_of(labels, "--labels")
    pairing = find_pairs(*places)
    pairs = pairing.pairs
    if group_by is not None or folds:       # before the labels are read: options may not fit
        split_data([pair.stem for pair in pairs], {}, group_by, folds)
    if pairing.threshold:
        contents = _mask_contents(pairs, pairing.threshold)
        classes = _classes_of_masks(contents, pairing.threshold)
    else:
        contents = _label_contents(pairs)
        classes = _classes_of_colors(contents) if contents.in_color else \
            _classes_of_values(contents, pairs)
    data_dir, image_dir, label_dir = _common_folder(*(place.folder for place in places))
    arguments = {"data_dir": _beside(files["config"], data_dir), "image_dir": image_dir,
                 "label_dir": label_dir, **_name_arguments(pairing.rule)}
    if pairing.threshold:
        arguments["label_threshold"] = pairing.threshold
    left_out = pairing.images_left_out
    lines = [f"{len(pairs)} pairs of image and label" + (
        f"; left out: {counted(left_out, 'image')} without a usable label" if left_out else ""),
        *(f"  {remark}" for remark in pairing.remarks)]
    split_lists, remarks = _voc_lists(pairs)
    lines += [f"  {remark}" for remark in remarks]
    if pairing.rule != ("*", "*"):
        lines.append(f"names: images {pairing.rule.image}, labels {pairing.rule.label}")
    return _Source("Folder", arguments, pairs, classes, _shown_classes(contents, classes),
                   _rarest_share(contents, classes), lines, {}, split_lists)


def _annotated(images, labels, files) -> "_Source | None":
    """The Source of images and exported annotations; None if `labels` are none."""
    place = place_of(images, "--images")
    found = annotated_pairs(place, labels, LABELS_READ)
    if found is None:
        return None
    data_dir, image_dir, label_dir = _common_folder(place.folder, found.path)
    arguments: dict[str, str | None] = {
        "data_dir": _beside(files["config"], data_dir), "image_dir": image_dir,
        "annotations": _annotations_place(files["config"], data_dir, label_dir)}
    if found.background != "background":
        arguments["background"] = found.background
    left_out = found.images_left_out
    lines = [f"annotations: {found.title}",
             f"{len(found.pairs)} annotated images" + (
                 f"; left out: {counted(left_out, 'image')}" if left_out else ""),
             *(f"  {line}" for line in found.lines)]
    shown_classes = {stem: frozenset(found.names[number] for number in numbers)
                     for stem, numbers in found.present.items()}
    return _Source("Annotated", arguments, found.pairs,
                   Classes(found.names, found.palette, None, [], [], found.remark), shown_classes,
                   min(found.pixels.values()) / sum(found.pixels.values()), lines,
                   found.class_lists)


def _output_files(config, folds):
    """Paths by name: "config", "classes", "train", "val", "test"; with folds also "study",
    ("train", 1), …, and "train" and "val" are those of the first fold.

    Raises ConfigError if one of them exists.
    """
    base = config.with_suffix("")
    files: dict = {"config": config, "classes": Path(f"{base}.classes.json"),
                   **{name: Path(f"{base}.{name}.txt") for name in PARTS}}
    if folds:
        files["study"] = Path(f"{base}.folds.json")
        files |= {(name, number): Path(f"{base}.fold{number}.{name}.txt")
                  for number in range(1, folds + 1) for name in PARTS[:2]}
        files |= {name: files[name, 1] for name in PARTS[:2]}
    for path in files.values():
        if path.exists():
            raise ConfigError(f"{path} exists and would be overwritten", "--init",
                              "remove it or choose another name")
    above = next(parent for parent in config.parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"{shown(above)} is not a folder", "--init", "choose another name")
    return files


def _lists(divided: DataSplit, stems, files) -> dict[Path, list[str]]:
    """path -> its names, for each list that is written."""
    if not divided.folds:
        return {files[name]: names for name, names in divided.parts.items()}
    lists, fold_of = {}, {name: number for number, names in enumerate(divided.folds, 1)
                          for name in names}
    for number, held_out in enumerate(divided.folds, 1):
        lists[files["train", number]] = [name for name in stems
                                         if fold_of.get(name, number) != number]
        lists[files["val", number]] = held_out
    if "test" in divided.parts:
        lists[files["test"]] = divided.parts["test"]
    return lists


def _label_contents(pairs):
    """The values or colors of the labels. Raises DataError if they are not label maps."""
    counts, colors, present = Counter(), Counter(), {}
    read = evenly_spaced(pairs, LABELS_READ)
    judged = set(evenly_spaced(range(len(read)), LABELS_JUDGED))
    mixed = []
    for index, pair in enumerate(read):
        stored = read_stored(pair.label)
        values, pixels = np.unique(stored_codes(stored), return_counts=True)
        present[read[index].stem] = frozenset(values.tolist())
        (colors if stored.ndim == 3 else counts).update(
            dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        if index in judged and (found := mixing(stored)):
            mixed.append((pair.label, found))
    _refuse_smoothed(mixed, len(judged), in_color=bool(colors))
    gray = [color for color in colors if color == (color & 255) * 0x010101]
    if len(gray) == len(colors):            # three equal channels hold the ids
        counts.update({color & 255: colors[color] for color in gray})
        return _Contents(dict(counts), False, bool(colors), present)
    for found, what in ((colors, "colors"), (counts, "values")):
        if len(found) > MAX_COLORS:
            raise DataError(f"more than {MAX_COLORS} {what}: this is not a label map",
                            shown(pairs[0].label), "store labels as PNG, without smoothing; are "
                            "--images and --labels exchanged?")
    if counts and colors:
        raise DataError("some labels are color pictures, others contain class ids",
                        shown(pairs[0].label.parent), "store all labels in the same way")
    return _Contents(dict(colors), True, False, present)


def _voc_lists(pairs) -> tuple[SplitLists | None, list[str]]:
    """(the lists of VOC's layout beside the labels, remarks).

    ROOT/ImageSets/Segmentation has train.txt and val.txt, with the names of files in
    ROOT/SegmentationClass. Lists that do not have each name once are not used, which is said.
    """
    folders = (above / _VOC_LISTS for above in pairs[0].label.parents[:3])
    folder = next((one for one in folders if all((one / f"{part}.txt").is_file()
                                                 for part in PARTS[:2])), None)
    if folder is None:
        return None, []
    parts: dict[str, list[str]] = {}
    for part in PARTS:
        try:
            with open(folder / f"{part}.txt", encoding="utf-8-sig") as file:
                for line in file.read(_MOST_NAMES_BYTES).split():
                    parts.setdefault(line, []).append(part)
        except (OSError, ValueError):
            continue
    found = {pair.stem: parts.get(pair.label.stem, []) for pair in pairs}
    wrong = [stem for stem, several in found.items() if len(several) != 1]
    if wrong or not all(any(part in several for several in found.values()) for part in PARTS[:2]):
        return None, [f"the lists of {shown(folder)} are not used: {len(wrong)} of "
                      f"{len(pairs)} images are in none of them, or in several"]
    return SplitLists({stem: one for stem, (one,) in found.items()}, shown(folder)), []


def _mask_contents(pairs, threshold):
    """The values 0 and 1 of masks that were stored as JPEG."""
    counts, present = Counter({0: 0, 1: 0}), {}
    for pair in evenly_spaced(pairs, LABELS_READ):
        mask = read_mask(pair.label, threshold)
        light = int(mask.sum())
        counts.update({0: mask.size - light, 1: light})
        present[pair.stem] = frozenset(np.unique(mask).tolist())
    return _Contents(dict(counts), False, False, present)


def _classes_of_masks(contents, threshold):
    names = ["background", "foreground"]
    share = contents.pixels[1] / sum(contents.pixels.values())
    return Classes(names, class_palette(names), None, [], [],
                   f"JPEG masks of black and white: gray {threshold} to 255 is the foreground "
                   f"({100 * share:.2g} %)")


def _refuse_smoothed(mixed, judged, in_color):
    """Raise DataError if many of the labels that were judged contain mixed values."""
    if len(mixed) < max(min(2, judged), SMOOTHED_FROM * judged):
        return
    path, found = max(mixed, key=lambda entry: entry[1].share)
    areas = listed(found.areas, 4, text=(lambda c: f"({c >> 16}, {c >> 8 & 255}, {c & 255})")
                   if in_color else str)
    what = "colors" if in_color else "values"
    raise DataError(
        f"{len(mixed)} of {judged} labels were smoothed or stored as JPEG: between their {what} "
        f"{areas} lie {found.count} other {what}, along borders only, on "
        f"{100 * found.share:.2g} % of the pixels", shown(path),
        "make the labels again as PNG without smoothing (resize with nearest neighbor, draw "
        "without soft edges), or give each pixel the nearest of the true values: for a mask of 0 "
        "and 255, 255 from 128 on")


def _classes_of_values(contents, pairs):
    counts = contents.pixels
    values = sorted(counts)
    total = sum(counts.values())
    shares = listed(values, 20, text=lambda v: f"{v} ({100 * counts[v] / total:.2g} %)")
    if len(values) == 1:
        raise DataError(f"every pixel of the labels has the value {values[0]}",
                        shown(pairs[0].label.parent), "training needs at least two classes")
    if len(values) == 2 and values[0] == 0 and (values[1] > 1 or contents.equal_channels):
        names = ["background", "foreground"]
        return Classes(names, class_palette(names), values, [], [],
                       f"binary masks of 0 and {values[1]}: {values[1]} is the foreground")
    # 255 far above the others means "no class"; beside 0 and 128 it is one of the gray values.
    others = [value for value in values if value != IGNORED]
    gap = int(np.diff([0, *others]).max())
    ignored = [IGNORED] if IGNORED in values and len(others) > 1 \
        and IGNORED - others[-1] > GRAY_GAPS * gap else []
    kept = [value for value in values if value not in ignored]
    known = _known_names(pairs[0].label, kept[-1])
    # Values with few gaps, or with names, are class ids; the missing ones may be rare classes.
    are_ids = known is not None or kept[-1] < 2 * len(kept)
    remark = f"values {shares}"
    if ignored:
        remark += f"; {IGNORED} is ignored (\"label_ids\" can make it a class)"
    elif IGNORED in values:
        remark += (f"\n  {IGNORED} is a class: if it means \"no class\", move it from "
                   "\"label_ids\" to \"ignore_ids\", and remove its name and color")
    count = len(known.names) if known else kept[-1] + 1
    named = list(range(count)) if are_ids else kept
    palette = _stored_palette(pairs[0].label, named)
    # A palette without label_ids would be taken for the colors of labels stored in color.
    label_ids = None if are_ids and not contents.equal_channels else named
    names = known.names if known else [f"class {value}" for value in named]
    if known:
        remark += f"\n  {known.origin}"
    if palette is None and background_of(names) is not None:
        remark += ("\n  class 0 is black, and pictures leave it unpainted: give it a color in the "
                   "class file if it is not the background")
    return Classes(names, palette or class_palette(names), label_ids,
                   ignored if label_ids else [], [], remark)


def _classes_of_colors(contents):
    total = sum(contents.pixels.values())
    kept = sorted(contents.pixels)
    colors = [[color >> 16, color >> 8 & 255, color & 255] for color in kept]
    shares = listed(range(len(kept)), 20, text=lambda i: (
        f"{tuple(colors[i])} ({100 * contents.pixels[kept[i]] / total:.2g} %)"))
    return Classes(["color {} {} {}".format(*color) for color in colors], colors, None, [], [],
                   f"color labels: {shares}\n  if a color means \"no class\", move it from "
                   "\"palette\" to \"ignore_colors\", and remove its name")


def _shown_classes(contents, classes) -> dict[str, frozenset[str]]:
    """stem -> the names of the classes in its label, of the labels that were read."""
    if contents.in_color:
        names = {(r << 16) + (g << 8) + b: name
                 for (r, g, b), name in zip(classes.palette, classes.names, strict=True)}
    else:
        names = dict(zip(classes.label_ids or range(len(classes.names)), classes.names,
                         strict=True))
        names |= {value * 0x010101: name for value, name in names.items() if value < 256}
    return {stem: frozenset(names[value] for value in values if value in names)
            for stem, values in contents.present.items()}


def _known_names(label, highest) -> _Names | None:
    """The names that files beside the labels, or VOC's own folder and palette, give to class ids.

    label: one of the files. highest: the largest id in them.
    """
    for folder in label.parents[:2]:
        try:
            with open(folder / _NAMES_FILE, encoding="utf-8") as file:
                names = [line.strip() for line in file.read(_MOST_NAMES_BYTES).splitlines()]
        except (OSError, ValueError):
            continue
        if len(names) > highest and mistake_in(names) is None:
            return _Names(names, f"the names are those of {shown(folder / _NAMES_FILE)}")
    if "SegmentationClass" in label.parts and highest < _VOC_CLASSES and \
            _stored_palette(label, range(_VOC_CLASSES)) == voc_palette(_VOC_CLASSES):
        return _Names(load("dataloader.voc:CLASS_NAMES"),
                      "the folder SegmentationClass and the palette are those of PASCAL VOC: the "
                      "names of its 21 classes are proposed")
    return None


def _stored_palette(path, values):
    """The colors of these values in a palette PNG, or None if two of them are the same."""
    with pillow_open(path, path) as image:
        stored = image.getpalette() if image.mode == "P" else None
    if not stored or len(stored) < 3 * (max(values) + 1):
        return None
    palette = [stored[3 * value:3 * value + 3] for value in values]
    return palette if len(set(map(tuple, palette))) == len(palette) else None


def _pixel_statistics(pairs):
    """Mean and standard deviation of each channel (R, G, B) of pixels in 0..1."""
    mean, variance = moments(read_image(pair.image)[::4, ::4] / 255.0
                             for pair in evenly_spaced(pairs, IMAGES_READ))
    std = np.sqrt(np.maximum(variance, 1e-4))
    return mean.round(4).tolist(), std.round(4).tolist()


def _class_file(classes, mean, std, more, annotated):
    parts = [("names", classes.names), ("palette", classes.palette)]
    parts += [(key, getattr(classes, key)) for key in ("label_ids", "ignore_ids", "ignore_colors")
              if getattr(classes, key)]
    parts += [*more.items(), ("mean", mean), ("std", std)]
    body = ",\n".join(f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in parts)
    meaning = ("categories: the category of the\n"
               "// annotations, or a list; ignore_categories, unused_categories: the others.\n"
               if annotated else "label_ids: the stored value(s) of each class,\n"
               "// if they are not 0, 1, 2, …; ignore_ids, ignore_colors: pixels without a "
               "class.\n")
    return f"// Class i is the i-th of each list. {meaning}{{\n{body}\n}}\n"


def _rarest_share(contents, classes):
    """The smallest share of the labeled pixels that a value or color has."""
    ignored = {*classes.ignore_ids, *((r << 16) + (g << 8) + b
                                      for r, g, b in classes.ignore_colors)}
    counts = [count for value, count in contents.pixels.items() if value not in ignored]
    return min(counts) / sum(counts)


def _config_text(source, files, split, sizes, rarest):
    height, width = _typical_size(sizes)
    base = min(LONG_SIDE, max(height, width))
    zoom = base / max(height, width)
    crop = [max(32, 32 * math.floor(side * zoom / 32)) for side in (height, width)]
    batch = max(2, min(8, len(split["train"])))
    steps = min(MOST_EPOCHS * math.ceil(len(split["train"]) / batch), MOST_STEPS)
    per_epoch = max(1, len(split["train"]) // batch)    # the loader drops an incomplete batch
    epochs = math.ceil(steps / per_epoch)
    length = f"{epochs} epochs" if steps > per_epoch else f"of {per_epoch} in an epoch"
    common = {**source.arguments, "classes": files["classes"].name}
    weights = (f"  // One class covers {100 * rarest:.2g} % of the pixels. If its score stays 0, "
               "weights help:\n"
               f"  // python -m tools.class_statistics -c {files['config'].as_posix()} prints them."
               "\n" if rarest < RARE else "")
    shared = "".join(f'      {json.dumps(key)}: {_json(value)},\n'
                     for key, value in common.items())
    # If all images have one size and are trained at it, validation needs no resizing.
    resized = f'"base_size": {base}, ' if zoom < 1 or len(sizes) > 1 else ""
    val_resize = f', {resized.strip(", ")}' if resized else ""
    scaled = "base_size (the long side)" if resized else "the image"
    evaluated = "".join(f"""\
  "{name}_loader": {{
    "type": "{source.type}",
    "args": {{
{shared}      "split": "{name}", "list_file": {_json(files[name].name)},
      // Whole images, at the size used for training.
      "batch_size": {batch}, "num_workers": 1{val_resize}
    }}
  }},
""" for name in ("val", "test") if name in split)
    return f"""\
// Written by train.py --init. Run: python train.py --config {files['config'].as_posix()}
// Paths are relative to this file; sizes are [height, width].
{{
  "name": {_json(files['config'].stem)},
  // Small enough for a CPU. python train.py --list models shows the others.
  "arch": {{"type": "ENet"}},
  "train_loader": {{
    "type": "{source.type}",
    "args": {{
{shared}      "split": "train", "list_file": {_json(files['train'].name)},
      "batch_size": {batch}, "shuffle": true, "num_workers": 2,
      // Random scale 0.5 to 2 of {scaled}, a crop of crop_size, mirroring.
      "augment": true, {resized}"crop_size": {crop}, "scale": true, "flip": true
    }}
  }},
{evaluated}\
  "optimizer": {{"type": "AdamW", "args": {{"lr": 2e-3, "weight_decay": 1e-4}}}},
  "lr_scheduler": {{"type": "OneCycle"}},
{weights}\
  "loss": "CrossEntropyLoss2d",
  "ignore_index": {IGNORED},
  "trainer": {{
    // Steps of {batch} images, {length}. More of them score higher.
    "iterations": {steps}, "save_dir": "saved", "monitor": "max Mean_IoU",
    "val_per_epochs": {max(1, epochs // 10)}, "log_per_iter": 10
  }}
}}
"""


def _study_text(files, folds, with_test):
    """The study that trains on each fold and scores all held-out images in one table."""
    lines = ",\n".join(
        f"    \"{number}\": " + json.dumps([
            f"{loader}.args.list_file={files[name, number].name}"
            for loader, name in (("train_loader", "train"), ("val_loader", "val"))],
            ensure_ascii=False) for number in range(1, folds + 1))
    tested = '  "test": ["--split", "val"],     // not the test_loader of the config\n' \
        if with_test else ""
    return f"""\
// Written by train.py --init. Run: python -m tools.study {files['study'].as_posix()}
// Each image is scored once, by the network that was not trained on it.
{{
  "name": {_json(f"{files['config'].stem}_folds")},
  "config": {_json(files['config'].name)},
  // A network is tested as it is after the last step: the best one on the held-out images would
  // be chosen by what it is scored on.
  "overrides": ["trainer.monitor=off"],
{tested}\
  "seeds": 1,
  "folds": {{
{lines}
  }}
}}
"""


def _json(value):
    """JSON with letters of all alphabets; a name that is not UTF-8 is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _beside(config, folder):
    """A folder as the config names it: absolute as given, or relative to the folder of the config.

    That is how the config's reader takes a path.
    """
    if os.path.isabs(folder):
        return Path(folder).as_posix()
    return Path(os.path.relpath(folder, config.parent)).as_posix()


def _annotations_place(config, data_dir, below):
    """`below`, a path relative to data_dir, or a path as data_dir has it.

    The latter if another place has something of that name too, such as ".", which would be found
    first: the folder of the config, or the current one. (If what is found there is the same, the
    reader of the config would still say at each start that it is not beside the config.)
    """
    first = Path(below).parts[:1]
    own, beside, here = (Path(folder, *first) for folder in (data_dir, config.parent, "."))
    if not first or any(one.exists() and not (own.exists() and one.samefile(own))
                        for one in (beside, here)) or here.exists() and not beside.exists():
        return _beside(config, Path(data_dir, below))
    return below


def _name_arguments(rule):
    """The arguments of Folder for the names of a rule; none for equal names."""
    arguments = {}
    for kind, pattern in zip(("image", "label"), rule, strict=True):
        ending = re.fullmatch(r"\*([^*/]*)", pattern)
        if ending and os.path.splitext(pattern)[1].lower() not in IMAGE_SUFFIXES:
            arguments |= {f"{kind}_ending": ending[1]} if ending[1] else {}
        else:
            arguments[f"{kind}_pattern"] = pattern
    return arguments


def _typical_size(sizes):
    """(median height, median width)."""
    heights, widths = (np.repeat([size[i] for size in sizes], list(sizes.values()))
                       for i in (0, 1))
    return int(np.median(heights)), int(np.median(widths))


def _common_folder(images, labels):
    """(data_dir, image_dir, label_dir): the common parent, and both folders relative to it."""
    if images.is_absolute() != labels.is_absolute():
        images, labels = images.absolute(), labels.absolute()
    images, labels = os.path.normpath(images), os.path.normpath(labels)
    top = os.path.commonpath([images, labels]) or "."
    return (Path(top).as_posix(), Path(os.path.relpath(images, top)).as_posix(),
            Path(os.path.relpath(labels, top)).as_posix())


def _sizes_text(sizes):
    return listed(sizes.most_common(), 4,
                  text=lambda entry: f"{size_text(entry[0])} ({entry[1]})")
