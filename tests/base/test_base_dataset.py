import os

import numpy as np
import pytest
import torch

from base.base_dataset import BaseDataset, Sample
from dataloader.augmentation.transforms import Augmentation
from dataloader.shapes import Shapes
from utils.errors import ConfigError, DataError
from utils.images.image_io import write_image, write_label
from utils.losses import build_loss
from utils.metrics.counts import count_pixels

RNG = np.random.default_rng(0)


class Plain(BaseDataset):
    num_classes = 5
    class_names = list("abcde")
    palette = [[i, i, i] for i in range(5)]
    split_sizes = {"train": 3}

    def find_samples(self):
        yield from self.pair_by_stem(self.root / "images", self.root / "labels")


class Shifted(Plain):
    """Stored 1..5 are classes 0..4, 0 is ignored, as in ADE20K."""

    def train_ids(self, raw):
        return np.where(raw == 0, self.ignore_index, raw - 1)


class People(Plain):
    flip_label_pairs = ((1, 2), (3, 4))


def fill(root, labels, size=(12, 16)):
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, label in labels.items():
        label = np.full(size, label, np.uint8) if np.isscalar(label) else label
        write_image(root / "images" / f"{name}.png",
                    RNG.integers(0, 255, (*label.shape, 3), dtype=np.uint8))
        write_label(root / "labels" / f"{name}.png", label, [])
    return str(root)


@pytest.fixture
def three(tmp_path):
    return fill(tmp_path, {"a": 0, "b": 4, "c": 2})


def test_an_item_consists_of_bytes_and_an_id(three):
    item = Plain(three, "train")[1]
    assert item["image"].dtype == torch.uint8 and item["image"].shape == (3, 12, 16)
    assert item["label"].dtype == torch.uint8 and item["label"].unique().tolist() == [4]
    assert item["id"] == "b"


def test_labels_have_sixteen_bits_where_a_byte_cannot_hold_them(three):
    assert Plain(three, "train", ignore_index=-1)[0]["label"].dtype == torch.int16

    class Many(Plain):
        num_classes = 300
        class_names = [str(i) for i in range(300)]
    assert Many(three, "train", ignore_index=1000)[0]["label"].dtype == torch.int16


@pytest.mark.parametrize("ignore", [5, 254, 255, 256, 32767, 32768, 40000, 65535, 65536, 65539,
                                    100000, 2 ** 31 - 1, -1, -100, -32768, -32769, -65533,
                                    -2 ** 31])
@pytest.mark.parametrize("num_classes", [5, 255, 300, 32767])
def test_every_ignore_index_that_is_not_a_class_marks_exactly_the_ignored_pixels(
        num_classes, ignore, tmp_path):
    if ignore < num_classes and ignore >= 0:
        pytest.skip("a class")

    class Shown(Plain):
        def train_ids(self, raw):
            return np.where(raw == 9, self.ignore_index, raw)
    Shown.num_classes = num_classes
    stored = np.tile(np.array([0, 1, 9, 4, 3], np.uint8), (4, 3))
    label = Shown(fill(tmp_path, dict.fromkeys("abc", stored)), "train",
                  ignore_index=ignore)[0]["label"]
    expected = np.where(stored == 9, ignore, stored.astype(np.int64))
    np.testing.assert_array_equal(label.numpy().astype(np.int64), expected)
    logits = torch.randn(1, 5, *label.shape, generator=torch.Generator().manual_seed(0))
    valid = torch.from_numpy(stored != 9)
    log_probs = logits.log_softmax(1)[0]
    wanted = -torch.stack([log_probs[stored[y, x], y, x] for y, x in valid.nonzero()]).mean()
    loss = build_loss("CE", ignore)(logits, label[None])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    counts = count_pixels(logits.argmax(1), label[None], 5, ignore)
    assert counts.valid.item() == int(valid.sum())
    assert counts.labeled[0].tolist() == [int((stored == c).sum()) for c in range(5)]


@pytest.mark.parametrize("ignore", [2 ** 31, -2 ** 31 - 1, 2 ** 40, -2 ** 62])
def test_an_ignore_index_beyond_32_bits_is_refused_with_the_range(ignore, three):
    with pytest.raises(ConfigError, match="-2147483648 to 2147483647"):
        Plain(three, "train", ignore_index=ignore)


def test_more_classes_than_predictions_can_hold_are_refused(three):
    class Huge(Plain):
        num_classes = 32768
    with pytest.raises(ConfigError, match="the limit is 32767"):
        Huge(three, "train", ignore_index=-1)


@pytest.mark.parametrize("dataset", [Plain, Shifted])
@pytest.mark.parametrize("ignore", [255, -1, 100, 1000, 65535, 65536, -65535])
def test_padding_is_ignored_with_every_ignore_index(dataset, ignore, tmp_path):
    root = fill(tmp_path, {"a": 1, "b": 1, "c": 1})
    data = dataset(root, "train", ignore_index=ignore,
                   augmentation=Augmentation(crop_size=40, augment=True, rotate=True))
    expected = 1 if dataset is Plain else 0
    for epoch in range(6):
        assert set(data[epoch, 0]["label"].unique().tolist()) == {expected, ignore}


def test_the_augmentation_knows_the_classes_of_stored_values(tmp_path):
    class Halved(Plain):
        """Stored 0 and 1 are class 0, 2 and 3 class 1."""

        def train_ids(self, raw):
            return np.where(raw < 5, raw // 2, self.ignore_index)
    label = np.zeros((64, 100), np.uint8)
    label[:, 40:], label[:, 70:] = 1, 2
    root = fill(tmp_path, {"a": label, "b": 1, "c": 1})
    data = Halved(root, "train", augmentation=Augmentation(
        crop_size=24, augment=True, scale=False, cat_max_ratio=0.95))
    shown = [set(data[epoch, 0]["label"].unique().tolist()) for epoch in range(60)]
    assert sum(one == {0, 1} for one in shown) > 50


def test_stored_values_are_mapped(tmp_path):
    root = fill(tmp_path, {n: np.array([[0, 1, 5]], np.uint8) for n in "abc"})
    assert Shifted(root, "train")[0]["label"].tolist() == [[255, 0, 4]]


def test_random_draws_depend_only_on_seed_epoch_and_index(three):
    def images(seed, order):
        data = Plain(three, "train", seed=seed,
                     augmentation=Augmentation(crop_size=8, augment=True, rotate=True))
        return {key: data[key]["image"].numpy().tobytes() for key in order}
    keys = [(e, i) for e in range(3) for i in range(3)]
    first, backwards = images(0, keys), images(0, keys[::-1])
    assert first == backwards and len(set(first.values())) == 9
    assert set(first.values()).isdisjoint(images(1, keys).values())


@pytest.mark.parametrize("ignore", [255, -1])
def test_mirroring_swaps_left_and_right_classes(ignore, tmp_path):
    class Limbs(People):
        def train_ids(self, raw):
            return np.where(raw == 9, self.ignore_index, raw)
    root = fill(tmp_path, {n: np.array([[0, 1, 2, 3, 4, 9]], np.uint8) for n in "abc"})
    data = Limbs(root, "train", ignore_index=ignore,
                 augmentation=Augmentation(augment=True, scale=False, flip=True))
    seen = {tuple(data[e, 0]["label"][0].tolist()) for e in range(12)}
    assert seen == {(0, 1, 2, 3, 4, ignore), (ignore, 3, 4, 1, 2, 0)}


def test_two_flips_are_a_turn_which_leaves_left_and_right_as_they_are(tmp_path):
    root = fill(tmp_path, {n: np.array([[0, 1], [2, 3]], np.uint8) for n in "abc"})
    data = People(root, "train", augmentation=Augmentation(
        augment=True, scale=False, flip=True, vflip=True, crop_size=2))
    seen = {tuple(data[e, 0]["label"].flatten().tolist()) for e in range(40)}
    assert seen == {(0, 1, 2, 3), (2, 0, 4, 1), (1, 4, 0, 2), (3, 2, 1, 0)}


def test_labels_that_are_all_ignored_are_said_once(tmp_path, capfd):
    Plain(fill(tmp_path / "void", dict.fromkeys("abc", 255)), "train")
    assert "Plain train: none of the 3 labels that were read has a pixel of a class" \
        in capfd.readouterr().err
    Plain(fill(tmp_path / "some", {"a": 255, "b": 1}), "train")
    assert "none of" not in capfd.readouterr().err


def test_a_value_out_of_range_names_file_values_and_counts(tmp_path):
    label = np.zeros((4, 4), np.uint8)
    label[0, :3], label[1, 0] = 200, 77
    root = fill(tmp_path, {"a": 0, "b": label, "c": 0})
    with pytest.raises(DataError) as caught:
        Plain(root, "train")
    message = str(caught.value)
    for part in ("77 (1 pixel), 200 (3 pixels)", "num_classes is 5", "ignore_index is 255",
                 "b.png", "label_map"):
        assert part in message


def test_a_value_out_of_range_is_also_found_when_the_sample_is_read(tmp_path):
    root = fill(tmp_path, {f"{i:02d}": 0 for i in range(30)})
    label = np.zeros((12, 16), np.uint8)
    label[0, 0] = 9
    write_label(tmp_path / "labels" / "01.png", label, [])
    data = Plain(root, "other")
    with pytest.raises(DataError, match="01.png"):
        data[1]


@pytest.mark.parametrize("ignore", [255, 254])
def test_binary_masks_of_0_and_255_get_a_hint(ignore, tmp_path):
    mask = np.zeros((4, 4), np.uint8)
    mask[:2] = 255
    root = fill(tmp_path, {"a": mask, "b": mask, "c": mask})
    with pytest.raises(DataError, match="255") as caught:
        Plain(root, "train", ignore_index=ignore)
    assert "binary" in str(caught.value) and '"255": 1' in str(caught.value)


def test_one_error_lists_all_problems_of_the_files(tmp_path):
    root = fill(tmp_path, {n: 0 for n in ("good", "other", "nolabel", "orphan", "small", "bad")})
    (tmp_path / "labels" / "nolabel.png").unlink()
    (tmp_path / "images" / "orphan.png").unlink()
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    write_label(tmp_path / "labels" / "small.png", np.zeros((3, 3), np.uint8), [])
    write_image(tmp_path / "images" / "good.jpg", np.zeros((12, 16, 3), np.uint8))
    (tmp_path / "images" / "other.png").unlink()
    os.mkfifo(tmp_path / "images" / "other.png")
    (tmp_path / "images" / "folder.jpg").mkdir()
    write_label(tmp_path / "labels" / "folder.png", np.zeros((3, 3), np.uint8), [])
    with pytest.raises(DataError) as caught:
        Plain(root, "train")
    message = str(caught.value)
    assert "7 files are wrong" in message
    for part in ("nolabel.png: no label", "orphan.png: a label without an image",
                 "bad.png: the file is empty", "small.png is 12x16 (height x width) but its",
                 "is 3x3", "good.png: same name as", "other.png: not a regular file",
                 "folder.jpg: not a regular file"):
        assert part in message, part


def test_ten_problems_are_shown_and_the_rest_counted(tmp_path):
    root = fill(tmp_path, {f"{i:02d}": 0 for i in range(14)})
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="14 files are wrong") as caught:
        Plain(root, "train")
    assert str(caught.value).count("no label") == 10 and "and 4 more" in str(caught.value)


def test_an_empty_or_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Plain(str(tmp_path / "none"), "train")
    with pytest.raises(DataError, match="no images"):
        Plain(str(tmp_path), "train")


def test_a_split_size_other_than_the_published_one_is_a_warning(tmp_path, capsys):
    Plain(fill(tmp_path, {"a": 0, "b": 0}), "train")
    assert "2 images" in capsys.readouterr().err


def test_an_unknown_split_and_an_ignored_class_are_config_errors(three):
    class Known(Plain):
        splits = ("train", "val")
    with pytest.raises(ConfigError, match="train, val"):
        Known(three, "valid")
    with pytest.raises(ConfigError, match="ignore_index 3"):
        Plain(three, "train", ignore_index=3)


def test_a_split_without_labels_is_all_ignored(three):
    class Unlabeled(Plain):
        def find_samples(self):
            for path in sorted((self.root / "images").iterdir()):
                yield Sample(path.stem, path, None)
    item = Unlabeled(three, "test", augmentation=Augmentation(crop_size=20, augment=True))[0]
    assert item["label"].unique().tolist() == [255]


def test_a_file_that_is_removed_later_is_named(three):
    data = Plain(three, "train")
    data.samples[2].image.unlink()
    with pytest.raises(DataError, match="cannot be opened") as caught:
        data[2]
    assert "c.png" in caught.value.where


def test_checking_headers_is_fast(tmp_path):
    import time
    root = fill(tmp_path, {f"{i:03d}": 0 for i in range(200)})
    start = time.process_time()
    Plain(root, "other")
    assert time.process_time() - start < 0.2           # 20 us per file, plus the constructor


def with_void(training, **options):
    dataset = Shapes(split="train", length=4, size=(32, 48), **options)
    labels = [dataset[index]["label"].numpy() for index in range(4)]
    dataset.add_void(train_void=True, training=training)
    return dataset, labels, [dataset[index]["label"].numpy() for index in range(4)]


def test_void_is_trained_as_the_last_class_in_place_of_ignored_pixels():
    dataset, before, after = with_void(True)
    assert any((label == 255).any() for label in before)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, np.where(old == 255, 9, old))
    assert dataset.num_classes == 10 and dataset.class_names[-1] == "void"
    assert len(dataset.palette) == 10 and Shapes.num_classes == 9


def test_void_stays_ignored_in_validation_and_borders_are_void_in_training():
    _, before, after = with_void(False)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    chain = Augmentation(crop_size=[40, 60], augment=True, scale=False)
    _, before, after = with_void(True, augmentation=chain)
    assert (before[0][32:] == 255).all() and (after[0][32:] == 9).all()


def test_an_ignore_index_that_void_would_take_is_refused():
    dataset = Shapes(split="train", length=2, size=(32, 48), ignore_index=9)
    with pytest.raises(ConfigError, match="set ignore_index to 255"):
        dataset.add_void(train_void=True, training=True)
