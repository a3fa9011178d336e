"""tools.plot_rules: what the picture of two rules shows."""
import numpy as np
import pytest

from tools.plot_rules import COLOURS, compared, painted, parse

LABEL = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)


def found(masks, min_pixels=1):
    image = np.full((2, 4, 3), 100, np.uint8)
    return compared(image, LABEL, "a", masks, 2, 255, min_pixels)


def test_labels_and_masks_give_the_dice_of_every_class_that_is_there():
    labels = np.array([[0, 1, 1, 1], [0, 0, 1, 1]], np.uint8)
    masks = np.stack([LABEL == 0, np.zeros_like(LABEL, bool)])
    first, second = found([labels, masks])
    assert first.dice == pytest.approx([6 / 7, 1.0])
    assert second.dice == pytest.approx([6 / 7, 0.0])     # the ignored pixel does not count
    assert second.gain == pytest.approx(-6 / 7)


def test_a_class_of_few_pixels_is_left_out():
    assert [one.label_class for one in found([LABEL, LABEL], min_pixels=4)] == [0]


def test_right_wrong_and_missed_pixels_have_their_colours_and_ignored_ones_the_photos():
    _, one = found([LABEL, LABEL])
    picture = painted(one, np.array([[1, 0, 1, 0], [0, 0, 1, 1]], bool))
    assert tuple(picture[0, 0]) == COLOURS["too much"]
    assert tuple(picture[0, 2]) == COLOURS["right"]
    assert tuple(picture[0, 3]) == COLOURS["missed"]
    assert tuple(picture[1, 3]) == (100, 100, 100)
    assert tuple(picture[0, 1]) == (50, 50, 50)


def test_it_takes_two_rules(capsys):
    with pytest.raises(SystemExit):
        parse(["-r", "x.pth", "-p", "max"])
    assert "two different rules" in capsys.readouterr().err
