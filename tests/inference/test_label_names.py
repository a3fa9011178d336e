"""Images that are named like the labels of the training are told of."""
import pytest

from utils.inference.segment_images import _tell_labels


def told(args, *paths):
    _tell_labels(list(paths), {"train_loader": {"type": "Folder", "args": args}})


@pytest.mark.parametrize("args, paths, way", [
    ({"image_ending": "_sat", "label_pattern": "{stem}_mask.png"},
     ["d/a_sat.jpg", "d/a_mask.png"], '"FOLDER/*_sat.jpg"'),
    ({"label_ending": "_mask"}, ["d/a.jpg", "d/a_mask.png"], "-e jpg"),
    ({"label_ending": "_mask"}, ["d/a.png", "d/a_mask.png"], "a list of the images"),
    ({"image_pattern": "images/**", "label_pattern": "masks/**"},
     ["d/images/a.png", "d/masks/a.png"], '"FOLDER/images/**"')])
def test_labels_among_the_images_are_counted_with_a_way_out(args, paths, way, capsys):
    told(args, *paths)
    text = capsys.readouterr().err
    assert "1 of 2 images are named like the labels" in text and paths[1] in text and way in text


@pytest.mark.parametrize("args, paths", [
    ({}, ["a.jpg", "a.png"]),
    ({"image_pattern": "{stem}.jpg", "label_pattern": "{stem}.png"}, ["a.jpg", "b.png"]),
    ({"label_ending": "_mask"}, ["a.jpg", "mask.png"]),
    ({"image_ending": "_left_image", "label_ending": "_label"}, ["a_left_image.png", "b.png"])])
def test_names_that_tell_nothing_are_not_told_of(args, paths, capsys):
    told(args, *paths)
    assert not capsys.readouterr().err
