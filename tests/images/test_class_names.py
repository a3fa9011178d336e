"""Names of classes that would damage a report are refused; older files with them are still read."""
import csv
import io
import json

import pytest

from utils.images import text
from utils.images.class_names import (
    LONGEST,
    drawable,
    first_difference,
    mistake_in,
    moved,
    usable,
)

ODD = [(["a", "b", "a"], "classes 0 and 2 have the same name, 'a'"),
       (["a", "a "], "classes 0 and 1 have the same name"),
       (["caf\u00e9", "cafe\u0301"], "classes 0 and 1 have the same name"),
       (["a", ""], "class 1 has no name"), (["  ", "b"], "class 0 has no name"),
       (["a", "b\ud800"], r"the name of class 1 cannot be printed: b\ud800"),
       (["a\nb", "c"], r"the name of class 0 cannot be printed: a\nb"),
       (["\x1b[2J", "c"], "class 0 cannot be printed"), (["\u202ea", "c"], "cannot be printed"),
       (["a\0", "c"], "cannot be printed"),
       (["x" * (LONGEST + 1)], f"has {LONGEST + 1} characters; the limit is {LONGEST}")]


@pytest.mark.parametrize("names, text", ODD)
def test_names_that_reports_cannot_keep_apart_or_print_are_named(names, text):
    assert text in mistake_in(names)
    kept = usable(names)
    assert len(kept) == len(names) and mistake_in(kept) is None
    json.dumps(kept).encode()
    row = io.StringIO()
    csv.writer(row).writerow(kept)
    assert len(next(csv.reader([row.getvalue()]))) == len(names)


@pytest.mark.parametrize("names", [["road", "traffic light", "日本", "naïve", "a/b", "=SUM(1)"],
                                   [f"class {k}" for k in range(300)], ["Road", "road"]])
def test_ordinary_names_of_any_language_are_kept(names):
    assert mistake_in(names) is None
    assert usable(names) == names


def test_names_are_drawn_with_letters_that_a_font_has(monkeypatch, capsys):
    monkeypatch.setattr(text, "_source",
                        lambda letters: "" if "".join(letters - {"…"}).isascii() else None)
    monkeypatch.setattr(text, "_told", False)
    names = ["Bäume", "naïve", "背景", "Straße", "x" * 5000, "Øre", "a b", "i" * 90, ""]
    drawn = drawable(names)
    assert drawn[:4] == ["Baume", "naive", "class 2", "Strasse"] and drawn[8] == "class 8"
    assert drawn[4].endswith("x…") and drawn[5:7] == ["Ore", "a b"]
    assert all(text.text_width(name, 16) <= 320 for name in drawn)
    assert "pictures show 'Baume', and other" in capsys.readouterr().err


def test_the_first_difference_is_named_by_class():
    one, colors = ["a", "b", "c"], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert first_difference(one, one, colors, colors) is None
    assert first_difference(one, ["a", "B", "x"]) == "class 1 is 'b' and 'B'"
    assert first_difference(one, ["a", "b"]) == "there are 3 and 2 classes"
    assert first_difference(one, one, colors, [*colors[:2], [2, 2, 9]]) == \
        "class 2, 'c', has the color [2, 2, 2] and [2, 2, 9]"
    assert moved(one, ["a", "B", "x"]) is None
    assert moved(["c", "b", "new"], one) == "'c' is class 0 and 2"
