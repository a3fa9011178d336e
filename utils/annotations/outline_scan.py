"""Reads the outlines of a large COCO file without a Python number for each coordinate.

json.loads makes an object of every number, which takes most of the time of opening such a file.
Here the lists of outlines are cut out of the text and computed by NumPy, and json.loads gets the
rest. What is not written in the usual way ([[x, y, ...], ...] without line breaks, numbers without
exponent and with few digits) stays in the rest, so that json.loads alone judges it.
"""
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from utils.annotations.json_file import parse_json
from utils.errors import DataError

_KEY = re.compile(rb'"segmentation"[ \t\r\n]*:[ \t\r\n]*\[\[')
_END = b"]]"
_STAND_IN = b"Infinity"         # not a value of JSON, so no list of the file is taken for it
_AT_ONCE = 1 << 18              # bytes that are computed together: they fit the processor's cache
_MOST_WHOLE, _MOST_DECIMALS = 6, 8      # digits: 14 in all, which float64 represents exactly
_LIST_END, _RING_END = b";", b":"       # between lists, and between the outlines of one
_MINUS, _DOT, _ZERO, _NINE = b"-.09"
# For a number of n digits, the lower four bits of the last n of 8 characters.
_DIGITS = np.array([int.from_bytes(bytes(8 - n) + b"\x0f" * n, "little") for n in range(9)],
                   np.uint64)
_POWERS = 10.0 ** np.arange(_MOST_DECIMALS + 1)


class ScannedOutlines(NamedTuple):
    """The rings of all lists that were cut out: pairs of coordinates below 10^6.

    points: float64 (P, 2). ring_ends, (R,): number of points up to the end of each ring.
    """

    points: np.ndarray
    ring_ends: np.ndarray


def parse_outlines(data: bytes, place: str) -> tuple[Any, ScannedOutlines]:
    """(the value of JSON text, the outlines that were cut out of it).

    In the value a range of ring numbers stands for each list that was cut out. Raises DataError
    exactly as parse_json does.
    """
    lists, parts = [], []
    if _STAND_IN not in data and sys.byteorder == "little":
        for some in _portions(_lists(data)):
            found = _numbers(b";".join([data[begin:end] for begin, end in some]))
            if found is not None:
                lists += some
                parts.append(found)
    outlines, list_ends = _joined(parts)
    ranges = map(range, [0, *list_ends], list_ends)

    def constant(name):
        if name != _STAND_IN.decode():
            raise ValueError(f"{name} is not a number of JSON")
        return next(ranges)         # stand-ins are met in the order of the text

    try:
        return parse_json(_without(data, lists), place, constant if lists else None), outlines
    except DataError:
        if lists:
            parse_json(data, place)         # raises it with its true place
        raise


def _lists(data) -> Iterator[tuple[int, int]]:
    """(begin, end) of what stands between the outer brackets of each list [[...]].

    In JSON the text of _KEY is a key, unless its first quotation mark is an escaped one.
    """
    keys = [match.span() for match in _KEY.finditer(data)]
    # No list is looked for beyond the next key: else many keys without an end would take minutes.
    for (key, begin), (limit, _) in zip(keys, [*keys[1:], (len(data), 0)], strict=False):
        end = data.find(_END, begin, limit)
        if end > begin and data[key - 1:key] != b"\\":
            yield begin, end


def _portions(lists) -> Iterator[list[tuple[int, int]]]:
    """The lists, some at a time."""
    some, size = [], 0
    for begin, end in lists:
        some.append((begin, end))
        size += end - begin
        if size >= _AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _without(data, lists):
    """The text with a stand-in for each list."""
    pieces, at = [], 0
    for begin, end in lists:
        pieces.append(data[at:begin - len("[[")])
        at = end + len(_END)
    return _STAND_IN.join([*pieces, data[at:]])


def _numbers(text: bytes):
    """(numbers, ring ends in numbers, list ends in rings) of lists with ";" between them; None
    unless all of them are written in the usual way."""
    text = text.replace(b", ", b",").replace(b"],[", _RING_END) + _LIST_END
    # Eight bytes before it: the eight characters that end anywhere are one word.
    padded = bytes(8) + text
    char = np.frombuffer(padded, np.uint8)
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    # Characters from "-" to "9" belong to numbers.
    marks = np.flatnonzero((char - _MINUS > _NINE - _MINUS) | (char == _DOT))[8:]
    kind = char[marks]
    ends = np.flatnonzero(kind != _DOT)
    end, kind = marks[ends], kind[ends]
    begin = np.concatenate(([8], end[:-1] + 1))
    before = np.concatenate(([-1], ends[:-1]))
    has_dot = ends - before == 2
    whole_end = np.where(has_dot, marks[ends - 1], end)
    negative = char[begin] == _MINUS
    begin += negative
    wholes, decimals = whole_end - begin, np.where(has_dot, end - whole_end - 1, 0)
    usual = ((ends - before <= 2).all() and ((kind == ord(",")) | (kind == _LIST_END[0])
                                             | (kind == _RING_END[0])).all()
             and wholes.min() >= 1 and wholes.max() <= _MOST_WHOLE
             and decimals.max() <= _MOST_DECIMALS and (decimals[has_dot] > 0).all()
             and not ((wholes > 1) & (char[begin] == _ZERO)).any()
             and not (char == ord("/")).any()
             and np.count_nonzero(char == _MINUS) == np.count_nonzero(negative))
    if not usual:
        return None
    values = (_whole(words[whole_end - 8], wholes) * _POWERS[decimals]
              + _whole(words[end - 8], decimals)) / _POWERS[decimals]
    np.negative(values, out=values, where=negative)
    ring_ends = np.flatnonzero(kind != ord(",")) + 1
    if (ring_ends % 2).any():
        return None
    return values, ring_ends, np.flatnonzero(kind[ring_ends - 1] == _LIST_END[0]) + 1


def _whole(words, digits):
    """The whole numbers of so many digits at the end of each word of eight characters."""
    words = words & _DIGITS[digits]
    for digits_of_lane, mask in ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF),
                                 (4, 0x00000000FFFFFFFF)):
        # Neighbors are joined: the first of them is the lower part of the word.
        words = words * np.uint64(10 ** digits_of_lane) + (words >> np.uint64(8 * digits_of_lane))
        words &= np.uint64(mask)
    return words.astype(np.float64)


def _joined(parts):
    """(the outlines of all portions, [number of rings up to the end of each list])."""
    columns, numbers, rings = [], 0, 0
    for values, ring_ends, list_ends in parts:
        columns.append((values, ring_ends + numbers, list_ends + rings))
        numbers, rings = numbers + len(values), rings + len(ring_ends)
    if not columns:
        return ScannedOutlines(np.zeros((0, 2)), np.zeros(0, np.int64)), []
    values, ring_ends, list_ends = map(np.concatenate, zip(*columns, strict=True))
    return ScannedOutlines(values.reshape(-1, 2), ring_ends // 2), list_ends.tolist()
