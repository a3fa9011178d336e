
import numpy as np
import pytest

from dataloader.camvid import CamVid
from tests.support.places import SHARED
from utils.errors import DataError
from utils.images.image_io import write_image, write_label

SHARED = SHARED / "data" / "camvid"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/camvid is not here")
RNG = np.random.default_rng(0)


def make(root, names=("a", "b"), split="train", image_suffix=".png", size=(6, 8)):
    for folder in (root / split, root / f"{split}annot"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_image(root / split / f"{name}{image_suffix}",
                    RNG.integers(0, 255, (*size, 3), dtype=np.uint8))
        write_label(root / f"{split}annot" / f"{name}.png",
                    RNG.integers(0, 12, size, dtype=np.uint8), [])


@real
def test_the_real_splits_have_their_published_sizes(capsys):
    assert len(CamVid(str(SHARED), "train")) == 367
    assert len(CamVid(str(SHARED), "val")) == 101
    assert "published" not in capsys.readouterr().err


@real
def test_void_is_ignored_and_other_values_are_the_classes():
    dataset = CamVid(str(SHARED), "val")
    image, stored = dataset.load(0)
    item = dataset[0]
    assert item["image"].shape == (3, 360, 480) and item["id"] == "0016E5_07959"
    label = item["label"].numpy()
    np.testing.assert_array_equal(label[stored != 11], stored[stored != 11])
    assert set(label[stored == 11]) == {255}
    assert image.shape == (360, 480, 3)


@real
def test_class_shares_of_val_are_the_published_ones():
    dataset = CamVid(str(SHARED), "val")
    counts = sum(np.bincount(dataset[i]["label"].numpy().ravel(), minlength=256)
                 for i in range(0, 101, 10))
    shares = 100 * counts / counts.sum()
    expected = [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217]
    np.testing.assert_allclose(shares[:11], expected, atol=1.5)


@real
def test_the_stated_mean_is_that_of_the_training_images():
    dataset = CamVid(str(SHARED), "train")
    pixels = np.concatenate([dataset.load(i)[0][::8, ::8].reshape(-1, 3)
                             for i in range(0, 367, 12)]) / 255
    np.testing.assert_allclose(pixels.mean(0), dataset.mean, atol=0.04)
    np.testing.assert_allclose(pixels.std(0), dataset.std, atol=0.04)


@pytest.mark.parametrize("prefix", ["/SegNet/CamVid/", "", "/"])
def test_pairs_are_read_from_the_list_with_or_without_the_containers_prefix(prefix, tmp_path):
    make(tmp_path)
    lines = [f"{prefix}train/{n}.png {prefix}trainannot/{n}.png" for n in "ba"]
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "  \r\n\r\n".join(lines).encode())
    assert [s.id for s in CamVid(str(tmp_path), "train").samples] == ["b", "a"]


def test_a_list_with_another_extension_finds_the_images(tmp_path):
    make(tmp_path, image_suffix=".webp")
    (tmp_path / "train.txt").write_text("train/a.png trainannot/a.png\n")
    assert CamVid(str(tmp_path), "train").samples[0].image.suffix == ".webp"


def test_without_a_list_pairs_are_found_by_stem(tmp_path):
    make(tmp_path, image_suffix=".jpg")
    assert [s.id for s in CamVid(str(tmp_path), "train").samples] == ["a", "b"]


def test_bad_lines_are_named_by_their_number(tmp_path):
    make(tmp_path)
    (tmp_path / "train.txt").write_text("train/a.png trainannot/a.png\n\ntrain/b.png\n"
                                        "train/c.png trainannot/c.png\n/etc/none.png x.png\n")
    with pytest.raises(DataError) as caught:
        CamVid(str(tmp_path), "train")
    message = str(caught.value)
    assert "train.txt:3: expected an image and a label" in message
    assert "train.txt:4: no such file: train/c.png" in message
    assert "train.txt:5: no such file: /etc/none.png" in message


def test_a_folder_with_another_number_of_images_is_a_warning(tmp_path, capsys):
    make(tmp_path)
    CamVid(str(tmp_path), "train")
    assert "2 images" in (err := capsys.readouterr().err) and "367" in err
