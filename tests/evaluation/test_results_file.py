"""results.json and results.txt: what they keep, and what tells two results apart."""
import copy
import json
import multiprocessing

import pytest

from utils.errors import DataError
from utils.evaluation.results_file import (
    add_results,
    check_results,
    code_of,
    differences,
    same_but_for_the_rule,
    title_of,
)

ENTRY = {
    "schema": 2, "dataset": "Shapes", "split": "val", "loader": "val_loader",
    "data": {"type": "Shapes", "args": {"split": "val", "batch_size": 4, "num_workers": 0}},
    "ignore_index": 255, "procedure": "max", "mode": "whole", "scales": [1.0], "flip": False,
    "average": "logits", "amp": False, "n_images": 5, "Mean_IoU": 0.5, "loss": 1.0,
    "checkpoint": {"path": "run/model.pth", "sha256": "ab", "epoch": 3},
    "versions": {"torch": "2"}, "confusion": [[1]]}


def entry(**changes):
    """ENTRY with other values; a double underscore leads into a part of it."""
    made = copy.deepcopy(ENTRY)
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = made
        for part in parts:
            place = place[part]
        place[last] = value
    return made


def add(folder, *entries):
    add_results(folder, list(entries), lambda one: f"table {one['Mean_IoU']}")
    return json.loads((folder / "results.json").read_text())


def test_a_title_mentions_a_value_of_0_unless_it_is_the_usual_one():
    title = title_of(entry(threshold=0, pruning=0.0, amplitude=0.0, smooth=0.0, ignore_index=0,
                           flip=False, scale=None))
    assert ", threshold 0, pruning 0.0, amplitude 0.0" in title and "ignore_index 0" in title
    assert "smooth" not in title and "scale" not in title and "flip" not in title



@pytest.mark.parametrize("changes", [
    {"loader": "train_loader"}, {"split": "test"}, {"procedure": "T"}, {"flip": True},
    {"scales": [0.5, 1.0]}, {"mode": "sliding"}, {"n_images": 6}, {"ignore_index": 0},
    {"checkpoint__sha256": "cd"}, {"checkpoint__path": "run/last.pth"},
    {"data__args__base_size": 512}, {"data__args__data_dir": "/other"},
    {"temperature": 1.5}, {"threshold": [0.4, 0.6]}, {"base_size": 512}, {"smooth": 1.0},
    {"segfix": "offsets"}, {"published": True},
    {"a_key_of_later": 7}])
def test_another_setting_is_another_result(tmp_path, changes):
    """Also by a key that a later version adds."""
    add(tmp_path, entry(Mean_IoU=0.25))
    document = add(tmp_path, entry(**changes))
    assert [run["Mean_IoU"] for run in document["runs"]] == [0.25, 0.5]
    assert code_of(entry(**changes)) != code_of(ENTRY)
    assert title_of(entry(**changes)) != title_of(ENTRY)
    text = (tmp_path / "results.txt").read_text()
    assert text.count("== model.pth") + text.count("== last.pth") == 2
    assert "table 0.25" in text and "table 0.5" in text
    assert len(differences(ENTRY, entry(**changes))) == 1


@pytest.mark.parametrize("changes", [
    {"Mean_IoU": 0.75}, {"loss": 2.0}, {"confusion": None}, {"versions": {"torch": "3"}},
    {"data__args__batch_size": 8}, {"data__args__num_workers": 4}, {"intervals": {"a": 1}},
    {"checkpoint__path": "copy/model.pth"}])
def test_the_same_setting_replaces_its_result(tmp_path, changes):
    add(tmp_path, ENTRY)
    document = add(tmp_path, entry(**changes))
    assert len(document["runs"]) == 1 and document["runs"][0].items() <= document.items()
    assert differences(ENTRY, entry(**changes)) == []


def test_other_results_are_named_when_one_is_added(tmp_path, capsys):
    add(tmp_path, ENTRY)
    assert capsys.readouterr().err == ""
    assert add(tmp_path, entry(loader="train_loader"))["loader"] == "train_loader"
    told = capsys.readouterr().err
    assert "keeps 1 earlier result under \"runs\" (val_loader, max, whole)" in told


def test_differences_are_named_by_key_with_both_values():
    assert differences(ENTRY, entry(flip=True, data__args__base_size=512)) == [
        "flip: false / true", "data.args.base_size: null / 512"]


def test_temperatures_of_single_networks_belong_to_the_rule():
    raw = [{"path": "a.pth", "sha256": "a"}, {"path": "b.pth", "sha256": "b", "flip": True}]
    fitted = [{**raw[0], "temperature": 2.0}, {**raw[1], "temperature": 1.5}]
    of_max = entry(ensemble=raw)
    assert same_but_for_the_rule(of_max, entry(ensemble=fitted, procedure="T"))
    other = [fitted[0], {**fitted[1], "flip": False}]
    assert not same_but_for_the_rule(of_max, entry(ensemble=other, procedure="T"))


def test_a_key_that_an_older_version_did_not_write_is_no_difference_if_it_is_as_usual():
    old = entry()
    del old["ignore_index"]
    assert differences(old, entry(data__args__vflip=False, a_key=None)) == []
    assert differences(old, entry(ignore_index=0, data__args__vflip=True)) == [
        "data.args.vflip: null / true", "ignore_index: 255 / 0"]


def test_titles_of_the_first_schema_name_the_finished_epochs_too():
    assert ", epoch 3 [" in title_of(ENTRY) and ", epoch 2 [" in title_of(entry(schema=1))


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b'{"runs": 3}', b'{"runs": [1]}', b'{"runs"', b"\xff\xfe\x00",
    b"[" * 10 ** 5, b'{"loss": 1}'])
def test_a_file_of_another_kind_is_kept_and_told_before_the_work(tmp_path, capsys, content):
    (tmp_path / "results.json").write_bytes(content)
    check_results(tmp_path)
    assert "is kept as results.json.old" in capsys.readouterr().err
    assert add(tmp_path, ENTRY)["Mean_IoU"] == 0.5
    assert capsys.readouterr().err == ""        # told once
    assert (tmp_path / "results.json.old").read_bytes() == content


def test_damage_during_the_work_does_not_lose_the_new_scores(tmp_path, capsys):
    check_results(tmp_path)
    (tmp_path / "results.json").write_text('{"runs": [{"proc')
    assert len(add(tmp_path, ENTRY)["runs"]) == 1
    assert "results.json.old" in capsys.readouterr().err
    assert (tmp_path / "results.json.old").read_text() == '{"runs": [{"proc'


def test_a_results_file_that_cannot_be_read_is_an_error_before_the_work(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        check_results(tmp_path)


def test_results_of_older_versions_and_odd_values_are_kept(tmp_path):
    old = {key: ENTRY[key] for key in ("schema", "procedure", "Mean_IoU", "checkpoint")}
    odd = {"checkpoint": 5, "data": [], "scales": "?", "epoch": None}
    text = json.dumps({**old, "runs": [old, {}, odd]}).replace("0.5", "NaN")
    (tmp_path / "results.json").write_text(text)
    document = add(tmp_path, ENTRY)
    assert document["runs"] == [{**old, "Mean_IoU": None}, {}, odd, ENTRY]
    assert (tmp_path / "results.txt").read_text().count("cannot be shown") == 2


def test_another_results_txt_is_kept(tmp_path, capsys):
    (tmp_path / "results.txt").write_text("IoU Class: 0.5\n")
    add(tmp_path, ENTRY)
    assert "is kept as results.txt.old" in capsys.readouterr().err
    assert (tmp_path / "results.txt.old").read_text() == "IoU Class: 0.5\n"
    add(tmp_path, entry(flip=True))
    assert not (tmp_path / "results.txt.old-2").exists()


def test_no_name_can_make_a_second_table(tmp_path):
    odd = entry(data__args__data_dir="a\n== b.pth", checkpoint__path="x\x1b[2J\udc80.pth")
    add(tmp_path, odd)
    text = (tmp_path / "results.txt").read_text()
    assert ("\n" + text).count("\n== ") == 1 and "\x1b" not in text


def _write(folder, start, number):
    start.wait()
    for flip in (False, True):
        add(folder, entry(procedure=f"rule{number}", flip=flip))


def test_scores_of_many_processes_at_once_are_all_kept(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(6)
    writers = [context.Process(target=_write, args=(tmp_path, start, n)) for n in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 12 and [writer.exitcode for writer in writers] == [0] * 6
    assert ("\n" + (tmp_path / "results.txt").read_text()).count("\n== ") == 12
