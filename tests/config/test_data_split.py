"""How `train.py --init` divides images: at random, by groups, into folds."""
from collections import Counter

import numpy as np
import pytest

from utils.config.data_split import split_data
from utils.errors import ConfigError, DataError

VIDEOS = [f"clip{video}_{frame:03d}" for video in range(8) for frame in range(5 + video)]
CLIP = r"^(clip\d+)_"


def sides(split):
    """part or number of the fold -> its groups."""
    parts = enumerate(split.folds) if split.folds else split.parts.items()
    return {part: {name.split("_")[0] for name in names} for part, names in parts}


def test_one_in_five_is_drawn_without_options_always_the_same_ones():
    split = split_data(VIDEOS, {})
    assert len(split.parts["val"]) == len(VIDEOS) // 5
    assert split == split_data(VIDEOS, {}) and "drawn at random" in split.origin
    assert sorted(split.parts["train"] + split.parts["val"]) == sorted(VIDEOS)


@pytest.mark.parametrize("folds", [None, 2, 3, 8])
def test_a_group_stands_on_one_side_only(folds):
    split = split_data(VIDEOS, {}, CLIP, folds)
    groups = Counter(group for found in sides(split).values() for group in found)
    assert set(groups.values()) == {1} and len(groups) == 8
    names = [name for part in (split.folds or split.parts.values()) for name in part]
    assert sorted(names) == sorted(VIDEOS)
    assert "8 groups" in split.origin and not split.remarks


def test_folds_are_even_in_images_as_far_as_groups_allow():
    assert sorted(map(len, split_data(VIDEOS[:47], {}, folds=5).folds)) == [9, 9, 9, 10, 10]
    sizes = list(map(len, split_data(VIDEOS, {}, CLIP, 4).folds))
    assert sum(sizes) == len(VIDEOS) and max(sizes) - min(sizes) <= 2     # 17, 17, 17, 17


def test_a_rare_class_is_spread_over_the_folds():
    names = [f"{i:03d}" for i in range(60)]
    present = {name: frozenset({"road", *(["rider"] if i % 6 == 0 else [])})
               for i, name in enumerate(names)}
    for pattern in (None, r"^(\d\d)"):      # images, and groups of ten images with 1 or 2 of them
        folds = split_data(names, present, pattern, 5).folds
        riders = [sum("rider" in present[name] for name in part) for part in folds]
        assert sum(riders) == 10 and max(riders) - min(riders) <= 1, riders
        assert set(map(len, folds)) == {12} if pattern is None else max(map(len, folds)) <= 20


def test_a_validation_by_groups_shows_the_classes_and_leaves_them_to_training():
    present = {name: frozenset({"road", *(["rider"] if name[4] in "06" else [])})
               for name in VIDEOS}
    for seed in range(3):
        names = list(np.random.default_rng(seed).permutation(VIDEOS))
        found = sides(split_data(names, present, CLIP))
        assert len({"clip0", "clip6"} & found["val"]) == 1


def test_a_class_that_a_fold_does_not_show_is_named():
    present = {name: frozenset({"sky"} | ({"rider"} if name.startswith("clip2") else set()))
               for name in VIDEOS}
    remarks = split_data(VIDEOS, present, CLIP, 2).remarks
    assert len(remarks) == 1 and "rider in fold" in remarks[0] and "sky" not in remarks[0]


def test_folds_leave_the_test_folder_alone_and_divide_train_and_val_again():
    names = [f"{part}/{i}" for part in ("train", "val", "test") for i in range(4)]
    split = split_data(names, {}, folds=2)
    assert split.parts["test"] == names[8:]
    assert sorted(name for part in split.folds for name in part) == names[:8]
    assert "divided again" in split.remarks[0] and "test by the sub-folder" in split.origin


def test_folders_named_after_parts_do_not_count_as_groups():
    names = [f"{part}/v{video}/{i}" for part, video in (("train", 1), ("train", 2), ("val", 3))
             for i in range(3)]
    assert "3 groups: 2 train, 1 val" in split_data(names, {}, "^(.+)/").origin
    with pytest.raises(DataError, match="1 group on several sides: v2 in train and val"):
        split_data([*names, "val/v2/9"], {}, "^(.+)/")
    assert split_data([*names, "val/v2/9"], {}, "^(.+)/", 2).folds       # val is divided again


@pytest.mark.parametrize("pattern, folds, what, fix", [
    ("x", None, "no name fits the pattern 'x': clip0_000", "without suffix"),
    (r"^(clip\d_00[0-5])", None, "of 68 names do not fit the pattern", "without suffix"),
    ("clip", None, "all 68 names are in one group, 'clip'", "before the last _"),
    ("(", None, "not a regular expression", "in quotes"),
    ("*_a", None, "not a regular expression", "in quotes"),
    (CLIP, 9, "9 folds of 8 groups", "--folds 8"),
    (None, 69, "69 folds of 68 images", "--folds 68"),
    (None, 1, "1 folds: at least 2", "5 is usual")])
def test_options_that_do_not_fit_the_names_are_one_error(pattern, folds, what, fix):
    with pytest.raises(ConfigError) as caught:
        split_data(VIDEOS, {}, pattern, folds)
    assert what in str(caught.value) and fix in str(caught.value)
    assert caught.value.where in ("--group-by", "--folds")


@pytest.mark.parametrize("names, said", [
    (VIDEOS, "8 numbered series (clip0_… 5"),
    ([f"a/{i}" for i in range(9)] + [f"b/{i}" for i in range(9)], "2 numbered series (a/… 9"),
    ([f"frame_{i:04d}" for i in range(20)], "the frames of one video (frame_…)"),
    ([f"img{i}" for i in range(20)], ""),
    ([f"img{i}" for i in range(20)] + ["rose"], ""),
    ([f"{i:04d}" for i in range(20)], ""),
    (["rose", "tulip", "elm", "oak"], ""),
    ([f"x{i}{letter}" for letter in "abc" for i in range(9)], "")])
def test_names_that_look_like_videos_are_said(names, said):
    remarks = split_data(names, {}).remarks
    assert said in remarks[0] if said else not remarks
