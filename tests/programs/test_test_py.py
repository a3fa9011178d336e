"""test.py: the score of the training, from nothing but the checkpoint."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import test as program
from dataloader.loader import make_loader
from tests.evaluation.test_result_page import text_of
from tests.support import run_program
from tests.support.pages import require_safe
from tests.support.places import ROOT
from tools import calibrate, plot_rules, report
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.decision.rules import RULES, build_decision
from utils.errors import DataError
from utils.evaluation.evaluate import evaluate
from utils.evaluation.regret import PARTS
from utils.images.image_io import write_image
from utils.images.normalize import Normalize
from utils.predict.predictor import build_predictor
from utils.training.criterion import Criterion

SMALL = ['train_loader.args={"split":"train","length":4,"size":[32,48],"num_workers":0}',
         'val_loader.args={"split":"val","length":5,"size":[32,48],"num_workers":0,"batch_size":2}']


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = resolve_config(load_config(ROOT / "configs/base/shapes_enet.json", SMALL))
    dataset = make_loader(config["val_loader"], ignore_index=255).dataset
    model = build("models", config["arch"], num_classes=dataset.num_classes)
    path = tmp_path / "run" / "model_best.pth"
    path.parent.mkdir()
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 3, "config": config,
        "class_names": dataset.class_names, "palette": dataset.palette, "activation": "softmax",
        "normalization": Normalize(dataset.mean, dataset.std).state(), "versions": {}})
    return path


def run(checkpoint, *arguments):
    return console.run(program.main, ["-r", str(checkpoint), "-d", "cpu", *map(str, arguments)])


def changed(checkpoint, **parts):
    write_checkpoint(checkpoint, {**read_checkpoint(checkpoint), **parts})


def test_the_score_equals_that_of_the_training_to_the_last_bit(checkpoint, capsys):
    state = read_checkpoint(checkpoint)
    config = state["config"]
    loader = make_loader(config["val_loader"], ignore_index=255, seed=config["seed"])
    model = build("models", config["arch"], num_classes=9)
    model.load_state_dict(state["model"])
    model = model.to(memory_format=torch.channels_last)          # as in training
    criterion = Criterion(config["loss"], model.output_weights, 255)
    logged = evaluate(
        build_predictor(model, Normalize(**state["normalization"]), config["predict"]), loader,
        [build_decision("max")], num_classes=9, ignore_index=255, loss=criterion.main_loss,
        device="cpu")["max"]
    assert run(checkpoint, "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    for name in ("Mean_IoU", "Mean_Dice", "Pixel_Accuracy", "mIoU_I", "mDice_I", "loss"):
        assert scored[name] == logged.numbers()[name], name
    assert scored["confusion"] == logged.dataset["confusion"]


def test_the_table_is_printed_and_four_files_are_written_next_to_the_checkpoint(checkpoint, capsys):
    assert run(checkpoint) == 0
    out, err = capsys.readouterr()
    assert "pavement" in out and "mean IoU" in out
    results = json.loads((checkpoint.parent / "results.json").read_text())
    assert f"written in {checkpoint.parent}: results.json, results.txt, " \
        f"{results['image_scores']}, confusion_matrix.png\n" in err
    assert sorted(os.listdir(checkpoint.parent)) == [
        "confusion_matrix.png", results["image_scores"], "model_best.pth", "results.json",
        "results.txt"]
    assert results["split"] == "val" and results["n_images"] == 5
    assert results["procedure"] == "max" and results["mode"] == "whole"
    assert [c["name"] for c in results["classes"]][:2] == ["road", "pavement"]
    assert results["checkpoint"]["epoch"] == 2      # it was saved at the start of epoch 3
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert results["checkpoint"]["sha256"] == digest
    assert "mean IoU" in (checkpoint.parent / "results.txt").read_text()


def test_several_rules_give_one_json_object_each(checkpoint, capsys, tmp_path):
    assert run(checkpoint, "-p", "all", "--json", "-o", tmp_path / "output") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["procedure"] for line in lines] == [
        "max", "max_posterior", *RULES[1:]]                     # its loss has class weights
    assert (tmp_path / "output" / "results.json").exists()
    assert not (checkpoint.parent / "results.json").exists()


def test_results_say_what_of_the_loss_was_undone_and_are_kept_apart(checkpoint, capsys):
    for arguments in (["-p", "rankdice"], ["-p", "rankdice", "--posterior", "raw"], ["-p", "max"],
                      ["-p", "max", "--posterior", "auto"]):
        assert run(checkpoint, *arguments) == 0
    text = capsys.readouterr().out
    results = json.loads((checkpoint.parent / "results.json").read_text())
    assert [run.get("posterior") for run in results["runs"]] == ["class weights undone", None] * 2 \
        or [run.get("posterior") for run in results["runs"]] == [
            "class weights undone", None, None, "class weights undone"]
    assert text.count("posterior class weights undone") == 2


def test_a_posterior_without_effect_is_refused_with_the_reason(checkpoint, capsys):
    assert run(checkpoint, "-p", "max", "--posterior", "raw") == 2
    assert "--posterior raw has no effect on rule max" in capsys.readouterr().err
    for loss, reason in (("CE", "nothing to undo"), ("LovaszSoftmax", "it scores regions")):
        arguments = ("-p", "rankdice", "--posterior", "auto", f"loss={loss}")
        assert run(checkpoint, *arguments) == 2
        assert reason in capsys.readouterr().err


def test_another_config_does_not_change_the_loss_that_is_undone(checkpoint, capsys, tmp_path):
    config = {**read_checkpoint(checkpoint)["config"], "loss": "CE"}
    (tmp_path / "other.json").write_text(json.dumps(config))
    assert run(checkpoint, "-p", "rankdice", "-c", tmp_path / "other.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["posterior"] == "class weights undone"


def test_counts_that_are_gone_leave_raw_logits_and_a_notice(checkpoint, capsys):
    assert run(checkpoint, "-p", "rankdice", "--json", "val_loss=CE",
               'loss={"type":"CE","args":{"weight":"enet","class_pixels":"gone.json"}}') == 0
    out, err = capsys.readouterr()
    assert "posterior" not in json.loads(out)
    assert "cannot read class_pixels" in " ".join(err.split())


def test_a_temperature_of_an_older_version_goes_on_dividing_raw_logits(checkpoint, capsys):
    config = read_checkpoint(checkpoint)["config"]
    old = {key: value for key, value in config["predict"].items() if key != "posterior"}
    changed(checkpoint, config={**config, "predict": {**old, "temperature": 1.3}})
    assert run(checkpoint, "-p", "rankdice", "--json") == 0
    out, err = capsys.readouterr()
    assert "posterior" not in json.loads(out) and json.loads(out)["temperature"] == 1.3
    assert "was fitted on raw logits" in " ".join(err.split())


def test_the_temperature_of_another_config_is_as_old_as_the_checkpoint(checkpoint, tmp_path,
                                                                       capsys):
    config = read_checkpoint(checkpoint)["config"]
    old = {key: value for key, value in config["predict"].items() if key != "posterior"}
    changed(checkpoint, config={**config, "predict": old})
    (tmp_path / "old.json").write_text(
        json.dumps({**config, "predict": {**old, "temperature": 1.3}}))
    for options, raw in (((), True), (["predict.temperature=1.4"], False),
                         (["predict.posterior=auto"], False)):
        assert run(checkpoint, "-p", "rankdice", "--json", "-c", tmp_path / "old.json",
                   *options) == 0
        out, err = capsys.readouterr()
        assert ("posterior" not in json.loads(out)) == raw
        assert ("old.json was fitted on raw logits" in " ".join(err.split())) == raw


def test_a_score_only_replaces_the_same_score(checkpoint):
    for arguments in (["-p", "max"], ["-p", "T"], ["-p", "max", "--mode", "sliding"],
                      ["-p", "max", "--split", "train"], ["-p", "max"]):
        assert run(checkpoint, *arguments) == 0
    results = json.loads((checkpoint.parent / "results.json").read_text())
    kept = [(r["procedure"], r["mode"], r["split"]) for r in results["runs"]]
    assert kept == [("T", "whole", "val"), ("max", "sliding", "val"), ("max", "whole", "train"),
                    ("max", "whole", "val")]
    assert results["split"] == "val"                  # the newest one is at the top level
    assert (checkpoint.parent / "results.txt").read_text().count("== model_best.pth") == 4


@pytest.mark.parametrize("overrides,images", [
    (["val_loader.args.length=3"], 3), (["test_loader.args.length=2"], 2),
    (["--split", "train", "train_loader.args.length=3"], 3)])
def test_the_data_can_be_changed_on_the_command_line(checkpoint, capsys, overrides, images):
    assert run(checkpoint, "--json", *overrides) == 0
    assert json.loads(capsys.readouterr().out)["n_images"] == images


def test_another_config_replaces_that_of_the_checkpoint(checkpoint, capsys, tmp_path):
    other = tmp_path / "other.json"
    base = ROOT / "configs/base/shapes_enet.json"
    other.write_text(json.dumps({"extends": str(base), "val_loader": {
        "type": "Shapes", "args": {"split": "test", "length": 2, "size": [32, 48],
                                   "num_workers": 0}}}))
    assert run(checkpoint, "-c", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["split"] == "test"


@pytest.mark.parametrize("arguments,status,text", [
    (["val_loader.args.lenght=3"], 2, "length"), (["-p", "dice"], 2, "unknown rule"),
    (["--split", "test"], 2, "no test_loader"), (["-o", "{}/model_best.pth"], 3, "output folder"),
    (["--mode", "whole", "--scales", "0.5"], 2, "no effect"),
    (["val_loader.args.split=nowhere"], None, "nowhere")])
def test_a_mistake_is_one_message_and_its_exit_status(checkpoint, capsys, arguments, status, text):
    got = run(checkpoint, *(a.format(checkpoint.parent) for a in arguments))
    message = capsys.readouterr().err
    assert got in ((2, 3) if status is None else (status,))
    assert message.count("error:") == 1 and text in message and "Traceback" not in message


def test_the_message_about_a_checkpoint_without_data_names_the_option(checkpoint, capsys):
    config = read_checkpoint(checkpoint)["config"]
    changed(checkpoint, config={k: config[k] for k in ("arch", "ignore_index", "predict")})
    assert run(checkpoint) == 2
    assert "-c CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize("main", [program.main, calibrate.main, plot_rules.main])
def test_data_with_another_number_of_classes_is_an_error(checkpoint, capsys, main):
    state = read_checkpoint(checkpoint)
    model = build("models", state["config"]["arch"], num_classes=5)
    changed(checkpoint, model=model.state_dict(), class_names=list("abcde"),
            palette=state["palette"][:5])
    assert console.run(main, ["-r", str(checkpoint), "-d", "cpu"]) == 2
    assert "5 classes" in capsys.readouterr().err


def test_the_vector_of_a_calibration_is_written_and_used_by_the_rules(checkpoint, capsys, tmp_path):
    written, picture = tmp_path / "calibrated.pth", tmp_path / "classes.png"
    assert console.run(calibrate.main, [
        "-r", str(checkpoint), "-d", "cpu", "--per-class", "--write", str(written),
        "--class-diagrams", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "class weights undone" in out and "classwise ECE, mean" in out and "scale" in out
    predict = read_checkpoint(written)["config"]["predict"]
    assert len(predict["scale"]) == len(predict["bias"]) == 9 and predict["posterior"] is None
    assert picture.stat().st_size
    assert run(written, "-p", "rankdice,max", "--json") == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert results[0]["bias"] == predict["bias"] and results[0]["scale"] == predict["scale"]
    assert results[0]["temperature"] == predict["temperature"]
    assert "bias" not in results[1]             # max decides on raw logits


@pytest.mark.parametrize("options, stages, setting", [
    ([], {"raw", "before", "after"}, None), (["--posterior", "raw"], {"before", "after"}, "raw")])
def test_a_calibration_is_fitted_on_what_it_will_divide(checkpoint, capsys, tmp_path, options,
                                                        stages, setting):
    written = tmp_path / "calibrated.pth"
    assert console.run(calibrate.main, ["-r", str(checkpoint), "-d", "cpu", "--json", "--write",
                                        str(written), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) & {"raw", "before", "after", "per_class"} == stages
    assert read_checkpoint(written)["config"]["predict"]["posterior"] == setting
    if setting is None:
        assert result["before"]["log_loss"] != result["raw"]["log_loss"]


def test_a_temperature_at_the_end_of_its_range_is_told(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("utils.decision.calibration.fit_temperature", lambda *_: 20.0)
    assert console.run(calibrate.main, ["-r", str(checkpoint), "-d", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "temperature 20 is the end of the range" in err and "temperature 20.0000" in out


def test_a_damaged_checkpoint_ends_with_status_4(checkpoint, capsys):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:len(whole) // 2])
    assert run(checkpoint) == 4
    assert "damaged" in capsys.readouterr().err


def test_a_foreign_results_file_is_kept_before_the_evaluation(checkpoint, capsys, monkeypatch):
    folder = checkpoint.parent
    (folder / "results.json").write_text("{}")
    monkeypatch.setattr("utils.evaluation.evaluate._numbered", stopped)
    assert run(checkpoint) == 130       # stopped at the first image
    assert "results.json is not a results file" in capsys.readouterr().err
    assert (folder / "results.json.old").read_text() == "{}"
    monkeypatch.undo()
    assert run(checkpoint) == 0
    assert json.loads((folder / "results.json").read_text())["n_images"] == 5


def stopped(*_):
    raise KeyboardInterrupt


def test_the_hash_is_that_of_the_file_that_was_loaded(checkpoint, capsys, monkeypatch):
    """A training that goes on replaces the checkpoint during the evaluation."""
    from utils.evaluation import evaluate as module
    loaded, whole = checkpoint.read_bytes(), module._numbered

    def replaced(*arguments):
        changed(checkpoint, epoch=9)
        return whole(*arguments)

    monkeypatch.setattr(module, "_numbered", replaced)
    assert run(checkpoint, "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["checkpoint"]["sha256"] == hashlib.sha256(loaded).hexdigest()
    assert entry["checkpoint"]["epoch"] == 2 and checkpoint.read_bytes() != loaded


@pytest.mark.slow       # two programs that import torch
@pytest.mark.parametrize("shell, status", [("| true; exit ${PIPESTATUS[0]}", 0),
                                           ("> /dev/full", 3)])
def test_scores_are_written_whatever_happens_to_the_output(checkpoint, shell, status):
    """The reader has left, or the disk of stdout is full."""
    command = f"{sys.executable} test.py -r {checkpoint} -d cpu {shell}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True,
                          timeout=200, env=run_program.environment())
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((checkpoint.parent / "results.json").read_text())["n_images"] == 5


def test_scores_that_cannot_be_written_are_still_printed(checkpoint, capsys, monkeypatch):
    def full(*_):
        raise DataError("cannot write: no space")
    monkeypatch.setattr("utils.evaluation.results_file.change_file", full)
    assert run(checkpoint) == 3
    out, err = capsys.readouterr()
    assert "mean IoU" in out and "no space" in err


def test_data_without_a_labeled_pixel_is_an_error(checkpoint, capsys, tmp_path):
    write_labels(tmp_path / "void", np.full((32, 48), 255, np.uint8))
    section = {"type": "Folder", "args": {
        "data_dir": str(tmp_path / "void"), "num_workers": 0,
        "class_names": read_checkpoint(checkpoint)["class_names"]}}
    assert run(checkpoint, f"val_loader={json.dumps(section)}") == 3
    assert "not one pixel of 2 images has a label" in capsys.readouterr().err


def write_labels(folder, label):
    """Two images with the same label."""
    for name in "ab":
        for place, picture in (("images", np.zeros((*label.shape, 3), np.uint8)),
                               ("labels", label)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            write_image(folder / place / f"{name}.png", picture)


def test_without_arguments_the_usage_is_printed_and_the_status_is_2(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main([])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "-r auto takes the newest" in error and "--help" in error


@pytest.mark.slow      # three processes import torch
def test_two_processes_give_the_score_of_one(checkpoint, capsys):
    assert run(checkpoint, "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    done = run_program.program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                               "test.py", "-r", checkpoint, "-d", "cpu", "--json", check=True)
    assert json.loads(done.stdout) == alone


@pytest.mark.slow      # three processes import torch
def test_two_processes_write_the_page_of_one(checkpoint, tmp_path):
    options = ("-p", "max,T", "--report", "-o", tmp_path / "page")
    assert run(checkpoint, *options) == 0
    page = tmp_path / "page" / "report.html"
    alone = page.read_text(encoding="utf-8").partition("<dt>command")[2].partition("</dd>")[2]
    page.unlink()
    run_program.program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                        "test.py", "-r", checkpoint, "-d", "cpu", *options, check=True)
    assert alone and alone in page.read_text(encoding="utf-8")


ONE_FAILS = """
import os, sys
sys.path.insert(0, {root!r})
import test
from dataloader.shapes import Shapes
from utils.cli import console
from utils.errors import DataError

def fail(self, index):
    raise DataError("the scanner is on fire")

if os.environ["RANK"] == "1":
    Shapes.load = fail
sys.exit(console.run(test.main))
"""


@pytest.mark.slow      # three processes import torch
def test_a_failing_rank_ends_the_other_and_its_error_is_printed_once(checkpoint, tmp_path):
    program_file = tmp_path / "one_fails.py"
    program_file.write_text(ONE_FAILS.format(root=str(ROOT)))
    done = run_program.program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                               program_file, "-r", checkpoint, "-d", "cpu", timeout=200)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and errors[0] == "error: the scanner is on fire"
    assert all("stopped because rank 1 failed" in line for line in errors[1:])
    assert not (checkpoint.parent / "results.json").exists()


def test_the_image_scores_of_two_rules_can_be_compared(checkpoint, capsys):
    from tools import compare_results
    assert run(checkpoint, "-p", "max,T") == 0
    results = str(checkpoint.parent / "results.json")
    capsys.readouterr()
    assert compare_results.main([results, results, "--rule", "max", "T", "--json"]) in (0, None)
    assert "mIoU_I" in capsys.readouterr().out


def test_boundary_scores_are_reported_if_the_config_requests_them(checkpoint, capsys):
    assert run(checkpoint, "--json", "predict.boundary=true") == 0
    assert 0 <= json.loads(capsys.readouterr().out)["Boundary_IoU"] <= 1


def test_the_risk_coverage_curve_changes_no_score_and_is_kept_with_it(checkpoint, tmp_path, capsys):
    for place, options in (("a", ()), ("b", ("--risk-coverage",))):
        assert run(checkpoint, "-o", tmp_path / place, *options) == 0
    plain, curve = (json.loads((tmp_path / place / "results.json").read_text())["runs"][0]
                    for place in "ab")
    risk = curve.pop("risk_coverage")
    assert plain == curve and not (tmp_path / "a" / "risk_coverage.png").exists()
    assert risk["curve"][-1] == pytest.approx(risk["risk"]) and len(risk["coverage"]) == 101
    assert (tmp_path / "b" / "risk_coverage.png").stat().st_size > 1000
    assert "AURC" in capsys.readouterr().out


def test_regret_changes_no_score_and_is_kept_with_it(checkpoint, tmp_path, capsys):
    for place, options in (("a", ()), ("b", ("--regret", "--theta", 20))):
        assert run(checkpoint, "-p", "max,rankdice", "-o", tmp_path / place, *options) == 0
    plain, split = (json.loads((tmp_path / place / "results.json").read_text())["runs"]
                    for place in "ab")
    regret = [one.pop("regret") for one in split]
    assert plain == split and regret[0]["theta"] == 20
    assert regret[0]["posterior"] == "class weights undone"
    for one, entry in zip(regret, plain, strict=True):
        parts = [one[part]["value"] for part in PARTS]
        assert sum(parts) == pytest.approx(1 - entry["mDice_I"], abs=1e-12)
        assert (tmp_path / "b" / f"regret_{entry['procedure']}.png").stat().st_size > 1000
    assert not list((tmp_path / "a").glob("regret*"))
    assert capsys.readouterr().out.count("Where the Dice is lost") == 2


def test_regret_is_refused_where_it_does_not_split_the_score(checkpoint, capsys):
    assert run(checkpoint, "--regret", "predict.published=true") == 2
    assert "predict.published scores ignored pixels as background" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(checkpoint, "--regret", "--segfix", "x")
    assert "--regret does not go with --segfix" in capsys.readouterr().err


def test_a_page_changes_no_score_and_shows_every_rule(checkpoint, tmp_path, capsys):
    for place, options in (("a", ()), ("b", ("--report",))):
        assert run(checkpoint, "-p", "all", "-o", tmp_path / place, *options) == 0
    err = capsys.readouterr().err
    plain, measured = (json.loads((tmp_path / place / "results.json").read_text())["runs"]
                       for place in "ab")
    calibration = [one.pop("calibration") for one in measured]
    assert plain == measured and not (tmp_path / "a" / "report.html").exists()
    assert [stage["of"] for stage in calibration[0]] == ["softmax of the logits",
                                                        "class weights undone"]
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    require_safe(page)
    words = " ".join(text_of(page).split())
    assert f"python test.py -r {checkpoint} -d cpu -p all" in words
    assert "3 images with the lowest and 2 images with the highest mIoU_I under max" in words
    assert page.count("<figcaption>label") == 5 and page.count("<figcaption>rankdice: mIoU_I") == 5
    assert "report.html" in err and f"{100 * plain[0]['mIoU_I']:.2f}" in words


def test_a_temperature_changes_the_calibration_of_a_page(checkpoint, tmp_path):
    assert run(checkpoint, "-p", "max", "--temperature", "2", "--report", "-o", tmp_path) == 0


def test_the_page_of_several_protocols_has_a_column_for_each(checkpoint, tmp_path):
    assert run(checkpoint, "--protocol", "all", "--report", "-o", tmp_path) == 0
    words = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "max, own settings" in words and "The pictures are those of own settings" in words


def test_a_page_made_later_shows_the_pictures_of_the_test(checkpoint, tmp_path, capsys):
    assert run(checkpoint, "-p", "max,T", "--flip", "--report") == 0
    folder = checkpoint.parent
    measured = (folder / "report.html").read_text(encoding="utf-8")
    later = tmp_path / "later.html"
    arguments = [str(folder / "results.json"), "--pictures", "-d", "cpu", "-o", str(later)]
    assert console.run(report.main, arguments) == 0
    page = later.read_text(encoding="utf-8")
    figures = re.findall("<figure>.*?</figure>", page, re.DOTALL)
    assert figures == re.findall("<figure>.*?</figure>", measured, re.DOTALL)
    assert len(figures) == 4 * 5 and "predicted again for this page" in page
    beside = tmp_path / "beside"        # another file lies where the result says
    shutil.copytree(folder, beside)
    checkpoint.write_bytes(b"of another program")
    assert console.run(report.main, [str(beside / "results.json"), *arguments[1:]]) == 0
    shutil.copy(beside / checkpoint.name, checkpoint)
    changed(checkpoint, epoch=9)
    assert console.run(report.main, arguments) == 3
    assert "not the one that the result was measured with" in capsys.readouterr().err
    checkpoint.unlink()
    assert console.run(report.main, arguments) == 3
    assert "the checkpoint of the result is gone" in capsys.readouterr().err
