"""What a file contains and no program uses is said once, with numbers."""
import numpy as np
import pytest
from PIL import Image

from tests.support.tiff import tiff
from utils.errors import DataError
from utils.images.headers import read_header
from utils.images.image_io import write_image
from utils.images.partly_used import DECODED, partly_used, unused_in

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = np.dstack([RGB, np.full((20, 30), 255, np.uint8)])
CLEAR = np.dstack([RGB, np.full((20, 30), 200, np.uint8)])


def said(*paths, **options):
    return partly_used([(path, read_header(path)) for path in paths], **options)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_pages_and_frames_beyond_the_first_are_counted(suffix, tmp_path):
    one, many = tmp_path / f"one.{suffix}", tmp_path / f"many.{suffix}"
    frames = [Image.fromarray(np.roll(RGB, 5 * k, 0)) for k in range(3)]
    frames[0].save(one)
    frames[0].save(many, save_all=True, append_images=frames[1:])
    assert said(one) == []
    assert said(one, many) == [f"1 of 2 images have several pages or frames (3 in {many}): only "
                               "the first is used"]


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(RGB, RGB))
    assert read_header(path).frames == 2
    for role, pages in ((1, 1), (4, 1), (2, 2)):        # a smaller copy, a mask, a page of several
        path.write_bytes(tiff(RGB, RGB[:10], of_page={1: {254: role}}))
        assert read_header(path).frames == pages, role


@pytest.mark.parametrize("kind", ["RGBA png", "LA png", "P png", "RGBA webp", "RGBA tif", "PA tif"])
def test_alpha_is_named_only_where_it_varies(kind, tmp_path):
    mode, suffix = kind.split()
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    for name, pixels in (("full", ALPHA), ("clear", CLEAR)):
        picture = Image.fromarray(pixels)
        if mode == "P":
            picture, alpha = Image.fromarray(RGB).quantize(8), name == "clear"
            options = {"transparency": 3} if alpha else {}
        elif mode == "PA":
            alpha = picture.getchannel("A")
            picture = Image.fromarray(RGB).quantize(8).convert("PA")
            picture.putalpha(alpha)
        else:
            picture = picture.convert(mode)
        picture.save(tmp_path / f"{name}.{suffix}", **options)
    full, clear = (tmp_path / f"{name}.{suffix}" for name in ("full", "clear"))
    assert said(full) == []
    line, = said(full, clear)
    assert "a band of alpha, which is not used" in line and f"for example {clear}" in line


def test_bands_that_are_not_alpha_are_named_from_the_header(tmp_path):
    path = tmp_path / "a.tif"
    bands = RNG.integers(0, 256, (20, 30, 6), dtype=np.uint8)
    for extra, more in (([0], 1), ([0, 0, 0], 3), ([2, 0, 0], 2)):
        path.write_bytes(tiff(bands[..., :3 + len(extra)], tag338=extra))
        assert f"(up to {more} more, in {path}): these are not used" in said(path)[0]
    path.write_bytes(tiff(bands[..., :2], tag338=[0]))
    try:
        line = said(path)[0]
    except DataError as error:      # Pillow 12 does not open a second band
        assert "2 bands of 8 bits" in error.what
    else:
        assert "1 of 1 images have more bands than gray or RGB (up to 1 more" in line
    path.write_bytes(tiff(bands[..., :4], tag262=5))        # the K of CMYK is used
    assert said(path) == []


@pytest.mark.parametrize("bits, fitting", [(8, 255), (10, 1023), (12, 4095), (14, 16383)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_range_that_is_mostly_unused_is_named_with_the_setting(bits, fitting, suffix, tmp_path):
    values = RNG.integers(0, 2 ** bits - 3, (20, 30)).astype(np.uint16)
    values[0, 0] = 2 ** bits - 3
    path = tmp_path / f"a.{suffix}"
    write_image(path, values)
    line, = said(path)
    assert f"reach only {2 ** bits - 3} of 65535" in line and f'"white": {fitting} ' in line
    assert said(path, white=fitting) == []
    line, = said(path, white=100)
    assert f"values reach {2 ** bits - 3}, in {path}: those above 100 (white) become" in line
    write_image(path, (values * 2 ** (16 - bits)).astype(np.uint16))
    assert said(path) == []                             # stored in the upper bits


def test_the_range_and_alpha_are_looked_for_in_evenly_spaced_pictures_only(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(40)]
    for path in paths:
        write_image(path, np.full((4, 4), 4000, np.uint16))
    (tmp_path / "0.png").write_bytes(b"no picture")
    line, = unused_in(paths)
    assert f"39 images have more than 8 bits; of the {DECODED} that were read" in line
