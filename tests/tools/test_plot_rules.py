"""tools.plot_rules: the contents of the picture of two rules."""
import numpy as np
import pytest

from tools.plot_rules import COLORS, compared, painted, parse

LABEL = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)


def cases(masks, min_pixels=1):
    image = np.full((2, 4, 3), 100, np.uint8)
    return compared(image, LABEL, "a", masks, 2, 255, min_pixels)


def test_labels_and_masks_give_the_dice_of_every_class_in_the_image():
    labels = np.array([[0, 1, 1, 1], [0, 0, 1, 1]], np.uint8)
    masks = np.stack([LABEL == 0, np.zeros_like(LABEL, bool)])
    first, second = cases([labels, masks])
    assert first.dice == pytest.approx([6 / 7, 1.0])
    assert second.dice == pytest.approx([6 / 7, 0.0])     # the ignored pixel does not count
    assert second.gain == pytest.approx(-6 / 7)


def test_a_class_of_few_pixels_is_left_out():
    assert [case.label_class for case in cases([LABEL, LABEL], min_pixels=4)] == [0]


def test_right_wrong_and_missed_pixels_are_painted_and_ignored_ones_are_not():
    _, second = cases([LABEL, LABEL])
    picture = painted(second, np.array([[1, 0, 1, 0], [0, 0, 1, 1]], bool))
    assert tuple(picture[0, 0]) == COLORS["too much"]
    assert tuple(picture[0, 2]) == COLORS["right"]
    assert tuple(picture[0, 3]) == COLORS["missed"]
    assert tuple(picture[1, 3]) == (100, 100, 100)
    assert tuple(picture[0, 1]) == (50, 50, 50)


def test_one_rule_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        parse(["-r", "x.pth", "-p", "max"])
    assert "two different rules" in capsys.readouterr().err
