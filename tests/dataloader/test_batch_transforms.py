"""CutMix and CopyBlob."""
import json
import re

import numpy as np
import pytest
import torch

from dataloader.augmentation.batch_transforms import (
    CopyBlob,
    CutMix,
    blob_origin,
    cutmix_box,
    pick_pixel,
)
from dataloader.loader import build_loader, make_loader
from dataloader.shapes import Shapes
from tests.support.places import ROOT, SHARED
from tests.support.ranks import on_ranks
from utils.config.build import build
from utils.config.load import load_config
from utils.config.registry import components
from utils.config.schema import resolve_config
from utils.errors import ConfigError
from utils.machine.seeding import seed_everything

CONFIG = ROOT / "config.json"
GOLDEN = SHARED / "parity" / "hoya012_metrics_and_augmentation"


def batch(number=4, height=30, width=40, classes=6, seed=0, **more):
    """A batch whose images have the image number, row and column of each pixel as channels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([np.stack([np.full_like(y, n), y, x], -1) for n in range(number)])
    blocks = rng.integers(0, classes, (number, height // 5, width // 5))
    label = blocks.repeat(5, 1).repeat(5, 2)
    return {"image": torch.from_numpy(image.astype(np.uint8)).permute(0, 3, 1, 2),
            "label": torch.from_numpy(label.astype(np.uint8)),
            "id": [str(n) for n in range(number)], **more}


def sources(mixed):
    """(image number, row, column), each (N, H, W): the source of every pixel of a mixed batch."""
    return tuple(mixed["image"].long().unbind(1))


EVERY = {"CopyBlob": {"pairs": [[3, 1], [4, 1], [5, 0]]}}


@pytest.mark.parametrize("name", sorted(components("batch_transforms")))
def test_every_transform_moves_images_labels_and_targets_together(name):
    transform = build("batch_transforms", {"type": name, "args": EVERY.get(name, {})},
                      num_classes=6)
    given = batch(boundary=torch.rand(4, 2, 30, 40), weight=torch.rand(4))
    copies = {key: value.clone() for key, value in given.items() if key != "id"}
    changed = 0
    for step in range(10):
        seed_everything(1, step, 0)
        mixed = transform(given)
        n, row, column = sources(mixed)
        assert torch.equal(mixed["label"], given["label"][n, row, column])
        assert torch.equal(mixed["boundary"], given["boundary"].movedim(1, -1)[n, row, column]
                           .movedim(-1, 1))
        assert mixed["image"].dtype == mixed["label"].dtype == torch.uint8
        assert mixed["image"].stride() == given["image"].stride()
        assert mixed["id"] is given["id"] and mixed["weight"] is given["weight"]
        changed += not torch.equal(mixed["image"], given["image"])
        seed_everything(1, step, 0)
        assert torch.equal(transform(given)["image"], mixed["image"])
    assert changed > 5
    assert all(torch.equal(given[key], value) for key, value in copies.items())


@pytest.mark.parametrize("name", sorted(components("batch_transforms")))
def test_the_number_of_draws_does_not_depend_on_the_images(name):
    # All ranks and devices draw equally many numbers, so that later draws agree.
    transform = build("batch_transforms", {"type": name, "args": EVERY.get(name, {})})
    after = []
    for given in (batch(), batch(seed=1), batch(classes=1)):
        seed_everything(7)
        transform(given)
        after.append(torch.rand(1).item())
    assert len(set(after)) == 1


@pytest.mark.parametrize("name", sorted(components("batch_transforms")))
def test_every_transform_takes_wide_labels_odd_sizes_and_single_images(name):
    transform = build("batch_transforms", {"type": name, "args": EVERY.get(name, {})})
    given = batch(1, 5, 45)
    given["label"] = given["label"].to(torch.int16) - 1
    for step in range(5):
        torch.manual_seed(step)
        assert transform(given)["label"].dtype == torch.int16


@pytest.mark.parametrize("transform", [CutMix(p=0.0), CopyBlob(p=0.0), CopyBlob(((9, 0),)),
                                       CopyBlob(((0, 9),))])
def test_without_anything_to_paste_the_batch_is_unchanged(transform):
    given = batch()
    mixed = transform(given)
    assert torch.equal(mixed["image"], given["image"])
    assert torch.equal(mixed["label"], given["label"])


# --- CutMix ---

@pytest.mark.parametrize("kept, row, column, box", [
    (0.3, 10, 50, (0, 24, 30, 64)), (0.75, 0, 0, (0, 0, 12, 16)), (0.5, 20, 5, (4, 0, 36, 27)),
    (1.0, 3, 3, (3, 3, 3, 3)),
])
def test_the_box_of_cutmix_is_that_of_the_tutorial(kept, row, column, box):
    rows, columns = cutmix_box(kept, row, column, (48, 64))
    assert (rows.start, columns.start, rows.stop, columns.stop) == box


def test_every_box_of_the_tutorial():
    path = GOLDEN / "augment_and_loss.json"
    if not path.is_file():
        pytest.skip(f"golden values not found at {path}")
    table = json.loads(path.read_text())["cutmix_box_for_size_48x64"]
    for kept, row, column, *box in table["rows"]:
        rows, columns = cutmix_box(kept, row, column, (48, 64))
        assert [rows.start, columns.start, rows.stop, columns.stop] == box


def test_cutmix_takes_one_box_from_a_permutation_of_the_batch():
    given, shares, chance = batch(), [], 0
    for step in range(100):
        torch.manual_seed(step)
        n, row, column = sources(CutMix()(given))
        own = torch.arange(4)[:, None, None]
        taken = (n != own)
        assert (row == torch.arange(30)[:, None]).all() and (column == torch.arange(40)).all()
        if taken.any():
            donors = [int(n[k][taken[k]][0]) if taken[k].any() else k for k in range(4)]
            assert sorted(donors) == [0, 1, 2, 3]
            box = taken.any(0)
            assert box.sum() == box.any(1).sum() * box.any(0).sum()
            shares.append(box.float().mean().item())
        torch.manual_seed(step)
        chance += not torch.equal(CutMix(p=0.4)(given)["image"], given["image"])
    # A box of the share U(0, 1) around a uniform center keeps about a third inside.
    assert 0.25 < np.mean(shares) < 0.45 and 25 < chance < 55


# --- CopyBlob ---

def test_pick_pixel_selects_by_the_position_in_the_mask():
    mask = torch.zeros(3, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 2, 0] = mask[0, 3, 4] = True
    mask[1] = True
    for place, expected in ((0.0, [7, 0, -1]), (0.34, [10, 6, -1]), (0.9999999, [19, 19, -1])):
        picked = pick_pixel(mask, torch.full((3,), place, dtype=torch.float64))
        assert picked.tolist() == expected


def test_a_blob_moves_by_its_top_left_pixel_and_loses_what_leaves_the_image():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 1, 3] = mask[0, 2, 2] = mask[0, 2, 3] = mask[0, 3, 1] = True
    # (1, 3), (2, 2) and (3, 1) all have row + column 4: the first is used.
    lands, source = blob_origin(mask, torch.tensor([2 * 5 + 1]))
    expected = torch.full((4, 5), -1)
    expected[2, 1], expected[3, 0], expected[3, 1] = 8, 12, 13      # (4, -1) is outside
    assert torch.equal(torch.where(lands, source, -1)[0].view(4, 5), expected)
    assert not blob_origin(mask, torch.tensor([-1]))[0].any()
    assert not blob_origin(torch.zeros_like(mask), torch.tensor([3]))[0].any()


def by_hand(given, donors, places, pairs):
    """CopyBlob computed pixel by pixel."""
    image, label = given["image"].numpy().copy(), given["label"].numpy().copy()
    source, marks = given["image"].numpy(), given["label"].numpy()
    _, height, width = label.shape
    for n, donor in enumerate(donors):
        for (class_id, ground), draws in zip(pairs, places, strict=True):
            blob, targets = np.argwhere(marks[donor] == class_id), np.argwhere(label[n] == ground)
            if not len(blob) or not len(targets):
                continue
            shift = targets[int(draws[n] * len(targets))] - blob[blob.sum(1).argmin()]
            for row, column in blob:
                y, x = row + shift[0], column + shift[1]
                if 0 <= y < height and 0 <= x < width:
                    label[n, y, x] = class_id
                    image[n, :, y, x] = source[donor, :, row, column]
    return image, label


def test_copyblob_equals_its_definition_pixel_by_pixel():
    pairs = ((3, 1), (4, 1), (5, 0))
    for step in range(6):
        given = batch(seed=step)
        torch.manual_seed(step)
        mixed = CopyBlob(pairs)(given)
        torch.manual_seed(step)
        donors = torch.randint(4, (4,)).tolist()
        places = torch.rand(4, 4, dtype=torch.float64).numpy()[:3]
        image, label = by_hand(given, donors, places, pairs)
        np.testing.assert_array_equal(mixed["label"].numpy(), label)
        np.testing.assert_array_equal(mixed["image"].numpy(), image)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_copyblob_equals_the_tutorial_except_for_pixels_outside_the_image(case):
    path = GOLDEN / "augment_and_loss.npz"
    if not path.is_file():
        pytest.skip(f"golden values not found at {path}")
    stored = np.load(path)
    blob, ground = stored["src_mask"] == 3, np.flatnonzero(stored["dst_mask"] == 1)
    pick = int(stored[f"pick_{case}"])
    target = torch.tensor([ground[pick]])
    assert ground[pick] == np.ravel_multi_index(stored[f"target_{case}"], (48, 64))
    place = torch.tensor([(pick + 0.5) / len(ground)], dtype=torch.float64)
    assert pick_pixel(torch.from_numpy(stored["dst_mask"] == 1)[None], place) == target
    lands, origin = (one[0].numpy() for one in blob_origin(torch.from_numpy(blob)[None], target))
    label = np.where(lands, 3, stored["dst_mask"].ravel())
    image = np.where(lands, stored["src_img"].reshape(3, -1)[:, origin],
                     stored["dst_img"].reshape(3, -1))
    # The tutorial puts pixels that leave the image on the far edges, and those below 0 on the
    # other side.
    rows, columns = np.nonzero(blob)
    first = (rows + columns).argmin()
    y, x = (rows - rows[first] + stored[f"target_{case}"][0],
            columns - columns[first] + stored[f"target_{case}"][1])
    outside = (y < 0) | (y > 47) | (x < 0) | (x > 63)
    spoilt = np.zeros((48, 64), bool)
    spoilt[np.minimum(y[outside], 47), np.minimum(x[outside], 63)] = True
    assert lands.sum() == (~outside).sum() > 0
    sound = ~spoilt.ravel()
    np.testing.assert_array_equal(label[sound], stored[f"mask_{case}"].ravel()[sound])
    np.testing.assert_array_equal(image[:, sound], stored[f"img_{case}"].reshape(3, -1)[:, sound])


def test_copyblob_uses_the_tutorials_classes_by_default():
    assert CopyBlob().pairs == ((3, 1), (4, 1), (15, 0), (16, 0))


def test_p_of_copyblob_is_the_share_of_images_that_receive_something():
    given = batch(40)
    torch.manual_seed(0)
    mixed = CopyBlob(((3, 1),), p=0.3)(given)
    assert 4 <= (mixed["image"] != given["image"]).flatten(1).any(1).sum() <= 20


# --- in a config ---

def loader_of(*transforms, **options):
    section = {"type": "Shapes", "args": {"length": 4, "size": [16, 24], "batch_size": 4,
                                          "num_workers": 0, "augment": True,
                                          "batch_transforms": list(transforms)}}
    return make_loader(section, ignore_index=255, training=True, **options)


def test_a_loader_builds_the_batch_transforms_of_its_config():
    loader = loader_of("CutMix", {"type": "CopyBlob", "args": {"pairs": [[8, 0], [7, 1]]}})
    assert [type(one) for one in loader.batch_transforms] == [CutMix, CopyBlob]
    assert loader.batch_transforms[1].pairs == ((8, 0), (7, 1))
    assert build_loader(Shapes(length=2), training=True, num_workers=0).batch_transforms == []


def test_batch_transforms_change_nothing_before_the_trainer_calls_them():
    plain, mixing = loader_of(), loader_of({"type": "CutMix"})
    assert torch.equal(next(iter(plain))["image"], next(iter(mixing))["image"])


def test_batch_transforms_of_an_evaluation_are_refused():
    with pytest.raises(ConfigError, match="batch_transforms are only for training"):
        build_loader(Shapes(length=2), batch_transforms=[{"type": "CutMix"}])


def test_a_pair_beyond_the_datasets_classes_is_refused():
    with pytest.raises(ConfigError, match="pairs names class 15; the dataset has the classes 0"):
        loader_of({"type": "CopyBlob"})


def test_the_config_reports_every_mistake_in_both_lists_with_its_path():
    config = load_config(CONFIG, [
        'train_loader.args.transforms=["RandAugment", {"type": "ColorJiter"}, '
        '{"type": "Cutout", "args": {"hole": 2}}, {"type": "RGBShift", "args": {"limit": 900}}]',
        'train_loader.args.batch_transforms=[{"type": "CutMix", "args": {"alpha": "1"}}, 3]'])
    with pytest.raises(ConfigError) as caught:
        resolve_config(config)
    text = str(caught.value)
    for part in ("5 mistakes", "transforms[1].type: unknown type 'ColorJiter'. Did you mean "
                 "'ColorJitter'?", "transforms[2].args.hole: unknown key. Did you mean 'holes'?",
                 "transforms[3].args: limit must be", "batch_transforms[0].args.alpha: expected "
                 'float, found "1" (string). Write 1 without quotes',
                 "batch_transforms[1]: expected"):
        assert part in text, part


def test_a_resolved_config_contains_the_defaults_of_listed_transforms():
    config = resolve_config(load_config(CONFIG, [
        'train_loader.args.transforms=["RandAugment"]',
        'train_loader.args.batch_transforms=[{"type": "CutMix"}]']))
    args = config["train_loader"]["args"]
    assert args["transforms"] == [{"type": "RandAugment", "args": {"n": 3, "magnitude": 3,
                                                                   "p": 0.5, "mode": "all"}}]
    assert args["batch_transforms"] == [{"type": "CutMix", "args": {
        "alpha": 1.0, "p": 1.0, "all_ranks": False}}]
    assert resolve_config(config) == config


def test_the_schema_contains_both_lists():
    jsonschema = pytest.importorskip("jsonschema")
    from utils.config.docs import json_schema
    validator = jsonschema.Draft202012Validator(json_schema())
    for text, sound in (('["CutMix", {"type": "CopyBlob", "args": {"pairs": [[8, 0]]}}]', True),
                        ('["CutMx"]', False), ('{"type": "CutMix"}', False),
                        ('[{"type": "CutMix", "args": {"alfa": 1}}]', False)):
        config = load_config(CONFIG, [f"train_loader.args.batch_transforms={text}"])
        assert validator.is_valid(dict(config)) == sound, text


def test_a_sample_with_listed_transforms_does_not_depend_on_workers():
    def samples(workers):
        section = {"type": "Shapes", "args": {
            "length": 4, "size": [32, 48], "batch_size": 2, "num_workers": workers,
            "shuffle": True, "augment": True, "crop_size": 24, "aspect": True,
            "cat_max_ratio": 0.75, "transforms": [{"type": "RandAugment"}, {"type": "Cutout"}]}}
        loader = make_loader(section, ignore_index=255, seed=3, training=True)
        loader.set_epoch(2)
        found = list(loader)
        loader.close()
        return found
    for one, other in zip(samples(0), samples(2), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


# --- the documentation ---

def test_every_example_of_the_documentation_is_valid():
    text = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        args = {"size": [64, 96], "length": 4, "num_workers": 0, **json.loads(block)}
        section = json.dumps({"type": "Shapes", "args": args})
        config = load_config(CONFIG, [f"train_loader={section}"])
        section = resolve_config(config)["train_loader"]
        batch = next(iter(make_loader(section, ignore_index=255, training=True)))
        assert batch["image"].dtype == torch.uint8


def test_the_documentation_names_every_transform():
    text = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
    for cls in {*components("transforms").values(), *components("batch_transforms").values()}:
        assert cls.__name__ in text


def test_the_figures_of_the_documentation_can_be_drawn():
    from tools import plot_augmentation
    assert {section["type"] for section in plot_augmentation.TRANSFORMS} <= {
        *components("transforms")}
    assert plot_augmentation.transforms_picture(0).shape[2] == 3
    for section in plot_augmentation.BATCH.values():
        assert plot_augmentation.batch_picture(section, 0).dtype == np.uint8


def test_a_transform_that_needs_several_images_says_that_one_is_not_enough(capfd):
    section = {"type": "Shapes", "args": {"length": 4, "size": [32, 32], "num_workers": 0,
                                          "batch_transforms": [{"type": "CutMix"}]}}
    for size, said in ((1, True), (2, False)):
        section["args"]["batch_size"] = size
        make_loader(section, ignore_index=255, training=True)
        assert ("CutMix has no effect: it mixes the images of a batch" in capfd.readouterr().err) \
            == said


def _mixed_over_ranks(rank, world, transform, image_type=torch.uint8, label_type=torch.int64):
    labels = torch.arange(5).view(5, 1, 1).expand(5, 6, 8).to(label_type)
    whole = {"image": (300 * labels[:, None].long()).expand(5, 3, 6, 8).to(image_type),
             "label": labels}
    mine = slice(0, 3) if rank == 0 else slice(3, 5)
    batch = {**{key: value[mine].clone() for key, value in whole.items()}, "id": ["a", "b"]}
    torch.manual_seed(rank)
    mixed = transform(batch)
    torch.manual_seed(0)
    torch.manual_seed(int(torch.randint(2 ** 62, (1,))))
    wanted = transform.__class__.__dict__[
        "_mixed" if isinstance(transform, CutMix) else "_pasted"](transform, whole)
    for key in whole:
        assert torch.equal(mixed[key], wanted[key][mine]), key
    assert mixed["id"] == batch["id"]


def _both_over_ranks(rank, world):
    for types in ((torch.uint8, torch.int64), (torch.uint16, torch.int16),
                  (torch.float32, torch.uint8)):
        _mixed_over_ranks(rank, world, CutMix(all_ranks=True), *types)
        _mixed_over_ranks(rank, world, CopyBlob(pairs=((3, 1), (4, 0)), all_ranks=True), *types)


def test_the_images_of_two_ranks_are_mixed_as_one_batch():
    """Seconds: two processes import torch."""
    on_ranks(_both_over_ranks, 2)


def test_on_one_rank_all_ranks_changes_nothing():
    label = torch.randint(0, 5, (4, 6, 8))
    batch = {"image": torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8), "label": label}
    results = []
    for all_ranks in (False, True):
        torch.manual_seed(5)
        results.append(CutMix(all_ranks=all_ranks)(batch))
    assert torch.equal(results[0]["image"], results[1]["image"])


@pytest.mark.parametrize("transform", [CutMix(), CopyBlob(((1, 0),))])
def test_values_of_16_bits_move_as_those_of_floats(transform):
    image = torch.randint(65536, (4, 8, 9, 5)).to(torch.uint16).permute(0, 3, 1, 2)
    label = torch.randint(2, (4, 8, 9), dtype=torch.uint8)
    results = []
    for kind in (torch.uint16, torch.float32):
        torch.manual_seed(0)
        results.append(transform({"image": image.to(kind), "label": label})["image"].float())
    assert torch.equal(*results)
