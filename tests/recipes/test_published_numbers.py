"""What each recipe trains, against a table of the published numbers.

published_numbers.txt was written from the sources' scripts and documents, not from the configs.
"; " separates several tests of one training.
"""
import pytest

from tests.recipes.facts import COLUMNS, PUBLISHED, STAGES, facts, resolved
from tests.support.places import ROOT
from utils.config.recipes import METRICS

LINES = (ROOT / "tests/recipes/published_numbers.txt").read_text(encoding="utf-8").splitlines()
TABLE = {cells[0]: dict(zip(COLUMNS, cells, strict=True))
         for cells in ([cell.strip() for cell in line.split(" | ")] for line in LINES[1:])}


def test_the_table_has_every_recipe_with_a_published_score_and_every_stage():
    assert [cell.strip() for cell in LINES[0].split(" | ")] == list(COLUMNS)
    assert TABLE.keys() == PUBLISHED.keys() | STAGES.keys() and len(TABLE) == 182


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_trains_with_the_published_numbers(name):
    row = {key: TABLE[name][key] for key in COLUMNS if key not in ("row", "published")}
    assert facts(resolved(name)) == row


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_no_published_score(name):
    assert TABLE[name]["published"] == "-"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_states_the_published_scores(name):
    stated = []
    for result in PUBLISHED[name].results:
        computed = "mean computed" in result["note"] or "the runs are from" in result["note"]
        numbers = [] if computed else [result[metric] for metric in METRICS
                                       if result[metric] is not None]
        stated.append(numbers + (result["runs"] or []))
    printed = [[float(number) for number in group.split()]
               for group in TABLE[name]["published"].split(";") if group != "-"]
    assert [group for group in stated if group] == [group for group in printed if group]


@pytest.mark.parametrize("name", [name for name, section in PUBLISHED.items()
                                  if any(one["runs"] for one in section.results)])
def test_a_mean_is_that_of_the_runs(name):
    for result in PUBLISHED[name].results:
        if result["runs"]:
            mean = sum(result["runs"]) / len(result["runs"])
            assert result["mIoU"] == pytest.approx(mean, abs=0.0101)
