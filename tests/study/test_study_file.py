"""utils/study/study_file.py: the file of a study, and all its mistakes at once."""
import json

import pytest

from tests.support.places import ROOT
from utils.errors import ConfigError
from utils.files.jsonc import read_jsonc
from utils.study.study_file import Published, read_study


def written(folder, **content):
    (folder / "base.json").write_text("{}")
    path = folder / "study.json"
    path.write_text(json.dumps({"config": "base.json", **content}))
    return path


def mistakes(folder, **content):
    with pytest.raises(ConfigError) as caught:
        read_study(written(folder, **content))
    return caught.value.what


AXES = {"network": {"A": ["arch.type=A"], "B": "arch.type=B"},
        "rule": {"max": {"test": []}, "dice": {"test": ["--predict", "rankdice"]}}}


def test_every_combination_of_levels_is_a_cell_with_the_overrides_in_their_order(tmp_path):
    study = read_study(written(tmp_path, axes=AXES, overrides=["trainer.epochs=2"], seeds=2))
    assert [cell.label for cell in study.cells] == ["A, max", "A, dice", "B, max", "B, dice"]
    last = study.cells[-1]
    assert last.overrides == ("trainer.epochs=2", "arch.type=B")
    assert last.test == ("--predict", "rankdice") and last.seeds == (0, 1)
    assert last.config == tmp_path / "base.json"


def test_the_axis_data_names_the_data_set_and_not_the_row(tmp_path):
    study = read_study(written(tmp_path, axes={**AXES, "data": {"X": "seed_of=1", "Y": "s=2"}}))
    assert {cell.data for cell in study.cells} == {"X", "Y"}
    assert [cell.label for cell in study.cells][:2] == ["A, max"] * 2
    assert study.cells[0].title == "A, max on X"


def test_listed_cells_have_configs_of_their_own_and_published_scores(tmp_path):
    (tmp_path / "results.json").touch()
    study = read_study(written(tmp_path, cells=[
        {"label": "one", "published": [81.0, 82.0]},
        {"label": "two", "published": {"mean": 80, "runs": [79.5]}, "seeds": [7]},
        {"label": "there", "results": "results.json"}], published={"there": 50},
        scores=["Mean_IoU", "mDice_I"]))
    one, two, there = study.cells
    assert one.published == {"Mean_IoU": Published(81.5, (81.0, 82.0))}
    assert two.published["Mean_IoU"] == Published(80, (79.5,)) and two.seeds == (7,)
    assert there.config is None and there.results == (tmp_path / "results.json",)
    assert there.published["Mean_IoU"].mean == 50


def test_each_score_can_have_a_published_value(tmp_path):
    cell, = read_study(written(tmp_path, scores=["mIoU_I", "mDice_I"], cells=[
        {"label": "a", "published": {"mDice_I": [1, 3]}}])).cells
    assert cell.published == {"mDice_I": Published(2, (1, 3))}


def test_without_axes_and_cells_the_config_is_the_only_row(tmp_path):
    cell, = read_study(written(tmp_path)).cells
    assert cell.label == "base" and cell.seeds == (0,)


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    text = mistakes(tmp_path, sed=3, axes={"network": {}, "loss": {"a": "x", "b": ["seed=3"]}},
                    baseline="q", published={"a": 123, "zz": 3}, score="Mean_IuO", margin=0)
    for said in ("sed: unknown key 'sed'. Did you mean 'seeds'?",
                 "axes.network: the axis names nothing", "axes.loss.a: 'x' is not an override",
                 "axes.loss.b: seed is set by the study", "baseline: unknown row 'q'",
                 "published.a: expected a score in percent", "published.zz: unknown row 'zz'",
                 "unknown score 'Mean_IuO'. Did you mean 'Mean_IoU'?", "margin: expected"):
        assert said in text


def test_two_cells_of_one_name_are_refused(tmp_path):
    text = mistakes(tmp_path, cells=[{"label": "a"}, {"label": "a", "overrides": ["x=1"]}])
    assert "two cells have the name 'a'" in text and "cells.0" in text and "cells.1" in text


def test_the_nearest_config_is_suggested_for_a_wrong_path(tmp_path):
    assert "bse.json does not exist. Did you mean 'base.json'?" in mistakes(
        tmp_path, cells=[{"label": "a", "config": "bse.json"}])


def test_results_that_exist_take_no_training_settings(tmp_path):
    text = mistakes(tmp_path, axes=AXES, cells=[{"results": "r.json", "seeds": 2}])
    assert "cannot be combined" in text and "have no effect there" in text
    assert "r.json does not exist" in text


@pytest.mark.parametrize("content, said", [
    ({"cells": 3}, "cells: expected a list of objects"), ({"cells": [3]}, "cells.0: expected an"),
    ({"axes": 3}, "axes: expected an object"), ({"axes": {"a": 3}}, "axes.a: the axis names"),
    ({"axes": {"a": {"b": {"x": 1}}}}, "axes.a.b.x: unknown key"), ({"name": 3}, "name: expected"),
    ({"overrides": 3}, "overrides: expected text or a list"),
    ({"overrides": ["stages[1].seed=3"]}, "seed is set by the study"),
    ({"overrides": ["stages.0.name=x"]}, "name is set by the study"),
    ({"score": "Mean_IoU", "scores": ["mIoU_I"]}, "are the same setting"),
    ({"published": 3}, "published: expected"), ({"published": {"base": "x"}}, "in percent"),
    ({"published": {"base": {"mean": 3, "x": 1}}}, "published.base.x: unknown key"),
    ({"published": {"base": {"mDice_I": 1}}}, "unknown score of this study 'mDice_I'"),
    ({"config": None}, "there is no \"config\""), ({"across_protocols": "x"}, "true or false")])
def test_each_mistake_is_named_with_its_place(tmp_path, content, said):
    assert said in mistakes(tmp_path, **content)


def test_a_study_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ConfigError, match="a study is an object"):
        read_study(tmp_path / "x.json")


@pytest.mark.parametrize("seeds", [0, [], [1, -1], "3", [1, 1], True])
def test_wrong_seeds_are_refused(tmp_path, seeds):
    assert "seed" in mistakes(tmp_path, seeds=seeds)


@pytest.mark.parametrize("option", ["-r", "--output=x", "--json"])
def test_options_of_the_test_that_the_study_sets_are_refused(tmp_path, option):
    assert "is set by the study" in mistakes(tmp_path, test=[option])


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.json")),
                         ids=lambda path: path.stem)
def test_every_study_of_the_repository_can_be_read(path):
    study = read_study(path)
    assert study.cells and all(cell.config and cell.config.is_file() for cell in study.cells)


def test_the_pages_show_the_study_of_shapes_as_it_is():
    page = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert shown == read_jsonc(ROOT / "configs/studies/shapes_demo.json", {})
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith(("| ENet, ", "| HRNet, "))]
    assert len(rows) == 7 and set(rows) <= set(page.splitlines())


@pytest.mark.parametrize("further, said", [
    ("trainer.epochs=5", 'as "overrides": ["trainer.epochs=5"]'),
    ("b.json", "one study at a time")])
def test_further_words_are_refused_with_what_to_do(further, said, capsys):
    from tools.study import parse
    with pytest.raises(SystemExit):
        parse(["a.json", further])
    assert said in capsys.readouterr().err
