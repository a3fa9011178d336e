"""SegFixTargets: any dataset, with borders and directions as targets."""
import numpy as np
import pytest
import torch

from dataloader.augmentation.transforms import Augmentation
from dataloader.loader import make_loader
from dataloader.segfix import SegFixTargets
from tests.support.places import ROOT
from utils.checkpoint.load import without_download
from utils.config.build import build
from utils.config.load import load_config
from utils.config.recipes import NOT_RECIPES
from utils.config.schema import resolve_config
from utils.decision.rules import build_decision, rule_of
from utils.errors import ConfigError, DataError
from utils.evaluation.evaluate import build_rules
from utils.images.image_io import write_image
from utils.segfix.mat_files import write_distance_maps
from utils.segfix.offsets import direction_vectors
from utils.segfix.targets import distance_maps, segfix_targets, stored_angle
from utils.training.criterion import Criterion

SOURCE = {"type": "Shapes", "args": {"split": "train", "length": 3, "size": [80, 120]}}


def dataset(augmentation=None, **options):
    return SegFixTargets(SOURCE, augmentation=augmentation, **options)


def expected(data, index, min_pixels=100):
    """(boundary, direction) of a whole image, computed without the class under test."""
    label = data.source[index]["label"]
    depth, dir_deg = distance_maps(label.numpy(), 255, min_pixels)
    return segfix_targets(label, torch.from_numpy(depth),
                          torch.from_numpy(stored_angle(dir_deg)))


def test_a_sample_has_the_targets_of_its_label():
    data = dataset()
    assert len(data) == 3 and data.num_classes == 10
    for index in range(3):
        sample, (boundary, direction) = data[index], expected(data, index)
        assert torch.equal(sample["image"], data.source[index]["image"])
        assert sample["boundary"].dtype == sample["direction"].dtype == torch.uint8
        assert torch.equal(sample["boundary"].long(), boundary)
        assert torch.equal(sample["direction"].long(), direction)
        assert sample["id"] == data.source.samples[index].id


def test_the_label_is_the_offset_class_of_border_pixels():
    sample = dataset()[0]
    inside = sample["boundary"] == 1
    assert torch.equal(sample["label"][inside], sample["direction"][inside] + 2)
    assert not sample["label"][sample["boundary"] == 0].any()
    assert torch.equal(sample["label"] == 255, sample["boundary"] == 255)


def test_a_crop_has_the_targets_of_the_whole_image():
    data = dataset(Augmentation(augment=True, scale=False, crop_size=[40, 50]))
    for epoch in range(4):
        sample = data[epoch, 0]
        boundary, direction = expected(data, 0)
        image = data.source[0]["image"]
        places = [(y, x) for y in range(41) for x in range(71)
                  if torch.equal(image[:, y:y + 40, x:x + 50], sample["image"])]
        (y, x), = places
        for name, whole in (("boundary", boundary), ("direction", direction)):
            assert torch.equal(sample[name].long(), whole[y:y + 40, x:x + 50])


@pytest.mark.parametrize("directions", [4, 8, 16])
def test_a_mirrored_sample_has_mirrored_directions(directions):
    data = dataset(Augmentation(augment=True, scale=False, flip=True), directions=directions)
    plain = dataset(directions=directions)[0]
    mirrored = next(sample for sample in (data[epoch, 0] for epoch in range(20))
                    if torch.equal(sample["image"], plain["image"].flip(-1)))
    assert torch.equal(mirrored["boundary"], plain["boundary"].flip(-1))
    vectors = torch.from_numpy(direction_vectors(directions))
    known = mirrored["boundary"] != 255
    back = vectors[mirrored["direction"].long() % directions] * torch.tensor([1, -1])
    assert torch.equal(back[known], vectors[plain["direction"].long().flip(-1) % directions][known])


@pytest.mark.parametrize("directions", [4, 8, 32])
def test_a_turned_sample_has_turned_directions(directions):
    shared = {"augment": True, "scale": False, "crop_size": 64}
    data = dataset(Augmentation(**shared, flip=True, vflip=True, rot90=True), directions=directions)
    plain = dataset(Augmentation(**shared), directions=directions)
    vectors = torch.from_numpy(direction_vectors(directions)).long()
    seen = set()
    for epoch in range(24):
        before, after = plain[epoch, 0], data[epoch, 0]
        moves = [(flip, vflip, turns) for flip in (0, 1) for vflip in (0, 1) for turns in range(4)
                 if torch.equal(moved(before["image"], flip, vflip, turns), after["image"])]
        flip, vflip, turns = moves[0]
        assert torch.equal(moved(before["boundary"], *moves[0]), after["boundary"])
        expected = vectors[before["direction"].long() % directions].movedim(-1, 0)
        expected = expected * torch.tensor([1 - 2 * vflip, 1 - 2 * flip])[:, None, None]
        for _ in range(turns):
            expected = torch.stack([-expected[1], expected[0]])
        expected = moved(expected, *moves[0])
        known = after["boundary"] != 255
        found = vectors[after["direction"].long() % directions].movedim(-1, 0)
        assert torch.equal(found[:, known], expected[:, known])
        border = after["boundary"] == 1
        assert torch.equal(after["label"][border], after["direction"][border] + 2)
        seen.add(turns + vflip)
    assert len(seen) > 2


def moved(x, flip, vflip, turns):
    """A tensor (..., H, W) mirrored left to right, then top to bottom, then turned."""
    x = x.flip(-1) if flip else x
    return (x.flip(-2) if vflip else x).rot90(turns, (-2, -1))


def test_padding_is_ignored():
    data = dataset(Augmentation(augment=True, scale=False, crop_size=[100, 150]))
    sample = data[1, 0]
    for name in ("boundary", "direction", "label"):
        assert (sample[name][80:] == 255).all() and (sample[name][:, 120:] == 255).all()


def test_targets_are_computed_from_the_crop_if_the_augmentation_resizes():
    data = dataset(Augmentation(augment=True, scale=[0.5, 1.5], rotate=True, crop_size=[64, 64]))
    sample = data[1, 0]
    assert set(sample["boundary"].unique().tolist()) <= {0, 1, 255}
    assert sample["direction"][sample["direction"] != 255].max() < 8
    # Every border between two labeled regions of the crop is marked on both sides.
    assert 0 < (sample["boundary"] == 1).sum() < sample["boundary"].numel() / 2


def files(folder, data):
    for index, sample in enumerate(data.samples):
        maps = distance_maps(data.source[index]["label"].numpy())
        write_distance_maps(folder / f"{sample.id}.mat", *maps)
    return str(folder)


def test_targets_from_files_equal_computed_ones(tmp_path):
    augmentation = Augmentation(augment=True, scale=False, flip=True, crop_size=[40, 50])
    computed = dataset(augmentation)
    read = dataset(augmentation, targets=files(tmp_path, computed))
    for epoch in range(3):
        a, b = computed[epoch, 1], read[epoch, 1]
        assert all(torch.equal(a[name], b[name]) for name in ("image", "boundary", "direction"))


def test_files_cannot_follow_an_augmentation_that_resizes(tmp_path):
    folder = files(tmp_path, dataset())
    for options in ({"scale": True}, {"scale": False, "rotate": True}, {"base_size": 60},
                    {"scale": False, "transforms": [{"type": "RandAugment"}]}):
        with pytest.raises(ConfigError, match="follow"):
            dataset(Augmentation(augment=True, **options), targets=folder)


def test_a_missing_file_of_targets_is_an_error_at_the_start(tmp_path):
    data = dataset()
    folder = files(tmp_path, data)
    (tmp_path / f"{data.samples[1].id}.mat").unlink()
    with pytest.raises(DataError, match="no offset file"):
        dataset(targets=folder)


@pytest.mark.parametrize("ignore_index, kind", [(-1, torch.int16), (200, torch.uint8)])
def test_targets_use_the_configs_ignore_index(ignore_index, kind):
    sample = dataset(ignore_index=ignore_index)[0]
    assert sample["boundary"].dtype == kind
    assert set(sample["boundary"].unique().tolist()) <= {0, 1, ignore_index}


@pytest.mark.parametrize("options, text", [
    ({"directions": 6}, "directions"), ({"max_distance": -1}, "max_distance"),
    ({"min_pixels": -1}, "min_pixels"),
    ({"min_pixels": 9, "targets": "x"}, "min_pixels: has no effect on targets")])
def test_settings_out_of_range_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        dataset(**options)


def test_labels_without_their_images_are_the_train_ids_of_the_source(tmp_path):
    colors = tmp_path / "labels" / "a.png"
    for path in (colors, tmp_path / "images" / "a.png"):
        path.parent.mkdir()
        write_image(path, np.full((8, 9, 3), (0, 200, 0), np.uint8))
    data = SegFixTargets({"type": "Folder", "args": {
        "data_dir": str(tmp_path), "num_classes": 2, "palette": [[200, 0, 0], [0, 200, 0]]}})
    assert (data.load_label(0) == 1).all() and (data.load(0)[1] == 1).all()


def test_a_sampler_by_class_is_refused():
    with pytest.raises(ConfigError, match="train_loader.args.sampler: "):
        resolve_config(load_config(ROOT / "configs/segfix_camvid_light.json",
                                   ["train_loader.args.sampler=ClassUniform"]))


def test_segfix_targets_cannot_be_their_own_source():
    with pytest.raises(ConfigError, match="own source"):
        SegFixTargets({"type": "SegFixTargets", "args": {"source": SOURCE}})


CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*segfix_*.json"))
           if path.parent.name not in NOT_RECIPES]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_configs_are_valid_and_their_losses_fit_their_networks(path):
    config = resolve_config(load_config(path))
    with torch.device("meta"):
        model = build("models", without_download(config["arch"]), num_classes=10)
    Criterion(config["loss"], model.output_weights, config["ignore_index"],
              config["loss_weights"], 10)
    args = config["train_loader"]["args"]
    assert args["scale"] is False and args["flip"] is True


def small_config():
    light = ROOT / "configs/segfix_camvid_light.json"
    source = '{"type":"Shapes","args":{"split":"%s","length":4,"size":[64,64]}}'
    return resolve_config(load_config(light, [
        f"train_loader.args.source={source % 'train'}", f"val_loader.args.source={source % 'val'}",
        "train_loader.args.crop_size=[48,48]", "train_loader.args.batch_size=2",
        "train_loader.args.num_workers=0", "val_loader.args.num_workers=0"]))


def test_one_step_lowers_the_loss_of_its_batch():
    config = small_config()
    batch = next(iter(make_loader(config["train_loader"], ignore_index=255, training=True)))
    torch.manual_seed(0)
    model = build("models", config["arch"], num_classes=10).train()
    criterion = Criterion(config["loss"], model.output_weights, 255)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss, parts = criterion(model(batch["image"].float() / 255), batch)
        assert parts.keys() == {"mask+direction", "mask+direction.mask",
                                "mask+direction.direction"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts["mask+direction.mask"].item())
    assert losses[-1] < losses[0]


def test_a_segfix_network_is_scored_by_the_offsets_it_predicts():
    model = build("models", small_config()["arch"], num_classes=10)
    rule = build_decision(rule_of(model, "max"))
    assert rule.name == "offsets" and rule_of(torch.nn.Identity(), "max") == "max"
    assert [each.name for each in build_rules("max", "softmax", {}, model)] == ["offsets"]
    with pytest.raises(ConfigError, match="does not predict classes"):
        build_rules("T", "softmax", {}, model)
    logits = torch.randn(1, 10, 4, 5)
    mask, direction = logits[:, :2].argmax(1), logits[:, 2:].argmax(1)
    assert torch.equal(rule(logits).long(), torch.where(mask == 1, direction + 2, 0))
    np.testing.assert_array_equal(rule(logits), rule.labels(logits))
