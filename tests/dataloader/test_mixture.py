"""Several datasets as one training set."""
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.augmentation.transforms import Augmentation
from dataloader.loader import build_loader, make_loader
from dataloader.mixture import Mixture
from dataloader.samplers import drawn
from dataloader.shapes import Shapes
from tests.dataloader.test_loader import batches, folder
from tests.support.places import ROOT
from utils.config.docs import json_schema
from utils.config.load import load_config
from utils.config.loader_section import loader_section
from utils.config.schema import resolve_config
from utils.errors import ConfigError, DataError

AUGMENT = {"crop_size": 24, "augment": True, "flip": True, "rotate": True}


def part(split, length, **keys):
    return {"type": "Shapes", "args": {"split": split, "length": length, "size": [32, 48]}, **keys}


FINE, COARSE = part("train", 12), part("test", 20)


def section(*parts, **args):
    return {"type": "Mixture", "args": {"parts": list(parts), "batch_size": 4, "num_workers": 0,
                                        "shuffle": True, **AUGMENT, **args}}


def loader(*parts, rank=0, world_size=1, seed=3, normalize=None, **args):
    return make_loader(section(*parts, **args), ignore_index=255, seed=seed, rank=rank,
                       world_size=world_size, training=True, normalize=normalize)


def ids_of(loader, epoch):
    loader.set_epoch(epoch)
    return [name for batch in loader for name in batch["id"]]


def test_of_first_draws_equally_many_other_images_in_every_epoch():
    mixed = loader(FINE, {**COARSE, "of_first": 1.0}, drop_last=False)
    epochs = [ids_of(mixed, epoch) for epoch in (1, 2)]
    for ids in epochs:
        assert len(ids) == len(set(ids)) == 24
        assert sum(name.startswith("train") for name in ids) == 12
    coarse = [{name for name in ids if name.startswith("test")} for ids in epochs]
    assert coarse[0] != coarse[1]
    assert ids_of(loader(FINE, {**COARSE, "of_first": 1.0}, drop_last=False), 2) == epochs[1]
    assert ids_of(loader(FINE, {**COARSE, "of_first": 1.0}, drop_last=False, seed=4), 2) \
        != epochs[1]


@pytest.mark.parametrize("keys, expected", [
    ({}, 20), ({"times": 0.25}, 5), ({"times": 2}, 40), ({"images": 7}, 7), ({"images": 45}, 45),
    ({"of_first": 0.5}, 6)])
def test_the_keys_of_a_part_set_its_images_per_epoch(keys, expected):
    mixture = Mixture([FINE, {**COARSE, **keys}])
    draw = mixture.draw_epoch(1)
    assert len(draw) == 12 + expected
    counts = np.bincount(draw[12:] - 12, minlength=20)
    assert counts.max() - counts.min() <= 1       # no image again before all were shown


def test_weights_divide_an_epoch_among_the_parts():
    assert Mixture([FINE, COARSE], weights=[0.7, 0.3]).counts == [22, 10]
    assert Mixture([FINE, COARSE], weights=[1, 3], epoch_images=100).counts == [25, 75]
    assert sum(Mixture([FINE, COARSE, FINE], weights=[1, 1, 1], epoch_images=100).counts) == 100


FALLING = {"of_first": [1, 0], "last_epoch": 5}


def test_a_share_changes_evenly_over_the_epochs_and_the_epochs_keep_their_length(capsys):
    mixture = Mixture([FINE, {**COARSE, **FALLING}])
    assert [mixture.counts_in(epoch) for epoch in (1, 2, 3, 4, 5, 6, 99)] == [
        [12, 12], [15, 9], [18, 6], [21, 3], [24, 0], [24, 0], [24, 0]]
    for epoch in (1, 3, 5):
        draw = mixture.draw_epoch(epoch)
        assert len(draw) == 24 and (draw >= 12).sum() == mixture.counts_in(epoch)[1]
        fine = np.bincount(draw[draw < 12], minlength=12)
        assert fine.max() - fine.min() <= 1
    assert "from epoch 5 on it shows 24 of 12 (Shapes train), 0 of 20" in capsys.readouterr().err
    rising = Mixture([FINE, {**COARSE, "of_first": [0.5, 1.5], "last_epoch": 3}])
    assert [rising.counts_in(epoch) for epoch in (1, 2, 3)] == [[24, 6], [18, 12], [12, 18]]


def test_a_falling_share_trains_whole_epochs_of_one_length():
    mixed = loader(FINE, {**COARSE, **FALLING}, seed=1)
    assert {len(batches(mixed, epoch)) for epoch in (1, 2, 5)} == {len(mixed)} == {6}
    mixed.set_epoch(5)
    assert not any("test" in name for batch in mixed for name in batch["id"])


@given(count=st.integers(0, 60), total=st.integers(1, 25), seed=st.integers(0, 9))
def test_the_counts_of_a_draw_differ_by_at_most_one(count, total, seed):
    counts = np.bincount(drawn(count, total, np.random.default_rng(seed)), minlength=total)
    assert counts.sum() == count and counts.max() - counts.min() <= 1


def test_a_sample_equals_that_of_its_part_with_the_same_draws():
    augmentation = Augmentation(**AUGMENT)
    mixture = Mixture([FINE, COARSE], augmentation=augmentation)
    alone = Shapes(split="test", length=20, size=(32, 48), augmentation=augmentation)
    assert mixture[1, 15]["id"] == alone[1, 3]["id"] == "test_00003"
    expected = alone.sample(3, mixture._generator(1, 15))
    assert mixture[1, 15]["image"].equal(expected["image"])
    assert mixture[1, 15]["label"].equal(expected["label"])


def test_an_image_shown_twice_in_an_epoch_is_cropped_elsewhere():
    mixed = loader({**FINE, "times": 2}, batch_size=24)
    mixed.set_epoch(1)
    batch = next(iter(mixed))
    first, second = (i for i, name in enumerate(batch["id"]) if name == "train_00004")
    assert not batch["image"][first].equal(batch["image"][second])


def test_batches_depend_on_neither_workers_nor_an_interruption():
    # Two seconds: processes are started for every number of workers.
    expected = None
    for workers in (0, 1, 2, 4):
        mixed = loader(FINE, {**COARSE, "of_first": 1}, num_workers=workers)
        found = [batches(mixed, epoch) for epoch in (1, 2)]
        expected = expected or found
        assert found == expected
        if workers in (0, 2):
            for start in range(len(mixed) + 1):
                assert batches(mixed, 2, start) == expected[1][start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_what_one_process_sees(world):
    single = loader(FINE, {**COARSE, "of_first": 1}, batch_size=6)
    ranks = [loader(FINE, {**COARSE, "of_first": 1}, batch_size=6 // world, rank=rank,
                    world_size=world) for rank in range(world)]
    for one in (single, *ranks):
        one.set_epoch(2)
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sorted(whole["id"]) == sorted(sum((one["id"] for one in parts), []))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), batch=st.integers(1, 4),
       world=st.integers(1, 3), drop_last=st.booleans(), times=st.sampled_from([0.7, 1.6, 2.0]))
def test_ranks_draw_the_samples_of_one_process(sizes, batch, world, drop_last, times):
    mixture = Mixture([part("train", size, times=times) if size > 2 else part("test", size)
                       for size in sizes])
    single, *ranks = (
        build_loader(mixture, batch * world // share, True, 0, drop_last, rank=rank,
                     world_size=share, training=True).plan
        for share, rank in [(1, 0), *((world, rank) for rank in range(world))])
    for one in (single, *ranks):
        one.set_epoch(5)
    seen = sorted(key for one in ranks for keys in one for key in keys)
    expected = sorted(key for keys in single for key in keys)
    assert len({len(one) for one in ranks}) == 1
    # A short last batch is filled until the ranks have equally many.
    assert set(seen) == set(expected) and len(seen) < len(expected) + world


def test_a_part_may_have_other_augmentation():
    plain = {**COARSE, "args": {**COARSE["args"], "rotate": False, "flip": False}}
    mixture = loader(FINE, plain).dataset
    assert mixture.parts[0].augmentation.flip and not mixture.parts[1].augmentation.flip
    assert mixture.parts[1].augmentation.max_angle == 0
    assert mixture.parts[1].augmentation.crop_size == (24, 24)


def test_equal_ids_of_two_parts_get_prefixes():
    mixture = Mixture([FINE, part("train", 13), COARSE])
    assert [mixture.samples[i].id for i in (0, 12, 24, 25)] == [
        "0/train_00000", "1/train_00000", "train_00012", "test_00000"]
    assert mixture[12]["id"] == "1/train_00000"


def test_evaluation_visits_every_image_of_every_part_once():
    evaluated = make_loader({"type": "Mixture", "args": {
        "parts": [FINE, {**COARSE, "of_first": 1}], "batch_size": 5, "num_workers": 0}},
        ignore_index=255)
    assert ids_of(evaluated, 0) == [f"train_{i:05d}" for i in range(12)] \
        + [f"test_{i:05d}" for i in range(20)]


def test_training_data_is_scored_without_the_augmentation_of_a_part():
    own = {**COARSE, "args": {**COARSE["args"], "flip": True, "augment": True, "crop_size": 8}}
    val = {"type": "Shapes", "args": {"split": "val", "length": 5, "batch_size": 3}}
    config = {"train_loader": section(FINE, own), "val_loader": val}
    found = loader_section(config, "train")[1]["args"]
    assert found == {"parts": [FINE, COARSE], "batch_size": 3}


def test_datasets_with_other_classes_are_refused_by_name(tmp_path):
    folder(tmp_path, [(8, 9)])
    other = {"type": "Folder", "args": {"data_dir": str(tmp_path), "num_classes": 9}}
    with pytest.raises(ConfigError, match=r"class 0 is 'class 0' in parts\[1\] \(Folder all\) and "
                                          r"'road' in parts\[0\] \(Shapes train\)"):
        Mixture([FINE, other])
    other["args"]["num_classes"] = 4
    with pytest.raises(ConfigError, match=r"parts\[1\] \(Folder all\) has 4 classes, parts\[0\] "
                                          r"\(Shapes train\) has 9"):
        Mixture([FINE, other])


def test_all_parts_are_padded_with_the_mean_that_normalizes_them(tmp_path):
    folder(tmp_path, [(8, 9)])
    gray = {"type": "Folder", "args": {"data_dir": str(tmp_path), "mean": [0.5, 0.5, 0.5],
                                       "class_names": Shapes.class_names}}
    mixture = Mixture([gray, FINE])
    assert mixture.mean == [0.5, 0.5, 0.5]
    assert mixture.parts[1].border_color == mixture.parts[0].border_color == (128, 128, 128)


def test_the_normalization_of_the_config_replaces_that_of_every_part():
    numbers = {"mean": [102.0, 115.0, 122.0], "std": [1.0] * 3, "order": "BGR", "scale": 1.0}
    dataset = loader(FINE, COARSE, normalize=numbers).dataset
    assert dataset.normalization().state() == numbers
    assert {part.border_color for part in dataset.parts} == {(122, 115, 102)}


def test_a_wrong_file_is_found_when_the_mixture_is_opened(tmp_path):
    folder(tmp_path, [(8, 9)] * 3)
    (tmp_path / "labels" / "01.png").unlink()
    broken = {"type": "Folder", "args": {"data_dir": str(tmp_path),
                                         "class_names": Shapes.class_names}}
    with pytest.raises(DataError, match="01"):
        Mixture([FINE, broken])


def in_config(*parts, **args):
    return {**load_config(ROOT / "config.json"), "train_loader": section(*parts, **args)}


def mistakes(config):
    with pytest.raises(ConfigError) as caught:
        resolve_config(config)
    return str(caught.value).splitlines()


def test_a_resolved_mixture_resolves_to_itself_and_keeps_only_given_keys_of_parts():
    resolved = resolve_config(in_config(FINE, {**COARSE, "of_first": 1}))
    assert resolve_config(resolved) == resolved
    args = resolved["train_loader"]["args"]
    assert args["parts"][0]["args"].keys() == {"data_dir", "split", "size", "length"}
    assert args["parts"][1]["of_first"] == 1 and args["parts"][1]["times"] is None
    assert make_loader(resolved["train_loader"], ignore_index=255, training=True).dataset.counts \
        == [12, 12]


@pytest.mark.parametrize("parts, args, expected", [
    ([], {}, "train_loader.args.parts: expected at least one dataset"),
    ([FINE, {"type": "Shaps", "args": {}}], {}, "parts[1].type: unknown type 'Shaps'"),
    ([{"type": "Shapes", "args": {"splt": "train"}}], {}, "parts[0].args.splt: unknown key"),
    ([{"type": "Shapes", "args": {"batch_size": 2}}], {}, "parts[0].args.batch_size: unknown key"),
    ([part("trian", 3)], {}, "parts[0].args.split: unknown split 'trian'"),
    ([{**FINE, "tims": 2}], {}, "parts[0].tims: unknown key. Did you mean 'times'?"),
    ([{**FINE, "times": "2"}], {}, "parts[0].times: expected float or null"),
    ([FINE, {**FINE, "times": 1, "images": 3}], {}, "parts[1]: times and images contradict"),
    ([{**FINE, "of_first": 1}], {}, "parts[0].of_first: this is the first part"),
    ([FINE, {**FINE, "images": 0}], {}, "parts[1].images: expected more than 0"),
    ([FINE, {**FINE, "of_first": [1]}], {}, "parts[1].of_first: expected a number or"),
    ([FINE, {**FINE, "of_first": [0, 0], "last_epoch": 3}], {}, "not both 0"),
    ([FINE, {**FINE, "of_first": [1, 0]}], {}, "parts[1].last_epoch: expected the epoch, from 2"),
    ([FINE, {**FINE, "of_first": 1, "last_epoch": 3}], {}, "parts[1].last_epoch: has an effect"),
    ([{**FINE, "of_first": [1, 0], "last_epoch": 3}], {}, "parts[0].of_first: this is the first"),
    ([FINE, FINE], {"weights": [1]}, "weights: expected 2 numbers"),
    ([FINE, FINE], {"weights": [1e308, 1e308]}, "weights: expected 2 numbers"),
    ([FINE, FINE], {"weights": [1, 1], "epoch_images": 10 ** 12}, "epoch_images: expected 1 to"),
    ([FINE, FINE], {"epoch_images": 9}, "epoch_images: has an effect only with weights"),
    ([FINE, {**FINE, "times": 2}], {"weights": [1, 1]}, "parts[1].times: has no effect"),
    ([FINE, {"type": "Mixture", "args": {"parts": [FINE]}}], {}, "parts[1]: a Mixture cannot be"),
    ([FINE, {"type": "VOC", "args": {"data_dir": "", "split": "val"}}], {},
     "parts[1].type: VOC has 21 classes, the training set's parts[0] Shapes has 9"),
    ([FINE], {"cache": "x"}, "cache: a mixture has no cache"),
    ([{**FINE, "centroid_classes": [1]}], {}, "parts[0].centroid_classes: has an effect only"),
])
def test_a_mistake_in_a_part_is_found_before_anything_is_opened(parts, args, expected):
    assert any(expected in line for line in mistakes(in_config(*parts, **args)))


def test_classes_that_a_part_ignores_are_left_out_of_its_labels_alone(capsys):
    names = Shapes("train", length=1, size=[32, 48]).class_names
    given = ["road", names.index("sky")]
    mixed, plain = (Mixture([FINE, {**COARSE, **keys}])
                    for keys in ({"ignore_classes": given}, {}))
    said = capsys.readouterr().err
    assert "parts[1] (Shapes test): pixels of road, sky are ignored" in said
    lost = 0
    for index in range(len(mixed)):
        ours, theirs = (one[index]["label"].numpy() for one in (mixed, plain))
        left_out = (index >= 12) & np.isin(theirs, [0, names.index("sky")])
        assert (ours == np.where(left_out, 255, theirs)).all()
        lost += left_out.sum()
    assert lost > 0


@pytest.mark.parametrize("classes, said", [
    (["raod"], "unknown class 'raod'"), ([9], "ids are 0 to 8"), ([-1], "ids are 0 to 8"),
    (list(range(9)), "all classes are ignored")])
def test_a_class_to_ignore_that_does_not_exist_is_refused(classes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Mixture([FINE, {**COARSE, "ignore_classes": classes}])
    assert caught.value.where == "parts[1].ignore_classes"


def test_a_class_that_all_parts_ignore_is_warned_of(capsys):
    Mixture([{**FINE, "ignore_classes": ["sky"]}, {**COARSE, "ignore_classes": [0, "sky"]}])
    assert "all parts ignore sky: no pixel of the mixture has such a class" in \
        capsys.readouterr().err


def test_ignored_classes_and_a_class_for_void_contradict_each_other():
    with pytest.raises(ConfigError, match="would train the pixels of ignore_classes as void"):
        loader(FINE, {**COARSE, "ignore_classes": ["sky"]}, train_void=True)


def test_ignored_classes_are_part_of_the_config_and_its_schema():
    config = in_config(FINE, {**COARSE, "ignore_classes": ["sky", 3]})
    assert resolve_config(config)["train_loader"]["args"]["parts"][1]["ignore_classes"] == \
        ["sky", 3]
    schema = jsonschema.Draft202012Validator(json_schema())
    assert schema.is_valid(config)
    config["train_loader"]["args"]["parts"][1]["ignore_classes"] = [0.5]
    assert not schema.is_valid(config) and any("ignore_classes" in line
                                               for line in mistakes(config))


def test_the_schema_for_editors_contains_the_parts():
    schema = jsonschema.Draft202012Validator(json_schema())
    config = in_config(FINE, {**COARSE, "of_first": 1})
    assert schema.is_valid(config)
    for change in ({"tims": 2}, {"args": {"batch_size": 2}}, {"args": {"splt": "x"}},
                   {"type": "Shaps"}):
        config["train_loader"]["args"]["parts"][1] = {**COARSE, **change}
        assert not schema.is_valid(config), change


def test_the_counts_of_an_epoch_are_printed(capsys):
    Mixture([FINE, {**COARSE, "of_first": 0.5}])
    assert "shows 12 of 12 (Shapes train), 6 of 20 (Shapes test)" in capsys.readouterr().err
    Mixture([FINE, COARSE])
    assert capsys.readouterr().err == ""


def test_a_huge_epoch_is_refused():
    with pytest.raises(ConfigError, match="an epoch would show"):
        Mixture([{**FINE, "times": 1e30}])


def test_evaluation_draws_nothing():
    config = in_config(FINE)
    config["val_loader"] = {"type": "Mixture", "args": {"parts": [{**FINE, "images": 3}]}}
    assert any("val_loader.args.parts[0].images: has an effect in training only" in line
               for line in mistakes(config))
