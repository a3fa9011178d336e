"""SegFix's MATLAB files: offsets, distance maps, and finding the file of an image."""
import io

import numpy as np
import pytest
import scipy.io

from tests.support.segfix import blocks, random_offsets
from utils.errors import DataError
from utils.segfix.mat_files import (
    MatFolder,
    part_of_split,
    plain_name,
    read_distance_maps,
    read_offsets,
    write_distance_maps,
    write_offsets,
)
from utils.segfix.targets import distance_maps


def test_offset_files_have_the_published_layout(tmp_path):
    offset = random_offsets(5, 7)
    write_offsets(tmp_path / "a.mat", offset)
    stored = scipy.io.loadmat(tmp_path / "a.mat")["mat"]
    assert stored.dtype == np.int32 and stored.shape == (5, 7, 2)
    np.testing.assert_array_equal(read_offsets(tmp_path / "a.mat", (5, 7)), offset)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_offsets_of_every_dtype_are_read(tmp_path, dtype):
    offset = np.abs(random_offsets(4, 6)).astype(dtype)
    scipy.io.savemat(tmp_path / "a.mat", {"mat": offset})
    np.testing.assert_array_equal(read_offsets(tmp_path / "a.mat"), offset)


def test_distance_maps_are_read_as_they_were_written(tmp_path):
    depth, dir_deg = distance_maps(blocks(), min_pixels=0)
    write_distance_maps(tmp_path / "a.mat", depth, dir_deg)
    stored = scipy.io.loadmat(tmp_path / "a.mat")
    assert stored["dir_deg"].dtype == stored["depth"].dtype == np.uint8
    assert stored["deg_reduce"].item() == 2
    again, angle = read_distance_maps(tmp_path / "a.mat", depth.shape)
    np.testing.assert_array_equal(again, depth)
    np.testing.assert_array_equal(angle, 2.0 * dir_deg - 180)


def mat(**variables):
    """Returns the bytes of a MATLAB file."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


@pytest.mark.parametrize("data, text", [
    (b"", "0 bytes"), (b"no matlab file" * 20, "not a MATLAB file"), (mat(a=np.zeros(3)), "'mat'"),
    (mat(mat=np.zeros((4, 6, 2)))[:-40], "damaged"), (mat(mat="text"), "not the"),
    (mat(mat=np.zeros((4, 6))), "not the"), (mat(mat=np.full((4, 6, 2), np.inf)), "not finite"),
    (mat(mat=np.zeros((6, 4, 2))), "the image is 4x6")])
def test_a_bad_offset_file_is_one_message_with_its_name(tmp_path, data, text):
    path = tmp_path / "bad.mat"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_offsets(path, (4, 6))
    assert text in caught.value.what and caught.value.where == str(path)
    assert "\n" not in caught.value.what


def test_the_file_of_an_image_is_found_by_its_name(tmp_path):
    for name in ("x/a.mat", "y/a.mat", "aachen_0_1_leftImg8bit.mat", "v1.25.mat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_offsets(tmp_path / name, random_offsets(2, 2))
    files = MatFolder(tmp_path)
    assert files.find("x/a.png") == tmp_path / "x/a.mat"
    for name in ("aachen/aachen_0_1", "aachen_0_1_leftImg8bit.png", "aachen_0_1_gtFine_labelIds",
                 "aachen_0_1_leftImg8bit_pred.txt"):
        assert files.find(name) == tmp_path / "aachen_0_1_leftImg8bit.mat", name
    assert files.find("v1.25") == files.find("v1.25.png") == tmp_path / "v1.25.mat"
    for name, text in (("a", "2 offset files"), ("b", "no offset file")):
        with pytest.raises(DataError, match=text):
            files.find(name)


def test_a_folder_without_offset_files_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no"):
            MatFolder(folder)


def test_a_split_is_found_in_the_layout_of_the_published_archives(tmp_path):
    for place in ("val/offset_pred/semantic", "test_offset/instance"):
        (tmp_path / place).mkdir(parents=True)
    assert part_of_split(tmp_path, "val", "semantic") == tmp_path / "val/offset_pred/semantic"
    assert part_of_split(tmp_path, "test", "instance") == tmp_path / "test_offset/instance"
    assert part_of_split(tmp_path, "train", "semantic") == tmp_path
    assert part_of_split(tmp_path, None) == tmp_path


def test_plain_names_lose_only_folders_and_known_endings():
    assert plain_name("a/b_leftImg8bit.png") == "b" and plain_name("0016E5_07959") == "0016E5_07959"
