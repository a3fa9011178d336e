"""Looks at a folder of images and one of labels, and writes a config that trains on them.

Four files come out: the config, a class file (names, colours, which stored
value is which class) and the names of the two splits. All are meant to be edited.
"""
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import ConfigError, DataError
from utils.image_io import (FORMATS, IMAGE_SUFFIXES, LABEL_SUFFIXES, picture_files, read_header,
                            read_image, read_label, read_label_colours, shown, write_bytes)
from utils.palette import voc_palette
from utils.spread import spread

LABELS_READ = 400           # at most, evenly spread; all of them in small datasets
IMAGES_READ = 60            # for mean and standard deviation
MOST_COLOURS = 256
VAL_EVERY = 5               # one pair in five validates
LONG_SIDE = 512             # larger images are trained at this size: a CPU has to keep up
IGNORED = 255


class Pair(NamedTuple):
    """An image and its label, of one size (height, width)."""

    stem: str
    image: Path
    label: Path
    size: tuple[int, int]


class Classes(NamedTuple):
    """What the class file will say, and what to tell about it."""

    names: list
    palette: list
    label_ids: list | None
    ignore_ids: list
    ignore_colors: list
    remark: str


def make_config(images: str, labels: str, out: str):
    """Write `out` (JSON) and the files it needs; print what was found.

    ConfigError: a file of that name exists. DataError: no pairs, or labels
    that are no label maps.
    """
    out, images, labels = Path(out), Path(images), Path(labels)
    base = out.with_suffix("")
    files = {"config": out, "classes": Path(f"{base}.classes.json"),
             "train": Path(f"{base}.train.txt"), "val": Path(f"{base}.val.txt")}
    for path in files.values():
        if path.exists():
            raise ConfigError(f"{path} exists and would be overwritten", "--init",
                              "remove it or choose another name")
    for folder, flag in ((images, "--images"), (labels, "--labels")):
        if not folder.is_dir():
            raise DataError(f"no such folder: {shown(folder)}", flag)
    pairs, endings, unpaired = _find_pairs(images, labels)
    split, place = _split(pairs)
    counts, colours = _label_contents(pairs)
    classes = _classes_of_colours(colours) if colours else _classes_of_values(counts, pairs)
    sizes = Counter(pair.size for pair in pairs)
    mean, std = _pixel_statistics(pairs)

    write_bytes(files["classes"], _class_file(classes, mean, std).encode())
    for name, stems in split.items():
        write_bytes(files[name], "".join(f"{stem}\n" for stem in stems)
                    .encode("utf-8", "surrogateescape"))
    write_bytes(out, _config_text(out.stem, images, labels, endings, files, split, sizes).encode())

    print(f"{len(pairs)} pairs of image and label"
          + (f" ({unpaired} images without a usable label are left out)" if unpaired else ""))
    print(f"sizes: {_sizes_text(sizes)}")
    print(f"split: {len(split['train'])} train, {len(split['val'])} val, {place}")
    print(f"classes: {len(classes.names)}; {classes.remark}")
    for path in files.values():
        print(f"wrote {shown(path)}")
    print(f"Edit the class names in {shown(files['classes'])}, then:\n"
          f"  python train.py --config {shown(out)}")


def _find_pairs(images, labels):
    """Every usable pair, the (image, label) name endings that pair them, and how many images
    are in none."""
    files = picture_files(images, IMAGE_SUFFIXES)
    found = {"image": _stems(files, images),
             "label": _stems(picture_files(labels, LABEL_SUFFIXES), labels)}
    for kind, folder in (("image", images), ("label", labels)):
        if not found[kind]:
            raise DataError(f"no {kind} files below {shown(folder)}", f"--{kind}s")
    endings = max(_possible_endings(found), key=lambda pair: (
        len(_common(found, *pair)), -len(pair[0]) - len(pair[1])))
    candidates = (_pair(stem, found["image"][stem + endings[0]], found["label"][stem + endings[1]])
                  for stem in sorted(_common(found, *endings)))
    pairs = [pair for pair in candidates if pair]
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} pairs: image names such as {_example(found['image'])}, "
                        f"label names such as {_example(found['label'])}", f"{shown(images)}, "
                        f"{shown(labels)}", "a label needs the name of its image, the extension "
                        "and one fixed ending aside, and its size")
    return pairs, endings, len(files) - len(pairs)


def _possible_endings(found):
    """(image ending, label ending) candidates: none, what all names share, what labels add."""
    shared = {kind: ["", _shared_ending(names)] for kind, names in found.items()}
    endings = {(one, two) for one in shared["image"] for two in shared["label"]}
    added = Counter()
    for name in found["label"]:
        stem = next((name[:cut] for cut in range(len(name), 0, -1)
                     if name[:cut] in found["image"]), None)
        if stem:
            added[name[len(stem):]] += 1
    return endings | {("", ending) for ending, _ in added.most_common(3)}


def _shared_ending(names):
    """The end that all names have in common, from its first separator on."""
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
    places = [shared.find(mark) for mark in "_-." if mark in shared]
    return shared[min(places):] if places and len(names) > 1 else ""


def _common(found, image_ending, label_ending):
    stems = [{name.removesuffix(ending) for name in found[kind] if name.endswith(ending)}
             for kind, ending in (("image", image_ending), ("label", label_ending))]
    return stems[0] & stems[1]


def _stems(files, folder):
    return {os.path.splitext(path.relative_to(folder).as_posix())[0]: path for path in files}


def _pair(stem, image_path, label_path):
    """The Pair, or None where the two cannot be one."""
    try:
        image, label = read_header(image_path), read_header(label_path)
    except DataError:
        return None
    fits = label.size in (image.size, image.stored_size)
    return Pair(stem, image_path, label_path, image.size) if fits else None


def _split(pairs):
    """{"train": stems, "val": stems} and where they come from.

    Sub-folders train and val are kept; otherwise every fifth of the shuffled
    names validates, the same ones each time.
    """
    by_folder = {}
    for pair in pairs:
        by_folder.setdefault(pair.stem.split("/")[0].lower() if "/" in pair.stem else "",
                             []).append(pair.stem)
    train = by_folder.get("train") or by_folder.get("training")
    val = by_folder.get("val") or by_folder.get("valid") or by_folder.get("validation")
    if train and val:
        return {"train": train, "val": val}, "by the sub-folders of the data"
    stems = [pair.stem for pair in pairs]
    order = np.random.default_rng(0).permutation(len(stems))
    chosen = set(order[:max(1, len(stems) // VAL_EVERY)].tolist())
    return ({"train": [stem for i, stem in enumerate(stems) if i not in chosen],
             "val": [stem for i, stem in enumerate(stems) if i in chosen]},
            "drawn at random (frames of one video must not be split like this: edit the lists)")


def _label_contents(pairs):
    """(value -> pixels, colour -> pixels) over the labels; one of the two is empty."""
    counts, colours = Counter(), Counter()
    for pair in spread(pairs, LABELS_READ):
        found = read_label_colours(pair.label)
        if found is None:
            values, pixels = np.unique(read_label(pair.label), return_counts=True)
            counts.update(dict(zip(values.tolist(), pixels.tolist())))
        else:
            colours.update(found)
            if len(colours) > MOST_COLOURS:
                raise DataError(f"more than {MOST_COLOURS} colours: this is no label map",
                                shown(pair.label), "store labels as PNG, without smoothing; are "
                                "--images and --labels exchanged?")
    if counts and colours:
        raise DataError("some labels are colour pictures, others hold class ids",
                        shown(pairs[0].label.parent), "store all of them in one way")
    if len(counts) > MOST_COLOURS:
        raise DataError(f"more than {MOST_COLOURS} values: this is no label map",
                        shown(pairs[0].label.parent), "are --images and --labels exchanged?")
    return counts, colours


def _classes_of_values(counts, pairs):
    values = sorted(counts)
    total = sum(counts.values())
    listed = ", ".join(f"{v} ({100 * counts[v] / total:.2g} %)" for v in values[:20])
    listed += " …" if len(values) > 20 else ""
    if len(values) == 2 and values[0] == 0:
        return Classes(["background", "foreground"], voc_palette(2), values, [], [],
                       f"binary masks of 0 and {values[1]}: {values[1]} is the foreground")
    ignored = [IGNORED] if IGNORED in values and len(values) > 2 else []
    kept = [value for value in values if value not in ignored]
    remark = f"values {listed}" + (f"; {IGNORED} is ignored" if ignored else "")
    # Values that leave few gaps are class ids as they stand; a class may be rare.
    as_they_are = kept[-1] < 2 * len(kept)
    count = kept[-1] + 1 if as_they_are else len(kept)
    palette = _stored_palette(pairs[0].label, range(count) if as_they_are else kept)
    names = [f"class {value}" for value in (range(count) if as_they_are else kept)]
    return Classes(names, palette or voc_palette(count), None if as_they_are else kept,
                   [] if as_they_are else ignored, [], remark)


def _classes_of_colours(colours):
    total = sum(colours.values())
    kept = sorted(colours)
    listed = ", ".join(f"{c} ({100 * colours[c] / total:.2g} %)" for c in kept[:20])
    return Classes([f"colour {r} {g} {b}" for r, g, b in kept], [list(c) for c in kept], None, [],
                   [], f"colour labels: {listed}{' …' if len(kept) > 20 else ''}; move a colour "
                   "that means \"no class\" from \"palette\" (and its name) to \"ignore_colors\"")


def _stored_palette(path, values):
    """The colours a palette PNG shows these values in, if they are all different."""
    from PIL import Image
    with Image.open(path, formats=FORMATS) as image:
        stored = image.getpalette() if image.mode == "P" else None
    if not stored or len(stored) < 3 * (max(values) + 1):
        return None
    palette = [stored[3 * value:3 * value + 3] for value in values]
    return palette if len(set(map(tuple, palette))) == len(palette) else None


def _pixel_statistics(pairs):
    """Mean and standard deviation per channel, in 0..1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for pair in spread(pairs, IMAGES_READ):
        pixels = read_image(pair.image)[::4, ::4].reshape(-1, 3) / 255.0
        total += pixels.sum(0)
        squares += (pixels ** 2).sum(0)
        count += len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean ** 2, 1e-4))
    return mean.round(4).tolist(), std.round(4).tolist()


def _class_file(classes, mean, std):
    parts = [("names", classes.names), ("palette", classes.palette)]
    parts += [(key, getattr(classes, key)) for key in ("label_ids", "ignore_ids", "ignore_colors")
              if getattr(classes, key)]
    parts += [("mean", mean), ("std", std)]
    body = ",\n".join(f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in parts)
    return ("// Class i is the i-th of each list. label_ids: the stored value(s) of each class,\n"
            "// where they are not 0, 1, 2, …; ignore_ids, ignore_colors: what is no class.\n"
            f"{{\n{body}\n}}\n")


def _config_text(name, images, labels, endings, files, split, sizes):
    height, width = _typical_size(sizes)
    base = min(LONG_SIDE, max(height, width))
    zoom = base / max(height, width)
    crop = [max(32, 32 * math.floor(side * zoom / 32)) for side in (height, width)]
    epochs = max(20, min(60, 3000 // len(split["train"])))
    data_dir, image_dir, label_dir = _common_folder(images, labels)
    batch = max(2, min(8, len(split["train"])))
    common = {"data_dir": data_dir, "image_dir": image_dir, "label_dir": label_dir,
              "classes": files["classes"].as_posix()}
    common |= {key: value for key, value in zip(("image_ending", "label_ending"), endings) if value}
    shared = "".join(f'      {json.dumps(key)}: {json.dumps(value)},\n'
                     for key, value in common.items())
    # A single size that is trained as it is needs no resizing in validation.
    resized = f'"base_size": {base}, ' if zoom < 1 or len(sizes) > 1 else ""
    val_resize = f', {resized.strip(", ")}' if resized else ""
    return f"""\
// Written by train.py --init. Run: python train.py --config {files['config'].as_posix()}
{{
  "name": {json.dumps(name)},
  // Small enough for a CPU. python train.py --list models shows the others.
  "arch": {{"type": "ENet"}},
  "train_loader": {{
    "type": "Folder",
    "args": {{
{shared}      "split": "train", "list_file": {json.dumps(files['train'].as_posix())},
      "batch_size": {batch}, "shuffle": true, "num_workers": 2,
      // Random scale 0.5 to 2 of base_size (the long side), a crop of crop_size, mirroring.
      "augment": true, {resized}"crop_size": {crop}, "scale": true, "flip": true
    }}
  }},
  "val_loader": {{
    "type": "Folder",
    "args": {{
{shared}      "split": "val", "list_file": {json.dumps(files['val'].as_posix())},
      // Whole images, at the size they are trained at.
      "batch_size": {batch}, "num_workers": 1{val_resize}
    }}
  }},
  "optimizer": {{"type": "AdamW", "args": {{"lr": 2e-3, "weight_decay": 1e-4}}}},
  "lr_scheduler": {{"type": "OneCycle"}},
  "loss": "CrossEntropyLoss2d",
  "ignore_index": {IGNORED},
  "trainer": {{
    "epochs": {epochs}, "save_dir": "saved", "monitor": "max Mean_IoU",
    "val_per_epochs": {max(1, epochs // 10)}, "log_per_iter": 10
  }}
}}
"""


def _typical_size(sizes):
    """(height, width): the median of each."""
    heights, widths = (np.repeat([size[i] for size in sizes], list(sizes.values()))
                       for i in (0, 1))
    return int(np.median(heights)), int(np.median(widths))


def _common_folder(images, labels):
    """(data_dir, image_dir, label_dir) with the last two below the first, where they share one."""
    if images.is_absolute() != labels.is_absolute():
        images, labels = images.absolute(), labels.absolute()
    images, labels = os.path.normpath(images), os.path.normpath(labels)
    top = os.path.commonpath([images, labels]) or "."
    return (Path(top).as_posix(), Path(os.path.relpath(images, top)).as_posix(),
            Path(os.path.relpath(labels, top)).as_posix())


def _sizes_text(sizes):
    text = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(4))
    return text + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")


def _example(files):
    return shown(next(iter(files.values())).name)
