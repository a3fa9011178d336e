import json
import random
import time

import pytest

from utils.annotations.json_file import parse_json
from utils.annotations.outline_scan import parse_outlines
from utils.errors import DataError

USUAL = ('{"images": [], "annotations": [{"id": 1, "segmentation": [[1, 2.5, -3.25, 0, 10.75, '
         '999999]], "bbox": [1, 2]}, {"segmentation": [[0.5, 7, 8, 9], '
         '[123456.12345678, 0, 5, 6]]}]}')


def read(text: str | bytes):
    """The value with the outlines in their places, or the text of the error."""
    data = text.encode() if isinstance(text, str) else text
    try:
        value, outlines = parse_outlines(data, "x.json")
    except DataError as error:
        return str(error)
    ends = [0, *outlines.ring_ends.tolist()]

    def whole(part):
        if isinstance(part, range):
            return [outlines.points[ends[ring]:ends[ring + 1]].ravel().tolist() for ring in part]
        if isinstance(part, dict):
            return {key: whole(one) for key, one in part.items()}
        return [whole(one) for one in part] if isinstance(part, list) else part

    return whole(value)


def read_plainly(text: str | bytes):
    try:
        return parse_json(text.encode() if isinstance(text, str) else text, "x.json")
    except DataError as error:
        return str(error)


def test_usual_outlines_are_cut_out():
    value, outlines = parse_outlines(USUAL.encode(), "x.json")
    assert [one["segmentation"] for one in value["annotations"]] == [range(0, 1), range(1, 3)]
    assert outlines.points[:3].tolist() == [[1, 2.5], [-3.25, 0], [10.75, 999999]]
    assert outlines.ring_ends.tolist() == [3, 5, 7]


def test_numbers_are_those_of_json_to_the_last_bit():
    numbers = random.Random(0)
    flat = [round(numbers.uniform(-9999, 9999), numbers.randrange(9)) for _ in range(20000)]
    text = json.dumps({"segmentation": [flat]})
    assert read(text) == {"segmentation": [flat]}


@pytest.mark.parametrize("text", [
    USUAL,
    USUAL.replace(", ", ","),
    json.dumps(json.loads(USUAL), indent=1),
    "\ufeff" + USUAL,
    '{"segmentation": [[1, 2], [3, 4]], "segmentation": [[5, 6]]}',      # the last one counts
    '{"a\\"segmentation": [[1, 2]], "b": "\\"segmentation\\": [[1, 2]]"}',
    '{"a": "\\\\", "segmentation": [[1, 2]]}',
    '["\\\\"segmentation": [[1, 2]]"]',
    '{"segmentation": [[1, 2]], "x": NaN}',
    '{"x": -Infinity, "segmentation": [[1, 2]]}',
    '{"name": "Infinity", "segmentation": [[1, 2]]}',
    '{"segmentation": [[1, 2]], "x": Infinity}',
    '{"segmentation": [[1, 2]]',
    '{"segmentation": [[1, 2]}',
    '"segmentation": [[1, 2]]',
    '{"segmentation": [[1, 2]] [[3, 4]]}',
    '{"segmentation": [[[1, 2]]]}',
    '{"segmentation": [[]]}',
    '{"segmentation": [[1, 2], []]}',
    *(f'{{"segmentation": [[{one}, 2]], "x": [[3, 4]]}}' for one in (
        "01", "-01", "1.", ".5", "-.5", "-", "--1", "1-", "+1", "1e3", "1.5.5", "1 5", "1/5", "",
        " 7", "7 ", "\\n7", "1234567", "0.123456789", "1e999", "9" * 5000, "true", "null", '"1"',
        "NaN", "[3]", "0", "-0", "-0.0", "0x1", "1_0", "\u0661", "1, 2")),
])
def test_text_is_read_or_refused_as_json_loads_does(text):
    assert read(text) == read_plainly(text)


def test_damaged_text_is_read_or_refused_as_json_loads_does():
    changes = random.Random(1)
    for _ in range(2000):
        data = bytearray(USUAL.encode())
        for _ in range(changes.randrange(1, 4)):
            at = changes.randrange(len(data))
            if changes.random() < 0.5:
                data[at] = changes.choice(b' ,.:;[]{}"\\-/0123e\n\xff')
            else:
                del data[at:at + changes.randrange(1, 6)]
        assert read(bytes(data)) == read_plainly(bytes(data)), bytes(data)


def test_keys_without_an_end_take_no_longer_than_their_text():
    begin = time.process_time()
    assert "not JSON" in str(read(b'"segmentation": [[' * 100_000 + b"]]"))
    assert time.process_time() - begin < 2
