"""Draws who imports whom, from the import statements: docs/architecture.png.

    python -m tests.plot_rooms [docs/architecture.png]

A row is a place of the code, and so is a column. The number in a cell counts the files of the row's
place that import the column's place. Every place imports only places above it in the picture, so
the upper right half stays empty.
"""
import argparse
import ast
from collections import Counter
from pathlib import Path

from tests.support.places import ROOT
from tests.test_imports import ROOMS, rooms_of, sources
from utils.images.sheet import FAINT, GRID, INK, Color, Sheet, png_bytes, text_width

# The rooms of utils/, then what stands on them: place -> its files and folders.
PLACES = {**{f"utils/{room}": (f"utils/{room}.py" if room == "errors" else f"utils/{room}",)
             for room in ROOMS},
          "base": ("base",), "models": ("models",), "dataloader": ("dataloader",),
          "trainer.py": ("trainer.py",), "train, test, inference": ("train.py", "test.py",
                                                                    "inference.py"),
          "tools": ("tools",)}
CELL, TOP, RIGHT = 38, 14, 16       # pixels
PALE: Color = (222, 235, 247)
FULL: Color = (8, 81, 156)
DIAGONAL: Color = (236, 236, 236)


def counts() -> dict[str, Counter]:
    """place -> how many of its files import each other place."""
    found = {}
    for place, paths in PLACES.items():
        found[place] = Counter()
        for path in (one for root in paths for one in sources(root)):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            found[place].update({other for node in nodes for other in _places_of(node)} - {place})
    return found


def _places_of(node):
    yield from (f"utils/{room}" for room in rooms_of(node) if room in ROOMS)
    if isinstance(node, ast.ImportFrom) and node.module:
        package = node.module.split(".")[0]
        yield from {"trainer.py" if package == "trainer" else package} & PLACES.keys()


def draw(found: dict[str, Counter]) -> Sheet:
    """The table of `counts` as a picture."""
    names = list(found)
    left = round(max(text_width(name, 13) for name in names)) + 24
    sheet = Sheet(left + CELL * len(names) + RIGHT, TOP + CELL * len(names) + 12)
    largest = max(max(row.values(), default=0) for row in found.values())
    for y, name in enumerate(names):
        top = TOP + CELL * y
        sheet.text(left - 10, top + CELL / 2, name, 13, anchor="rm")
        for x, other in enumerate(names[:y + 1]):
            box = left + CELL * x, top, left + CELL * (x + 1), top + CELL
            number = found[name][other]
            if x == y:
                sheet.box(*box, DIAGONAL, GRID)
                sheet.text(box[0] + CELL / 2, top + CELL / 2, _short(name), 9, FAINT, "mm")
                continue
            sheet.box(*box, _shade(number / largest) if number else (255, 255, 255), GRID)
            if number:
                dark = number > 0.3 * largest
                sheet.text(box[0] + CELL / 2, top + CELL / 2, str(number), 12,
                           (255, 255, 255) if dark else INK, "mm")
    return sheet


def _short(name):
    name = name.removeprefix("utils/")
    return {"train, test, inference": "3 prog.", "checkpoint": "check-p.", "evaluation": "evalu.",
            "dataloader": "data-l.", "inference": "infer."}.get(name, name)


def _shade(share: float) -> Color:
    red, green, blue = (round(low + (high - low) * share ** 0.5)
                        for low, high in zip(PALE, FULL, strict=True))
    return red, green, blue


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=ROOT / "docs" / "architecture.png")
    path = parser.parse_args().path
    path.write_bytes(png_bytes(draw(counts()).image()))
    print(path)


if __name__ == "__main__":
    main()
