"""Reading and writing images and label maps."""
import ast
import io
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.places import ROOT
from tests.support.png import chunk, png
from utils.errors import DataError, shown
from utils.images import headers, image_io
from utils.images.headers import UnreadableFile, read_header
from utils.images.image_io import (
    read_image,
    read_label,
    read_pair,
    read_stored,
    write_image,
    write_label,
)
from utils.images.palette import colorize, voc_palette
from utils.images.picture_files import picture_files

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8), (44, 28))
ORIENTATION = 0x0112


def encoded(array_or_image, kind, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) \
        else Image.fromarray(array_or_image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_exif(array, kind, turn, **options):
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[ORIENTATION] = turn
    return encoded(image, kind, exif=exif, **options)


def png_16_bit(values):
    """A 16-bit PNG of (H, W) or (H, W, 3), written by hand."""
    height, width = values.shape[:2]
    color = 0 if values.ndim == 2 else 2
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, chunk(b"IDAT", zlib.compress(rows)), bits=16, color_type=color)


GRAY = RGB[..., 0]
WIDE = (RGB.astype(np.uint16) * 257)
CASES = {
    "rgb.png": (encoded(RGB, "PNG"), RGB),
    "rgb.bmp": (encoded(RGB, "BMP"), RGB),
    "rgb.tif": (encoded(RGB, "TIFF"), RGB),
    "rgb.webp": (encoded(RGB, "WEBP", lossless=True), RGB),
    "gray.png": (encoded(GRAY, "PNG"), np.repeat(GRAY[..., None], 3, 2)),
    "gray_alpha.png": (encoded(Image.merge("LA", [Image.fromarray(GRAY)] * 2), "PNG"),
                       np.repeat(GRAY[..., None], 3, 2)),
    "rgba.png": (encoded(np.dstack([RGB, GRAY]), "PNG"), RGB),
    "rgba.webp": (encoded(np.dstack([RGB, np.full_like(GRAY, 255)]), "WEBP", lossless=True), RGB),
    "one_bit.png": (encoded(Image.fromarray(GRAY > 99), "PNG"),
                    np.repeat((GRAY > 99)[..., None], 3, 2).astype(np.uint8) * 255),
    "gray_16.png": (png_16_bit(WIDE[..., 0]), np.repeat(GRAY[..., None], 3, 2)),
    "rgb_16.png": (png_16_bit(WIDE), RGB),
    "gray_16.tif": (encoded(WIDE[..., 0].copy(), "TIFF"), np.repeat(GRAY[..., None], 3, 2)),
    "first_frame.gif": (encoded(Image.fromarray(GRAY).convert("P"), "GIF", save_all=True,
                                append_images=[Image.fromarray(255 - GRAY).convert("P")]),
                        np.repeat(GRAY[..., None], 3, 2)),
    "one_pixel.png": (encoded(RGB[:1, :1].copy(), "PNG"), RGB[:1, :1]),
    "animated.webp": (encoded(Image.fromarray(RGB), "WEBP", lossless=True, save_all=True,
                              append_images=[Image.fromarray(255 - RGB)]), RGB),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_picture_becomes_eight_bit_rgb(name, tmp_path):
    data, expected = CASES[name]
    path = tmp_path / name
    path.write_bytes(data)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)
    assert read_header(path).size == expected.shape[:2]


def test_a_palette_picture_gives_its_colors(tmp_path):
    path = tmp_path / "palette.png"
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(path)
    np.testing.assert_array_equal(read_image(path)[1], [[70, 80, 90], [40, 50, 60]])


def test_sixteen_bits_are_scaled_by_257_and_rounded(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(png_16_bit(np.array([[0, 128, 129, 257, 65535, 32768]], np.uint16)))
    assert read_image(path)[0, :, 0].tolist() == [0, 0, 1, 1, 255, 128]


def test_jpeg_and_cmyk_agree_with_pillow(tmp_path):
    for mode in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        path.write_bytes(encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=95))
        expected = np.array(Image.open(path).convert("RGB")).astype(int)
        assert np.abs(read_image(path) - expected).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_by_its_exif_tag(kind, turn, tmp_path):
    from PIL import ImageOps
    path = tmp_path / f"turned.{kind.lower()}"
    path.write_bytes(with_exif(SMOOTH, kind, turn))
    expected = np.array(ImageOps.exif_transpose(Image.open(path))).astype(int)
    image = read_image(path)
    assert image.shape == expected.shape == (*read_header(path).size, 3)
    assert np.abs(image - expected).mean() < 1.5


def test_image_and_label_share_one_orientation(tmp_path):
    image_path, label_path = tmp_path / "a.jpg", tmp_path / "a.png"
    ids = np.zeros((28, 44), np.uint8)
    ids[:5, :9] = 3
    picture = np.zeros((28, 44, 3), np.uint8)
    picture[:5, :9] = 255
    image_path.write_bytes(with_exif(picture, "JPEG", 6))
    for stored in (ids, np.rot90(ids, -1)):           # drawn on the raw or on the shown picture
        label_path.write_bytes(encoded(np.ascontiguousarray(stored), "PNG"))
        image, label = read_pair(image_path, label_path)
        assert image.shape[:2] == label.shape == (44, 28)
        np.testing.assert_array_equal(image[..., 0] > 128, label == 3)


TRUNCATED = {
    "jpeg": encoded(SMOOTH, "JPEG"), "png": encoded(SMOOTH, "PNG"),
    "webp": encoded(SMOOTH, "WEBP"), "gif": encoded(Image.fromarray(SMOOTH[..., 0]), "GIF"),
    "tiff": encoded(SMOOTH, "TIFF"), "bmp": encoded(SMOOTH, "BMP"),
}


@pytest.mark.parametrize("kind", TRUNCATED)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(kind, share, tmp_path):
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(TRUNCATED[kind][:int(share * len(TRUNCATED[kind]))])
    with pytest.raises(UnreadableFile) as caught:
        read_image(path)
    assert str(path) in caught.value.where


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_truncated(tmp_path):
    # The EXIF block holds a whole JPEG, which has an end marker.
    whole = encoded(SMOOTH, "JPEG")
    block = b"Exif\0\0" + encoded(SMOOTH[:8, :8].copy(), "JPEG")
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[:-40])
    with pytest.raises(UnreadableFile, match="truncated"):
        read_image(path)
    path.write_bytes(data)
    assert read_image(path).shape == SMOOTH.shape


def test_a_file_that_is_not_a_picture_is_an_error(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_bytes(b"<html>404 not found</html>")
    with pytest.raises(UnreadableFile, match="not a picture"):
        read_image(path)
    for name, make in (("folder.jpg", os.mkdir), ("pipe.jpg", os.mkfifo)):
        make(tmp_path / name)
        with pytest.raises(UnreadableFile, match="folder|regular"):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableFile, match="No such file"):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize("reader", [read_image, read_label, read_header])
def test_a_bomb_is_refused_from_its_header(reader, tmp_path):
    path = tmp_path / "bomb.png"
    data = bytearray(encoded(GRAY, "PNG"))
    data[16:24] = struct.pack(">II", 40000, 40000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="178,956,970") as caught:
        reader(path)
    assert headers.MAX_PIXELS_KEY in caught.value.fix


@pytest.mark.parametrize("name", ["ünï cödé.png", "-x.png", "new\nline.png", "b" * 250 + ".png",
                                  b"latin\xe9.png"])
def test_odd_names_work_and_can_be_printed(name, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    path = os.fsdecode(path)
    write_image(path, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)
    shown(path).encode("utf-8")
    assert "\n" not in shown(path)
    write_label(path, GRAY, voc_palette(256))
    np.testing.assert_array_equal(read_label(path), GRAY)


def test_labels_are_read_as_indices(tmp_path):
    ids = RNG.integers(0, 21, (9, 8), dtype=np.uint8)
    path = tmp_path / "label.png"
    write_label(path, ids, voc_palette(21))
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(read_label(path), ids)
    path.write_bytes(encoded(ids, "PNG"))
    np.testing.assert_array_equal(read_label(path), ids)
    deep = ids.astype(np.uint16) * 1000
    path.write_bytes(encoded(deep, "PNG"))
    np.testing.assert_array_equal(read_label(path), deep)
    path.write_bytes(encoded(Image.fromarray(ids > 9), "PNG"))
    np.testing.assert_array_equal(read_label(path), ids > 9)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_keep_their_values(bits, tmp_path):
    path = tmp_path / "label.png"
    ids = RNG.integers(0, 2 ** bits, (5, 16), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(ids[..., None], axis=-1)[..., 8 - bits:].reshape(5, -1),
                         axis=-1)
    for color in (0, 3):
        path.write_bytes(png(
            16, 5, *([chunk(b"PLTE", bytes(range(3 * 2 ** bits)))] if color else []),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))),
            bits=bits, color_type=color))
        np.testing.assert_array_equal(read_label(path), ids)


def test_beyond_255_classes_labels_are_written_with_16_bits(tmp_path):
    ids = np.array([[0, 300, 1000]])
    write_label(tmp_path / "many.png", ids, [])
    np.testing.assert_array_equal(read_label(tmp_path / "many.png"), ids)


def test_color_labels_need_a_palette(tmp_path):
    palette = [[0, 0, 0], [128, 64, 128], [70, 70, 70]]
    ids = RNG.integers(0, 3, (6, 6), dtype=np.uint8)
    path = tmp_path / "color.png"
    for picture in (colorize(ids, palette), np.dstack([colorize(ids, palette), ids])):
        path.write_bytes(encoded(picture, "PNG"))
        np.testing.assert_array_equal(read_label(path, palette), ids)
        with pytest.raises(DataError, match="color picture"):
            read_label(path)
    np.testing.assert_array_equal(read_stored(path), colorize(ids, palette))


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_three_equal_channels_are_read_as_ids(kind, tmp_path):
    ids = RNG.integers(0, 3, (6, 6), dtype=np.uint8) * 100
    image = Image.fromarray(np.repeat(ids[..., None], 3, 2)).convert(kind)
    image.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_label(tmp_path / "gray.png"), ids)


def test_sixteen_bits_of_three_equal_channels_are_not_cut_to_eight(tmp_path):
    ids = np.repeat(RNG.integers(0, 3, (6, 6), dtype=np.uint16)[..., None], 3, 2)
    (tmp_path / "gray.png").write_bytes(cv2.imencode(".png", ids)[1].tobytes())
    with pytest.raises(DataError, match="color picture"):
        read_label(tmp_path / "gray.png")


def test_unknown_colors_are_named_with_their_pixel_counts(tmp_path):
    path = tmp_path / "color.png"
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0, :3] = 7, 8, 9
    path.write_bytes(encoded(picture, "PNG"))
    with pytest.raises(DataError, match=r"\(7, 8, 9\) on 3 pixels") as caught:
        read_label(path, [[0, 0, 0]])
    assert caught.value.where == str(path)


def test_an_image_and_a_label_of_other_size_are_named(tmp_path):
    write_image(tmp_path / "a.png", RGB)
    write_label(tmp_path / "b.png", GRAY[:5], [])
    with pytest.raises(DataError, match="7x11 .* but its label is 5x11"):
        read_pair(tmp_path / "a.png", tmp_path / "b.png")


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        write_image(tmp_path / "missing" / "a.png", RGB)
    with pytest.raises(DataError, match="cannot write an image as"):
        write_image(tmp_path / "a.xyz", RGB)
    write_image(tmp_path / "a.png", RGB)
    assert os.listdir(tmp_path) == ["a.png"]


def test_reading_raises_no_warnings(tmp_path):
    path = tmp_path / "transparent.png"
    image = Image.fromarray(GRAY % 4, "P")
    image.putpalette(list(range(12)))
    image.save(path, transparency=b"\0\1\2\3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)
        read_header(path)


def test_linked_folders_are_entered_once(tmp_path):
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "a" / "1.png", RGB)
    write_image(tmp_path / "a" / ".hidden.png", RGB)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert picture_files(tmp_path) == [tmp_path / "a" / "1.png"]


def test_the_voc_palette_is_the_published_one():
    palette = voc_palette(22)
    assert palette[1] == [128, 0, 0] and palette[15] == [192, 128, 128]
    assert palette[20] == [0, 64, 128] and len({tuple(c) for c in voc_palette(256)}) == 256


def test_colorize_shows_ids_outside_the_palette_in_the_other_color():
    picture = colorize(np.array([[0, 1, 255, -1]]), [[1, 2, 3], [4, 5, 6]], other=(9, 9, 9))
    assert picture.tolist() == [[[1, 2, 3], [4, 5, 6], [9, 9, 9], [9, 9, 9]]]


@pytest.mark.parametrize("place", [33, -12])
def test_a_png_may_carry_its_exif_tag_before_or_after_the_pixels(place, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    data = encoded(RGB, "PNG")
    path = tmp_path / "tagged.png"
    path.write_bytes(data[:place] + chunk(b"eXIf", body) + data[place:])
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


def test_the_log_level_of_opencv_is_set_once(tmp_path, monkeypatch):
    levels = []
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    image_io._quiet_opencv.cache_clear()
    write_image(tmp_path / "a.png", RGB)
    for _ in range(3):
        read_image(tmp_path / "a.png")
    image_io._quiet_opencv.cache_clear()        # sets the real level at the next decoding
    assert len(levels) == 1


def test_pillow_never_tries_all_the_formats_it_supports():
    folders = ("base", "dataloader", "models", "tools", "utils")
    for path in [*ROOT.glob("*.py"), *(p for one in folders for p in (ROOT / one).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {each.arg for each in node.keywords}, f"{path}:{node.lineno}"


def test_a_damaged_png_is_refused_without_a_line_of_libpng(tmp_path, capfd):
    write_label(tmp_path / "a.png", np.arange(4096, dtype=np.uint16).reshape(64, 64), [])
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[60] ^= 255
    (tmp_path / "a.png").write_bytes(data)
    for read in (read_label, read_stored, read_image):
        with pytest.raises(DataError):
            read(tmp_path / "a.png")
    assert capfd.readouterr() == ("", "")
