"""Rules for the names of images and labels are guessed from the names alone."""
import pytest

from utils.config.name_rules import guessed_rules

PARTS = ("train", "val")


def names(pattern, count=12):
    return [pattern.format(i=i, part=PARTS[i % 4 == 0]) for i in range(count)]


@pytest.mark.parametrize("image, label, twice, rule", [
    ("{i}.jpg", "{i}_mask.png", False, ("*", "*_mask")),
    ("{i}_rgb.jpg", "{i}_gt.png", False, ("*_rgb", "*_gt")),
    ("{i}.jpg", "m{i}.png", False, ("*", "m*")),
    ("c_{i}_rgb_l.jpg", "c_{i}_seg_l.png", False, ("*_rgb_*", "*_seg_*")),
    ("{part}/images/{i}.jpg", "{part}/masks/{i}.png", False, ("images/**", "masks/**")),
    ("{part}/{i}.jpg", "{part}annot/{i}.png", False, ("*/**", "*annot/**")),
    ("{i}/image.png", "{i}/mask.png", False, ("*/image", "*/mask")),
    ("{i}.jpg", "{i}/mask.png", False, ("*", "*/mask")),
    ("{i}.jpg", "{i}.jpg.png", False, ("*", "*.jpg.png")),
    ("{part}/images/{i}.jpg", "{part}/masks/{i}_m.png", True, ("images/**", "masks/**_m")),
    ("im/{part}/a{i}_x.jpg", "la/{part}/a{i}_y.png", True, ("im/**_x", "la/**_y")),
    ("{i}.jpg", "masks/mask_{i}.png", True, ("*", "masks/mask_*")),
])
def test_the_difference_of_the_names_becomes_patterns(image, label, twice, rule):
    both = names(image) + names(label)
    assert rule in guessed_rules(both, both, True, twice)[:4]
    assert guessed_rules(names(image), names(label), False, twice)[0] == rule


def test_equal_names_of_one_folder_differ_by_their_extension():
    both = names("{i}.jpg") + names("{i}.png")
    assert ("*", "*.png") in guessed_rules(both, both, True, False)
    assert guessed_rules(names("{i}.jpg"), names("{i}.png"), False, False)[0] == ("*", "*")


def test_many_files_are_compared_in_a_few_seconds():
    images = [f"images/train/ADE_train_{i:08}.jpg" for i in range(20000)]
    labels = [f"annotations/train/ADE_train_{i:08}.png" for i in range(20000)]
    rules = guessed_rules(images + labels, images + labels, True, False)
    assert set(rules[:2]) == {("images/**", "annotations/**"), ("annotations/**", "images/**")}
