"""Reads JSON with comments, the format of configs and class-name files.

Allowed beyond RFC 8259: `//` and `/* */` comments, one trailing comma, a byte-order mark. Stricter
than Python's json: a duplicate key, NaN, Infinity, a NUL character and a lone surrogate are errors.
Every error names file, line and column and shows the line.
"""
import bisect
import json
import os
import re
from typing import Any, NoReturn

from utils.errors import ConfigError

MAX_BYTES = 1 << 20     # far more than any config needs
MAX_DEPTH = 100

_BLANK = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"')
_WORD = re.compile(r"[-+.\w]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LITERALS = {"true": True, "false": False, "null": None}
# Spellings of other languages, and the JSON literal that is meant.
_FOREIGN = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false",
            "None": "null", "nil": "null", "undefined": "null"}


Lines = dict[tuple[str | int, ...], int]       # path of keys and indices -> line number


def read_jsonc(path: str | os.PathLike, lines: Lines | None = None) -> Any:
    """The value in a JSON file. Raises ConfigError if it cannot be read.

    lines: a dict to fill with the line number of every value.
    """
    source = os.fspath(path)
    try:
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("the file does not exist", source) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, a JSON file was expected", source) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file cannot be read: {error}", source) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the file is larger than {MAX_BYTES >> 20} MiB; is it a config?", source)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError("the file is UTF-16", source, "save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"byte 0x{data[error.start]:02x} is not UTF-8 text", f"{source}:{line}",
                          "save the file as UTF-8") from None
    return parse_jsonc(text, source, lines)


def parse_jsonc(text: str, source: str = "config", lines: Lines | None = None) -> Any:
    """The value in `text`. source: the name of the text in errors. lines: see read_jsonc."""
    return _Parser(text, source, {} if lines is None else lines).document()


def unusable_character(text: str) -> str | None:
    """What no name, path or text can contain: "a NUL character" or "a lone surrogate"; or None.

    Bytes of a file name that are not UTF-8 are allowed (Python's surrogateescape).
    """
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "a lone surrogate"
    return None


class _Parser:
    """A position in a text, which each method moves behind what it has parsed."""

    def __init__(self, text: str, source: str, lines: Lines):
        self.text, self.source, self.lines = text, source, lines
        self.line_ends = [match.start() for match in re.finditer("\n", text)]
        self.at = 0

    def document(self):
        self.skip_blank()
        if self.at == len(self.text):
            raise ConfigError("the file is empty; an object {...} was expected", self.source)
        value = self.value((), 0)
        self.skip_blank()
        if self.at < len(self.text):
            self.fail(f"{self.found()} after the end of the value")
        return value

    def value(self, path, depth):
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} levels deep")
        self.lines[path] = self.line(self.at)
        start = self.text[self.at:self.at + 1]
        if start == "{":
            return self.object(path, depth)
        if start == "[":
            return self.array(path, depth)
        if start == '"':
            return self.string()
        return self.scalar()

    def object(self, path, depth):
        opening, found, written = self.at, {}, {}
        self.at += 1
        while not self.closes("}", opening, bool(found)):
            key_at = self.at
            if self.text[self.at] != '"':
                self.fail(f"expected a key in double quotes, found {self.found()}")
            key = self.string()
            if key in found:
                first, again = self.line(written[key]), self.line(key_at)
                self.fail(f"key {key!r} is given twice, on line {first} and line {again}", key_at)
            self.skip_blank()
            if self.text[self.at:self.at + 1] != ":":
                self.fail(f"expected ':' after the key {key!r}, found {self.found()}")
            self.at += 1
            self.skip_blank()
            found[key], written[key] = self.value((*path, key), depth + 1), key_at
            self.lines[(*path, key)] = self.line(key_at)
        return found

    def array(self, path, depth):
        opening, found = self.at, []
        self.at += 1
        while not self.closes("]", opening, bool(found)):
            found.append(self.value((*path, len(found)), depth + 1))
        return found

    def closes(self, bracket, opening, separated):
        """Move behind the comma between elements; True if the bracket closes instead."""
        self.skip_blank()
        if separated and self.text[self.at:self.at + 1] == ",":
            self.at += 1
            self.skip_blank()
            separated = False
        if self.at == len(self.text):
            self.fail(f"{self.text[opening]!r} is never closed", opening)
        if self.text[self.at] == bracket:
            self.at += 1
            return True
        if separated:
            self.fail(f"expected ',' or {bracket!r}, found {self.found()}")
        return False

    def string(self):
        match = _STRING.match(self.text, self.at)
        if not match:
            self.fail("the string is not closed on its line (a line break in it is written \\n)")
        try:
            value = json.loads(match.group())
        except json.JSONDecodeError as error:
            self.fail(f"{error.msg.lower()} in a string (a backslash is written \\\\)",
                      self.at + error.pos)
        wrong = unusable_character(value)
        if wrong:
            self.fail(f"the string contains {wrong}")
        self.at = match.end()
        return value

    def scalar(self):
        match = _WORD.match(self.text, self.at)
        word = match.group() if match else ""
        if word in _LITERALS:
            value = _LITERALS[word]
        elif _NUMBER.fullmatch(word):
            value = self.number(word)
        elif word.lstrip("+-") in ("NaN", "nan", "Infinity", "inf"):
            self.fail(f"{word} is not a JSON value; write a number or null")
        elif word in _FOREIGN:
            self.fail(f"{word} is written {_FOREIGN[word]} in JSON")
        elif word[:1] and word[0] in "+-.0123456789":
            self.fail(f"{word[:40]} is not a number in JSON")
        else:
            self.fail(f"expected a value, found {self.found()}")
        self.at += len(word)
        return value

    def number(self, word):
        try:
            value = json.loads(word)
        except ValueError:      # Python refuses integers of more than 4300 digits
            self.fail(f"the number has {len(word)} digits")
        if value in (float("inf"), float("-inf")):
            self.fail(f"{word[:40]} is larger than any number")
        return value

    def skip_blank(self):
        blank = _BLANK.match(self.text, self.at)
        assert blank is not None        # the pattern also matches the empty text
        self.at = blank.end()
        if self.text.startswith("/*", self.at):
            self.fail("the comment /* is never closed")

    def found(self):
        """The text at the position, for a message."""
        if self.at >= len(self.text):
            return "the end of the file"
        match = _STRING.match(self.text, self.at) or _WORD.match(self.text, self.at)
        found = match.group() if match else self.text[self.at]
        hint = " (strings take double quotes)" if found == "'" else ""
        return (found if len(found) <= 40 else found[:37] + "...") + hint

    def line(self, at):
        return bisect.bisect_left(self.line_ends, at) + 1

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        """Raises ConfigError with the line and a mark below the position, or below `at`."""
        at = self.at if at is None else at
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        line = self.text[start:end if end >= 0 else None].rstrip()
        column = at - start
        shown = max(0, column - 60)     # of a very long line only the part around the mistake
        raise ConfigError(what, f"{self.source}:{self.line(at)}:{column + 1}\n"
                                f"    {line[shown:shown + 100].replace(chr(9), ' ')}\n"
                                f"    {' ' * (column - shown)}^")
