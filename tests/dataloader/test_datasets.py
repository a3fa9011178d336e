"""Every dataset against the official layouts."""
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader.augmentation.transforms import Augmentation
from dataloader.class_tables.mapillary import CLASSES_1_2, CLASSES_2_0
from dataloader.dataset_report import check_dataset
from tests.config.samples import small
from tests.support.places import ROOT, SHARED
from utils.config.registry import components
from utils.config.schema import Component, Mistakes, resolve_config
from utils.errors import ConfigError, DataError
from utils.images.image_io import write_image, write_label

FACTS = SHARED / "datasets"
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
# The readings of the sample that --broken damages, and the split that "empty-split" empties.
DAMAGED = {reading[0]: reading for reading in reversed(READINGS) if reading[1] in (
    "train", "training", "train2017", "coarse_train_extra", "autolabelled")}
EMPTIED = {reading[0]: reading for reading in reversed(READINGS) if reading[1] in (
    "val", "validation", "val2017") or (reading[0], reading[1]) == ("coco_stuff_10k", "test")}


def layout(name, label_part):
    """The first of LAYOUTS of a dataset whose label has `label_part` in its path."""
    return next(one for one in LAYOUTS if one[0] == name and label_part in one[3])


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
    return {"ignore" if v == 255 else str(v): n for v, n in
            zip(values.tolist(), counts.tolist(), strict=True)}


@pytest.fixture(scope="module", params=[0, 1, 2])
def fixtures(request, tmp_path_factory):
    """Every fixture of one seed."""
    return make_fixtures(tmp_path_factory.mktemp("fixtures"), FIXTURES, "--train", "3",
                         "--seed", str(request.param))


@needs_fixtures
def test_pairs_sizes_and_histograms_are_those_of_the_fixtures(fixtures):
    for reading in READINGS:
        dataset = read(fixtures, reading)
        expected = [one for one in manifest(fixtures, reading[0])["samples"]
                    if one["split"] == reading[1]]
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


@needs_fixtures
def test_mirroring_a_person_gives_the_reversed_labels_of_the_release(tmp_path):
    out = make_fixtures(tmp_path, ["lip"], "--train", "2")
    root = out / "lip"
    dataset = components("datasets")["LIP"](
        data_dir=str(root), split="train", augmentation=Augmentation(augment=True, scale=False,
                                                                     flip=True))
    plain = components("datasets")["LIP"](data_dir=str(root), split="train")
    mirrored = 0
    for epoch in range(6):
        for index, sample in enumerate(plain.samples):
            label = dataset[epoch, index]["label"].numpy()
            if (label == plain[index]["label"].numpy()).all():
                continue
            reversed_label = root / "TrainVal_parsing_annotations" / \
                "train_segmentations_reversed" / sample.label.name
            np.testing.assert_array_equal(label, np.asarray(Image.open(reversed_label)))
            mirrored += 1
    assert 2 <= mirrored <= 10


@pytest.mark.skipif(not FACTS.is_dir(), reason="../shared/datasets is not here")
def test_names_colors_and_counts_are_the_published_ones():
    def facts(name):
        return json.loads((FACTS / f"{name}.json").read_text(encoding="utf-8"))

    def same(cls, entries, name="name", color="color"):
        assert cls.class_names == [entry[name] for entry in entries]
        assert cls.palette == [entry[color] for entry in entries]

    found = components("datasets")
    same(found["VOC"], facts("voc2012")["classes"])
    same(found["CityScapes"], facts("cityscapes")["classes_19"])
    same(found["ADE20K"], facts("ade20k")["classes"], name="short_name")
    same(found["LIP"], facts("lip")["classes"])
    same(found["VOC2010_Context_60"], facts("pascal_context")["classes_60"])
    same(found["VOC2010_Context"], facts("pascal_context")["classes_60"][1:])
    same(found["COCO"], facts("coco_stuff")["labels"][1:], color="color_182")
    for name, facts_name in (("VOC", "voc2012"), ("ADE20K", "ade20k"), ("LIP", "lip"),
                             ("VOC2010_Context", "pascal_context"), ("MiniCity", "minicity")):
        published = facts(facts_name)["splits"]
        sizes = found[name].split_sizes
        assert {s: published[s] for s in sizes if s in published} == \
            {s: n for s, n in sizes.items() if s in published}
        assert len(found[name].palette) == len(found[name].class_names) == found[name].num_classes
    key = "dataset_specific_as_used_by_the_2018_pytorch_trainer"
    for name, facts_name in (("VOC", "voc2012"), ("CityScapes", "cityscapes"),
                             ("ADE20K", "ade20k"), ("COCO", "coco_stuff")):
        assert facts(facts_name)["normalisation"][key] == \
            {"mean": found[name].mean, "std": found[name].std}


# Without ../shared: one image in each layout. Type, arguments, image, label, lists with their
# text, and train ids of some stored values.
CITY = {7: 0, 8: 1, 33: 18, 26: 13, 0: 255, 9: 255, 29: 255}
LAYOUTS = [
    ("VOC", {"split": "train"}, "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg",
     "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png",
     {"VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": "2007_000032\r\n"},
     {0: 0, 20: 20, 255: 255}),
    ("VOC", {"split": "train_aug"}, "VOC2012/JPEGImages/a b.c.jpg",
     "VOC2012/SegmentationClassAug/a b.c.png",
     {"VOC2012/ImageSets/Segmentation/train_aug.txt":
      "/JPEGImages/a b.c.jpg /SegmentationClassAug/a b.c.png"}, {0: 0, 15: 15, 255: 255}),
    ("VOC", {"split": "trainaug"}, "JPEGImages/x.JPG", "SegmentationClassAug/x.png",
     {"ImageSets/Segmentation/train.txt": "x", "ImageSets/Segmentation/aug.txt": "y"}, None),
    ("SBD", {"split": "train_noval"}, "dataset/img/x.jpg", "dataset/cls/x.mat",
     {"dataset/train_noval.txt": "x\n"}, {0: 0, 20: 20}),
    ("VOC2010_Context", {"split": "val"}, "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
     "trainval/2008_000002.mat", {"VOCdevkit/VOC2010/ImageSets/Main/val.txt": "2008_000002"},
     {0: 255, 1: 255, 2: 0, 9: 1, 458: 58, 459: 255}),
    ("VOC2010_Context_60", {"split": "val"}, "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
     "trainval/2008_000002.mat", {"VOCdevkit/VOC2010/ImageSets/Main/val.txt": "2008_000002"},
     {0: 0, 1: 0, 2: 1, 9: 2, 458: 59, 459: 0}),
    ("VOC2010_Context", {"split": "train"}, "VOC2010_Context/Images/train/2008_000002.jpg",
     "VOC2010_Context/Annotations/train/2008_000002.png", {}, {0: 255, 1: 0, 59: 58}),
    ("Cityscapes", {"split": "train", "mode": "fine"},
     "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
     "gtFine_trainvaltest/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", {}, CITY),
    ("CityScapes", {"split": "val", "mode": "coarse"},
     "leftImg8bit_trainvaltest/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
     "gtCoarse/val/lindau/lindau_000000_000019_gtCoarse_labelIds.png", {}, CITY),
    ("Cityscapes_coarse", {"split": "train"},
     "leftImg8bit/train_extra/bamberg/bamberg_000000_000019_leftImg8bit.png",
     "gtCoarse/train_extra/bamberg/bamberg_000000_000019_gtCoarse_labelIds.png", {}, CITY),
    ("CityscapesAutolabeling", {"split": "train_extra"},
     "leftImg8bit_trainextra/leftImg8bit/train_extra/erlangen/erlangen_000000_000019_leftImg8bit"
     ".png", "convert_autolabelled/erlangen/erlangen_000000_000019_leftImg8bit.png", {},
     {0: 0, 18: 18, 255: 255}),
    ("Cityscapes_autolabelled", {"split": "autolabelled"},
     "leftImg8bit/train_extra/erlangen/erlangen_000000_000019_leftImg8bit.png",
     "refinement_final/train_extra/erlangen/erlangen_000000_000019_leftImg8bit.png", {}, CITY),
    ("MiniCity", {"split": "val"}, "minicity/leftImg8bit/val/a_000000_000019_leftImg8bit.png",
     "minicity/gtFine/val/a_000000_000019_gtFine_labelIds.png", {}, CITY),
    ("ADE20K", {"split": "training"},
     "ADEChallengeData2016/images/training/ADE_train_00000001.jpg",
     "ADEChallengeData2016/annotations/training/ADE_train_00000001.png", {},
     {0: 255, 1: 0, 150: 149}),
    ("COCO", {"split": "all", "partition": "CocoStuff10k"}, "images/COCO_train2014_1.jpg",
     "annotations/COCO_train2014_1.mat", {"imageLists/all.txt": "\ufeffCOCO_train2014_1\r\n"},
     {0: 255, 1: 0, 12: 11, 182: 181}),
    ("COCO", {"split": "train", "partition": "CocoStuff10k", "num_classes": 171},
     "images/COCO_train2014_1.jpg", "annotations/COCO_train2014_1.mat",
     {"imageLists/train.txt": "COCO_train2014_1"}, {0: 255, 1: 0, 12: 255, 13: 11, 182: 170}),
    ("COCO", {"split": "val2017", "partition": "CocoStuff164k", "num_classes": 171},
     "images/val2017/000000000139.jpg", "annotations/val2017/000000000139.png", {},
     {255: 255, 0: 0, 11: 255, 12: 11, 181: 170}),
    ("LIP", {"split": "train"}, "TrainVal_images/train_images/1_2.jpg",
     "TrainVal_parsing_annotations/train_segmentations/1_2.png",
     {"TrainVal_images/train_id.txt": "1_2\n"}, {0: 0, 19: 19}),
    ("LIP", {"split": "val"}, "val_images/1_2.jpg", "val_segmentations/1_2.png", {},
     {0: 0, 14: 14}),
    ("Mapillary", {"split": "training"}, "training/images/a-B_c.jpg",
     "training/v1.2/labels/a-B_c.png", {}, {0: 0, 64: 64, 65: 255}),
    ("MapillaryVistas", {"split": "validation"}, "validation/images/a.jpg",
     "validation/labels/a.png", {}, {0: 0, 64: 64, 65: 255}),
    ("Mapillary", {"split": "training", "version": "2.0"}, "training/images/a.jpg",
     "training/v2.0/labels/a.png", {}, {0: 0, 122: 122, 123: 255}),
    ("Mapillary", {"split": "training", "mapping": "cityscapes"}, "training/images/a.jpg",
     "training/v1.2/labels/a.png", {}, {13: 0, 2: 1, 55: 13, 58: 16, 10: 255, 41: 255, 65: 255}),
    ("Mapillary", {"split": "validation", "version": "2.0", "mapping": "cityscapes"},
     "validation/images/a.jpg", "validation/v2.0/labels/a.png", {},
     {21: 0, 25: 1, 108: 13, 95: 6, 103: 7, 17: 255, 123: 255}),
    ("BDD100K", {"split": "train"}, "images/10k/train/0a-1b.jpg",
     "labels/sem_seg/masks/train/0a-1b.png", {}, {0: 0, 18: 18, 255: 255}),
    ("BDD100K", {"split": "val"}, "bdd100k/seg/images/val/0a-1b.jpg",
     "bdd100k/seg/labels/val/0a-1b_train_id.png", {}, {0: 0, 18: 18, 255: 255}),
    ("ACDC", {"split": "train", "condition": "fog"},
     "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png",
     "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelTrainIds.png", {},
     {0: 0, 18: 18, 255: 255}),
    ("ACDC", {"split": "val", "condition": "night", "labels": "labelIds"},
     "rgb_anon_trainvaltest/rgb_anon/night/val/GOPR0/GOPR0_frame_000001_rgb_anon.png",
     "gt_trainval/gt/night/val/GOPR0/GOPR0_frame_000001_gt_labelIds.png", {}, CITY),
    ("ISBI_EM", {"split": "train"}, "train/images/00.png", "train/labels/00.png", {},
     {0: 0, 255: 1}),
]
MEANT = [layout for layout in LAYOUTS if layout[-1]]


def write_file(path, content):
    """Write a list, an image (H, W, 3) or a label (H, W); the path decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".mat":
        from scipy.io import savemat
        savemat(path, {"S": content, "LabelMap": content.astype(np.uint16),
                       "GTcls": {"Segmentation": content}})
    elif content.ndim == 3:
        write_image(path, content)
    else:
        write_label(path, content, [])


def write_layout(root, layout, height=2):
    """Write the files of one of LAYOUTS; each stored value fills a column of the label."""
    _, _, image, label, lists, ids = layout
    stored = np.tile(np.array(list(ids), np.uint16), (height, 1))
    write_file(root / image, RNG.integers(0, 256, (*stored.shape, 3), dtype=np.uint8))
    write_file(root / label, stored.astype(np.uint8) if stored.max() < 256 else stored)
    for path, text in lists.items():
        write_file(root / path, text)
    return str(root) + "/"


def open_layout(root, layout, **more):
    return components("datasets")[layout[0]](data_dir=root, **{**layout[1], **more})


@pytest.mark.parametrize("layout", MEANT, ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_stored_values_become_train_ids(layout, tmp_path):
    dataset = open_layout(write_layout(tmp_path, layout), layout)
    assert len(dataset) == 1
    assert dataset[0]["label"][0].tolist() == list(layout[-1].values())


@pytest.mark.parametrize("layout", MEANT, ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_every_layout_can_ignore_minus_one(layout, tmp_path):
    dataset = open_layout(write_layout(tmp_path, layout), layout, ignore_index=-1)
    expected = [-1 if value == 255 else value for value in layout[-1].values()]
    assert dataset[0]["label"][0].tolist() == expected


@pytest.mark.parametrize("layout", MEANT, ids=lambda layout: f"{layout[0]}-{layout[2]}")
@pytest.mark.parametrize("gone", ["image", "label"])
def test_a_missing_partner_is_named(layout, gone, tmp_path):
    root = write_layout(tmp_path, layout)
    path = Path(root, layout[2 if gone == "image" else 3])
    path.unlink()
    with pytest.raises(DataError) as caught:
        open_layout(root, layout)
    stem = re.sub("_(leftImg8bit|gtFine_labelIds|gtCoarse_labelIds|rgb_anon|gt_label.*|train_id)$",
                  "", path.stem)
    assert stem in str(caught.value)


@pytest.mark.parametrize("layout", MEANT, ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_a_value_that_is_not_a_class_is_an_error_with_its_pixel_count(layout, tmp_path):
    wrong = 1000 if "Context" in layout[0] and layout[3].endswith(".mat") else 240
    root = write_layout(tmp_path, (*layout[:-1], {**layout[-1], wrong: None}), height=3)
    with pytest.raises(DataError, match=rf"{wrong} \(3 pixels\)"):
        open_layout(root, layout)


@pytest.mark.parametrize("layout", [one for one in MEANT if {0, 255} <= one[-1].keys()],
                         ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_labels_of_one_class_and_void_are_not_binary_masks(layout, tmp_path):
    layout = (*layout[:-1], {key: layout[-1][key] for key in (0, 255)})
    assert open_layout(write_layout(tmp_path, layout), layout)[0]["label"][0].tolist() == \
        list(layout[-1].values())


def test_a_missing_label_does_not_shift_other_pairs(tmp_path):
    for number, value in enumerate((1, 2, 3)):
        layout = ("ADE20K", {"split": "training"}, f"images/training/{number}.jpg",
                  f"annotations/training/{number}.png", {}, {value: None})
        root = write_layout(tmp_path, layout)
    (tmp_path / "annotations" / "training" / "1.png").unlink()
    with pytest.raises(DataError, match="1 file is wrong") as caught:
        open_layout(root, layout)
    assert "training/1.png" in str(caught.value) and "training/2" not in str(caught.value)
    (tmp_path / "images" / "training" / "1.jpg").unlink()
    dataset = open_layout(root, layout)
    assert [dataset[i]["label"].unique().tolist() for i in range(2)] == [[0], [2]]


@pytest.mark.parametrize("present", ["both", "image", "label"])
def test_the_corrupt_image_of_cityscapes_is_left_out_with_its_label(present, tmp_path):
    def layout(stem):
        return ("Cityscapes_coarse", {"split": "train"},
                f"leftImg8bit/train_extra/troisdorf/{stem}_leftImg8bit.png",
                f"gtCoarse/train_extra/troisdorf/{stem}_gtCoarse_labelIds.png", {}, CITY)
    for frame in (72, 73, 74):
        root = write_layout(tmp_path, layout(f"troisdorf_000000_0000{frame}"))
    gone = {"image": 3, "label": 2}.get(present)
    if gone:
        (tmp_path / layout("troisdorf_000000_000073")[gone]).unlink()
    dataset = open_layout(root, layout(""))
    assert [s.id for s in dataset.samples] == ["troisdorf_000000_000072",
                                               "troisdorf_000000_000074"]
    assert all(sample.label.name.startswith(sample.id) for sample in dataset.samples)


def test_a_share_of_the_coarse_images_is_drawn_from_the_seed(tmp_path):
    for number in range(20):
        stem = f"bamberg_000000_{number:06d}"
        write_layout(tmp_path, (None, None,
                                f"leftImg8bit/train_extra/bamberg/{stem}_leftImg8bit.png",
                                f"gtCoarse/train_extra/bamberg/{stem}_gtCoarse_labelIds.png", {},
                                CITY))
    root = write_layout(tmp_path, LAYOUTS[7])
    layout = ("Cityscapes_fine_coarse", {"split": "train", "coarse_portion": 0.25})

    def ids(**more):
        return [sample.id for sample in open_layout(root, layout, **more).samples]
    assert len(ids()) == 6 and ids()[0] == "ulm_000000_000019"
    assert ids() == ids() != ids(seed=1)
    assert len(ids(coarse_portion=1.0)) == 21 and len(ids(coarse_portion=0.0)) == 1


def test_trainaug_uses_vocs_labels_where_they_exist(tmp_path):
    for image, label, value in (("x", "SegmentationClass", 1), ("x", "SegmentationClassAug", 2),
                                ("y", "SegmentationClassAug", 3)):
        layout = ("VOC", {"split": "trainaug"}, f"JPEGImages/{image}.jpg", f"{label}/{image}.png",
                  LAYOUTS[2][4], {value: None})
        root = write_layout(tmp_path, layout)
    dataset = open_layout(root, layout)
    assert [(dataset[i]["id"], dataset[i]["label"][0, 0].item()) for i in range(2)] == \
        [("x", 1), ("y", 3)]


def test_training_on_validation_images_of_voc_is_a_warning(tmp_path, capsys):
    layout = ("VOC", {"split": "train_aug"}, "JPEGImages/x.jpg", "SegmentationClassAug/x.png",
              {"ImageSets/Segmentation/train_aug.txt": "x", "ImageSets/Segmentation/val.txt": "x"},
              {1: None})
    open_layout(write_layout(tmp_path, layout), layout)
    assert "1 images are also in" in capsys.readouterr().err


def test_test_splits_have_no_labels(tmp_path):
    root = write_layout(tmp_path, ("", {}, "JPEGImages/x.jpg", "unused.png",
                                   {"ImageSets/Segmentation/test_aug.txt": "/JPEGImages/x.jpg",
                                    "ImageSets/Segmentation/test.txt": "x"}, {1: None}))
    for split in ("test", "test_aug"):
        dataset = components("datasets")["VOC"](data_dir=root, split=split)
        assert dataset.samples[0].label is None
        assert dataset[0]["label"].unique().tolist() == [255]


def test_a_matlab_label_of_the_stored_size_is_turned_with_its_image(tmp_path):
    layout = next(one for one in MEANT if one[1].get("partition") == "CocoStuff10k")
    root = write_layout(tmp_path, layout, height=3)
    picture = Image.open(tmp_path / layout[2])
    pixels = np.asarray(picture.convert("RGB"))
    for turn, times in ((6, 3), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(pixels).save(tmp_path / layout[2], exif=exif)
        item = open_layout(root, layout)[0]
        stored = np.tile(np.array(list(layout[-1].values())), (3, 1))
        np.testing.assert_array_equal(item["label"].numpy(), np.rot90(stored, times))
        assert item["image"].shape == (3, 4, 3)


@pytest.mark.parametrize("content", ["", "not a MATLAB file", {"T": np.zeros((2, 4))},
                                     {"S": np.full((2, 4), 0.5)}, {"S": np.full((2, 4), -1)},
                                     {"S": np.zeros((2, 4, 3))}, {"S": np.zeros((0, 4))}])
def test_a_matlab_file_without_a_label_is_named(content, tmp_path):
    layout = next(one for one in MEANT if one[1].get("partition") == "CocoStuff10k")
    root = write_layout(tmp_path, layout)
    if isinstance(content, str):
        (tmp_path / layout[3]).write_text(content)
    else:
        from scipy.io import savemat
        savemat(tmp_path / layout[3], content)
    with pytest.raises(DataError, match="COCO_train2014_1.mat"):
        open_layout(root, layout)


def test_a_split_of_the_other_partition_or_mode_is_refused(tmp_path):
    for name, args in (("COCO", {"split": "train2017", "partition": "CocoStuff10k"}),
                       ("COCO", {"split": "test", "partition": "CocoStuff164k"}),
                       ("CityScapes", {"split": "train_extra", "mode": "fine"}),
                       ("CityScapes", {"split": "test", "mode": "coarse"}),
                       ("Cityscapes_fine_coarse", {"split": "train", "coarse_portion": 1.5})):
        with pytest.raises(ConfigError):
            components("datasets")[name](data_dir=str(tmp_path), **args)


def test_a_wrong_data_dir_is_one_error_for_every_dataset(tmp_path):
    for name, args, *_ in LAYOUTS:
        for place in (tmp_path, tmp_path / "missing"):
            with pytest.raises(DataError, match=str(tmp_path)):
                components("datasets")[name](data_dir=str(place), **args)


def test_every_version_of_mapillary_maps_to_classes_of_cityscapes():
    city = components("datasets")["CityScapes"].class_names
    for table, count in ((CLASSES_1_2, 65), (CLASSES_2_0, 123)):
        assert len(table) == len({name for name, _, _ in table}) == count
        assert {target for _, _, target in table} == {*city, None}
        # A class that exists under its own name in both is not given to another one.
        alike = {name.lower(): target for name, _, target in table if name.lower() in city}
        assert all(name == target for name, target in alike.items()) and len(alike) >= 13
    shared = {name: target for name, _, target in CLASSES_1_2}
    assert all(shared[name] == target for name, _, target in CLASSES_2_0 if name in shared)


def test_another_order_in_the_config_file_of_mapillary_is_a_warning(tmp_path, capsys):
    one = layout("Mapillary", "v1.2")
    root, names = write_layout(tmp_path, one), [name for name, _, _ in CLASSES_1_2]
    for labels, text in (([*names, "Unlabeled"], ""), (names, "lists 65 labels"),
                         ([*names[::-1], "Unlabeled"], "the first is 0: 'Ego Vehicle' there"),
                         (None, "cannot be compared")):
        entries = labels and [{"readable": name} for name in labels]
        write_file(tmp_path / "config_v1.2.json", json.dumps({"labels": entries}))
        open_layout(root, one)
        printed = [line for line in capsys.readouterr().err.splitlines() if "config_v" in line]
        assert (text in printed[0]) if text else not printed


def test_masks_of_kvasir_are_jpegs_read_with_a_threshold(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:45] = 255
    for stem in ("a", "b", "c"):
        write_file(tmp_path / f"images/{stem}.jpg", RNG.integers(0, 256, (40, 60, 3), np.uint8))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{stem}.jpg", quality=75)
    dataset = components("datasets")["KvasirSEG"]
    with pytest.raises(DataError, match=r"train.txt.*images/train|images/train.*train.txt"):
        dataset(data_dir=str(tmp_path), split="train")
    write_file(tmp_path / "val.txt", "c\n")
    assert [one.id for one in dataset(data_dir=str(tmp_path), split="val").samples] == ["c"]
    everything = dataset(data_dir=str(tmp_path), split="all")
    assert len(everything) == 3
    np.testing.assert_array_equal(everything[0]["label"].numpy(), mask > 0)
    for folder in ("images", "masks"):      # a split of one's own, by sub-folders
        (tmp_path / folder / "train").mkdir()
        (tmp_path / folder / "a.jpg").rename(tmp_path / folder / "train" / "a.jpg")
    assert [one.id for one in dataset(data_dir=str(tmp_path), split="train").samples] == ["a"]


def test_the_conditions_of_acdc_are_one_split(tmp_path):
    for condition in ("fog", "night", "rain", "snow"):
        one = ("ACDC", {"split": "train"},
               f"rgb_anon/{condition}/train/G/G_{condition}_frame_000001_rgb_anon.png",
               f"gt/{condition}/train/G/G_{condition}_frame_000001_gt_labelTrainIds.png", {},
               {0: None, 255: None})
        root = write_layout(tmp_path, one)
    assert [sample.id for sample in open_layout(root, one).samples] == [
        f"G_{condition}_frame_000001" for condition in ("fog", "night", "rain", "snow")]
    dataset = components("datasets")["ACDC"]
    assert dataset.split_sizes == {"train": 1600, "val": 406, "test": 2000}
    assert open_layout(root, one, condition="night").split_sizes["val"] == 106


def test_good_weather_of_acdc_needs_no_labels_and_uses_those_that_exist(tmp_path):
    for number in range(3):
        write_file(tmp_path / f"rgb_anon/fog/val_ref/G/G_frame_{number}_rgb_ref_anon.png",
                   np.zeros((2, 3, 3), np.uint8))
    dataset = components("datasets")["ACDC"]
    found = dataset(data_dir=str(tmp_path), split="val_ref", condition="fog")
    assert len(found) == 3 and found.samples[0].label is None
    write_file(tmp_path / "gt/fog/val_ref/G/G_frame_1_gt_ref_labelTrainIds.png",
               np.zeros((2, 3), np.uint8))
    found = dataset(data_dir=str(tmp_path), split="val_ref", condition="fog")
    assert [sample.id for sample in found.samples] == ["G_frame_1"]


def stack(path, pages):
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others)


def test_stacks_of_isbi_em_are_read_page_by_page(tmp_path):
    images = RNG.integers(0, 256, (5, 20, 30), dtype=np.uint8)
    labels = RNG.integers(0, 2, (5, 20, 30), dtype=np.uint8) * 255
    stack(tmp_path / "train-volume.tif", images)
    stack(tmp_path / "train-labels.tif", labels)
    stack(tmp_path / "test-volume.tif", images)
    dataset = components("datasets")["ISBI_EM"]
    train = dataset(data_dir=str(tmp_path), split="train", slices=[1, 4])
    assert [sample.id for sample in train.samples] == [f"train-volume_0{i}" for i in (1, 2, 3)]
    np.testing.assert_array_equal(train[2]["label"].numpy(), labels[3] > 0)
    np.testing.assert_array_equal(train[2]["image"].numpy(), np.stack([images[3]] * 3))
    test = dataset(data_dir=str(tmp_path), split="test")
    assert len(test) == 5 and test[0]["label"].unique().tolist() == [255]
    for slices in ([1, 6], [3, 3], [-1, 2], [1]):
        with pytest.raises(ConfigError, match="slices"):
            dataset(data_dir=str(tmp_path), split="train", slices=slices)
    stack(tmp_path / "train-labels.tif", labels[:4])
    with pytest.raises(DataError, match="has 5 pages of 30x20, its labels .* have 4"):
        dataset(data_dir=str(tmp_path), split="train")
    (tmp_path / "train-labels.tif").unlink()
    with pytest.raises(DataError, match="train-labels.tif: no such file"):
        dataset(data_dir=str(tmp_path), split="train")


@pytest.mark.parametrize("one", [one for one in MEANT if one[0] in (
    "Mapillary", "BDD100K", "ACDC", "ISBI_EM")], ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_the_report_counts_the_pixels_of_each_class(one, tmp_path):
    root = write_layout(tmp_path, one)
    report = check_dataset(one[0], {"data_dir": root, **one[1]})
    assert not report.problems
    counted = report.samples[0]["hist"][str(open_layout(root, one).num_classes)]
    expected = Counter("ignore" if value == 255 else str(value) for value in one[-1].values())
    assert {key: count // 2 for key, count in counted.items()} == dict(expected)


def test_the_config_lines_of_the_documentation_are_accepted():
    text = (ROOT / "docs" / "datasets.md").read_text("utf-8")
    sections = [json.loads(block.partition("```")[0]) for block in text.split("```json\n")[1:]]
    found, report = components("datasets"), Mistakes("docs/datasets.md", {}, {})
    of_configs = [section for section in sections if "type" not in section]
    sections = [section for section in sections if "type" in section]
    assert of_configs and all(resolve_config(small(**section)) for section in of_configs)
    for section in sections:
        Component("datasets").resolve(section, (section["type"],), report)
        report.raise_mistakes()
        splits = found[section["type"]].splits
        assert not splits or section["args"]["split"] in splits
    assert {found[section["type"]] for section in sections} >= \
        {cls for cls in found.values() if cls.split_sizes}
