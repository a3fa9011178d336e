"""Every kind of picture is read to the right values, or refused by name."""
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.png import chunk, png
from tests.support.tiff import tiff
from utils.errors import ConfigError, DataError
from utils.images import headers
from utils.images.headers import UnreadableFile, read_header
from utils.images.image_io import map_image, read_image, read_label, read_pair

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8), (32, 24))
IDS = RNG.integers(0, 5, (20, 30), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
ORIENTATION = 0x0112


def turned(array, orientation):
    """What EXIF 2.32, tag 0x0112, says is displayed: the places of the stored row 0 and column 0.
    """
    return {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
            5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}[orientation](array)


def saved(path, image, orientation=1, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif, **options)
    return path


KINDS = {"png": ("png", {}), "webp": ("webp", {"lossless": True}), "jpg": ("jpg", {"quality": 95}),
         "tif": ("tif", {}), "lzw": ("tif", {"compression": "tiff_lzw"}),
         "deflate": ("tif", {"compression": "tiff_adobe_deflate"})}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_header_pixels_and_mapped_pixels_agree_in_every_orientation(kind, orientation, tmp_path):
    suffix, options = KINDS[kind]
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RGB), orientation, **options)
    stored = np.asarray(Image.open(saved(tmp_path / f"b.{suffix}", Image.fromarray(RGB), 1,
                                         **options)).convert("RGB"))
    image = read_image(path)
    np.testing.assert_array_equal(image, turned(stored, orientation))
    assert read_header(path).size == image.shape[:2]
    assert read_header(path).stored_size == RGB.shape[:2]
    np.testing.assert_array_equal(map_image(path), image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["gray png", "palette png", "tif", "16 bit tif", "palette tif"])
def test_labels_are_turned_like_images_and_fit_every_image(kind, orientation, tmp_path):
    ids = IDS.astype(np.uint16) if kind.startswith("16") else IDS
    label = Image.fromarray(ids)
    if kind.startswith("palette"):
        label.putpalette([5 * k for k in range(15)])
    path = saved(tmp_path / f"a.{kind[-3:]}", label, orientation)
    expected = turned(IDS, orientation)
    np.testing.assert_array_equal(read_label(path), expected)
    assert read_header(path).size == expected.shape
    # A label without a tag, of the size of the stored image, is turned like it.
    plain = tmp_path / "plain.png"
    Image.fromarray(IDS).save(plain)
    for suffix in ("png", "tif"):
        image = saved(tmp_path / f"i.{suffix}", Image.fromarray(RGB), orientation)
        np.testing.assert_array_equal(read_pair(image, path)[1], expected)
        np.testing.assert_array_equal(read_pair(image, plain)[1],
                                      expected if orientation >= 5 else IDS)


def test_an_orientation_in_xmp_turns_nothing_with_either_decoder(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    for mode in ("RGB", "CMYK"):            # OpenCV reads the first, Pillow the second
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(RGB).convert(mode).save(path, xmp=xmp)
        assert read_image(path).shape == RGB.shape and read_header(path).size == RGB.shape[:2]


ALPHA = np.dstack([SMOOTH, np.full(SMOOTH.shape[:2], 255, np.uint8)])
def _skip_unless_pillow_reads(path):
    """Pillow 12 writes YCbCr TIFF files that it calls truncated."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        pytest.skip("Pillow cannot read what it has written")


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "La", "RGBa")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif", "ppm"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_can_be_written_shows_its_colors(mode, suffix, tmp_path):
    picture = Image.fromarray(SMOOTH)
    via = {"La": "LA", "RGBa": "RGBA"}.get(mode)
    source = picture.convert(via).convert(mode) if via else picture.convert(mode)
    path = tmp_path / f"a.{suffix}"
    try:
        source.save(path, **({"lossless": True} if suffix == "webp" else {}))
    except (OSError, ValueError):
        pytest.skip("cannot be written")
    _skip_unless_pillow_reads(path)
    gray = picture.convert("L" if mode != "1" else "1").convert("RGB")
    expected = np.asarray(gray if mode[0] in "1L" and mode != "LAB" else picture, np.int16)
    # Lossy: JPEG, Pillow's palette of 216 colors, and conversions to YCbCr and back.
    bound = 1 if mode in ("RGB", "RGBA", "RGBX", "L", "LA", "1") and suffix != "jpg" \
        and suffix != "gif" else 20
    assert abs(read_image(path) - expected).mean() <= bound


def test_a_palette_of_a_wrong_length_is_refused_as_a_picture_and_read_as_a_label(tmp_path):
    values = np.array([[0, 1, 2], [3, 2, 9]], np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    for colors, plte in ((3, bytes(9)), (3, bytes(10)), (0, b"")):
        chunks = [chunk(b"PLTE", plte)] if plte else []
        path = tmp_path / f"{len(plte)}.png"
        path.write_bytes(png(3, 2, *chunks, chunk(b"IDAT", rows), color_type=3))
        np.testing.assert_array_equal(read_label(path), values)
        with pytest.raises(UnreadableFile, match=f"has color 9 of a palette of {colors}"):
            read_image(path)
    path.write_bytes(png(3, 2, chunk(b"PLTE", bytes(range(30))), chunk(b"IDAT", rows),
                         color_type=3))
    assert read_image(path)[1, 2].tolist() == [27, 28, 29]


def expected_bytes(values, white):
    return np.minimum(np.floor(values.astype(np.float64) * 255 / white + 0.5), 255)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [None, 4095, 1023.5, 65535])
@pytest.mark.parametrize("kind", ["png", "gray png", "tif", "gray tif", "alpha tif", "lzw tif",
                                  "ppm", "pgm"])
def test_sixteen_bits_are_scaled_by_white(kind, white, order, tmp_path):
    values = np.minimum(DEEP, 6000) if white else DEEP
    gray = values[..., 0]
    path = tmp_path / f"a.{kind[-3:]}"
    if kind == "tif":
        path.write_bytes(tiff(values, order=order))
    elif kind == "gray tif":
        path.write_bytes(tiff(gray, order=order))
    elif kind == "alpha tif":
        path.write_bytes(tiff(np.dstack([values, values[..., 0]]), order=order, tag338=[0]))
    elif kind in ("ppm", "pgm"):
        data = values if kind == "ppm" else gray
        path.write_bytes(b"P%d\n30 20\n65535\n" % (6 if kind == "ppm" else 5)
                         + data.astype(">u2").tobytes())
    else:
        cv2.imwrite(str(path), gray if kind == "gray png" else values[..., ::-1])
    shown = np.repeat(gray[..., None], 3, 2) if kind[0] == "g" or kind == "pgm" else values
    np.testing.assert_array_equal(read_image(path, white), expected_bytes(shown, white or 65535))


def test_the_range_that_a_file_states_is_used(tmp_path):
    values = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5\n30 20\n4095\n" + values.astype(">u2").tobytes())
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=12))
    (tmp_path / "dark.tif").write_bytes(tiff(values, tag262=0))
    for name in ("a.pgm", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0],
                                      expected_bytes(values, 4095))
        np.testing.assert_array_equal(read_image(tmp_path / name, 2047)[..., 0],
                                      expected_bytes(values, 2047))
    np.testing.assert_array_equal(read_image(tmp_path / "dark.tif")[..., 0],
                                  expected_bytes(65535 - values, 65535))


@pytest.mark.parametrize("array, kind, white", [
    (RNG.random((20, 30)).astype(np.float32), 3, 1.0),
    (RNG.normal(10, 300, (20, 30)).astype(np.float32), 3, 500.0),
    (RNG.integers(-50, 3000, (20, 30)).astype(np.int16), 2, 2000),
    (RNG.integers(-50, 3000, (20, 30)).astype(np.int32), 2, 2000),
    (RNG.integers(0, 2 ** 32, (20, 30)).astype(np.uint32), 1, 2 ** 32 - 1)])
def test_floats_and_wide_integers_need_white_and_are_scaled_by_it(array, kind, white, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(array, kind=kind))
    with pytest.raises(DataError, match="no fixed range") as caught:
        read_image(path)
    assert '"white"' in caught.value.fix
    expected = np.clip(np.floor(array.astype(np.float64) * 255 / white + 0.5), 0, 255)
    # A value on the border between two levels may be rounded to either.
    assert abs(read_image(path, white)[..., 0] - expected).max() <= 1
    assert (read_image(path, white)[..., 0] == expected).mean() > 0.99


def test_values_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.array([[1, np.nan]], np.float32), kind=3))
    with pytest.raises(DataError, match="not finite"):
        read_image(path, 1.0)


BANDS = RNG.integers(0, 65536, (20, 30, 5)).astype(np.uint16)


@pytest.mark.parametrize("options, text", [
    ({"array": BANDS, "tag338": [0, 0]}, "5 bands of 16 bits, unsigned integers"),
    ({"array": BANDS[..., :2], "tag338": [0]}, "2 bands of 16 bits"),
    ({"array": BANDS[..., :3], "planar": True}, "one after the other, of 16 bits"),
    ({"array": BANDS[..., :3].astype(np.float32), "kind": 3}, "3 bands of 32 bits, floats"),
    ({"array": BANDS[..., 0].astype(np.float64), "kind": 3}, "one band of 64 bits, floats"),
    ({"array": BANDS[..., 0].astype(np.int8), "kind": 2}, "one band of 8 bits, signed"),
    ({"array": BANDS[..., 0].astype(np.float32), "kind": 3, "tag262": 0}, "where 0 is white")])
def test_kinds_of_tiff_that_cannot_be_read_right_are_refused_by_name(options, text, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(options.pop("array"), **options))
    for white in (None, 4095):
        with pytest.raises(DataError, match=text) as caught:
            read_image(path, white)
        assert caught.value.fix and "write" in caught.value.fix


def test_a_tiff_of_further_bands_is_refused_with_the_setting_that_reads_it(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(BANDS, tag338=[0, 0]))
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.tif")
    assert 'give "bands" in the args of the dataset' in (caught.value.fix or "")


def test_white_is_refused_where_only_eight_bits_can_be_decoded(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(BANDS[..., :4], tag262=5))            # CMYK
    assert read_image(path).shape == (20, 30, 3)
    with pytest.raises(DataError, match='so "white" cannot be applied'):
        read_image(path, 4095)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_contain_the_stored_values(bits, tmp_path):
    ids = RNG.integers(0, 2 ** bits, (20, 30), dtype=np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(ids, bits=bits))
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), ids)


@pytest.mark.parametrize("top", [7, 15, 255, 4095, 65535])
def test_a_pgm_label_contains_the_stored_values(top, tmp_path):
    ids = RNG.integers(0, min(top, 300) + 1, (20, 30)).astype(np.uint16)
    data = ids.astype(">u2" if top > 255 else np.uint8).tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n# ids\n30 20\n%d\n" % top + data)
    np.testing.assert_array_equal(read_label(tmp_path / "a.pgm"), ids)


@pytest.mark.parametrize("mode", ["LA", "PA", "F", "CMYK", "YCbCr", "LAB"])
def test_labels_of_modes_that_hold_no_ids_are_refused(mode, tmp_path):
    Image.fromarray(IDS if mode in ("LA", "F") else RGB).convert(mode).save(tmp_path / "a.tif")
    _skip_unless_pillow_reads(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"mode {mode} cannot hold class ids"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("text", ["100M", "-5", "0", "1_000", "nan", "inf", "1e400", "2.5", "0x10"])
def test_a_limit_of_pixels_that_is_no_number_is_refused_when_it_is_needed(text, monkeypatch):
    monkeypatch.setattr(headers, "MAX_PIXELS", None)
    monkeypatch.setenv("SEGWRIGHT_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match="is not a number of pixels") as caught:
        headers.max_pixels()
    assert caught.value.where == "SEGWRIGHT_MAX_PIXELS"


@pytest.mark.parametrize("text, limit", [("2e8", 200_000_000), ("300000000", 300_000_000),
                                         ("", 178_956_970), (" 50 ", 50)])
def test_the_limit_of_pixels_may_be_written_as_any_number(text, limit, monkeypatch, tmp_path):
    monkeypatch.setattr(headers, "MAX_PIXELS", None)
    monkeypatch.setenv("SEGWRIGHT_MAX_PIXELS", text)
    assert headers.max_pixels() == limit
    for suffix in ("png", "tif"):
        Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
        if limit < RGB[..., 0].size:
            with pytest.raises(DataError, match="the limit is 50"):
                read_image(tmp_path / f"a.{suffix}")
        else:
            assert read_image(tmp_path / f"a.{suffix}").shape == RGB.shape


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_ids_of_sixteen_bits_in_three_equal_channels_lose_no_bits(suffix, tmp_path):
    ids = np.full((20, 30, 3), 300, np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), ids)
    with pytest.raises(DataError, match="color picture"):       # its high bytes are 1
        read_label(tmp_path / f"a.{suffix}")
