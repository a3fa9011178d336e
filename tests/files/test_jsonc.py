"""The reader of JSON with comments: what it takes, what it refuses, and how it says so."""
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import ConfigError
from utils.files.jsonc import MAX_BYTES, parse_jsonc, read_jsonc


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        parse_jsonc(text, "some.json")
    return caught.value


def test_comments_and_trailing_commas_are_accepted():
    text = """// a config
    { "a": [1, 2, /* three */ ], // to the end of the line
      /* several
         lines **/ "b": {"c": "//no comment", "d": "/* nor this */",}, }"""
    assert parse_jsonc(text) == {"a": [1, 2], "b": {"c": "//no comment", "d": "/* nor this */"}}


# NUL and surrogates are refused.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20),
    st.sampled_from([None, 2]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_json_value_is_read_as_python_reads_it(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_jsonc(text) == json.loads(text)


@given(st.text(string.printable + '"\\/*{}[],:Naé\u2028\x00', max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused_with_its_line_and_column(text):
    try:
        parse_jsonc(text, "f")
    except ConfigError as error:
        assert "empty" in error.what or error.where.startswith("f:")


@given(st.text('{}[]",:/*\\\n 10truefalsnE-+."a', max_size=40))
@settings(max_examples=400, deadline=None)
def test_whatever_python_reads_is_read_the_same(text):
    try:
        expected = json.loads(text, parse_constant=lambda name: 1 / 0,
                              object_pairs_hook=lambda pairs: dict(pairs) if len(
                                  dict(pairs)) == len(pairs) else 1 / 0)
    except (ValueError, ZeroDivisionError):
        return
    if "Infinity" not in repr(expected) and "inf" not in repr(expected):
        assert parse_jsonc(text) == expected


@pytest.mark.parametrize("text, place, words", [
    ('{"a": 1\n "b": 2}', "some.json:2:2", "expected ',' or '}', found \"b\""),
    ('{"a" 1}', "some.json:1:6", "expected ':'"),
    ("{'a': 1}", "some.json:1:2", "double quotes"),
    ("{a: 1}", "some.json:1:2", "double quotes"),
    ("[1, ,]", "some.json:1:5", "expected a value"),
    ("[,]", "some.json:1:2", "expected a value"),
    ("{,}", "some.json:1:2", "expected a key"),
    ("[1]\n]", "some.json:2:1", "after the end"),
    ('\n\n  ["abc]', "some.json:3:4", "not closed"),
    ('["a\tb"]', "some.json:1:2", "not closed"),
    ('["a\\qb"]', "some.json:1:4", "escape"),
    ("[1, 2", "some.json:1:1", "never closed"),
    ('{"a": /* x }', "some.json:1:7", "never closed"),
    ("[01]", "some.json:1:2", "not a number"),
    ("[.5]", "some.json:1:2", "not a number"),
    ("[+1]", "some.json:1:2", "not a number"),
    ("[0x10]", "some.json:1:2", "not a number"),
    ("[\u0661]", "some.json:1:2", "expected a value"),
    ("[NaN]", "some.json:1:2", "number or null"),
    ("[-Infinity]", "some.json:1:2", "number or null"),
    ("[1e999]", "some.json:1:2", "larger than any number"),
    ("[" + "9" * 5000 + "]", "some.json:1:2", "digits"),
    ("[True]", "some.json:1:2", "written true"),
    ("[None]", "some.json:1:2", "written null"),
    ("[" * 10_000, "some.json:1:102", "levels deep"),
])
def test_a_syntax_error_names_line_and_column_and_shows_the_line(text, place, words):
    error = refusal(text)
    where, line, caret = error.where.split("\n")
    assert where == place
    assert words in error.what
    assert line.strip()[:30] in text.replace("\t", " ")
    column = int(place.rsplit(":", 1)[1])
    if column <= 60:
        assert caret == " " * (4 + column - 1) + "^"


def test_a_key_given_twice_is_refused_with_both_lines():
    error = refusal('{"trainer": {\n "epochs": 1,\n\n "epochs": 2}}')
    assert "'epochs'" in error.what and "line 2 and line 4" in error.what
    assert error.where.startswith("some.json:4:2")


@pytest.mark.parametrize("text", ["", " \n\t", "// nothing\n", "/* nothing */"])
def test_an_empty_text_is_refused(text):
    assert "empty" in refusal(text).what


def test_line_numbers_of_keys_and_elements_are_reported():
    lines = {}
    parse_jsonc('{\n"a": {"b": [1,\n2]},\n"c":\n3}', lines=lines)
    assert lines == {(): 1, ("a",): 2, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3,
                     ("c",): 4}


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_jsonc(path) == {"a": "é"}


@pytest.mark.parametrize("data, words", [
    (b'{"a":\n "\xe9"}', "0xe9 is not UTF-8"), (b'\xff\xfe{\x00}\x00', "UTF-16"), (b"", "empty"),
    (b" " * (MAX_BYTES + 1), "larger than 1 MiB"), (b'{"a": "\x00"}', "not closed"),
])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, data, words):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as caught:
        read_jsonc(path)
    assert str(path) in caught.value.where


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_jsonc(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="folder"):
        read_jsonc(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_jsonc("a\0b.json")


def test_a_large_flat_file_is_read_in_linear_time(tmp_path):
    """Up to two seconds: the file has 300,000 lines."""
    path = tmp_path / "large.json"
    path.write_text("[" + "1,\n" * 300_000 + "]")
    assert len(read_jsonc(path)) == 300_000
