"""The studies of published tables: their rows are recipes, with the numbers of the recipes."""
import shlex

import pytest

import test as test_py
from tests.recipes.facts import RECIPES
from tests.support.places import ROOT
from utils.config.load import load_stages
from utils.study.study_file import read_study

STUDIES = {path.stem: path for path in sorted((ROOT / "configs/studies").glob("*.json"))}
PUBLISHED = ("mic_models", "mic_losses", "mic_rmi", "mic_data", "mic_epochs_batch", "mic_amp",
             "hoya_norms", "hoya_losses", "hoya_augment", "rankdice_losses_rules",
             "openseg_heads", "openseg_segfix", "paddle_scales")


def test_every_published_table_is_a_study():
    assert set(PUBLISHED) <= STUDIES.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rows_of_a_study_are_recipes_with_their_published_numbers(name):
    for cell in read_study(STUDIES[name]).cells:
        assert cell.config and cell.config.resolve() in RECIPES.values(), cell.label
        section = load_stages(cell.config).published
        assert section
        result = next((one for one in section.results if shlex.split(one["test"]) ==
                       list(cell.test)), None)
        if result is None:      # a rule that the document leaves out
            assert not cell.published, cell.label
            continue
        printed = {"mDice_I": result["mDice"], "mIoU_I": result["mIoU"]} \
            if result["mDice"] is not None else {"Mean_IoU": result["mIoU"]}
        assert {score: one.mean for score, one in cell.published.items()} == \
            {score: value for score, value in printed.items() if value is not None}, cell.label
        assert all(list(one.runs) == (result["runs"] or []) for one in cell.published.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_test_py_accepts_the_options_of_a_study(name):
    for cell in read_study(STUDIES[name]).cells:
        test_py.parse(["-r", "x.pth", *cell.test])
