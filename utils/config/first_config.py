"""Writes a first config for a folder of images and a folder of labels.

Writes four files, all meant to be edited: the config, a class file (names, colors, and the class
of each stored value) and the image names of the two splits.
"""
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import ConfigError, DataError, listed, shown
from utils.files.whole_file import write_bytes
from utils.images.headers import FORMATS, read_header
from utils.images.image_io import read_image, read_label, read_label_colors
from utils.images.palette import voc_palette
from utils.images.picture_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, evenly_spaced, picture_files

LABELS_READ = 400           # at most, evenly spaced; small datasets are read completely
IMAGES_READ = 60            # at most, evenly spaced; for mean and standard deviation
MAX_COLORS = 256
VAL_EVERY = 5               # one pair in five is for validation
LONG_SIDE = 512             # larger images are trained at this size, so that a CPU is fast enough
IGNORED = 255


class Pair(NamedTuple):
    """An image and its label of the same size. size: (height, width) in pixels."""

    stem: str
    image: Path
    label: Path
    size: tuple[int, int]


class Classes(NamedTuple):
    """The contents of the class file. remark: the line about it that is printed."""

    names: list[str]
    palette: list[list[int]]
    label_ids: list[int] | None
    ignore_ids: list[int]
    ignore_colors: list[list[int]]
    remark: str


def make_config(images: str, labels: str, out: str):
    """Write the config `out` (JSON) and the files it needs; print a summary.

    images, labels: folders. Raises ConfigError if one of the files exists, DataError if there are
    no pairs or if the labels are not label maps.
    """
    image_folder, label_folder = Path(images), Path(labels)
    files = _output_files(Path(out))
    for folder, flag in ((image_folder, "--images"), (label_folder, "--labels")):
        if not folder.is_dir():
            raise DataError(f"no such folder: {shown(folder)}", flag)
    pairs, endings, unpaired = _find_pairs(image_folder, label_folder)
    split, origin = _split(pairs)
    counts, colors = _label_contents(pairs)
    classes = _classes_of_colors(colors) if colors else _classes_of_values(counts, pairs)
    sizes = Counter(pair.size for pair in pairs)
    mean, std = _pixel_statistics(pairs)

    write_bytes(files["classes"], _class_file(classes, mean, std).encode())
    for name, stems in split.items():
        write_bytes(files[name], "".join(f"{stem}\n" for stem in stems)
                    .encode("utf-8", "surrogateescape"))
    write_bytes(files["config"], _config_text(image_folder, label_folder, endings, files, split,
                                              sizes).encode())

    print(f"{len(pairs)} pairs of image and label"
          + (f" ({unpaired} images without a usable label are left out)" if unpaired else ""))
    print(f"sizes: {_sizes_text(sizes)}")
    print(f"split: {len(split['train'])} train, {len(split['val'])} val, {origin}")
    print(f"classes: {len(classes.names)}; {classes.remark}")
    for path in files.values():
        print(f"wrote {shown(path)}")
    print(f"Edit the class names in {shown(files['classes'])}, then:\n"
          f"  python train.py --config {shown(files['config'])}")


def _output_files(config):
    """{"config", "classes", "train", "val"} -> path. Raises ConfigError if one of them exists."""
    base = config.with_suffix("")
    files = {"config": config, "classes": Path(f"{base}.classes.json"),
             "train": Path(f"{base}.train.txt"), "val": Path(f"{base}.val.txt")}
    for path in files.values():
        if path.exists():
            raise ConfigError(f"{path} exists and would be overwritten", "--init",
                              "remove it or choose another name")
    return files


def _find_pairs(images, labels):
    """(usable pairs, their (image, label) name endings, number of images without a pair)."""
    files = picture_files(images, IMAGE_SUFFIXES)
    names = {"image": _stems(files, images),
             "label": _stems(picture_files(labels, LABEL_SUFFIXES), labels)}
    for kind, folder in (("image", images), ("label", labels)):
        if not names[kind]:
            raise DataError(f"no {kind} files below {shown(folder)}", f"--{kind}s")
    endings = max(_possible_endings(names), key=lambda pair: (
        len(_common(names, *pair)), -len(pair[0]) - len(pair[1])))
    candidates = (_pair(stem, names["image"][stem + endings[0]], names["label"][stem + endings[1]])
                  for stem in sorted(_common(names, *endings)))
    pairs = [pair for pair in candidates if pair]
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} pairs: image names such as {_example(names['image'])}, "
                        f"label names such as {_example(names['label'])}", f"{shown(images)}, "
                        f"{shown(labels)}", "a label must have the size of its image and its name, "
                        "apart from the extension and one fixed ending")
    return pairs, endings, len(files) - len(pairs)


def _possible_endings(names):
    """Candidates (image ending, label ending): empty, common to all names, added by labels."""
    shared = {kind: ["", _shared_ending(stems)] for kind, stems in names.items()}
    endings = {(one, two) for one in shared["image"] for two in shared["label"]}
    added = Counter()
    for name in names["label"]:
        stem = next((name[:cut] for cut in range(len(name), 0, -1)
                     if name[:cut] in names["image"]), None)
        if stem:
            added[name[len(stem):]] += 1
    return endings | {("", ending) for ending, _ in added.most_common(3)}


def _shared_ending(names):
    """The common ending of all names, from its first separator on."""
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
    separators = [shared.find(mark) for mark in "_-." if mark in shared]
    return shared[min(separators):] if separators and len(names) > 1 else ""


def _common(names, image_ending, label_ending):
    """The names, without their endings, that images and labels share."""
    stems = [{name.removesuffix(ending) for name in names[kind] if name.endswith(ending)}
             for kind, ending in (("image", image_ending), ("label", label_ending))]
    return stems[0] & stems[1]


def _stems(files, folder):
    return {os.path.splitext(path.relative_to(folder).as_posix())[0]: path for path in files}


def _pair(stem, image_path, label_path):
    """The Pair; None if a file is unreadable or the sizes differ."""
    try:
        image, label = read_header(image_path), read_header(label_path)
    except DataError:
        return None
    fits = label.size in (image.size, image.stored_size)
    return Pair(stem, image_path, label_path, image.size) if fits else None


def _split(pairs):
    """({"train": stems, "val": stems}, a text about their origin).

    Sub-folders train and val are used if they exist; otherwise one name in five is drawn for
    validation, the same ones each time.
    """
    by_folder: dict[str, list[str]] = {}
    for pair in pairs:
        by_folder.setdefault(pair.stem.split("/")[0].lower() if "/" in pair.stem else "",
                             []).append(pair.stem)
    train = by_folder.get("train") or by_folder.get("training")
    val = by_folder.get("val") or by_folder.get("valid") or by_folder.get("validation")
    if train and val:
        return {"train": train, "val": val}, "by the sub-folders of the data"
    stems = [pair.stem for pair in pairs]
    order = np.random.default_rng(0).permutation(len(stems))
    drawn = set(order[:max(1, len(stems) // VAL_EVERY)].tolist())
    return ({"train": [stem for i, stem in enumerate(stems) if i not in drawn],
             "val": [stem for i, stem in enumerate(stems) if i in drawn]},
            "drawn at random (do not split the frames of one video like this: edit the lists)")


def _label_contents(pairs):
    """(value -> pixels, color -> pixels) over the labels; one of the two is empty."""
    counts, colors = Counter(), Counter()
    for pair in evenly_spaced(pairs, LABELS_READ):
        label_colors = read_label_colors(pair.label)
        if label_colors is None:
            values, pixels = np.unique(read_label(pair.label), return_counts=True)
            counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        else:
            colors.update(label_colors)
            if len(colors) > MAX_COLORS:
                raise DataError(f"more than {MAX_COLORS} colors: this is not a label map",
                                shown(pair.label), "store labels as PNG, without smoothing; are "
                                "--images and --labels exchanged?")
    if counts and colors:
        raise DataError("some labels are color pictures, others contain class ids",
                        shown(pairs[0].label.parent), "store all labels in the same way")
    if len(counts) > MAX_COLORS:
        raise DataError(f"more than {MAX_COLORS} values: this is not a label map",
                        shown(pairs[0].label.parent), "are --images and --labels exchanged?")
    return counts, colors


def _classes_of_values(counts, pairs):
    values = sorted(counts)
    total = sum(counts.values())
    shares = listed(values, 20, text=lambda v: f"{v} ({100 * counts[v] / total:.2g} %)")
    if len(values) == 2 and values[0] == 0:
        return Classes(["background", "foreground"], voc_palette(2), values, [], [],
                       f"binary masks of 0 and {values[1]}: {values[1]} is the foreground")
    ignored = [IGNORED] if IGNORED in values and len(values) > 2 else []
    kept = [value for value in values if value not in ignored]
    remark = f"values {shares}" + (f"; {IGNORED} is ignored" if ignored else "")
    # Values with few gaps are class ids; the missing ones may be rare classes.
    are_ids = kept[-1] < 2 * len(kept)
    count = kept[-1] + 1 if are_ids else len(kept)
    palette = _stored_palette(pairs[0].label, range(count) if are_ids else kept)
    names = [f"class {value}" for value in (range(count) if are_ids else kept)]
    return Classes(names, palette or voc_palette(count), None if are_ids else kept,
                   [] if are_ids else ignored, [], remark)


def _classes_of_colors(colors):
    total = sum(colors.values())
    kept = sorted(colors)
    shares = listed(kept, 20, text=lambda c: f"{c} ({100 * colors[c] / total:.2g} %)")
    return Classes([f"color {r} {g} {b}" for r, g, b in kept], [list(c) for c in kept], None, [],
                   [], f"color labels: {shares}; move a color that "
                   "means \"no class\" from \"palette\" (and its name) to \"ignore_colors\"")


def _stored_palette(path, values):
    """The colors of these values in a palette PNG, or None if two of them are the same."""
    from PIL import Image
    with Image.open(path, formats=FORMATS) as image:
        stored = image.getpalette() if image.mode == "P" else None
    if not stored or len(stored) < 3 * (max(values) + 1):
        return None
    palette = [stored[3 * value:3 * value + 3] for value in values]
    return palette if len(set(map(tuple, palette))) == len(palette) else None


def _pixel_statistics(pairs):
    """Mean and standard deviation of each channel (R, G, B) of pixels in 0..1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for pair in evenly_spaced(pairs, IMAGES_READ):
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
            "// if they are not 0, 1, 2, …; ignore_ids, ignore_colors: pixels without a class.\n"
            f"{{\n{body}\n}}\n")


def _config_text(images, labels, endings, files, split, sizes):
    height, width = _typical_size(sizes)
    base = min(LONG_SIDE, max(height, width))
    zoom = base / max(height, width)
    crop = [max(32, 32 * math.floor(side * zoom / 32)) for side in (height, width)]
    epochs = max(20, min(60, 3000 // len(split["train"])))
    data_dir, image_dir, label_dir = _common_folder(images, labels)
    batch = max(2, min(8, len(split["train"])))
    common = {"data_dir": data_dir, "image_dir": image_dir, "label_dir": label_dir,
              "classes": files["classes"].as_posix()}
    common |= {key: value for key, value
               in zip(("image_ending", "label_ending"), endings, strict=True) if value}
    shared = "".join(f'      {json.dumps(key)}: {json.dumps(value)},\n'
                     for key, value in common.items())
    # If all images have one size and are trained at it, validation needs no resizing.
    resized = f'"base_size": {base}, ' if zoom < 1 or len(sizes) > 1 else ""
    val_resize = f', {resized.strip(", ")}' if resized else ""
    return f"""\
// Written by train.py --init. Run: python train.py --config {files['config'].as_posix()}
{{
  "name": {json.dumps(files['config'].stem)},
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
      // Whole images, at the size used for training.
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
                  text=lambda entry: "{1}x{0} ({2})".format(*entry[0], entry[1]))


def _example(files):
    return shown(next(iter(files.values())).name)
