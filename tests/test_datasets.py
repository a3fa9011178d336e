"""Every dataset against the official layouts."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader.transforms import Augmentation
from utils.errors import ConfigError, DataError
from utils.image_io import write_image, write_label
from utils.registry import components

FACTS = Path(__file__).resolve().parents[1].parent / "shared" / "datasets"
needs_fixtures = pytest.mark.skipif(not (FACTS / "make_fixture.py").is_file(),
                                    reason="../shared/datasets/make_fixture.py is not here")
BROKEN = ("missing-label", "truncated-image", "wrong-size", "out-of-range-label", "empty-split",
          "rgb-label")
RNG = np.random.default_rng(0)

# fixture, split in its manifest, dataset, arguments, folder below the fixture's root
READINGS = [
    *(("voc2012", split, "VOC", {"split": split}, "")
      for split in ("train", "val", "test", "train_aug", "val_aug")),
    ("sbd", "train", "SBD", {"split": "train"}, ""),
    ("sbd", "val", "SBD", {"split": "val"}, ""),
    *(("pascal_context", split, name, {"split": split}, "")
      for split in ("train", "val") for name in ("VOC2010_Context", "VOC2010_Context_60")),
    *(("pascal_context", f"{split}_prepared", name, {"split": split}, "VOC2010_Context")
      for split in ("train", "val") for name in ("VOC2010_Context", "VOC2010_Context_60")),
    *((fixture, split, "CityScapes", {"split": split, "mode": "fine"}, "")
      for fixture in ("cityscapes", "cityscapes_plain") for split in ("train", "val", "test")),
    ("cityscapes_coarse", "coarse_train_extra", "Cityscapes_coarse", {"split": "train"}, ""),
    ("cityscapes_coarse", "coarse_train_extra", "CityScapes",
     {"split": "train_extra", "mode": "coarse"}, ""),
    ("cityscapes_coarse", "val", "Cityscapes_coarse", {"split": "val"}, ""),
    ("cityscapes_coarse", "val", "Cityscapes_fine_coarse", {"split": "val"}, ""),
    ("cityscapes_paddle", "autolabelled", "Cityscapes_autolabelled", {"split": "autolabelled"}, ""),
    ("cityscapes_paddle", "val", "CityscapesAutolabeling", {"split": "val"}, ""),
    *(("minicity", split, "MiniCity", {"split": split}, "") for split in ("train", "val", "test")),
    ("ade20k", "training", "ADE20K", {"split": "training"}, ""),
    ("ade20k", "validation", "ADE20K", {"split": "validation"}, ""),
    *(("coco_stuff_10k", split, "COCO",
       {"split": split, "partition": "CocoStuff10k", "num_classes": classes}, "")
      for split in ("train", "test") for classes in (171, 182)),
    *(("coco_stuff_164k", split, "COCO",
       {"split": split, "partition": "CocoStuff164k", "num_classes": classes}, "")
      for split in ("train2017", "val2017") for classes in (171, 182)),
    *(("lip", split, "LIP", {"split": split}, "") for split in ("train", "val", "test")),
    *(("camvid", split, "CamVid", {"split": split}, "") for split in ("train", "val", "test")),
]
FIXTURES = list(dict.fromkeys(reading[0] for reading in READINGS))
# What reads the sample that --broken damages, and the split that "empty-split" empties.
DAMAGED = {reading[0]: reading for reading in reversed(READINGS) if reading[1] in (
    "train", "training", "train2017", "coarse_train_extra", "autolabelled")}
EMPTIED = {reading[0]: reading for reading in reversed(READINGS) if reading[1] in (
    "val", "validation", "val2017") or (reading[0], reading[1]) == ("coco_stuff_10k", "test")}


def make_fixtures(out, names, *options):
    command = [sys.executable, str(FACTS / "make_fixture.py"), "--out", str(out), "--size", "48x32",
               "--dataset", *names, *options]
    subprocess.run(command, check=True, capture_output=True)
    return out


def manifest(out, name):
    return json.loads((out / f"{name}.expected.json").read_text(encoding="utf-8"))


def read(out, reading):
    """The dataset of one of READINGS."""
    fixture, _, name, args, below = reading
    root = out / manifest(out, fixture)["root"] / below
    return components("datasets")[name](data_dir=str(root), **args)


def histogram(label):
    values, counts = np.unique(label, return_counts=True)
    return {"ignore" if v == 255 else str(v): n for v, n in zip(values.tolist(), counts.tolist())}


@pytest.fixture(scope="module", params=[0, 1, 2])
def fixtures(request, tmp_path_factory):
    """Every fixture of one seed."""
    return make_fixtures(tmp_path_factory.mktemp("fixtures"), FIXTURES, "--train", "3",
                         "--seed", str(request.param))


@needs_fixtures
def test_pairs_sizes_and_histograms_are_those_of_the_fixtures(fixtures):
    for reading in READINGS:
        dataset = read(fixtures, reading)
        expected = [s for s in manifest(fixtures, reading[0])["samples"] if s["split"] == reading[1]]
        found = []
        for index, sample in enumerate(dataset.samples):
            item = dataset[index]
            label = item["label"].numpy()
            found.append({
                "image": sample.image.relative_to(fixtures).as_posix(),
                "label": sample.label and sample.label.relative_to(fixtures).as_posix(),
                "size": list(label.shape[::-1]),
                "hist": histogram(label) if sample.label else {}})
            assert item["image"].shape[1:] == label.shape
        key = str(dataset.num_classes)
        wanted = [{"image": s["image"], "label": s["label"], "size": s["size"],
                   "hist": s["hist"].get(key, {})} for s in expected]
        assert found and sorted(found, key=str) == sorted(wanted, key=str), reading


@pytest.fixture(scope="module", params=BROKEN)
def damaged(request, tmp_path_factory):
    """Every fixture, damaged in one way."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, make_fixtures(out, FIXTURES, "--train", "2", "--test", "0",
                                        "--broken", request.param)


@needs_fixtures
def test_damage_is_one_error_that_names_the_file(damaged):
    kind, out = damaged
    for fixture in FIXTURES:
        reading = (EMPTIED if kind == "empty-split" else DAMAGED)[fixture]
        with pytest.raises(DataError) as caught:
            dataset = read(out, reading)
            for index in range(len(dataset)):
                dataset[index]
        message, files = str(caught.value), manifest(out, fixture)["broken"]["files"]
        names = {name for file in files for name in (Path(file).name, Path(file).stem)}
        if kind == "empty-split":
            names |= {f"/{reading[1]}"}
        assert any(name in message for name in names), (fixture, message)
        if kind == "out-of-range-label":
            assert "24 pixels" in message, message
