"""Colors of classes: how far apart they are for all kinds of eyes."""
import numpy as np
import pytest

from dataloader.shapes import Shapes
from tests.support.color_vision import (
    VISION,
    difference,
    further_colors,
    lab,
    seen,
    smallest_difference,
)
from utils.images.palette import MOST, class_palette, one_per_class

# Two colors and their CIEDE2000, from table 1 of Sharma, Wu & Dalal 2005.
PUBLISHED = [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
             ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
             ((50, 2.5, 0), (58, 24, 15), 19.4535), ((50, -1, 2), (50, 0, 0), 2.3669),
             ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082)]


@pytest.mark.parametrize("one, other, expected", PUBLISHED)
def test_the_measure_of_the_differences_gives_the_published_values(one, other, expected):
    assert difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("vision", VISION)
def test_grays_look_the_same_to_every_eye(vision):
    grays = np.repeat(np.arange(0, 256, 15)[:, None], 3, 1)
    np.testing.assert_allclose(seen(grays, vision), grays, atol=0.01)
    assert lab(grays)[-1] == pytest.approx([100, 0, 0], abs=0.01)


@pytest.mark.parametrize("vision", VISION)
def test_every_eye_can_tell_the_classes_of_shapes_apart(vision):
    assert smallest_difference(Shapes.palette, vision) > 15


# Smallest CIEDE2000 of two colors of a generated palette, for every kind of eye.
MEASURED = [(8, 10.8), (9, 10.8), (16, 10.8), (24, 9.5), (32, 7.8), (64, 5.1), (128, 3.4),
            (257, 2.1)]


@pytest.mark.parametrize("classes, least", MEASURED)
def test_every_eye_can_tell_generated_colors_apart(classes, least):
    palette = class_palette(["background", *map(str, range(classes - 1))])
    assert palette[0] == [0, 0, 0] and len(set(map(tuple, palette))) == classes
    assert min(smallest_difference(palette, vision) for vision in VISION) > least


def test_the_first_colors_are_those_of_okabe_and_ito():
    names = ["background", "a", "b", "c", "d", "e", "f", "g"]
    assert class_palette(names) == [
        [0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178],
        [213, 94, 0], [204, 121, 167]]


def test_the_further_colors_are_the_farthest_from_those_before():
    palette = class_palette(["background", *map(str, range(40))])
    assert [list(color) for color in further_colors(palette[:8], 33)] == palette[8:]


@pytest.mark.parametrize("names, background", [
    (["background", "a"], 0), (["a", " Background ", "void"], 1), (["class 0", "class 1"], 0),
    (["class 7", "class 0"], None), (["road", "sky"], None), (["back of a chair", "b"], None),
    (["chest", "back", "arm"], None), (["other", "void", "background"], 2),
    (["other", "road", "unlabeled"], 2), (["road", "other"], 1)])
def test_only_a_background_is_black(names, background):
    palette = class_palette(names)
    assert [k for k, color in enumerate(palette) if not any(color)] == \
        ([] if background is None else [background])


def test_a_palette_of_more_classes_begins_with_that_of_fewer():
    names = list(map(str, range(600)))
    palette = class_palette(names)
    assert class_palette(names[:19]) == palette[:19]
    assert palette[MOST:2 * MOST] == palette[:MOST] and class_palette([]) == []


@pytest.mark.parametrize("colors", [0, 1, 3, 300])
def test_a_palette_of_too_few_or_too_many_colors_gets_one_per_class(colors):
    names = ["road", "sky", "car"]
    given = [[k % 256, 1, 2] for k in range(colors)]
    palette = one_per_class(given, names)
    assert len(palette) == 3 and palette[:colors] == given[:3]
    assert palette[colors:] == class_palette(names)[colors:]
