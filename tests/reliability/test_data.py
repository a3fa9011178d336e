"""Faults of data: K21 and K38 to K48 of docs/faults.md."""
import json
import os
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import inference
import train
from dataloader.folder import Folder
from dataloader.loader import build_loader
from tests.images.test_image_io import CASES, encoded, png_16_bit
from tests.support.places import ROOT
from tests.support.png import chunk, png
from tests.support.run_program import digest, environment, program
from utils.cli import console
from utils.errors import DataError
from utils.images.headers import UnreadableFile, read_header
from utils.images.image_io import read_image, read_label, read_pair, write_image, write_label

RNG = np.random.default_rng(3)
SIZE = (16, 24)
PALETTE = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]


def folder(root, names=12, size=SIZE):
    """Write a Folder dataset of 3 classes; returns the names of its pictures."""
    names = [f"{k:02d}" for k in range(names)] if isinstance(names, int) else names
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        smooth = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        write_image(root / "images" / f"{name}.png", np.kron(smooth, np.ones((4, 4, 1), np.uint8)))
        write_label(root / "labels" / f"{name}.png",
                    RNG.integers(0, 3, size, dtype=np.uint8), PALETTE)
    return names


def training(root, saves, *more, **loader):
    """Train two epochs on a folder; returns the exit status."""
    config = {"name": "run", "arch": {"type": "ENet"}, "loss": "CrossEntropyLoss2d",
              "train_loader": {"type": "Folder", "args": {
                  "data_dir": str(root), "num_classes": 3, "batch_size": 2, "num_workers": 0,
                  "augment": True, "crop_size": list(SIZE), **loader}},
              "optimizer": {"type": "SGD", "args": {"lr": 0.01}}, "val_loader": None,
              "trainer": {"epochs": 2, "val": False, "tensorboard": False, "monitor": "off",
                          "save_dir": str(saves)}}
    path = saves.parent / "config.json"
    path.write_text(json.dumps(config))
    return console.run(train.main, ["-c", str(path), "-d", "cpu", *more])


def error_of(root, **options):
    with pytest.raises(DataError) as caught:
        Folder(str(root), num_classes=3, **options)
    return str(caught.value)


# --- labels ---

def test_k38_a_label_value_out_of_range_is_counted_and_explained(tmp_path, capsys):
    folder(tmp_path / "data")
    label = np.zeros(SIZE, np.uint8)
    label.flat[:31] = 200
    write_label(tmp_path / "data" / "labels" / "07.png", label, [])
    assert training(tmp_path / "data", tmp_path / "saved") == 3
    message = capsys.readouterr().err
    assert "label has value 200 (31 pixels); num_classes is 3, ignore_index is 255" in message
    assert "labels/07.png" in message and "label_map" in message
    assert "Traceback" not in message


def test_k39_binary_masks_of_0_and_255_get_a_hint(tmp_path):
    for name in folder(tmp_path):
        write_label(tmp_path / "labels" / f"{name}.png",
                    RNG.integers(0, 2, SIZE, dtype=np.uint8) * 255, [])
    assert '"label_map": {"255": 1}' in error_of(tmp_path)
    assert len(Folder(str(tmp_path), num_classes=3, label_map={"255": 1})) == 12


def test_k40_all_files_without_a_partner_are_listed_at_once(tmp_path):
    folder(tmp_path, 30)
    write_label(tmp_path / "labels" / "00.png", np.zeros((8, 8), np.uint8), [])
    for number in range(1, 14):
        (tmp_path / "labels" / f"{number:02d}.png").unlink()
    (tmp_path / "images" / "20.png").unlink()
    (tmp_path / "images" / "21.jpg").write_bytes(encoded(np.zeros((16, 24, 3), np.uint8), "JPEG"))
    message = error_of(tmp_path)
    assert "16 files are wrong" in message and "and 6 more" in message
    assert "same name as" in message and "a label without an image" in message
    assert message.count("no label") == 8       # of the first ten that are shown


def test_k40_an_image_and_a_label_of_other_size_are_both_named(tmp_path):
    folder(tmp_path)
    write_label(tmp_path / "labels" / "03.png", np.zeros((8, 9), np.uint8), [])
    message = error_of(tmp_path)
    assert "images/03.png is 16x24 (height x width) but its label" in message
    assert "labels/03.png is 8x9" in message


IDS = RNG.integers(0, 3, (6, 9), dtype=np.uint8)
COLORS = np.array(PALETTE, np.uint8)[IDS]
UNITS = np.eye(3, dtype=np.uint8)[IDS] * 255
STORED = {
    "palette": (encoded(Image.fromarray(IDS).convert("P"), "PNG"), None),
    "gray": (encoded(IDS, "PNG"), None), "sixteen bits": (png_16_bit(IDS.astype(np.uint16)), None),
    "rgb": (encoded(COLORS, "PNG"), PALETTE),
    "rgba": (encoded(np.dstack([COLORS, np.full_like(IDS, 9)]), "PNG"), PALETTE),
    "one-hot": (encoded(UNITS, "PNG"), (np.eye(3, dtype=int) * 255).tolist()),
}


@pytest.mark.parametrize("kind", STORED)
def test_k43_a_label_of_any_kind_gives_exact_indices(kind, tmp_path):
    content, palette = STORED[kind]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert (read_label(path, palette) == IDS).all()


def test_k43_colors_without_a_palette_and_unknown_colors_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(COLORS, "PNG"))
    with pytest.raises(DataError, match="color picture"):
        read_label(path)
    with pytest.raises(DataError, match=rf"\(0, 200, 0\) on {(IDS == 2).sum()} pixels"):
        read_label(path, PALETTE[:2])


# --- pictures that cannot be read ---

CORRUPT = {
    "truncated PNG": lambda: encoded(RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8),
                                     "PNG")[:-60],
    "truncated JPEG": lambda: encoded(RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8),
                                      "JPEG")[:-60],
    "empty": lambda: b"",
    "HTML": lambda: b"<!doctype html><title>404</title>",
    "deleted": None, "pipe": None,
}


def damage(path, kind):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "deleted":
        path.write_bytes(CORRUPT[kind]())


@pytest.mark.parametrize("kind", CORRUPT)
def test_k41_k48_a_file_damaged_during_training_is_named_or_replaced(kind, tmp_path, capsys):
    folder(tmp_path)
    for policy in ("error", "skip"):
        folder(tmp_path)
        loader = build_loader(Folder(str(tmp_path), num_classes=3), 4, training=True,
                              num_workers=0, on_corrupt=policy)
        assert len(list(loader)) == 3
        damage(tmp_path / "images" / "05.png", kind)
        loader.set_epoch(2)
        if policy == "error":
            with pytest.raises(UnreadableFile) as caught:
                list(loader)
            assert caught.value.where.endswith("images/05.png") and caught.value.fix is not None \
                or kind == "deleted"
        else:
            assert [b["id"] for b in loader][1] == ["04", "06", "06", "07"]
            message = capsys.readouterr().err
            assert "replaced by another (1 so far)" in message and "images/05.png" in message
        (tmp_path / "images" / "05.png").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated PNG", "empty"])
def test_k41_a_training_that_skips_files_is_the_same_after_an_interrupt(kind, tmp_path, capsys):
    data, saves = tmp_path / "data", tmp_path / "saved"
    folder(data, 6)
    damage(data / "images" / "02.png", kind)
    assert training(data, saves, "trainer.save_period=1", on_corrupt="skip", shuffle=True) == 0
    run, = saves.glob("run/*")
    assert "02.png" in capsys.readouterr().err
    (tmp_path / "stopped").mkdir()
    half = (run / "checkpoint-epoch1.pth").rename(tmp_path / "stopped" / "last.pth")
    assert console.run(train.main, ["-r", str(half), "-d", "cpu",
                                    "train_loader.args.num_workers=1"]) == 0
    assert digest(half) == digest(run / "last.pth")


def test_k41_the_default_ends_a_training_with_status_3(tmp_path, capsys):
    folder(tmp_path / "data", 6)
    damage(tmp_path / "data" / "images" / "02.png", "truncated PNG")
    assert training(tmp_path / "data", tmp_path / "saved") == 3
    message = capsys.readouterr().err
    assert "truncated PNG" in message and "02.png" in message and "fix:" in message


def test_k21_k46_a_file_that_is_not_regular_is_refused_before_it_is_opened(tmp_path):
    folder(tmp_path)
    for name in ("01", "02", "03", "04"):
        (tmp_path / "images" / f"{name}.png").unlink()
    os.mkfifo(tmp_path / "images" / "01.png")
    (tmp_path / "images" / "02.png").mkdir()
    (tmp_path / "images" / "03.png").symlink_to("/dev/zero")
    (tmp_path / "images" / "04.png").symlink_to(tmp_path / "nowhere")
    message = error_of(tmp_path)
    for name in ("01", "02", "03"):
        assert f"images/{name}.png: not a regular file" in message
    assert "images/04.png: No such file" in message and "4 files are wrong" in message


def test_k21_waiting_for_a_worker_ends_by_default():
    import inspect
    assert 0 < inspect.signature(build_loader).parameters["timeout"].default < float("inf")


# --- kinds of pictures ---

@pytest.mark.parametrize("name", CASES)
def test_k42_every_kind_of_picture_is_the_reference_array_through_a_dataset(name, tmp_path):
    content, expected = CASES[name]
    folder(tmp_path, [])
    (tmp_path / "images" / name).write_bytes(content)
    stem = name.split(".")[0]
    write_label(tmp_path / "labels" / f"{stem}.png", np.zeros(expected.shape[:2], np.uint8), [])
    sample = Folder(str(tmp_path), num_classes=3)[0]
    assert (sample["image"].permute(1, 2, 0).numpy() == expected).all()
    assert sample["label"].shape == expected.shape[:2]


def test_k42_cmyk_and_palettes_are_converted_as_pillow_does(tmp_path):
    rgb = np.kron(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).convert("CMYK").save(path)
    assert (read_image(path) == np.array(Image.open(path).convert("RGB"))).all()
    path = tmp_path / "a.png"
    Image.fromarray(rgb).quantize(20).save(path)
    assert (read_image(path) == np.array(Image.open(path).convert("RGB"))).all()


def test_k42_a_picture_without_a_range_of_values_is_refused(tmp_path):
    Image.fromarray(RNG.random((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floats has no fixed range"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "JPEG2000"])
def test_k42_formats_that_are_not_documented_are_not_tried(kind, tmp_path):
    picture = np.zeros((8, 9, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encoded(picture, kind))
    with pytest.raises(DataError, match="not a picture that can be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_k42_image_and_label_share_one_orientation(turn, tmp_path):
    rgb = np.kron(RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(rgb, {3: 2, 6: 3, 8: 1}[turn])
    Image.fromarray(turned[..., 0]).save(tmp_path / "label.png")
    image, label = read_pair(tmp_path / "a.png", tmp_path / "label.png")
    assert (image == turned).all() and (label == image[..., 0]).all()


# --- bombs ---

def packed(count):
    """`count` MiB of zeros, compressed to a thousandth."""
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(count)]) + packer.flush()


def bombs():
    gif = bytearray(encoded(np.zeros((4, 4), np.uint8), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    return {
        "header 40000².png": png(40000, 40000), "gigapixel.png": png(32768, 32768),
        "gigapixel.jpg": encoded(np.zeros((8, 8, 3), np.uint8), "JPEG").replace(
            b"\x08\x00\x08\x00\x08\x03", b"\x08\xff\xff\xff\xff\x03"),
        "gigapixel.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 99999, 99999, 1, 24,
                                             0, 0, 0, 0, 0, 0),
        "screen.gif": bytes(gif),
        "data beyond its size.png": png(20, 20, chunk(b"IDAT", packed(500))),
        "text.png": png(20, 20, chunk(b"zTXt", b"a\0\0" + packed(500)),
                        chunk(b"IDAT", zlib.compress(bytes(61 * 20)))),
        "profile.png": png(20, 20, chunk(b"iCCP", b"a\0\0" + packed(500)),
                           chunk(b"IDAT", zlib.compress(bytes(61 * 20)))),
        "chunk length.png": png(20, 20, chunk(b"IDAT", b"x", 0x7fffffff)),
        "chunk length.late.png": png(20, 20, chunk(b"IDAT", zlib.compress(bytes(61 * 20))),
                                     chunk(b"tEXt", b"x", 0x7ffffff0)),
    }


def peak_while(body, *arguments):
    """(lines that a script prints, MiB by which its body raised the peak of memory)."""
    script = textwrap.dedent("""
        import sys
        from utils.machine.memory import peak_memory
    """) + textwrap.dedent(body) + "\nprint((peak_memory() - before) / 2 ** 20)\n"
    result = program("-c", script, *arguments)
    assert result.returncode == 0, result.stderr
    *lines, megabytes = result.stdout.splitlines()
    return lines, float(megabytes)


@pytest.mark.slow
def test_k44_bombs_are_refused_within_bounded_memory(tmp_path):
    """In a separate process, because a peak of memory cannot be reset: 1 s."""
    for name, content in bombs().items():
        (tmp_path / name).write_bytes(content)
    lines, megabytes = peak_while("""
        from pathlib import Path
        from PIL import Image
        import cv2
        from utils.images.headers import read_header
        from utils.images.image_io import read_image, read_label
        from utils.errors import DataError
        before = peak_memory()
        for path in sorted(Path(sys.argv[1]).iterdir()):
            for read in (read_header, read_image, read_label):
                try:
                    read(path)
                    print(path.name, read.__name__, "read")
                except DataError as error:
                    print(path.name, read.__name__, error.what)
    """, tmp_path)
    refused = {line.split(" read_", 1)[0] for line in lines if " the header says " in line}
    assert {"header 40000².png", "gigapixel.png", "gigapixel.jpg", "gigapixel.bmp"} <= refused
    assert "chunk length.png read_image truncated PNG" in "\n".join(lines)
    assert megabytes < 100, lines


def test_k44_the_limit_is_named_with_its_key(tmp_path):
    (tmp_path / "a.png").write_bytes(png(40000, 40000))
    with pytest.raises(DataError) as caught:
        read_header(tmp_path / "a.png")
    assert "40000 x 40000 pixels; the limit is 178,956,970" in caught.value.what
    assert "SEGWRIGHT_MAX_PIXELS" in caught.value.fix


@pytest.mark.slow
def test_k44_an_archive_that_unpacks_beyond_its_size_is_refused(tmp_path):
    """Two gigabytes of zeros in two megabytes; in a separate process (2 s, it imports torch)."""
    for name, method in (("packed", zipfile.ZIP_DEFLATED), ("shared", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w", method) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
            with archive.open("archive/data/0", "w", force_zip64=True) as record:
                for _ in range(300 if name == "packed" else 1):
                    record.write(bytes(1 << 20))
    content = (tmp_path / "shared.pth").read_bytes()     # 200 names of one record
    end = content.rindex(b"PK\x05\x06")
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 4)
    entry, directory = content[second:end], content[first:end]
    directory += b"".join(entry.replace(b"data/0", b"data/" + bytes([65 + n % 26])) for n in
                          range(200))
    (tmp_path / "shared.pth").write_bytes(
        content[:first] + directory + b"PK\x05\x06" + struct.pack(
            "<HHHHIIH", 0, 0, 202, 202, len(directory), first, 0))
    lines, megabytes = peak_while("""
        from pathlib import Path
        from utils.checkpoint.read import read_state
        from utils.errors import CheckpointError
        before = peak_memory()
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                read_state(path)
            except CheckpointError as error:
                print(error.what)
    """, tmp_path)
    assert len(lines) == 2 and all("refused: the archive would unpack" in line for line in lines)
    assert megabytes < 60


# --- names and lists ---

NAMES = ["ünï cödé", "two words", "new\nline", "-x", ".hidden"[1:], "n" * 251, "a.b.c",
         os.fsdecode(b"latin\xe91")]


def test_k45_odd_names_are_trained_on_and_segmented(tmp_path, capsys):
    data = tmp_path / "data"
    try:
        folder(data, NAMES)
    except (OSError, DataError):
        pytest.skip("this file system does not allow such names")
    assert training(data, tmp_path / "saved") == 0
    last, = tmp_path.glob("saved/run/*/last.pth")
    assert console.run(inference.main, ["-r", str(last), "-i", str(data / "images"), "-o",
                                        str(tmp_path / "out"), "-d", "cpu"]) == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()
            if path.suffix == ".png"} >= set(NAMES)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_k45_names_that_a_terminal_cannot_show_are_printed_escaped(tmp_path):
    """In a separate process, which decides the encoding of stderr (3 s, it imports torch)."""
    name = os.fsdecode(b"latin\xe9\n\x1b[31m\xf0\x9f\x98\x80.png")
    folder(tmp_path, ["a"])
    try:
        (tmp_path / "images" / name).write_bytes(b"<html>")
    except OSError:
        pytest.skip("this file system does not allow such names")
    write_label(tmp_path / "labels" / name, np.zeros(SIZE, np.uint8), [])
    (tmp_path / "c.json").write_text(json.dumps({
        "extends": str(ROOT / "config.json"), "trainer": {"val": False}, "loss": "CE",
        "train_loader": {"type": "Folder", "args": {"data_dir": str(tmp_path),
                                                    "num_classes": 3}}, "val_loader": None}))
    result = subprocess.run([sys.executable, "train.py", "-c", tmp_path / "c.json", "--dry-run"],
                            cwd=ROOT, capture_output=True,
                            env={**environment(), "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 3, result.stderr
    assert b"latin\\udce9\\n\\x1b[31m" in result.stderr and b"Traceback" not in result.stderr


def test_k46_links_that_form_a_circle_are_followed_once(tmp_path):
    folder(tmp_path)
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "labels" / "again").symlink_to(tmp_path / "labels")
    assert len(Folder(str(tmp_path), num_classes=3)) == 12


def test_k46_a_list_may_come_from_any_editor(tmp_path):
    folder(tmp_path)
    (tmp_path / "odd.txt").write_bytes(b"\xef\xbb\xbf01\r\n\r\n02.png  \r\n./03\r\n\n04 \n")
    data = Folder(str(tmp_path), "odd", num_classes=3)
    assert [sample.id for sample in data.samples] == ["01", "02", "03", "04"]


def test_k46_a_wrong_line_of_a_list_is_named_with_its_number(tmp_path):
    folder(tmp_path)
    (tmp_path / "odd.txt").write_text("01\n\n/absolute/02\n03\nnone\n")
    message = error_of(tmp_path, split="odd")
    assert "odd.txt:3: no image" in message and "odd.txt:5: no image none" in message
    (tmp_path / "odd.txt").write_text("\n \n")
    assert "odd.txt: the list is empty" in error_of(tmp_path, split="odd")


def test_k46_a_list_that_is_not_a_text_file_is_named(tmp_path):
    folder(tmp_path)
    (tmp_path / "odd.txt").mkdir()
    assert "odd" in error_of(tmp_path, split="odd")
    (tmp_path / "odd.txt").rmdir()
    (tmp_path / "odd.txt").write_bytes(bytes(range(256)))
    assert "odd.txt:1" in error_of(tmp_path, split="odd")


def test_k47_an_empty_dataset_ends_with_status_3(tmp_path, capsys):
    folder(tmp_path / "data", [])
    assert training(tmp_path / "data", tmp_path / "saved") == 3
    message = capsys.readouterr().err
    assert "no images" in message and "images" in message and not (tmp_path / "saved").exists()


def test_k47_fewer_images_than_a_batch_switch_drop_last_off(tmp_path, capsys):
    folder(tmp_path / "data", 3)
    assert training(tmp_path / "data", tmp_path / "saved", batch_size=8, drop_last=True) == 0
    assert "data all has 3 images, fewer than one batch of 8: drop_last is off" \
        in capsys.readouterr().err
