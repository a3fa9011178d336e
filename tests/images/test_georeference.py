"""The georeference of an image is copied to its label map."""
import numpy as np
import pytest
from PIL import Image

from tests.support.tiff import tiff
from utils.images.georeference import georeference_of, label_tiff
from utils.images.image_io import read_label

PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


def geo_image(path, **tags):
    """A TIFF of Pillow with a scale of 10 m, a tie point and a coordinate system."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    info = ImageFileDirectory_v2()
    for tag, kind, values in ((33550, 12, (10.0, 10.0, 0.0)),
                              (33922, 12, (0.0, 0.0, 0.0, 500000.0, 4100000.0, 0.0)),
                              (34735, 3, (1, 1, 0, 1, 3072, 0, 1, 32633)),
                              (34737, 2, "WGS 84 / UTM 33N|")):
        info.tagtype[tag] = kind
        info[tag] = values
    for tag, value in tags.items():
        info[int(tag[3:])] = value
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(path, tiffinfo=info)


@pytest.mark.parametrize("classes, mode", [(3, "P"), (300, "I;16")])
def test_a_label_map_has_the_tags_and_labels_of_its_image(tmp_path, classes, mode):
    geo_image(tmp_path / "a.tif")
    labels = np.arange(30 * 40).reshape(30, 40) % classes
    found = georeference_of(tmp_path / "a.tif")
    palette = PALETTE * (classes // 3)
    (tmp_path / "l.tif").write_bytes(label_tiff(labels, palette, found))
    with Image.open(tmp_path / "l.tif") as image:
        assert image.mode == mode
        assert image.tag_v2[33550] == (10.0, 10.0, 0.0)
        assert image.tag_v2[33922][3:5] == (500000.0, 4100000.0)
        assert image.tag_v2[34735][-1] == 32633 and "UTM 33N" in image.tag_v2[34737]
        if mode == "P":
            assert image.getpalette()[3:9] == [255, 0, 0, 0, 0, 255]
    np.testing.assert_array_equal(read_label(tmp_path / "l.tif"), labels)
    assert georeference_of(tmp_path / "l.tif") == found


def test_label_ids_are_stored_with_their_colors(tmp_path):
    labels = np.arange(300 * 10).reshape(300, 10) % 3
    (tmp_path / "l.tif").write_bytes(label_tiff(labels, PALETTE, None, [0, 7, 200]))
    with Image.open(tmp_path / "l.tif") as image:
        assert image.getpalette()[21:24] == [255, 0, 0]
    np.testing.assert_array_equal(read_label(tmp_path / "l.tif"), np.array([0, 7, 200])[labels])


def test_images_without_a_place_have_no_georeference(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((3, 4), np.uint8)))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert georeference_of(tmp_path / "a.tif") is None
    assert georeference_of(tmp_path / "b.png") is None
    assert georeference_of(tmp_path / "missing.tif") is None
    geo_image(tmp_path / "c.tif", tag274=6)
    assert georeference_of(tmp_path / "c.tif") is None


def test_gdal_reads_the_georeference(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    geo_image(tmp_path / "a.tif")
    content = label_tiff(np.ones((30, 40), int), PALETTE, georeference_of(tmp_path / "a.tif"))
    (tmp_path / "l.tif").write_bytes(content)
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "l.tif") as other:
        assert one.transform == other.transform and one.crs == other.crs
        assert one.crs.to_epsg() == 32633 and (other.read(1) == 1).all()
        assert other.colormap(1)[1][:3] == (255, 0, 0)
