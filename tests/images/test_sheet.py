"""The sheet that charts are drawn on."""
import numpy as np

from utils.images.sheet import INK, PAPER, Sheet, text_width


def drawn(draw, width=40, height=20):
    sheet = Sheet(width, height)
    draw(sheet)
    return np.asarray(sheet.image())


def test_a_new_sheet_is_white_and_has_its_size():
    picture = drawn(lambda sheet: None)
    assert picture.shape == (20, 40, 3) and (picture == PAPER).all()


def test_a_box_fills_the_pixels_between_its_corners():
    picture = drawn(lambda sheet: sheet.box(10, 5, 20, 15, (200, 0, 0)))
    assert (picture[8:12, 13:17] == (200, 0, 0)).all()
    assert (picture[:2] == PAPER).all() and (picture[:, 25:] == PAPER).all()


def test_a_box_whose_corners_have_crossed_is_a_line():
    assert (drawn(lambda sheet: sheet.box(10, 5, 9, 15, (200, 0, 0))) != PAPER).any()


def test_a_line_passes_through_its_points():
    picture = drawn(lambda sheet: sheet.line([(2, 10), (38, 10)], INK, 2))
    assert (picture[9:11, 10:30] < 120).any(axis=(0, 2)).all()


def test_text_is_as_wide_as_announced():
    columns = (drawn(lambda sheet: sheet.text(4, 10, "mIoU", 13), 80) < 128).any(axis=(0, 2))
    first, last = np.flatnonzero(columns)[[0, -1]]
    assert first >= 4 and abs((last - 4) - text_width("mIoU", 13)) <= 2
