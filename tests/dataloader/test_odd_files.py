"""Files as they come from real machines: odd names, formats, lists and leftovers."""
import os

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

from dataloader.ade20k import ADE20K
from dataloader.dataset_report import check_dataset
from tests.dataloader.test_datasets import (
    LAYOUTS,
    layout,
    open_layout,
    write_file,
    write_layout,
)
from utils.errors import DataError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 11, 17
RGB = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
STORED = RNG.integers(0, 151, (HEIGHT, WIDTH), dtype=np.uint8)


def pair(root, name=b"a", image=RGB, label=STORED, ends=(".png", ".png"), **options):
    """Write one image of ADE20K training; name: bytes before the extension."""
    label = label if isinstance(label, Image.Image) else Image.fromarray(label)
    for folder, picture, end, more in (("images", image, ends[0], options),
                                       ("annotations", label, ends[1], {})):
        place = os.fsencode(root / folder / "training")
        os.makedirs(place, exist_ok=True)
        try:
            with open(place + b"/" + name + end.encode(), "wb") as file:
                picture.save(file, Image.registered_extensions()[end.lower()], **more)
        except OSError:
            pytest.skip("this file system refuses the name")
    return {"data_dir": str(root), "split": "training"}


NAMES = [b"sp ace", b"dots.in.name", b"-dash", "ümläut".encode(), "日本".encode(),
         b"not utf \xff\xfe", b"new\nline", b"a#b%20;'\"", b"x" * 240]
IMAGES = {
    "palette": (RGB.quantize(30), ".png", {}), "alpha": (RGB.convert("RGBA"), ".png", {}),
    "clear palette": (RGB.quantize(30), ".png", {"transparency": 3}),
    "gray alpha": (RGB.convert("LA"), ".png", {}), "one bit": (RGB.convert("1"), ".png", {}),
    "cmyk": (RGB.convert("CMYK"), ".jpg", {"quality": 95}),
    "cmyk tiff": (RGB.convert("CMYK"), ".tif", {}), "gray": (RGB.convert("L"), ".jpg", {}),
    "progressive": (RGB, ".jpeg", {"progressive": True}), "upper case": (RGB, ".PNG", {}),
    "gif": (RGB, ".gif", {}), "bmp": (RGB, ".bmp", {}), "webp": (RGB, ".webp", {"lossless": True}),
}
LABELS = {"16 bits": (Image.fromarray(STORED.astype(np.uint16)), ".png"),
          "tiff": (Image.fromarray(STORED), ".tif"), "bmp": (Image.fromarray(STORED), ".bmp")}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_any_file_name_is_read(name, tmp_path):
    args = pair(tmp_path, name)
    item = ADE20K(**args)[0]
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0), RGB)
    assert os.fsencode(item["id"]) == name
    assert not check_dataset("ADE20K", args).problems


@pytest.mark.parametrize("image, end, options", IMAGES.values(), ids=IMAGES)
def test_any_image_becomes_rgb_and_its_label_is_unchanged(image, end, options, tmp_path):
    item = ADE20K(**pair(tmp_path, image=image, ends=(end, ".png"), **options))[0]
    with Image.open(next((tmp_path / "images" / "training").iterdir())) as picture:
        wanted = np.asarray(picture.convert("RGB"), int)
    found = item["image"].permute(1, 2, 0).numpy()
    # Two JPEG decoders may round differently.
    assert np.abs(found - wanted).max() <= (3 if end.startswith(".j") else 0)
    np.testing.assert_array_equal(item["label"], np.where(STORED == 0, 255, STORED - 1))


@pytest.mark.parametrize("label, end", LABELS.values(), ids=LABELS)
def test_any_format_of_a_label_is_read(label, end, tmp_path):
    item = ADE20K(**pair(tmp_path, label=label, ends=(".png", end)))[0]
    np.testing.assert_array_equal(item["label"], np.where(STORED == 0, 255, STORED - 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F", "CMYK"])
def test_a_label_without_class_ids_is_named(mode, tmp_path):
    # Three equal channels would be ids.
    colors = Image.fromarray(np.stack([STORED, STORED // 2, STORED], -1)) if "RGB" in mode \
        else Image.fromarray(STORED)
    args = pair(tmp_path, label=colors.convert(mode), ends=(".png", ".tif"))
    with pytest.raises(DataError) as caught:
        ADE20K(**args)[0]
    assert caught.value.where.endswith("a.tif")
    assert len(check_dataset("ADE20K", args).problems) == 1


@pytest.mark.parametrize("turn", [2, 3, 6, 8])
@pytest.mark.parametrize("drawn_on", ["stored", "displayed"])
def test_a_turned_image_and_its_label_agree(turn, drawn_on, tmp_path):
    """A label that has both sizes belongs to the displayed image."""
    exif = Image.Exif()
    exif[0x0112] = turn
    tagged = RGB.copy()
    tagged.info["exif"] = exif.tobytes()
    label = Image.fromarray(STORED)
    if drawn_on == "displayed" and turn > 4:
        label = Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8) + 3)
    item = ADE20K(**pair(tmp_path, image=RGB, label=label, exif=exif))[0]
    with Image.open(tmp_path / "images" / "training" / "a.png") as picture:
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0),
                                      ImageOps.exif_transpose(picture))
    wanted = np.asarray(label)
    if turn > 4 and drawn_on == "stored":
        wanted = np.rot90(STORED, {6: 3, 8: 1}[turn])
    np.testing.assert_array_equal(item["label"], np.where(wanted == 0, 255, wanted - 1))


def test_leftovers_of_other_programs_are_skipped(tmp_path):
    args = pair(tmp_path)
    for folder in ("images", "annotations"):
        for name in (".DS_Store", "Thumbs.db", "._a.png", ".hidden.png", "notes.txt"):
            (tmp_path / folder / "training" / name).write_bytes(b"junk")
    assert len(ADE20K(**args)) == 1
    report = check_dataset("ADE20K", args)
    assert not report.problems and any("other files" in note for note in report.notes)


def test_what_is_not_a_regular_file_is_named(tmp_path):
    for name in (b"a", b"b", b"c", b"d"):
        args = pair(tmp_path, name)
    images = tmp_path / "images" / "training"
    for name in "bcd":
        (images / f"{name}.png").unlink()
    (images / "b.png").mkdir()
    os.symlink(tmp_path / "nowhere", images / "c.png")
    os.mkfifo(images / "d.png")
    with pytest.raises(DataError, match="3 files are wrong") as caught:
        ADE20K(**args)
    assert all(f"{name}.png" in str(caught.value) for name in "bcd")
    assert len(check_dataset("ADE20K", args).problems) == 3


def test_the_missing_label_of_a_prepared_context_is_a_png(tmp_path):
    one = layout("VOC2010_Context", "Annotations")
    root = write_layout(tmp_path, one)
    (tmp_path / one[3]).unlink()
    with pytest.raises(DataError, match="2008_000002.png"):
        open_layout(root, one)


def test_a_truncated_or_newer_matlab_file_is_named(tmp_path):
    one = layout("VOC2010_Context", ".mat")
    root = write_layout(tmp_path, one)
    savemat(tmp_path / one[3], {"LabelMap": RNG.integers(0, 9, (2, 6)).astype(np.uint16)})
    whole = (tmp_path / one[3]).read_bytes()
    newer = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(400)
    for data in (whole[:200], whole[:-9], newer, b""):
        (tmp_path / one[3]).write_bytes(data)
        with pytest.raises(DataError, match="not a MATLAB file|no variable") as caught:
            open_layout(root, one)
        assert "2008_000002.mat" in str(caught.value) and "opened" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.int32, np.float64, np.int64])
def test_matlab_labels_may_be_stored_as_other_numbers(kind, tmp_path):
    one = layout("VOC2010_Context", ".mat")
    root = write_layout(tmp_path, one)
    before = open_layout(root, one)[0]["label"]
    stored = np.tile(np.array(list(one[-1])), (2, 1))
    savemat(tmp_path / one[3], {"LabelMap": stored.astype(kind)})
    np.testing.assert_array_equal(open_layout(root, one)[0]["label"], before)


def test_derived_labels_next_to_the_official_ones_are_not_read(tmp_path):
    one = next(layout for layout in LAYOUTS if layout[0] == "Cityscapes")
    root = write_layout(tmp_path, one)
    for ending in ("labelTrainIds", "labelIds_19classes", "instanceIds", "color"):
        name = one[3].replace("labelIds", ending)
        write_file(tmp_path / name, np.zeros((1, 1), np.uint8))
    dataset = open_layout(root, one)
    assert [sample.label.name for sample in dataset.samples] == [os.path.basename(one[3])]
