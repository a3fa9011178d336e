"""Exports with damage in any place: read, or refused by a DataError of one line, never more."""
import json
import os
import random
import re
import time

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
    findings, messages = Findings(), []
    try:
        module = format_of(path)
        if module is None:
            return ["unknown"]
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


def first_json(path):
    return path if path.is_file() else min(path.rglob("*.json"), key=lambda one: one.name)


@pytest.mark.parametrize("name, old, new", [
    ("coco", '"width": 32', f'"width": {"9" * 400}'),
    ("coco", '"height": 24', '"height": 1e300'),
    ("labelme", '"imageWidth": 32', f'"imageWidth": {"9" * 400}'),
    ("label_studio", '"original_height": 24', f'"original_height": {"9" * 400}'),
    ("coco", "im_0.jpg", "a" * 100_000),
    ("label_studio", "6a4f1e2b-im_0", "a" * 5000)])
def test_numbers_and_names_without_end_are_refused_in_a_short_line(name, old, new, tmp_path):
    path = exports.WRITERS[name](tmp_path, SCENES)
    file = first_json(path)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert any(len(message) < 300 and ("expected" in message or "limit" in message
                                       or "characters" in message) for message in read_all(path))


def test_a_mask_that_claims_more_than_its_image_is_not_decoded(tmp_path):
    path = exports.labelme(tmp_path, SCENES)
    file = first_json(path)
    content = json.loads(file.read_text())
    content["shapes"].append({"label": "cat", "shape_type": "mask", "mask": "AAAA",
                              "points": [[0, 0], [13999, 13999]]})
    file.write_text(json.dumps(content))
    assert any("a mask of 14000x14000 pixels (height x width) in an image of 24x32" in message
               for message in read_all(path))


@pytest.mark.parametrize("name", ["coco", "labelme", "label_studio", "label_studio.folder", "cvat",
                                  "yolo", "supervisely", "class_masks"])
def test_a_pipe_in_place_of_a_file_is_not_opened(name, tmp_path):
    path = exports.WRITERS[name](tmp_path / "whole", SCENES)
    for file in sorted((tmp_path / "whole").rglob("*")):
        if file.is_file():
            file.unlink()
            os.mkfifo(file)
            read_all(path)      # does not wait for a writer
            break


def test_a_long_row_of_digits_is_refused_at_once(tmp_path):
    path = exports.put(tmp_path / "annotations.xml", exports.cvat_text([(
        "im_0.jpg", SCENES[0].size, f'<polygon label="cat" points="{"1" * 100_000}"/>')]))
    begin = time.process_time()
    assert any("expected x,y" in message for message in read_all(path))
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_text_in_utf_16_is_refused_as_that(encoding, tmp_path):
    (tmp_path / "a.json").write_text("\ufeff{\"images\": [], \"annotations\": []}", encoding)
    with pytest.raises(DataError, match=r"UTF-16(.|\n)*a\.json(.|\n)*save it in UTF-8"):
        format_of(tmp_path / "a.json")
