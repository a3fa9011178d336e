"""Class-uniform sampling: the images, the places, and the content of a crop."""
import json
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import train
from base.base_dataset import BaseDataset, Sample
from dataloader.augmentation.transforms import Augmentation
from dataloader.class_uniform import ClassUniform, load_centroids, tile_centroids
from dataloader.loader import build_loader, make_loader
from dataloader.mixture import Mixture
from tests.dataloader.test_loader import batches
from tests.support.run_program import digest
from trainer import Trainer
from utils.cli.console import run
from utils.config.registry import components
from utils.errors import ConfigError, DataError
from utils.images.image_io import write_image, write_label

CLASSES = 5


class Spots(BaseDataset):
    """Label maps of one common class with a small spot of another."""

    num_classes = CLASSES
    class_names = list("abcde")
    palette = [[0, 0, 0]] * CLASSES

    def find_samples(self):
        for path in sorted((self.root / "images").iterdir()):
            yield Sample(path.stem, path, self.root / "labels" / f"{path.stem}.png")


def spots(root, count=24, size=(40, 60), crop=12, **options):
    """Spot i of 3x3 pixels, of class 1 + i % 4, each at another place."""
    for name in ("images", "labels"):
        (root / name).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        label = np.zeros(size, np.uint8)
        y, x = (int(rng.integers(0, side - 2)) for side in size)
        label[y:y + 3, x:x + 3] = 1 + i % 4
        write_image(root / "images" / f"{i:02d}.png",
                    rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        write_label(root / "labels" / f"{i:02d}.png", label, [])
    augmentation = Augmentation(crop_size=crop, augment=True, flip=True, **options)
    return Spots(str(root), "train", augmentation=augmentation)


def visits(dataset, epoch=1, **options):
    return ClassUniform(dataset=dataset, **options)(epoch)


def sampler(**args):
    return {"type": "ClassUniform", "args": args}


def test_a_tile_gives_the_mean_position_of_each_class():
    ids = np.full((8, 16), 255)
    ids[1:4, 2:7] = 0
    ids[5, 10:12] = 3
    assert tile_centroids(ids, 8, CLASSES) == [(0, 2, 4), (3, 5, 10)]
    assert tile_centroids(ids, 5, CLASSES) == [(0, 2, 3), (0, 2, 5), (3, 5, 10)]


def test_a_centroid_outside_its_class_becomes_the_nearest_pixel_of_the_class():
    ids = np.zeros((9, 9), int)
    ids[2:7, 2:7] = 1
    ids[3:6, 3:6] = 0
    ((_, *ground), (_, y, x)) = tile_centroids(ids, 9, CLASSES)
    assert ids[y, x] == 1 and max(abs(y - 4), abs(x - 4)) == 2
    assert ids[tuple(ground)] == 0


@given(ids=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                  elements=st.sampled_from([0, 1, 2, 255])), tile=st.integers(1, 10))
def test_every_centroid_lies_on_its_class_and_every_class_of_a_tile_has_one(ids, tile):
    found = tile_centroids(ids, tile, 3)
    assert all(ids[y, x] == class_id for class_id, y, x in found)
    tiles = {(class_id, y // tile, x // tile) for class_id, y, x in found}
    places = {(int(ids[y, x]), y // tile, x // tile) for y in range(ids.shape[0])
              for x in range(ids.shape[1]) if ids[y, x] != 255}
    assert tiles == places and len(found) == len(tiles)


def test_cityscapes_draws_the_published_number_of_centroids_per_class(monkeypatch, tmp_path):
    # 2975 images, 19 classes, half of the epoch: 78 of each class and 1493 plain images.
    dataset = spots(tmp_path, 2)
    monkeypatch.setattr(type(dataset), "num_classes", 19)
    monkeypatch.setattr(dataset, "draw_epoch", lambda epoch: np.arange(2975))
    monkeypatch.setattr("dataloader.class_uniform.load_centroids", lambda *_: np.stack(
        [np.repeat(np.arange(19), 30), *np.ones((3, 570), int)], axis=1))
    uniform = ClassUniform(dataset=dataset)
    draw = uniform(1)
    assert uniform.per_class == 78 and len(draw) == 2975
    assert (draw[:, 1] == -1).sum() == 1493


def test_an_epoch_shows_every_class_equally_often_and_the_rest_at_random(tmp_path):
    dataset = spots(tmp_path)
    draw = visits(dataset, share=0.5)
    assert len(draw) == 24 and (draw[:, 1] >= 0).sum() == 10       # 2 of each of 5 classes
    labels = [dataset.load_label(index)[y, x] for index, y, x in draw if y >= 0]
    assert np.bincount(labels).tolist() == [2] * 5
    plain = draw[draw[:, 1] < 0, 0]
    assert len(set(plain)) == 14
    assert visits(dataset, 2, share=0.5).tolist() != draw.tolist()
    assert visits(dataset, share=0.5).tolist() == draw.tolist()


def test_after_the_last_epoch_of_the_sampler_all_images_are_visited(tmp_path):
    uniform = ClassUniform(last_epoch=3, dataset=spots(tmp_path))
    assert uniform(3).ndim == 2 and uniform(4).tolist() == list(range(24))
    loader = build_loader(spots(tmp_path), 4, True, 0, training=True,
                          sampler=sampler(last_epoch=3))
    assert len(batches(loader, 3)) == len(batches(loader, 4)) == 6


def test_only_the_selected_classes_are_drawn(tmp_path):
    dataset = spots(tmp_path)
    draw = visits(dataset, classes=[2, 4], share=1.0)
    assert {int(dataset.load_label(index)[y, x]) for index, y, x in draw if y >= 0} == {2, 4}
    assert (draw[:, 1] >= 0).all()


@pytest.mark.parametrize("options", [{}, {"rotate": True}, {"scale": [0.3, 3.0]},
                                     {"aspect": True, "rotate": 8.0}, {"base_size": 45},
                                     {"cat_max_ratio": 0.75}])
def test_a_crop_shows_the_class_of_its_centroid(options, tmp_path):
    dataset = spots(tmp_path, **options)
    classes = {i: 1 + i % 4 for i in range(24)}
    turned = "rotate" in options
    for index, y, x in visits(dataset, share=1.0, classes=[1, 2, 3, 4]).tolist():
        # Near a corner a rotation may move the spot out of the image.
        if turned and not (8 < y < 32 and 8 < x < 52):
            continue
        for epoch in range(4):
            label = dataset[epoch, index, 0, (y, x)]["label"].numpy()
            small = 3 * label.shape[0] / 40 < 1 or "scale" in options
            assert classes[index] in label or small, (index, y, x)


@settings(max_examples=60, deadline=None)
@given(y=st.integers(0, 79), x=st.integers(0, 99), crop=st.integers(1, 70), seed=st.integers(0, 99),
       angle=st.sampled_from([False, 10.0]), aspect=st.booleans())
def test_a_crop_contains_its_center_pixel(y, x, crop, seed, angle, aspect):
    label = np.zeros((80, 100), np.uint8)
    augmentation = Augmentation(crop_size=crop, augment=True, rotate=angle, aspect=aspect)
    view = augmentation.draw_view(label, np.random.default_rng(seed), center=(y, x))
    matrix = np.vstack([view._matrix(label.shape), [0, 0, 1]])
    u, v, _ = np.linalg.inv(matrix) @ [x, y, 1]
    inside = 15 < y < 65 and 15 < x < 85            # no rotation moves this out of the image
    slack = 0.5 + max(view.rows.scale, view.columns.scale)
    if not angle or inside:
        assert -slack <= u < crop + slack and -slack <= v < crop + slack
    assert 0 <= view.rows.start <= 80 - view.rows.length
    assert 0 <= view.columns.start <= 100 - view.columns.length


def test_the_position_of_the_center_in_the_crop_is_random(tmp_path):
    dataset = spots(tmp_path, scale=False)
    index, y, x = 0, 20, 30
    views = [dataset.augmentation.draw_view(dataset.load_label(index), np.random.default_rng(seed),
                                            center=(y, x)) for seed in range(60)]
    assert {view.rows.start for view in views} == set(range(y - 11, y + 1))
    assert {view.columns.start for view in views} == set(range(x - 11, x + 1))


def test_batches_depend_on_neither_workers_nor_an_interruption(tmp_path):
    # Two seconds: processes are started for every number of workers.
    dataset, expected = spots(tmp_path, rotate=True), None
    for workers in (0, 1, 2, 4):
        loader = build_loader(dataset, 4, True, workers, training=True, sampler=sampler())
        found = [batches(loader, epoch) for epoch in (1, 2)]
        expected = expected or found
        assert found == expected and expected[0] != expected[1]
        if workers in (0, 2):
            for start in range(len(loader) + 1):
                assert batches(loader, 2, start) == expected[1][start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_draw_what_one_process_draws(world, tmp_path):
    dataset = spots(tmp_path)
    single, *ranks = (build_loader(dataset, 6 // size, True, 0, training=True, rank=rank,
                                   world_size=size, sampler=sampler()).plan
                      for size, rank in [(1, 0), *((world, rank) for rank in range(world))])
    for plan in (single, *ranks):
        plan.set_epoch(2)
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sorted(map(str, whole)) == sorted(map(str, sum(parts, [])))
    assert len({len(plan) for plan in ranks}) == 1


def test_centroids_are_kept_in_a_file_and_used_again(tmp_path, monkeypatch, capsys):
    dataset, path = spots(tmp_path), tmp_path / "centroids.json"
    found = load_centroids(dataset, 32, path)
    assert "does not exist" in capsys.readouterr().err
    assert json.loads(path.read_text())["format"] == "segwright centroids 1"
    monkeypatch.setattr(Spots, "load_label", None)       # no label is read again
    assert load_centroids(dataset, 32, path).tolist() == found.tolist()
    assert capsys.readouterr().err == "" and not list(tmp_path.glob(".part*"))


def test_centroids_of_other_labels_are_computed_again(tmp_path, capsys):
    dataset, path = spots(tmp_path), tmp_path / "centroids.json"
    before = load_centroids(dataset, 1024, path)
    label = dataset.samples[3].label
    write_label(label, np.full((40, 60), 2, np.uint8), [])
    after = load_centroids(dataset, 1024, path)
    assert "made from other labels" in capsys.readouterr().err
    assert after[after[:, 1] == 3].tolist() == [[2, 3, 19, 29]] and len(after) < len(before)
    assert load_centroids(dataset, 1024, path).tolist() == after.tolist()
    load_centroids(dataset, 16, path)
    assert "with another tile_size" in capsys.readouterr().err


def test_a_label_that_cannot_be_read_is_left_to_on_corrupt(tmp_path):
    dataset = spots(tmp_path)
    path = dataset.samples[3].label
    path.write_bytes(path.read_bytes()[:-20])
    loader = build_loader(dataset, 8, True, 0, training=True, sampler=sampler(),
                          on_corrupt="skip")
    loader.set_epoch(1)
    assert all("03" not in batch["id"] for batch in loader)
    with pytest.raises(DataError, match="03.png"):
        for epoch in (1, 2, 3):
            batches(build_loader(dataset, 8, True, 0, training=True, sampler=sampler()), epoch)


def test_a_missing_folder_is_reported_before_labels_are_read(tmp_path, monkeypatch):
    dataset = spots(tmp_path, 4)
    monkeypatch.setattr(Spots, "load_label", None)
    with pytest.raises(DataError, match="no such folder"):
        load_centroids(dataset, 1024, tmp_path / "nowhere" / "centroids.json")


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"", b"\x80\x04K\x01.", b'{"format": 1}',
                                     b'{"format": "segwright centroids 1"}'])
def test_another_file_is_neither_read_as_centroids_nor_overwritten(content, tmp_path):
    dataset, path = spots(tmp_path, 4), tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a file of centroids"):
        load_centroids(dataset, 1024, path)
    assert path.read_bytes() == content


def test_a_part_of_a_mixture_gives_centroids_of_its_centroid_classes_only(tmp_path, monkeypatch):
    monkeypatch.setitem(components("datasets"), "Spots", Spots)
    for name in ("fine", "coarse"):
        (tmp_path / name).mkdir()
        spots(tmp_path / name)
    parts = [{"type": "Spots", "args": {"data_dir": str(tmp_path / name), "split": "train"}}
             for name in ("fine", "coarse")]
    parts[1] |= {"of_first": 0.5, "centroid_classes": [3]}
    loader = make_loader({"type": "Mixture", "args": {
        "parts": parts, "crop_size": 12, "augment": True, "shuffle": True, "num_workers": 0,
        "batch_size": 4, "sampler": sampler(share=0.9, centroids=str(tmp_path / "c.json"))}},
        ignore_index=255, training=True)
    mixture, seen = loader.dataset, {0: set(), 1: set()}
    assert isinstance(mixture, Mixture) and len(loader) == 9
    for epoch in range(1, 6):
        loader.set_epoch(epoch)
        for keys in loader.plan:
            for _, index, _, center in (key for key in keys if len(key) == 4 and key[3]):
                seen[mixture.part_of(index)].add(int(mixture.load_label(index)[center]))
    assert seen == {0: {0, 1, 2, 3, 4}, 1: {3}}


@pytest.mark.parametrize("args, where", [
    ({"share": 0}, "share"), ({"share": 1.1}, "share"), ({"tile_size": 0}, "tile_size"),
    ({"classes": [5]}, "classes"), ({"classes": []}, "classes"), ({"share": 0.01}, "share")])
def test_settings_out_of_range_are_refused(args, where, tmp_path):
    with pytest.raises(ConfigError) as caught:
        build_loader(spots(tmp_path), 4, True, 0, training=True, sampler=sampler(**args))
    assert caught.value.where == f"sampler.args.{where}"


def test_settings_without_effect_are_refused(tmp_path):
    dataset = spots(tmp_path)
    with pytest.raises(ConfigError, match="shuffled"):
        build_loader(dataset, 4, False, 0, training=True, sampler="ClassUniform")
    with pytest.raises(ConfigError, match="sampler is only for training"):
        build_loader(dataset, 4, True, 0, sampler="ClassUniform")
    dataset.augmentation = None
    with pytest.raises(ConfigError, match="without augment"):
        build_loader(dataset, 4, True, 0, training=True, sampler="ClassUniform")


def part(split, **more):
    return {"type": "Shapes", "args": {"split": split, "length": 16, "size": [48, 64]}, **more}


PARTS = json.dumps([part("train"), part("test", of_first=0.5)])
TRAIN = ["--config", "config.json", "train_loader.type=Mixture",
         f"train_loader.args.parts={PARTS}",
         "train_loader.args.batch_size=4", "train_loader.args.crop_size=32",
         "train_loader.args.augment=true", "train_loader.args.shuffle=true",
         "train_loader.args.sampler=ClassUniform", "val_loader.args.length=2",
         "val_loader.args.num_workers=0", "trainer.tensorboard=false"]


def test_a_dry_run_opens_a_mixture_drawn_class_by_class(capsys):
    # One or two seconds: the whole program, as a dry run.
    assert run(train.main, [*TRAIN, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "train: 32 images of Mixture " in said and ", 9 classes, 6 batches of 4" in said


@pytest.mark.slow       # two small trainings, one of them interrupted
def test_a_training_interrupted_within_an_epoch_ends_with_the_same_weights(tmp_path, monkeypatch):
    options = [*TRAIN, "-d", "cpu", "trainer.epochs=3", "trainer.val=false", "name=mixed"]
    assert run(train.main, [*options, f"trainer.save_dir={tmp_path / 'whole'}"]) == 0
    step = Trainer._step

    def stopping(trainer, batches):
        if trainer.progress.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batches)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        assert run(train.main, [*options, f"trainer.save_dir={tmp_path / 'parts'}"]) == 143
    whole, part = (next((tmp_path / name).glob("mixed/*/last.pth")) for name in ("whole", "parts"))
    assert digest(part) != digest(whole)
    assert run(train.main, ["-r", str(part), "-d", "cpu", "train_loader.args.num_workers=1"]) == 0
    assert digest(part) == digest(whole)
