"""tools.import_labels: exported annotations as PNG label maps."""
import json

import numpy as np
import pytest

from dataloader.folder import Folder
from tests.support import exports
from tools.import_labels import main
from utils.errors import ConfigError
from utils.images.image_io import read_label_and_palette

SCENES = exports.scenes()


@pytest.fixture
def data(tmp_path):
    exports.write_images(tmp_path / "images", SCENES)
    return tmp_path


@pytest.mark.parametrize("tool", ["coco", "labelme", "class_masks"])
def test_the_label_maps_are_those_that_were_drawn(data, tool, capsys):
    path = exports.WRITERS[tool](data / "export", SCENES)
    assert main([str(path), "--images", str(data / "images"), "-o", str(data / "out")]) == 0
    assert "4 label maps" in capsys.readouterr().out
    dataset = Folder(str(data), classes=str(data / "out" / "classes.json"), label_dir="out/maps")
    assert dataset.class_names == ["background", *exports.NAMES]
    for index, sample in enumerate(dataset.samples):
        scene = next(scene for scene in SCENES if scene.name == sample.id)
        expected = exports.truth_of_masks(scene) if tool == "class_masks" else \
            exports.truth(scene, "area" if tool == "coco" else "order")
        assert np.array_equal(dataset[index]["label"], expected)
        assert read_label_and_palette(sample.label)[1][:4] == dataset.palette


def test_a_class_file_decides_the_classes_and_unlabeled_pixels_are_255(data):
    path = exports.coco(data, SCENES)
    (data / "c.json").write_text(json.dumps({"names": ["tree", "animal"], "categories": [
        "tree", ["cat", "dog"]]}))
    assert main([str(path), "--images", str(data / "images"), "-o", str(data / "out"),
                 "--classes", str(data / "c.json")]) == 0
    stored, _ = read_label_and_palette(data / "out" / "maps" / "im_0.png")
    expected = np.array([255, 1, 1, 0])[exports.truth(SCENES[0], "area")]
    assert np.array_equal(stored, expected)


def test_a_folder_with_files_is_not_written_into(data):
    path = exports.coco(data, SCENES)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        main([str(path), "--images", str(data / "images"), "-o", str(data / "images")])


def test_what_is_no_annotation_is_refused(data):
    with pytest.raises(ConfigError, match="no annotations of a known tool"):
        main([str(data / "images"), "--images", str(data / "images"), "-o", str(data / "out")])
