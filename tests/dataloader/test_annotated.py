"""Annotated: labels drawn from what annotation tools export."""
import json
import pickle

import numpy as np
import PIL.Image
import pytest

from dataloader.annotated import Annotated
from dataloader.class_uniform import find_centroids
from dataloader.dataset_report import check_dataset
from dataloader.pixel_cache import CachePlan, use_cache
from tests.support import exports
from utils.errors import ConfigError, DataError

SCENES = exports.scenes()
NAMES = ["background", *exports.NAMES]


@pytest.fixture
def data(tmp_path):
    """A folder with images/, classes.json and instances.json."""
    exports.write_images(tmp_path / "images", SCENES)
    exports.coco(tmp_path, SCENES)
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    return tmp_path


def opened(data, annotations="instances.json", **args):
    return Annotated(str(data), annotations, args.pop("classes", "classes.json"), **args)


def change(data, function, name="instances.json"):
    """Rewrite a JSON file by a function that changes its content."""
    content = json.loads((data / name).read_text())
    function(content)
    (data / name).write_text(json.dumps(content))


def scene_of(sample_id):
    return next(scene for scene in SCENES if scene.name == sample_id)


@pytest.mark.parametrize("tool", exports.WRITERS)
def test_labels_of_every_format_are_those_that_were_drawn(tmp_path, tool):
    exports.write_images(tmp_path / "images", SCENES)
    path = exports.WRITERS[tool](tmp_path / "export", SCENES)
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    dataset = pickle.loads(pickle.dumps(opened(tmp_path, str(path))))   # as workers get it
    assert len(dataset) == len(SCENES)
    for index in range(len(dataset)):
        sample = dataset[index]
        scene = scene_of(sample["id"])
        expected = exports.truth_of_masks(scene) if tool == "class_masks" else \
            exports.truth(scene, dataset.overlap)
        assert np.array_equal(sample["label"], expected)
        assert np.array_equal(dataset.load_label(index), expected)


def turned_by_exif(folder, some):
    """A photo for each scene that is stored turned by 90 degrees, with the tag that says so."""
    exif = PIL.Image.Exif()
    exif[274] = 6       # shown turned clockwise
    for scene in some:
        picture = np.rot90(exports.truth(scene)[..., None].repeat(3, 2) * 60)
        PIL.Image.fromarray(picture).save(folder / f"{scene.name}.jpg", exif=exif)


@pytest.mark.parametrize("tool", exports.WRITERS)
def test_labels_lie_on_the_picture_as_its_tool_shows_it(tmp_path, tool):
    exports.write_images(tmp_path / "images", SCENES)
    turned_by_exif(tmp_path / "images", SCENES)
    path = exports.WRITERS[tool](tmp_path / "export", SCENES)
    (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES}))
    dataset = opened(tmp_path, str(path))
    for index in range(len(dataset)):
        sample = dataset[index]
        expected = exports.truth_of_masks(scene_of(sample["id"])) if tool == "class_masks" else \
            exports.truth(scene_of(sample["id"]), dataset.overlap)
        assert np.array_equal(sample["label"], expected)


def test_labels_of_the_stored_picture_are_turned_with_it_and_this_is_said(data, capsys):
    turned_by_exif(data / "images", SCENES)

    def as_stored(content):
        for image in content["images"]:
            image["height"], image["width"] = image["width"], image["height"]
        outlines = [(scene.size[1], points) for scene in SCENES for _, points in scene.outlines]
        for one, (width, points) in zip(content["annotations"], outlines, strict=True):
            turned = np.stack((points[:, 1], width - points[:, 0]), 1)
            one["segmentation"] = [turned.ravel().tolist()]

    change(data, as_stored)
    dataset = opened(data)
    assert "4 x image is turned by its EXIF tag, and the annotation states the size of the " \
        "stored picture: its labels are turned with it" in capsys.readouterr().err
    for index in range(len(dataset)):
        label = dataset[index]["label"]
        truth = exports.truth(scene_of(dataset.samples[index].id), "area")
        # The borders of a fill are not those of the turned outline.
        assert label.shape == truth.shape and (label.numpy() == truth).mean() > 0.95


def test_a_pixel_cache_gives_the_same_samples_until_the_annotations_or_classes_change(data):
    dataset = opened(data)
    CachePlan(dataset, data / "cache").write()
    cached = use_cache(opened(data), str(data / "cache"))
    for index in range(len(dataset)):
        assert np.array_equal(cached[index]["label"], dataset[index]["label"])
    (data / "classes.json").write_text(json.dumps({"names": [*NAMES[:1], *NAMES[:0:-1]]}))
    with pytest.raises(DataError):
        use_cache(opened(data), str(data / "cache"))
    (data / "classes.json").write_text(json.dumps({"names": NAMES}))
    change(data, lambda content: content["annotations"].pop())
    with pytest.raises(DataError):
        use_cache(opened(data), str(data / "cache"))


def test_class_uniform_sampling_finds_the_drawn_classes(data):
    dataset = opened(data)
    found = {(row[0], row[1]) for row in find_centroids(dataset).tolist()}
    assert found == {(class_id, index) for index in range(len(dataset))
                     for class_id in np.unique(dataset[index]["label"]).tolist()}


def test_classes_may_have_other_names_and_several_categories(data):
    (data / "classes.json").write_text(json.dumps({
        "names": ["ground", "animal"], "categories": [[], ["cat", "dog"]],
        "unused_categories": ["tree"]}))
    dataset = opened(data, background="ground")
    for index, sample in enumerate(dataset.samples):
        scene = scene_of(sample.id)
        kept = scene._replace(outlines=[one for one in scene.outlines if one[0] < 2])
        assert np.array_equal(dataset[index]["label"], exports.truth(kept, "area") > 0)


def test_ignored_categories_and_pixels_without_a_region_are_ignored(data):
    (data / "classes.json").write_text(json.dumps({
        "names": ["cat", "dog"], "ignore_categories": ["tree"]}))
    dataset = opened(data, background=None)
    for index, sample in enumerate(dataset.samples):
        expected = exports.truth(scene_of(sample.id), "area").astype(int) - 1
        expected[(expected < 0) | (expected == 2)] = 255
        assert np.array_equal(dataset[index]["label"], expected)


def test_many_classes_are_drawn_in_16_bits(data):
    more = [f"class {number}" for number in range(300)]
    (data / "classes.json").write_text(json.dumps({"names": [*more, *exports.NAMES]}))
    dataset = opened(data, background=None, ignore_index=-1)
    label = dataset[0]["label"]
    assert label.min() == -1 and label.max() >= 300 and not ((label >= 0) & (label < 300)).any()


def test_a_category_without_a_class_is_refused_with_its_name(data):
    (data / "classes.json").write_text(json.dumps({"names": NAMES[:3]}))
    with pytest.raises(ConfigError, match="no class has the categories 'tree'"):
        opened(data)


def test_a_background_that_is_no_class_is_refused(data):
    with pytest.raises(ConfigError, match="no class 'ground'"):
        opened(data, background="ground")


def test_a_category_of_two_classes_is_refused(data):
    (data / "classes.json").write_text(json.dumps({
        "names": NAMES, "categories": [[], "cat", "dog", ["tree", "cat"]]}))
    with pytest.raises(ConfigError, match="the category 'cat' is given twice"):
        opened(data)


def test_a_list_chooses_images_with_or_without_their_extension(data):
    (data / "val.txt").write_text("im_2.jpg\nim_0\n")
    names = [path.name for path in (data / "images").iterdir()]
    (data / "val.txt").write_text(f"{[n for n in names if '2' in n][0]}\nim_0\n")
    assert [sample.id for sample in opened(data, split="val").samples] == ["im_2", "im_0"]
    (data / "val.txt").write_text("im_9\n")
    with pytest.raises(DataError, match=r"val.txt:1: no image im_9"):
        opened(data, split="val")
    with pytest.raises(DataError, match="split 'test'"):
        opened(data, split="test")


def test_a_listed_image_without_annotation_is_named(data):
    change(data, lambda content: content["images"].pop())
    change(data, lambda content: content.update(annotations=content["annotations"][:3]))
    (data / "all.txt").write_text("im_3\n")
    with pytest.raises(DataError, match="all.txt:1: im_3.* is not annotated"):
        opened(data)


def test_an_annotated_image_that_is_missing_is_named(data):
    next((data / "images").glob("im_1.*")).unlink()
    with pytest.raises(DataError, match=r"instances.json: images\[1\]: no image im_1.jpg below"):
        opened(data)


def test_wrong_annotations_are_all_named_with_their_numbers(data):
    def spoil(content):
        content["annotations"][2]["category_id"] = 4
        content["annotations"][0]["segmentation"] = [[1, 2, 3, "4", 5, 6]]
    change(data, spoil)
    with pytest.raises(DataError) as caught:
        opened(data)
    assert "instances.json: annotations[2]: there is no category 4" in caught.value.what
    assert "instances.json: annotations[0]: a coordinate is '4'" in caught.value.what


def test_an_image_of_another_size_than_annotated_is_named(data):
    def shrink(content):
        content["images"][0].update(height=20, width=20)
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 100]
    change(data, shrink)
    with pytest.raises(DataError, match=r"im_0.* is 40x64 .* is 20x20"):
        opened(data)


def test_what_is_left_out_is_said_once_with_places(data, capsys):
    change(data, lambda content: content["annotations"].append(
        {"image_id": 100, "category_id": 3, "segmentation": [[1, 1, 2, 2]]}))
    opened(data)
    assert "1 left out: outlines of fewer than three points (instances.json: annotations[" \
        in capsys.readouterr().err


def test_images_without_annotation_are_counted(data, capsys):
    exports.write_images(data / "images", [SCENES[0]._replace(name="more")])
    assert len(opened(data)) == 4
    assert "1 of 5 images below" in capsys.readouterr().err


def test_two_images_of_one_name_in_two_folders_need_the_folder(data):
    exports.write_images(data / "images" / "again", SCENES[:1])
    with pytest.raises(DataError, match="im_0.jpg may be .*again/im_0"):
        opened(data)


def test_check_dataset_names_items(data):
    def spoil(content):
        content["annotations"][3]["segmentation"] = {"size": [44, 64], "counts": "0OO"}
        content["annotations"].append({"image_id": 107, "category_id": 3,
                                       "segmentation": [[90, 1, 99, 1, 99, 9]]})
        content["annotations"].append({"image_id": 107, "category_id": 99, "segmentation": [[]]})
    change(data, spoil)
    report = check_dataset("Annotated", {"data_dir": str(data), "annotations": "instances.json",
                                         "classes": "classes.json"})
    text = report.as_text()
    assert "there is no category 99" in text and "outlines outside their image" in text
    assert "annotations[3]" in text
    assert " drawn from annotations" in text and "in the label folders" not in text


def test_check_dataset_says_a_wrong_line_once(data):
    path = exports.yolo(data / "yolo", SCENES)
    file = next(iter(sorted((path / "labels").rglob("*.txt"))))
    file.write_text(file.read_text() + "7 0.1 0.1 0.2 0.2 0.3 0.3\n")
    report = check_dataset("Annotated", {"data_dir": str(data), "annotations": str(path),
                                         "classes": "classes.json"})
    assert sum("class 7 has no name" in problem for problem in report.problems) == 1
