"""Colors of classes: how far apart they are for all kinds of eyes."""
import numpy as np
import pytest

from dataloader.shapes import Shapes
from tests.support.color_vision import VISION, difference, lab, seen, smallest_difference

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
