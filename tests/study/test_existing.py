"""utils/study/existing.py: which results that exist are runs of one row."""
import json

import pytest

from tests.support.studies import write_results
from tools import study
from utils.errors import ConfigError, DataError
from utils.study.existing import find_results
from utils.study.results import read_existing
from utils.study.study_file import Cell


def run_folder(folder, name, seed, lr=0.1, start=None, date="2026-11-29_08-00-00",
               file="model_best.pth", **entries):
    place = folder / name / date
    place.mkdir(parents=True)
    (place / "last.pth").touch()
    (place / "config.json").write_text(json.dumps(
        {"name": name, "seed": seed, "optimizer": {"args": {"lr": lr}},
         "trainer": {"finetune_from": start}}))
    write_results(place, 0.5, str(place / file), **entries)
    return place


def rows_of(*places, group=None):
    """label -> how many runs the row has."""
    return {label: len(paths) for label, paths in find_results(places, group).items()}


def test_runs_that_differ_only_in_their_seed_are_one_row(tmp_path):
    run_folder(tmp_path, "net_s0-00000000", 0)
    run_folder(tmp_path, "net_s1-11111111", 1)
    assert rows_of(tmp_path) == {"net": 2}


def test_runs_of_one_name_with_other_settings_are_rows_of_their_own(tmp_path):
    run_folder(tmp_path, "net_s0-00000000", 0)
    run_folder(tmp_path, "net_s0-22222222", 0, lr=0.2)
    assert list(find_results([tmp_path])) == ["net", "net (2)"]


@pytest.mark.parametrize("year", ["2026-", ""])         # folders of older versions have no year
def test_chains_that_differ_only_in_their_seed_are_one_row(tmp_path, year):
    for seed in range(2):
        start = f"runs/net_stage1_s{seed}-0000001{seed}/{year}11-29_08-00-0{seed}/last.pth"
        run_folder(tmp_path, f"net_s{seed}-0000000{seed}", seed, start=start)
    run_folder(tmp_path, "net_s1-22222222", 1, start="pretrained/other/x.pth")
    assert rows_of(tmp_path) == {"net": 2, "net (2)": 1}


def test_runs_of_other_names_with_the_same_settings_are_one_row_which_is_said(tmp_path, capsys):
    for seed in range(3):
        run_folder(tmp_path, f"net_seed{seed}_512", seed)
    run_folder(tmp_path, "other", 1, lr=0.2)
    assert rows_of(tmp_path) == {"net_512": 3, "other": 1}
    said = capsys.readouterr().err
    assert "row net_512: 3 runs, seeds 0, 1, 2 (net_seed0_512, net_seed1_512, " in said


@pytest.mark.parametrize("names, label", [
    (["a_s0", "a_s1"], "a"), (["a-run1", "a-run12"], "a"), (["class1", "class2"], "class"),
    (["0", "1"], "0"), (["resnet50", "unet"], "resnet50"), (["x", "x_again"], "x")])
def test_the_row_of_several_names_has_what_they_share(tmp_path, names, label):
    for seed, name in enumerate(names):
        run_folder(tmp_path, name, seed)
    assert rows_of(tmp_path) == {label: 2}


@pytest.mark.parametrize("entries, said", [
    ({"flip": True}, "flip: null / true"), ({"procedure": "T"}, 'procedure: max / T'),
    ({"file": "last.pth"}, "checkpoint.name: model_best.pth / last.pth"),
    ({"data": {"args": {"split": "test"}}}, "data.args.split: null / test")])
def test_runs_that_were_tested_in_another_way_are_another_row_which_is_said(tmp_path, capsys,
                                                                            entries, said):
    run_folder(tmp_path, "net", 0)
    run_folder(tmp_path, "net", 1, date="2026-11-29_08-00-01", **entries)
    assert rows_of(tmp_path) == {"net": 1, "net (2)": 1}
    assert f"rows net and net (2) differ: {said}" in capsys.readouterr().err


def test_an_ensemble_in_the_folder_of_a_run_is_a_row_of_its_own(tmp_path):
    place = run_folder(tmp_path, "net_s0-00000000", 0)
    write_results(place / "both", 0.6, ensemble=[{"path": "a.pth", "sha256": "a"},
                                                 {"path": "b.pth", "sha256": "b"}])
    rows = find_results([tmp_path])
    assert [paths for paths in rows.values()] == [[place / "both/results.json"],
                                                  [place / "results.json"]]
    of_both, of_run = read_existing(Cell(label, results=tuple(paths))
                                    for label, paths in rows.items())
    assert (of_both.seed, of_both.folder, of_both.name) == (None, None, str(of_both.place))
    assert (of_run.seed, of_run.folder) == (0, place)


def test_two_runs_of_one_seed_are_warned_of(tmp_path, capsys):
    for second in range(2):
        run_folder(tmp_path, "net", 0, date=f"2026-11-29_08-00-0{second}")
    assert rows_of(tmp_path) == {"net": 2}
    assert "row net: several runs of seed 0 all count: " in capsys.readouterr().err


def test_names_with_a_common_seed_are_rows_of_their_own(tmp_path, capsys):
    for name in ("old_code", "new_code"):
        for seed in range(2):
            run_folder(tmp_path, f"{name}_s{seed}-0000000{seed}", seed)
    assert rows_of(tmp_path) == {"new_code": 2, "old_code": 2}
    assert "the configs of new_code, old_code are equal; they are rows of their own, because " \
        "their seeds are not all different" in capsys.readouterr().err


def test_a_run_whose_config_cannot_be_read_is_a_row_of_its_own(tmp_path):
    for seed in range(2):
        place = run_folder(tmp_path, "net", seed, date=f"2026-11-29_08-00-0{seed}")
        (place / "config.json").write_text("{")
    assert rows_of(tmp_path) == {"net": 1, "net (2)": 1}


def test_chains_whose_stages_are_there_are_compared_by_the_settings_of_these(tmp_path):
    for seed, lr in enumerate((0.1, 0.1, 0.3)):
        first = run_folder(tmp_path / "stages", f"first, number {seed}", seed, lr)
        run_folder(tmp_path / "ends", f"end{seed}", seed, start=str(first / "last.pth"))
    assert rows_of(tmp_path / "ends") == {"end": 2, "end2": 1}


def test_files_of_different_programs_are_never_one_row_and_have_names_that_differ(tmp_path):
    places = [tmp_path / name / "val" for name in ("ours", "theirs")]
    for place in places:
        place.mkdir(parents=True)
        (place / "results.json").write_text(json.dumps({"Mean_IoU": 0.5}))
    assert list(find_results(places)) == ["ours/val", "theirs/val"]
    files = [place / "results.json" for place in places]
    assert list(find_results(files)) == ["ours/val", "theirs/val"]
    assert rows_of(*files, files[0]) == {"ours/val": 1, "theirs/val": 1}


def test_an_expression_makes_rows_of_files_without_a_config(tmp_path, capsys):
    for name in ("a_run1", "a_run2", "b_run1", "c"):
        write_results(tmp_path / name, 0.5)
    run_folder(tmp_path, "net", 0)
    group = r"/([^/]*)_run\d+/"
    assert rows_of(tmp_path, group=group) == {"a": 2, "b": 1, f"{tmp_path.name}/c": 1, "net": 1}
    assert "row a: 2 runs, of unknown seeds (" in capsys.readouterr().err


@pytest.mark.parametrize("group, said", [
    ("(", "is not a regular expression"), ("run", "has no parentheses"),
    ("(qq)", "is found in none of the paths: ")])
def test_a_wrong_expression_is_refused(tmp_path, group, said):
    write_results(tmp_path / "a", 0.5)
    with pytest.raises(ConfigError, match=said):
        find_results([tmp_path / "a"], group)


def test_an_expression_refuses_other_classes_and_warns_of_other_settings(tmp_path, capsys):
    run_folder(tmp_path, "a_1", 0)
    run_folder(tmp_path, "a_2", 0, lr=0.2, flip=True)
    assert rows_of(tmp_path, group=r"/(a)_\d/") == {"a": 2}
    said = capsys.readouterr().err
    assert "row a: --group puts results into it that differ: " in said
    assert "optimizer.args.lr 0.1 / 0.2; flip: null / true" in said
    write_results(tmp_path / "a_3", 0.5, classes=[{"name": "x", "IoU": 0.5}])
    with pytest.raises(DataError, match="other classes: x and road, pavement, building, and 6"):
        find_results([tmp_path], r"/(a)_\d/")


def test_the_command_line_takes_an_expression_with_from_alone(tmp_path, capsys):
    for k in range(2):
        write_results(tmp_path / f"a_{k}", 0.5 + 0.1 * k)
    study.main(["--from", str(tmp_path), "--group", r"/(a)_\d/", "-o", str(tmp_path / "out"),
                "--no-pictures"])
    assert "| a | 55.00 ± 7.07 | 50.00, 60.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.parse(["a.json", "--group", "(a)"])
    assert "only with --from" in capsys.readouterr().err


def test_a_run_counts_once_in_a_row_and_other_tests_of_it_are_other_rows(tmp_path, capsys):
    place = run_folder(tmp_path, "net", 0)
    for name in ("tests/plain", "flip"):
        write_results(place / name, 0.5, str(place / "model_best.pth"))
    assert rows_of(tmp_path) == {"net": 1, "net, test flip": 1}
    assert "tests/plain/results.json is left out: the row net has this run from" in \
        capsys.readouterr().err


def test_a_place_without_results_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no results.json"):
        find_results([tmp_path])
