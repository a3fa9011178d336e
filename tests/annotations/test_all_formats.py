"""What holds for every format: one set of scenes, written by each tool, gives one set of labels."""
import pickle

import numpy as np
import pytest

from tests.support import exports
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import format_of, read_annotations
from utils.annotations.rasterize import draw

SCENES = exports.scenes()


@pytest.fixture(params=exports.WRITERS)
def export(request, tmp_path):
    return request.param, exports.WRITERS[request.param](tmp_path / "export", SCENES)


def test_every_format_gives_the_pixels_that_were_drawn(export):
    name, path = export
    module, findings = format_of(path), Findings()
    assert module is not None and module.__name__.endswith(f".{name.partition('.')[0]}")
    found = pickle.loads(pickle.dumps(read_annotations(path, findings)))    # as workers get it
    assert findings.wrong == []
    names = [category.name for category in found.categories]
    assert [one for one in names if one != "background"] == exports.NAMES
    values = [0 if one == "background" else 1 + exports.NAMES.index(one) for one in names]
    images = {image.image.rpartition("/")[2].removesuffix(".jpg")[-4:]: image
              for image in found.images}
    assert sorted(images) == [scene.name for scene in SCENES]
    for scene in SCENES:
        image = images[scene.name]
        assert image.size in (None, scene.size)
        expected = exports.truth_of_masks(scene) if name == "class_masks" else \
            exports.truth(scene, found.overlap)
        np.testing.assert_array_equal(
            draw(image.regions(scene.size), values, scene.size, 0, found.overlap), expected)


def test_every_format_keeps_the_colors_it_has(export):
    name, path = export
    found = read_annotations(path, Findings())
    colors = [category.color for category in found.categories if category.name != "background"]
    has_some = name.split(".")[0] in ("cvat", "cvat_masks", "supervisely")
    assert colors == (exports.COLORS if has_some else [None] * 3)
