"""The commands in the documentation: every program takes its options, and the first hour runs."""
import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support.places import ROOT
from tests.support.run_program import SMALL, environment
from utils.images.image_io import write_image, write_label

PAGES = ["README.md", "CONTRIBUTING.md",
         *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(r"python (?:(train|test|inference)\.py|-m ((?:tools|benchmarks)\.\w+))(.*)")


def blocks(page):
    """The lines of the shell blocks of a page, with lines that are continued joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    language = None         # of the block that a line is in
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language in ("", "bash"):
            yield line


def commands(page):
    """(module, arguments) of each command of this project in the shell blocks of a page."""
    for line in blocks(page):
        for part in re.split(r"&&|\|\||;|\|(?= )|>", line):
            if (found := PROGRAM.search(part)) and not line.startswith("#"):
                words = shlex.split(found[3].rstrip("&"), comments=True)
                yield found[1] or found[2], words


class Parsed(Exception):
    """Ends a program after it has read its arguments."""


@pytest.mark.parametrize("page", PAGES)
def test_every_program_takes_the_options_of_the_documentation(page, monkeypatch):
    def ending(parse):
        def parse_and_end(*args):
            parse(*args)
            raise Parsed
        return parse_and_end
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name,
                            ending(getattr(argparse.ArgumentParser, name)))
    for module, words in commands(page):
        command = f"{page}: {module} {shlex.join(words)}"
        entry = importlib.import_module(f"{module}.__main__" if module == "tools.demo" else module)
        try:
            entry.main(words)
        except Parsed:
            continue
        except SystemExit as end:
            assert end.code in (0, None), command
        pytest.fail(f"{command}: reads its arguments in another way")


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_commands_of_the_first_hour_run_in_their_order(tmp_path):
    """Start, own data and the table of seeds as README has them, with less to train."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index("## Start"):text.index("## The three programs")]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", part, re.DOTALL)
             for line in block.splitlines()]
    steps = [shlex.split(line.split("&& ")[-1])[1:] for line in lines]
    assert [words[0] for words in steps] == ["train.py", "test.py", "inference.py", "train.py",
                                             "train.py"]
    here = tmp_path / "clone"
    shutil.copytree(ROOT, here, ignore=shutil.ignore_patterns(
        ".*", "saved", "data", "tests", "outputs", "__pycache__"))
    draw = np.random.default_rng(0)
    for number in range(8):
        label = np.zeros((60, 80), np.uint8)
        label[10:40, 5 * number:5 * number + 30] = 255
        image = np.where(label[..., None] > 0, 200, 60) + draw.integers(0, 40, (60, 80, 3))
        for folder in ("photos", "masks"):
            (here / folder).mkdir(exist_ok=True)
        write_image(here / "photos" / f"{number}.jpg", image.astype(np.uint8))
        write_label(here / "masks" / f"{number}.png", label, [])
    steps[0] += [one for one in SMALL if not one.startswith("arch")]
    steps[-1] += ["trainer.epochs=1"]
    for words in steps:
        done = subprocess.run([sys.executable, *words], cwd=here, env=environment(),
                              capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
    assert len([*(here / "outputs").glob("*_overlay.png")]) == \
        len([*(ROOT / "docs" / "examples").iterdir()])
