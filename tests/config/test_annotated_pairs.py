"""train.py --init with what annotation tools export."""
import json
import zipfile

import pytest

from dataloader.annotated import Annotated
from tests.support import exports
from utils.config.first_config import make_config
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import DataError
from utils.files.jsonc import read_jsonc

SCENES = exports.scenes()


def made(tmp_path, labels):
    """(the resolved config, the class file) of --init."""
    make_config(str(tmp_path / "images"), str(labels), str(tmp_path / "my.json"))
    return (resolve_config(load_config(str(tmp_path / "my.json"))),
            read_jsonc(tmp_path / "my.classes.json"))


@pytest.fixture
def data(tmp_path):
    exports.write_images(tmp_path / "images", SCENES)
    return tmp_path


@pytest.mark.parametrize("tool", exports.WRITERS)
def test_every_format_gives_a_config_whose_data_can_be_opened(data, tool, capsys):
    path = exports.WRITERS[tool](data / "export", SCENES)
    config, classes = made(data, path)
    printed = capsys.readouterr().out
    assert "4 annotated images" in printed and "split: 3 train, 1 val" in printed
    assert classes["names"] == ["background", *exports.NAMES]
    for name, length in (("train", 3), ("val", 1)):
        section = config[f"{name}_loader"]
        assert section["type"] == "Annotated"
        args = {key: section["args"][key] for key in
                ("data_dir", "annotations", "classes", "split", "background", "image_dir",
                 "list_file")}
        assert len(Annotated(**args)) == length


def test_the_format_is_named_first(data, capsys):
    made(data, exports.coco(data, SCENES))
    assert capsys.readouterr().out.startswith("annotations: COCO JSON\n4 annotated images\n")


def test_classes_may_be_renamed_in_the_class_file(data):
    config, classes = made(data, exports.coco(data, SCENES))
    assert classes["categories"] == [[], *exports.NAMES]
    text = (data / "my.classes.json").read_text()
    (data / "my.classes.json").write_text(text.replace('"names": ["background", "cat"',
                                                       '"names": ["background", "Katze"'))
    args = config["val_loader"]["args"]
    dataset = Annotated(args["data_dir"], args["annotations"], args["classes"], args["split"],
                        list_file=args["list_file"])
    assert dataset.class_names[1] == "Katze"
    assert dataset[0]["label"].tolist() == exports.truth(
        next(one for one in SCENES if one.name == dataset[0]["id"]), "area").tolist()


def test_categories_without_a_pixel_and_missing_images_are_said(data, capsys):
    path = exports.coco(data, SCENES)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 90, "name": "unicorn"})
    content["images"].append({"id": 999, "file_name": "lost.jpg", "height": 5, "width": 5})
    path.write_text(json.dumps(content))
    exports.write_images(data / "images", [SCENES[0]._replace(name="more")])
    _, classes = made(data, path)
    printed = capsys.readouterr().out
    assert "categories without a pixel are not used: unicorn" in printed
    assert classes["unused_categories"] == ["unicorn"]
    assert "no image lost.jpg" in printed and "more.jpg" in printed


def test_labelme_names_of_background_and_ignored_pixels_are_understood(data):
    for scene in SCENES:
        box = [[0, 0], [20, 0], [20, 20], [0, 20]]
        exports.put(data / "labels" / f"{scene.name}.json", exports.labelme_text(
            [{"label": label, "points": [[x + shift, y] for x, y in box]} for label, shift in
             (("_background_", 0), ("leaf", 20), ("__ignore__", 40))], f"{scene.name}.jpg",
            scene.size))
    config, classes = made(data, data / "labels")
    assert classes["names"] == ["_background_", "leaf"]
    assert classes["ignore_categories"] == ["__ignore__"]
    assert config["train_loader"]["args"]["background"] == "_background_"


def test_mistakes_are_listed_and_nothing_is_written(data):
    path = exports.coco(data, SCENES)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1 mistake in.*\n.*annotations\[0\]: there is no categ"):
        made(data, path)
    assert not (data / "my.json").exists()


def test_annotations_of_other_images_are_refused_with_examples(data):
    for image in (data / "images").iterdir():
        image.rename(image.with_name(f"x{image.name}"))
    with pytest.raises(DataError, match="0 of 4 annotated images can be used"):
        made(data, exports.coco(data, SCENES))


def test_a_class_without_a_name_is_no_background(data):
    """Class 0 of YOLO is an object; only in label maps it is what nobody drew."""
    for scene in SCENES:
        exports.put(data / f"labels/{scene.name}.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n"
                                                       "1 0.2 0.5 0.4 0.5 0.4 0.8\n")
    _, classes = made(data, data / "labels")
    assert classes["names"] == ["background", "class 0", "class 1"]


@pytest.mark.parametrize("tool, given", [("supervisely", "ds0/ann"), ("cvat.zip", "..")])
def test_annotations_in_or_above_a_folder_without_labels_are_proposed(data, tool, given):
    path = exports.WRITERS[tool](data / "export", SCENES)
    assert path.is_dir() == (given != "..")
    with pytest.raises(DataError) as caught:
        made(data, path / given if path.is_dir() else path.parent)
    assert caught.value.fix.startswith(f"did you mean --labels {path} (")


def test_classes_whose_names_differ_in_spelling_are_said(data, capsys):
    exports.put(data / "labels/classes.txt", "big dog\nBig-Dog\ncat\n")
    for scene in SCENES:
        exports.put(data / f"labels/{scene.name}.txt", "".join(
            f"{number} 0.{number}1 0.1 0.{number}9 0.1 0.{number}9 0.9\n" for number in range(3)))
    made(data, data / "labels")
    assert "big dog and Big-Dog: names that differ in spelling" in capsys.readouterr().out


def test_a_config_in_a_subfolder_names_paths_that_need_no_notice(data, capsys, monkeypatch):
    monkeypatch.chdir(data)
    labels = exports.coco(data / "export", SCENES)
    make_config("images", str(labels.relative_to(data)), "sub/my.json")
    resolve_config(load_config("sub/my.json"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["c\\u001b[31mt", "c\\u0000t", "c\\nt", "t" * 300])
def test_a_class_name_that_cannot_be_printed_is_refused(data, name):
    path = exports.label_studio(data, SCENES)
    path.write_text(path.read_text().replace('"cat"', f'"{name}"'))
    with pytest.raises(DataError, match="the name of class . (cannot be printed|has 300 charac)"):
        made(data, path)


def test_an_unsafe_zip_is_refused_with_what_is_wrong_with_it(data):
    path = exports.cvat_zip(data / "export", SCENES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil.txt", "")
    with pytest.raises(DataError, match="would leave the folder"):
        made(data, path)


def test_outlines_outside_their_image_are_said(data, capsys):
    path = exports.labelme(data / "export", SCENES)
    content = json.loads((path / "im_0.json").read_text())
    content["shapes"].append({"label": "cat", "shape_type": "polygon",
                              "points": [[-9, -9], [-2, -9], [-2, -2]]})
    (path / "im_0.json").write_text(json.dumps(content))
    made(data, path)
    assert "1 x outline lies outside its image and shows nothing: im_0.json: shapes[" in \
        capsys.readouterr().out
