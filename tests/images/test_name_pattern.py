"""Patterns of file names: what fits, and the stem that image and label share."""
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.images.name_pattern import NamePattern, find_files, matching, separate


@pytest.mark.parametrize("pattern, path, stem", [
    ("*", "a.jpg", "a"), ("*", "sub/a.b.jpg", "sub/a.b"), ("*.png", "a.PNG", "a"),
    ("*.png", "a.jpg", None), ("*_mask", "x/a_mask.tif", "x/a"), ("*_mask", "a.png", None),
    ("mask_*", "x/mask_1.png", "x/1"), ("*_rgb_*", "f_7_rgb_left.png", "f_7left"),
    ("images/**", "train/images/c/1.png", "train/c/1"), ("images/**", "images/1.png", "1"),
    ("images/*", "images/c/1.png", None), ("images/**", "myimages/1.png", None),
    ("*annot/**", "valannot/1.png", "val/1"), ("*/mask", "007/mask.png", "007"),
    ("masks/**_m", "a/masks/b/1_m.png", "a/b/1"), ("*/mask_1", "a/7/mask_1.png", "a/7"),
    ("masks/**/m_*", "masks/c/m_1.png", "c/1"), ("*(0)[x]", "a(0)[x].png", "a"),
    ("*.jpg.png", "a.jpg.png", "a"), ("*", "a\nb.png", "a\nb"),
    ("{stem}_mask.png", "x/a_mask.png", "x/a"), ("{stem}_mask.png", "a_mask.tif", None),
    ("{stem}/{stem}_m.png", "x/a/a_m.png", "x/a"), ("{stem}/{stem}_m.png", "x/a/b_m.png", None),
    ("{stem}/m", "007/m.tif", "007"), ("{stem}_by_*.png", "a_by_ann.png", "a"),
    ("masks/*/{stem}.png", "masks/7/a.png", "a"), ("masks/**/{stem}", "s/masks/c/d/a.png", "s/a"),
])
def test_a_stem_is_the_path_without_the_text_of_the_pattern(pattern, path, stem):
    assert NamePattern(pattern).stem(path) == stem


def test_an_ending_may_look_like_an_extension():
    assert NamePattern("*.jpg", any_suffix=True).stem("a.jpg.png") == "a"
    assert NamePattern("*.jpg").stem("a.jpg.png") is None


@pytest.mark.parametrize("text", ["mask", "", "/abs/*", "{name}.png", "/{stem}"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ConfigError, match="is not a pattern"):
        NamePattern(text, "label_pattern")


@pytest.mark.parametrize("folders, patterns, images, labels, unclear", [
    (".", ("*", "*_m"), "a.jpg a.png b.png", "a_m.png", ""),
    (".", ("*_m", "*"), "a_m.png", "a.png b.png", ""),
    (".", ("*", "*"), "a.jpg", "a.png", "a_m.png b.png"),
    ("sub", ("*", "*"), "a.jpg a.png b.png a_m.png", "sub/a.png", ""),
])
def test_a_file_belongs_to_the_pattern_that_says_more(folders, patterns, images, labels, unclear,
                                                      tmp_path):
    below = ["sub/a.png"] if folders == "sub" else []
    for name in ("a.jpg", "a.png", "a_m.png", "b.png", *below):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    places = tmp_path, tmp_path / folders
    patterns = NamePattern(patterns[0]), NamePattern(patterns[1])
    found = [matching(find_files(place, suffixes), pattern) for place, pattern, suffixes in
             zip(places, patterns, ((".jpg", ".png"), (".png",)), strict=True)]
    rest = separate(found[0], found[1], places, patterns)

    def names(paths):
        return {path.relative_to(tmp_path).as_posix() for path in paths}

    assert names(path for _, path in found[0].values()) == set(images.split())
    assert names(path for _, path in found[1].values()) == set(labels.split())
    assert names(rest) == set(unclear.split())


def test_a_folder_under_two_names_holds_the_same_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    (tmp_path / "b").symlink_to("a")
    keys = [find_files(Path(tmp_path, name), (".png",))[0].key for name in "ab"]
    assert keys[0] == keys[1]
