"""Pictures of any bands and types are read as they are stored."""
import io
import json
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.tiff import tiff
from utils.errors import ConfigError, DataError
from utils.images.band_files import band_form, bands_header, read_bands, types_of
from utils.images.bands import MOST_BANDS, Bands, as_picture, bands_of_state, chosen_bands
from utils.images.headers import read_header
from utils.images.image_io import read_image
from utils.images.image_list import find_images
from utils.images.partly_used import no_data_of

RNG = np.random.default_rng(0)


def every(count):
    return Bands(tuple(range(1, count + 1)))


def values(dtype, bands=5, size=(23, 31)):
    return (RNG.random((*size, bands)) * 200).astype(dtype)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype, kind", [("u1", 1), ("u2", 1), ("i2", 2), ("u4", 1), ("f4", 3),
                                         ("f8", 3)])
def test_a_tiff_of_five_bands_is_read_as_stored(tmp_path, dtype, kind, order, planar):
    stored = values(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(stored, order=order, planar=planar, kind=kind))
    read = read_bands(path, every(5))
    assert read.dtype == {"u1": np.uint8, "u2": np.uint16}.get(dtype, np.float32)
    np.testing.assert_array_equal(read, stored.astype(read.dtype))
    assert band_form(path).bands == 5 and band_form(path).type == read.dtype.name


def test_pages_of_one_size_are_bands(tmp_path):
    stored = values("u2")
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(*np.moveaxis(stored, 2, 0)))
    np.testing.assert_array_equal(read_bands(path, Bands((5, 1))), stored[..., [4, 0]])
    path.write_bytes(tiff(stored[..., 0], stored[:20, :, 1]))
    with pytest.raises(DataError, match="page 2 is 20x31 of uint16, page 1 23x31"):
        read_bands(path, every(2))


def test_deflate_with_both_predictors_is_read(tmp_path):
    """Written here by the definitions of the predictors, in strips of the whole picture."""
    path = tmp_path / "a.tif"
    stored = values("u2", 4)
    differences = np.diff(stored, axis=1, prepend=np.zeros((23, 1, 4), "u2"))
    path.write_bytes(_deflated(differences.tobytes(), stored, 2, 1))
    np.testing.assert_array_equal(read_bands(path, every(4)), stored)
    stored = values("f4", 3) - 100
    planes = stored.reshape(23, -1).astype(">f4").view(np.uint8).reshape(23, -1, 4)
    rows = planes.transpose(0, 2, 1).reshape(23, -1, 3)
    rows = np.diff(rows, axis=1, prepend=np.zeros((23, 1, 3), np.uint8))
    path.write_bytes(_deflated(rows.tobytes(), stored, 3, 3))
    np.testing.assert_array_equal(read_bands(path, every(3)), stored)


def _deflated(raw, array, predictor, kind):
    """A TIFF with `raw` compressed, where `tiff` puts the plain values of the array."""
    packed = zlib.compress(raw)
    plain = tiff(array, kind=kind, tag259=8, tag317=predictor, tag279=len(packed))
    return plain[:-array.nbytes] + packed


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_png_and_lzw_files_of_opencv_are_read_with_red_first(tmp_path, bands, dtype):
    stored = values(dtype, bands)
    blue_first = stored[..., [2, 1, 0, 3][:bands]] if bands > 1 else stored
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), blue_first)
        np.testing.assert_array_equal(read_bands(tmp_path / name, every(bands)), stored)
        assert types_of(tmp_path / name, every(bands)) == [stored.dtype.name]


def test_gray_with_alpha_has_two_bands(tmp_path):
    stored = values("u1", 2)
    Image.fromarray(stored, "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_bands(tmp_path / "a.png", every(2)), stored)
    assert band_form(tmp_path / "a.png").bands == 2


@pytest.mark.parametrize("form", [lambda a: a, lambda a: a.transpose(2, 0, 1), np.asfortranarray,
                                  lambda a: a.astype(">u2")])
def test_arrays_are_read_in_every_order(tmp_path, form):
    stored = values("u2", 4)
    np.save(tmp_path / "a.npy", form(stored))
    np.savez_compressed(tmp_path / "a.npz", image=form(stored), other=np.zeros(3))
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(read_bands(tmp_path / name, every(4)), stored)
        assert bands_header(tmp_path / name, every(3)).unused_bands == 1
    np.save(tmp_path / "b.npy", stored[..., 0])
    assert read_bands(tmp_path / "b.npy", every(1)).shape == (23, 31, 1)


def test_further_files_add_their_bands(tmp_path):
    rgb, depth = values("u1", 3), values("u2", 1)
    for folder in ("images/train", "depth/train"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images/train/x_rgb.png"), rgb[..., ::-1])
    cv2.imwrite(str(tmp_path / "depth/train/x.png"), depth)
    bands = Bands((1, 2, 3, 4), ("../depth/*.png",), image="*_rgb.png")
    path = tmp_path / "images/train/x_rgb.png"
    bands = bands.typed(types_of(path, bands, tmp_path / "images"))
    read = read_bands(path, bands, tmp_path / "images")
    assert read.dtype == np.uint16 and bands.types == ("uint8", "uint16")
    np.testing.assert_array_equal(read, np.concatenate([rgb, depth], 2))
    # The folder of the images may lie below the one that is given.
    np.testing.assert_array_equal(read_bands(path, bands, tmp_path), read)
    assert bands_of_state(bands.state()) == bands
    (tmp_path / "depth/train/x.png").unlink()
    with pytest.raises(DataError, match="a file of this image is missing"):
        read_bands(path, bands, tmp_path / "images")


def test_the_orientation_of_a_tiff_is_applied(tmp_path):
    stored = values("u2", 4)
    (tmp_path / "a.tif").write_bytes(tiff(stored, tag274=6))
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", every(4)),
                                  np.rot90(stored, -1))
    assert bands_header(tmp_path / "a.tif", every(4)).size == (31, 23)


def one_line(error):
    assert "\n" not in error.value.what
    return error.value.what


@pytest.mark.parametrize("content, text", [
    (np.full((4, 5, 2), np.nan, np.float32), "40 of 40 values are NaN or infinite, the first at "
                                             "row 0, column 0 of band 1"),
    (np.full((4, 5, 2), 1e300), "infinite"),
    (np.full((4, 5, 2), 2 ** 31, np.int64), "float32 does not hold"),
    (np.array([[1, {}]], object), "Python objects"),
    (np.zeros((4, 5), complex), "an array of complex128 values"),
    (np.zeros((2, 3, 4, 5)), "an array of shape"),
    (np.zeros((600, 1, MOST_BANDS + 1), np.uint8), f"it has {MOST_BANDS + 1} bands; the limit is"),
])
def test_arrays_that_are_no_picture_are_refused(tmp_path, content, text):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(DataError) as error:
        read_bands(tmp_path / "a.npy", every(2 if content.ndim == 3 else 1))
    assert text in one_line(error)


def test_a_huge_claim_is_refused_before_it_is_read(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False,
                                                  "shape": (10 ** 6, 10 ** 6, 4)})
    (tmp_path / "a.npy").write_bytes(stream.getvalue())
    for name, content in (("a.npy", None), ("a.tif", tiff(values("u2"), tag256=65000, tag257=65000,
                                                           tag278=65000))):
        if content:
            (tmp_path / name).write_bytes(content)
        for read in (read_bands, bands_header):
            with pytest.raises(DataError) as error:
                read(tmp_path / name, every(4))
            assert "the limit is" in one_line(error)
    (tmp_path / "a.npy").write_bytes(stream.getvalue().replace(b"1000000", b"0000100"))
    with pytest.raises(DataError):
        read_bands(tmp_path / "a.npy", every(4))


def test_ten_thousand_bands_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(values("u1", 2, (2, 2)), tag277=10_000))
    with pytest.raises(DataError):
        read_bands(tmp_path / "a.tif", every(1))
    (tmp_path / "a.tif").write_bytes(tiff(values("u1", 10_000, (2, 2))))
    with pytest.raises(DataError) as error:
        bands_header(tmp_path / "a.tif", every(1))
    assert "10000 bands; the limit is 512" in one_line(error)
    with pytest.raises(ConfigError, match="expected 1 to 512 bands"):
        chosen_bands(10 ** 9, None)


@pytest.mark.parametrize("cut", [9, 60, 400])
def test_a_damaged_tiff_is_refused(tmp_path, cut):
    (tmp_path / "a.tif").write_bytes(tiff(values("u2"))[:cut])
    with pytest.raises(DataError):
        read_bands(tmp_path / "a.tif", every(5))


def test_another_type_or_too_few_bands_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(values("u2")))
    with pytest.raises(DataError, match="its values are uint16; those of the others are uint8"):
        read_bands(tmp_path / "a.tif", Bands((1, 2), types=("uint8",)))
    for read in (read_bands, bands_header):
        with pytest.raises(DataError, match="it has 5 bands, and band 7 is used"):
            read(tmp_path / "a.tif", Bands((1, 7)))


@pytest.mark.parametrize("arguments", [(0, None), ([], None), ([1, 0], None), (None, ["*.png"]),
                                       (2, ["depth.png"]), (2, ["/depth/*.png"])])
def test_bands_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError):
        chosen_bands(*arguments)


def test_a_picture_shows_two_deviations_around_the_mean():
    image = np.array([[[80, 0, 100, 120]]], np.uint16)
    picture = as_picture(image, [100] * 4, [10] * 4, (1, 3, 4))
    assert picture.tolist() == [[[0, 128, 255]]]
    assert as_picture(image, [100] * 4, [10] * 4).tolist() == [[[0, 0, 128]]]
    assert as_picture(image[..., :2], [100] * 2, [10] * 2).shape == (1, 1, 3)


def test_further_files_of_relative_paths_are_found_below_an_absolute_folder(tmp_path, monkeypatch):
    for name in ("images/s1/a.png", "depth/s1/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 5), np.uint8))
    monkeypatch.chdir(tmp_path)
    source, = find_images(["images"])
    bands = Bands((1, 2), ("../depth/*.png",))
    assert read_bands(source.path, bands, source.root).shape == (4, 5, 2)
    assert bands.further_files("images/s1/a.png", tmp_path / "other") == [
        tmp_path / "images/s1/../depth/a.png"]


def test_the_value_of_no_data_and_what_replaces_it_are_kept():
    bands = Bands((1, 2), types=("float32",), no_data="nan", fill=(1.5, 2.0))
    again = bands_of_state(json.loads(json.dumps(bands.state())))
    assert again and again == bands and again.fill == (1.5, 2.0)
    assert again.text == "2 bands of float32 (no data: nan)"
    assert bands == replace(bands, fill=(7.0, 7.0)) != replace(bands, no_data=0)
    for wrong in ({"no_data": "x"}, {"fill": [1.0]}, {"no_data": float("nan")}):
        with pytest.raises(ValueError, match="no bands of pictures"):
            bands_of_state({**bands.state(), **wrong})


@pytest.mark.parametrize("text, value", [(b"-9999", -9999), (b"nan ", "nan"), (b"0.5", 0.5),
                                         (b"-3.4028234663852886e+38", -3.4028234663852886e38),
                                         (b"none", None), (b"inf", None)])
def test_gdals_value_of_no_data_is_read(tmp_path, text, value):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    info = ImageFileDirectory_v2()
    info.tagtype[42113], info[42113] = 2, text.decode()
    Image.fromarray(values("u1", 3)).save(tmp_path / "a.tif", tiffinfo=info)
    assert no_data_of(tmp_path / "a.tif") == value
    assert no_data_of(tmp_path / "a.png") is None


def test_an_array_without_a_suffix_is_known_by_its_first_bytes(tmp_path):
    stored = values("u2")
    np.save(tmp_path / "upload.npy", stored)
    (tmp_path / "upload.npy").rename(tmp_path / "upload")
    np.testing.assert_array_equal(read_bands(tmp_path / "upload", every(5)), stored)


def test_an_array_is_no_picture_of_rgb(tmp_path):
    np.save(tmp_path / "a.npy", values("u1", 3))
    for read in (read_image, read_header):
        with pytest.raises(DataError, match="an array of NumPy is read with \"bands\" only"):
            read(tmp_path / "a.npy")
