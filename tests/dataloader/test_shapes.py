
import numpy as np
import pytest

from dataloader.augmentation.transforms import Augmentation
from dataloader.shapes import Shapes
from utils.errors import ConfigError


def test_an_image_depends_only_on_seed_split_and_index():
    first = Shapes(length=4).load(3)
    again = Shapes(length=50).load(3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    others = [Shapes(length=4).load(2), Shapes(length=4, seed=1).load(3),
              Shapes(split="val", length=4).load(3)]
    assert not any(np.array_equal(first[0], other[0]) for other in others)


def test_splits_have_no_image_in_common():
    images = [Shapes(split=split, length=40).load(i)[1].tobytes()
                for split in Shapes.splits for i in range(40)]
    assert len(set(images)) == len(images)


def test_every_class_occurs_and_sizes_are_very_unequal():
    dataset = Shapes(length=60)
    counts = sum(np.bincount(dataset.load(i)[1].ravel(), minlength=256) for i in range(60))
    shares = counts[:9] / counts.sum()
    assert shares.min() > 0.0005 and shares.max() > 50 * shares.min()
    assert 0 < counts[255] / counts.sum() < 0.1
    assert counts[9:255].sum() == 0


def test_the_mean_colors_do_not_separate_the_classes():
    # A classifier by the nearest mean color, fitted on the same pixels, has a low score.
    dataset = Shapes(length=30)
    images, labels = map(np.concatenate, zip(
        *((i.reshape(-1, 3), t.ravel()) for i, t in map(dataset.load, range(30))), strict=True))
    means = np.stack([images[labels == c].mean(0) for c in range(9)])
    guess = ((images[::7, None].astype(float) - means) ** 2).sum(-1).argmin(1)
    truth = labels[::7]
    ious = [((guess == c) & (truth == c)).sum()
            / (((guess == c) | (truth == c)) & (truth != 255)).sum() for c in range(9)]
    assert np.mean(ious) < 0.35


def test_the_stated_mean_and_deviation_are_those_of_the_images():
    dataset = Shapes(length=80)
    pixels = np.concatenate([dataset.load(i)[0].reshape(-1, 3)[::5] for i in range(80)]) / 255
    np.testing.assert_allclose(pixels.mean(0), dataset.mean, atol=0.03)
    np.testing.assert_allclose(pixels.std(0), dataset.std, atol=0.03)


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (256, 512)])
def test_any_size_can_be_drawn(size):
    item = Shapes(size=size, length=2)[1]
    assert item["image"].shape == (3, *size) and item["label"].shape == size
    assert item["id"] == "train_00001"


def test_void_becomes_the_ignore_index():
    labels = [Shapes(length=10, ignore_index=-1)[i]["label"] for i in range(10)]
    assert min(label.min() for label in labels) == -1
    assert max(label.max() for label in labels) == 8


def test_wrong_sizes_and_splits_are_config_errors():
    for options in ({"size": (8, 8)}, {"length": -1}, {"split": "vla"}):
        with pytest.raises(ConfigError):
            Shapes(**options)


def test_augmentation_applies_to_drawn_images():
    item = Shapes(length=1, augmentation=Augmentation(crop_size=64, augment=True))[3, 0]
    assert item["image"].shape == (3, 64, 64)
