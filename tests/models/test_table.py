"""The table of all networks in docs/models.md has the parameters and FLOPs that are computed here.

`python -m tests.models.test_table` prints them by the names of the published files.
"""
import inspect
import re

import pytest
import torch

from models.weights.published import published
from tests.support.places import ROOT
from utils.config.registry import components
from utils.evaluation.model_costs import flop_counter

HEAD = "| `type` |"


def rows():
    """The cells of each row: type, encoder or variant, …, classes, parameters, GFLOPs, …, names."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for line in text.split(HEAD)[1].splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def names(row):
    """The descriptions of published files that a row names in full."""
    return [name for name in re.findall(r"`(\w+)`", row[-1]) if name in published()]


def costs(name, classes):
    """(parameters in millions, GFLOPs of an image of 512 x 512) of a published network."""
    with torch.device("meta"):          # shapes alone
        network = published()[name].build(classes).eval()
        with torch.no_grad(), flop_counter() as counter:
            network(torch.empty(1, 3, 512, 512))
    return (sum(p.numel() for p in network.parameters()) / 1e6, counter.get_total_flops() / 1e9)


def figure(value):
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def test_every_network_has_a_row_and_every_row_names_its_network():
    table = list(rows())
    types = {row[0].strip("`") for row in table}
    assert types == {name for name, cls in components("models").items() if name == cls.__name__}
    for row in table:
        entries = [published()[name] for name in names(row)]
        assert entries and {entry.network.__name__ for entry in entries} == {row[0].strip("`")}, row
        options = inspect.signature(entries[0].network).parameters
        chosen = {entries[0].args.get(option, options[option].default)
                  for option in ("backbone", "variant") if option in options}
        assert row[1].strip("`") in chosen | {""}, (row, chosen)


@pytest.mark.slow       # networks of full size, without values: a second or two each
@pytest.mark.parametrize("row", list(rows()), ids=lambda row: names(row)[0])
def test_a_row_has_the_computed_parameters_and_flops(row):
    classes = int(row[3]) if row[3] else None
    assert row[4:6] == [figure(value) for value in costs(names(row)[0], classes)]


if __name__ == "__main__":
    for each in rows():
        found = costs(names(each)[0], int(each[3]) if each[3] else None)
        print(names(each)[0], *map(figure, found), flush=True)
