"""docs/architecture.md names files and functions that exist, and the rooms in their order."""
import ast
import re

import pytest

from tests.support.places import ROOT
from tests.test_imports import ROOMS

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"((?:[\w]+/)*\w+\.py)(?::([A-Za-z_][\w.]*\w))?", TEXT)))


def definitions(path):
    """The names a file defines: functions, classes, and Class.method."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{method.name}" for method in node.body
                        if isinstance(method, ast.FunctionDef))


@pytest.mark.parametrize("place,name", NAMED)
def test_every_file_and_function_that_is_named_exists(place, name):
    path = next((path for path in (ROOT / place, ROOT / "utils" / place) if path.is_file()), None)
    assert path, f"{place} does not exist"
    assert not name or name in set(definitions(path)), f"{place} does not define {name}"


@pytest.mark.parametrize("folder", sorted(set(re.findall(r"`((?:\w+/)+)`", TEXT))))
def test_every_folder_that_is_named_exists(folder):
    assert any((ROOT / above / folder).is_dir()
               for above in ("", "utils", "models", "dataloader")), folder


def test_the_rooms_are_listed_in_the_order_of_their_imports():
    table = TEXT.partition("Rooms of `utils/`")[2].partition("Four rules")[0]
    assert tuple(re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, re.M)) == ROOMS
