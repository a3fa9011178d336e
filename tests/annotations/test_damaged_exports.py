"""Exports with damage in any place: read, or refused by a DataError of one line, never more."""
import random
import re

import pytest

from tests.support import exports
from utils.annotations.annotation_set import Findings
from utils.annotations.formats import format_of
from utils.annotations.rasterize import draw
from utils.errors import DataError

SCENES = exports.scenes(2, (24, 32))
# What a number or a word of a file is replaced by.
ODD = ["-1", "0", "1e300", "1e999", "NaN", "Infinity", "99999999999999999999", "true", "null", '""',
       "[]", "{}", '"../../x.png"', "9" * 5000, "0.5", '"nan"', "[[[]]]", "-0", "1e-320", "\0",
       "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "&x;", "<a>", "2147483648"]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three kinds of damage."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        words = list(re.finditer(rb"-?\d+(?:\.\d+)?|\"[^\"\n]*\"|\w+", data[:20000]))
        kind = rng.randrange(5)
        if kind == 0 and data:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[at:at + rng.randrange(200)] + data[at:]
        elif words:
            word = rng.choice(words)
            data = data[:word.start()] + rng.choice(ODD).encode("utf-8", "surrogateescape") \
                + data[word.end():]
    return data


def read_all(path):
    """Reads everything of an export; returns the messages."""
    module, findings, messages = format_of(path), Findings(), []
    if module is None:
        return ["unknown"]
    try:
        found = module.read(path, findings)
    except DataError as error:
        return [error.in_one_line]
    for image in found.images:
        try:
            size = image.size or SCENES[0].size
            draw(image.regions(size), range(len(found.categories)), size, 255, found.overlap)
        except DataError as error:
            messages.append(error.in_one_line)
    return [*messages, *findings.wrong, *(place for places in findings.left_out.values()
                                          for place in places)]


def damage_of(name, folder, seeds):
    """(seed, the messages about an export with the damage of this seed)."""
    path = exports.WRITERS[name](folder / "whole", SCENES)
    files = sorted(file for file in (folder / "whole").rglob("*") if file.is_file()
                   and "unpacked" not in file.parts)
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, rng))
        yield seed, read_all(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", exports.WRITERS)
def test_damage_gives_messages_of_one_line(name, tmp_path):
    for seed, messages in damage_of(name, tmp_path, range(12)):
        for message in messages:
            assert "\n" not in message and message.isprintable() and len(message) < 1000, seed


def test_the_damage_reaches_the_readers(tmp_path):
    """The test above says nothing if the damage is never seen."""
    seen = sum(bool(messages) for _, messages in damage_of("label_studio", tmp_path, range(12)))
    assert seen >= 6
