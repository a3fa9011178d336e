"""docs/reproduce.md: its table has every published row, with commands that the programs accept."""
import re
import shlex

import pytest

import test as test_py
import train
from models.weights.published import published as entries
from tests.recipes.facts import PUBLISHED, RECIPES
from tests.support.places import ROOT
from tools import convert_checkpoint
from utils.config.load import load_stages
from utils.config.recipes import result_text

PAGE = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")]
        for line in PAGE.splitlines() if line.startswith("| [") or line.startswith("| refine")
        or line.startswith("| hoya012_final")]
RULES = ("T", "max", "rankdice")        # results of one run of test.py, in one row


def rows_of(name):
    """The rows that a recipe must have: [name, published, checkpoint, train, test]."""
    path, published = RECIPES[name], PUBLISHED[name]
    config = load_stages(path)[-1]
    place = path.relative_to(ROOT).as_posix()
    results = [(one["name"], result_text(one), one["test"]) for one in published.results]
    if published.results[0]["name"] in RULES:
        text = " / ".join(f"{rule} {text}" for rule, text, _ in results)
        results = [("", text, f"-p {','.join(rule for rule, *_ in results)}")]
    for number, (part, text, test) in enumerate(results):
        checkpoint = f"`{published.checkpoint}`" if published.checkpoint else "-"
        row = f"[{name}](../{place})" if number == 0 else f"[{name}+{part}](../{place})"
        yield [row, text, checkpoint, f"`python train.py -c {place}`" if number == 0 else "-",
               test_command(name, place, config, published, test)]


def test_command(name, place, config, published, options):
    """How the published file is tested, or else a run of the recipe."""
    last = config.get("trainer", {}).get("monitor") == "off"
    run = f"saved/{name}" + ("/DATE/last.pth" if last else "")
    if published.checkpoint:
        section = config["val_loader"] or config["train_loader"]
        section = section["args"].get("source", section)
        run = "OUT.pth"
        convert = (f"python -m tools.convert_checkpoint {published.loader} {published.checkpoint} "
                   f"OUT.pth --dataset {section['type']}")
        encoder = entries()[published.loader].encoder
        convert += f" --encoder {encoder}" if encoder else ""
        return f"`{convert}; python test.py -r OUT.pth -c {place} {options}".rstrip() + "`"
    return f"`python test.py -r {run} {options}".rstrip() + "`"


test_command.__test__ = False


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_its_rows_with_score_checkpoint_and_commands(name):
    found = [row[:5] for row in ROWS if re.match(rf"\[{name}(\+\w+)?\]", row[0])]
    assert found == list(rows_of(name))


def test_every_row_belongs_to_a_recipe_or_says_that_it_has_none():
    names = {re.sub(r"^\[([^]+]+).*", r"\1", row[0]) for row in ROWS if row[3] != "no config"}
    assert names == set(PUBLISHED)
    assert len([row for row in ROWS if row[3] == "no config"]) == 9


def test_the_programs_accept_every_command():
    for row in ROWS:
        for command in re.findall(r"`(python [^`]*)`", " ".join(row[3:5])):
            for one in command.split("; "):
                _, *words = shlex.split(one)
                if words[0] == "-m" and words[1] != "tools.convert_checkpoint":
                    continue
                parse = {"train.py": train.parse, "test.py": test_py.parse,
                         "-m": convert_checkpoint.parse}[words[0]]
                parse(words[2 if words[0] == "-m" else 1:])
