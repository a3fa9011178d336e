"""Wrong studies end before the first run, with all of their mistakes at once."""
import json

import numpy as np
import pytest

from tests.study.test_execute import PLAIN, run, summary
from tests.study.test_execute import programs as programs
from tests.support.places import ROOT
from tests.support.studies import CLASSES, write_results, write_study
from tools import study
from utils.cli import console
from utils.images.image_io import write_image, write_label


@pytest.fixture
def refused(tmp_path, capsys):
    """Returns for the content of a study: what is said when it is refused."""
    def said(*options, **content):
        write_study(tmp_path, **content)
        assert run(tmp_path, *options) in (2, 4)
        done = capsys.readouterr()
        assert not (tmp_path / "runs").exists() and not done.out
        return done.err
    return said


def test_an_axis_that_names_nothing_is_refused(refused):
    assert "axes.loss: the axis names nothing" in refused(axes={"loss": {}}, baseline=None)


def test_an_axis_that_changes_nothing_is_refused(refused):
    assert "b: is the same run and test as 'a'" in refused(axes={"x": {"a": [], "b": []}},
                                                           baseline="a")


def test_two_cells_of_one_name_are_refused(refused):
    assert "two cells have the name 'a'" in refused(axes={}, baseline="a", cells=[
        {"label": "a"}, {"label": "a", "overrides": [PLAIN]}])


def test_a_recipe_whose_stage_is_missing_is_refused(refused, tmp_path):
    (tmp_path / "chain.json").write_text(json.dumps({
        "extends": str(ROOT / "config.json"), "name": "chain", "stages": [
            {"trainer": {"finetune_from": "run:gone"}},
            {"trainer": {"finetune_from": "gone.pth"}}]}))
    text = refused(axes={}, baseline=None, cells=[
        {"label": "x", "config": str(tmp_path / "chain.json")},
        {"label": "y", "overrides": ["trainer.finetune_from=run:nowhere"]},
        {"label": "z", "config": "nowhere.json"}])
    assert "no run called 'gone'" in text and "no run called 'nowhere'" in text
    assert "nowhere.json does not exist" in text


def test_unequal_class_lists_are_refused(refused, tmp_path):
    levels = {}
    for name, classes in (("x", 2), ("y", 3)):
        for part in ("images", "labels"):
            (tmp_path / name / part).mkdir(parents=True)
        write_image(tmp_path / name / "images" / "a.png", np.zeros((32, 32, 3), np.uint8))
        write_label(tmp_path / name / "labels" / "a.png",
                    (np.arange(1024) % classes).astype(np.uint8).reshape(32, 32), [])
        args = json.dumps({"data_dir": str(tmp_path / name), "batch_size": 1,
                           "num_classes": classes})
        levels[name] = [f"{loader}.{key}" for loader in ("train_loader", "val_loader")
                        for key in ("type=Folder", f"args={args}")]
    overrides = [PLAIN, f"trainer.save_dir={tmp_path / 'runs'}"]
    text = refused(axes={"images": levels}, baseline=None, overrides=overrides)
    assert "y: is scored on 3 classes" in text and "x on 2" in text


def test_rows_of_different_protocols_are_refused_unless_the_study_says_so(refused, programs,
                                                                         tmp_path):
    axes = {"test": {"a": [], "b": {"test": ["--protocol", "whole"]},
                     "c": {"test": ["--protocol", "whole", "--scales", "0.5,1"]}}}
    text = refused(axes=axes, baseline="a")
    assert "b: is scored under the protocol whole, a under none" in text
    assert "c: is scored under the protocol whole, but" in text and "across_protocols" in text
    write_study(tmp_path, axes=axes, baseline="a", across_protocols=True)
    assert run(tmp_path) == 0
    assert len(summary(tmp_path)["rows"]) == 3
    write_study(tmp_path, axes=axes, baseline="a")
    assert run(tmp_path, "--table") == 2
    assert run(tmp_path, "--table", "--across-protocols") == 0
    write_study(tmp_path, axes={"test": {"a": [], "b": {"test": ["--protocol", "all"]}}},
                baseline="a", across_protocols=True)
    assert run(tmp_path) == 2


def test_results_that_exist_must_agree_in_protocol_and_of_a_study_in_classes(tmp_path, capsys):
    one = write_results(tmp_path / "one", 0.5, schema=2)
    two = write_results(tmp_path / "two", 0.6, schema=2, protocol="whole")
    other = write_results(tmp_path / "other", 0.6, classes=[{"name": "sky", "IoU": 0.5}])
    out = ["-o", str(tmp_path / "out"), "--no-pictures"]
    assert console.run(study.main, ["--from", str(one), str(two), *out]) == 2
    assert "under the protocol whole" in capsys.readouterr().err
    assert console.run(study.main, ["--from", str(one), str(two), "--across-protocols", *out]) == 0
    assert console.run(study.main, ["--from", str(one), str(other), *out]) == 0
    (tmp_path / "x.json").write_text("{")
    capsys.readouterr()
    write_study(tmp_path, axes={}, baseline="one", across_protocols=True, cells=[
        {"label": place.parent.name, "results": str(place)} for place in (one, two, other)]
        + [{"label": "damaged", "results": "x.json"}])
    assert run(tmp_path) in (2, 3)
    told = capsys.readouterr().err
    assert "other: is scored on 1 classes (sky), one on 9 classes (road, pavement, " in told
    assert "damaged: is not a results file" in told


def test_a_class_may_be_spelled_otherwise_by_another_program(tmp_path):
    one = write_results(tmp_path / "one", 0.5)
    two = write_results(tmp_path / "two", 0.5, classes=[{"name": f"_{name.title()}", "IoU": 0.5}
                                                        for name in CLASSES])
    write_study(tmp_path, axes={}, baseline="one", cells=[
        {"label": place.parent.name, "results": str(place)} for place in (one, two)])
    assert run(tmp_path) == 0


def test_mistakes_of_the_file_of_configs_and_between_rows_are_told_together(refused):
    text = refused(axes={"a": {}, "network": {"x": [], "y": "arch.type=ENte"}}, baseline="q",
                   cells=[{"label": "p"}, {"label": "p", "overrides": [PLAIN]},
                          {"label": "r", "test": ["--protocol", "whole"]},
                          {"label": "s", "overrides": ["trainer.finetune_from=gone.pth"]}],
                   margin=0, across_protocols=3)
    for said in ("axes.a: the axis names nothing", "two cells have the name 'p, x'",
                 "baseline: unknown row 'q'", "margin: expected", "Did you mean 'ENet'",
                 "gone.pth does not exist", "under the protocol whole", "nothing was started",
                 "across_protocols: expected true or false"):
        assert said in text, said
