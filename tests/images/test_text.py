"""Text in pictures: any alphabet, with and without a font for it."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.support.places import ROOT
from utils.images import text
from utils.images.text import drawable, in_latin, shortened, text_width, write_text

# A name, and what pictures show where no font of the machine has its letters.
WITHOUT_A_FONT = [
    ("road", "road"), ("Bäume", "Baume"), ("Straße", "Strasse"), ("Øre – x", "Ore - x"),
    ("дерево", "derevo"), ("Щука", "Shchuka"), ("δέντρο", "dentro"), ("かな", "kana"),
    ("한글", "hangeul"), ("🚗 car", "[automobile] car"), ("背景", "\\u80cc\\u666f"),
    ("שלט a", "\\u05e9\\u05dc\\u05d8 a"), ("", "")]


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without fonts, on which nothing was said yet."""
    yield from machine(monkeypatch, [])


def machine(monkeypatch, folders):
    caches = (text._system_fonts, text._source, text._lacking, text.text_width)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(text, "_font_folders", lambda: folders)
    for name, value in (("_used", []), ("_absent", set()), ("_told", False)):
        monkeypatch.setattr(text, name, value)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("words, expected", WITHOUT_A_FONT)
def test_without_a_font_latin_letters_or_escapes_are_drawn(words, expected, no_fonts):
    assert drawable(words) == expected
    if "\\u" in expected:
        assert in_latin(words) is None
    elif words:
        assert in_latin(words) == expected


def test_what_is_drawn_instead_is_said_once(no_fonts, capsys):
    for words in ("road", "背景", "天空", "Bäume"):
        drawable(words)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'背景'" in said and "\\u80cc" in said and "install" in said


def test_pillows_own_font_draws_ascii(no_fonts):
    picture = Image.new("RGB", (90, 20), "white")
    expected = picture.copy()
    write_text(ImageDraw.Draw(picture), (2, 10), "mIoU, 50%", 14, (0, 0, 0))
    ImageDraw.Draw(expected).text((2, 10), "mIoU, 50%", (0, 0, 0), ImageFont.load_default(14), "lm")
    np.testing.assert_array_equal(picture, expected)


class Font:
    """A font with the letters of a string; it draws one and the same sign for all others."""

    def __init__(self, letters):
        self.letters = letters

    def getmask(self, letter):
        return Mask(ord(letter) if letter in self.letters else 0)


class Mask(bytes):
    size = (1, 1)

    def __new__(cls, number):
        return super().__new__(cls, str(number), "ascii")


def test_a_font_of_the_machine_that_has_all_letters_is_taken(tmp_path, monkeypatch):
    fonts = {"A-Bold.ttf": "背景路", "Two.ttf": "背", "Three-Regular.ttf": "背景a",
             "LastResort.otf": "背景路", "x/Broken.ttf": None}
    (tmp_path / "x").mkdir()
    for name in (*fonts, "note.txt"):
        (tmp_path / name).write_bytes(b"")

    def opened(path, size, **_):
        letters = next(value for name, value in fonts.items() if path.endswith(name))
        if letters is None:
            raise OSError("unknown file format")
        return Font(letters)
    for _ in machine(monkeypatch, [tmp_path, tmp_path / "missing"]):
        monkeypatch.setattr(ImageFont, "truetype", opened)

        def source(words):
            path = text._source(text._letters(words))
            return "none" if path is None else path.rpartition("/")[2]
        assert source("背景") == "Three-Regular.ttf"        # an upright one before a bold one
        assert source("背路") == "A-Bold.ttf"
        assert source("路 水") == "none" and text._absent == set()
        assert source("ש") == "none" and text._absent == {"HEBREW"}
        assert source("a b") == ""


def test_letters_that_need_shaping_are_not_drawn_without_raqm(tmp_path, monkeypatch):
    from PIL import features
    (tmp_path / "All.ttf").write_bytes(b"")
    for _ in machine(monkeypatch, [tmp_path]):
        monkeypatch.setattr(ImageFont, "truetype", lambda *_, **__: Font("شجرةде"))
        monkeypatch.setattr(features, "check", lambda name: False)
        assert text._source(text._letters("شجرة")) is None
        assert text._source(text._letters("де")).endswith("All.ttf")


def test_a_real_font_draws_cyrillic_and_arabic(tmp_path, monkeypatch):
    """Another picture than that of a missing letter; Arabic letters join, so the word is narrow."""
    found = [path for path in text._system_fonts() if path.endswith("DejaVuSans.ttf")]
    if not found:
        pytest.skip("the font DejaVu Sans is not on this machine")
    shutil.copy(found[0], tmp_path)
    for _ in machine(monkeypatch, [tmp_path]):
        assert drawable("дерево") == "дерево"
        assert drawable("شجرة") == "شجرة"
        assert text_width("شجرة", 20) < sum(text_width(letter, 20) for letter in "شجرة")
        picture = Image.new("L", (100, 30), 255)
        write_text(ImageDraw.Draw(picture), (2, 15), "дерево", 20, 0)
        assert np.flatnonzero((np.asarray(picture) < 128).any(0)).max() <= 4 + text_width(
            "дерево", 20)


@pytest.mark.parametrize("keep_end", [False, True])
def test_long_text_is_shortened_to_the_width(keep_end):
    words = "frankfurt_000000_000294_leftImg8bit"
    short = shortened(words, 12, 100, keep_end)
    assert 60 < text_width(short, 12) <= 100
    part = short.strip("…")
    assert words.endswith(part) if keep_end else words.startswith(part)
    assert shortened(words, 12, 1000, keep_end) == words
    assert shortened(words, 12, 1, keep_end) == "…" and shortened("", 12, 0) == ""


def test_all_pictures_write_through_this_file():
    """OpenCV's letters, or a font of one's own, would show boxes in place of most names."""
    found = {path.relative_to(ROOT).as_posix()
             for folder in ("base", "dataloader", "models", "tools", "utils")
             for path in (ROOT / folder).rglob("*.py")
             if re.search("ImageFont|putText", path.read_text(encoding="utf-8"))}
    assert found == {"utils/images/text.py"}
