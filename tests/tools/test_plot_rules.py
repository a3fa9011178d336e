"""tools.plot_rules: the contents of the picture of two rules."""
import numpy as np
import pytest

from tests.support.color_vision import VISION, smallest_difference
from tools.plot_rules import COLORS, compared, drawn, painted, parse

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


@pytest.mark.parametrize("vision", VISION)
def test_every_eye_can_tell_right_from_wrong(vision):
    assert smallest_difference(list(COLORS.values()), vision) > 30


@pytest.mark.parametrize("width, zoom", [(300, 1), (60, 4)])
def test_the_picture_has_titles_and_a_legend(width, zoom, monkeypatch):
    from utils.images import visualize
    said, written = [], visualize.write_text
    monkeypatch.setattr(visualize, "write_text",
                        lambda pen, place, words, *rest: said.append(words) or written(
                            pen, place, words, *rest))
    image = np.zeros((80, width, 3), np.uint8)
    label = np.zeros((80, width), np.uint8)
    label[:, width // 2:] = 1
    both = np.zeros((80, width))
    both[:, :width // 3] = 1
    lost, won = sorted(compared(image, label, "b7", [both, label], 2, 255, 1)
                       + compared(image, label, "a", [label, both], 2, 255, 1),
                       key=lambda case: case.gain)[::3]
    picture = drawn(won, lost, ["max", "rankdice"], ["road", "sky"])
    assert picture.shape[1] == 3 * zoom * width + 8
    text = ", ".join(said)
    for part in ("rankdice gains most: ", " in b7", "rankdice loses most: ", " in a", "image",
                 "rankdice, Dice 100.0", "right", "too much", "missed"):
        assert part in text, part
    for color in COLORS.values():
        assert (picture == color).all(-1).any()


def test_one_rule_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        parse(["-r", "x.pth", "-p", "max"])
    assert "two different rules" in capsys.readouterr().err
