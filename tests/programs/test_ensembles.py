"""test.py and inference.py with several checkpoints: the mean of their probabilities."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import test as program
from dataloader.loader import make_loader
from tests.support import run_program
from tests.support.places import ROOT
from tools import calibrate, compare_results, export, report
from tools.study import _test_arguments
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.decision.ensemble import unused_settings
from utils.decision.rules import build_decision
from utils.errors import ConfigError
from utils.images.normalize import Normalize
from utils.metrics import DatasetMetrics
from utils.predict.open_model import open_model

SMALL = ['train_loader.args={"split":"train","length":4,"size":[32,48],"num_workers":0}',
         'val_loader.args={"split":"val","length":4,"size":[32,48],"num_workers":0,"batch_size":2}']


def network(folder, seed, overrides=(), **parts):
    """Write a checkpoint with made-up weights into a folder of its own."""
    torch.manual_seed(seed)
    config = resolve_config(load_config(ROOT / "configs/base/shapes_enet.json",
                                        [*SMALL, *overrides]))
    dataset = make_loader(config["val_loader"], ignore_index=255).dataset
    model = build("models", config["arch"], num_classes=dataset.num_classes)
    path = folder / "model_best.pth"
    folder.mkdir()
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 3 + seed, "config": config,
        "class_names": dataset.class_names, "palette": dataset.palette, "activation": "softmax",
        "normalization": Normalize(dataset.mean, dataset.std).state(), "versions": {}, **parts})
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two networks trained with class weights; the second has other ones, and a temperature."""
    place = tmp_path_factory.mktemp("runs")
    return [network(place / "a", 0),
            network(place / "b", 1, ["loss.args.weight=[1,1,1,9,1,1,20,1,1]",
                                     "predict.temperature=1.5"])]


def run(paths, *arguments, main=program.main):
    named = [part for path in paths for part in ("-r", str(path))]
    return console.run(main, [*named, "-d", "cpu", *map(str, arguments)])


def changed(path, folder, **parts):
    folder.mkdir()
    write_checkpoint(folder / "changed.pth", {**read_checkpoint(path), **parts})
    return folder / "changed.pth"


def mean_of(paths, posterior, images):
    """The mean probabilities (N, C, H, W), computed plainly."""
    total = 0
    for path in paths:
        opened = open_model(read_checkpoint(path), "cpu", path)
        options = {**opened.config["predict"], "posterior": posterior}
        logits = opened.predictor()(images)
        if posterior == "auto":
            rule = build_decision("rankdice", "softmax", options, opened.inverse)
            logits = rule.posterior.logits(logits)
        total = total + logits.softmax(1)
    return total / len(paths)


def images_and_labels(path):
    config = read_checkpoint(path)["config"]
    batches = list(make_loader(config["val_loader"], ignore_index=255, seed=config["seed"]))
    return (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))


def test_every_rule_is_scored_on_the_mean_probabilities(pair, tmp_path, capsys):
    assert run(pair, "-p", "all", "--json", "-o", tmp_path) == 0
    entries = {one["procedure"]: one for one in map(json.loads, capsys.readouterr().out.split("\n")
                                                    [:-1])}
    images, labels = images_and_labels(pair[0])
    raw, undone = (mean_of(pair, posterior, images) for posterior in ("raw", "auto"))
    assert (raw.argmax(1) != undone.argmax(1)).any()
    for name, prediction in (("max", raw.argmax(1)), ("max_posterior", undone.argmax(1)),
                             ("T", undone > 0.5), ("rankdice", build_decision("rankdice")(
                                 undone.log()))):
        metrics = DatasetMetrics(9)
        metrics.update(prediction, labels)
        assert entries[name]["Mean_IoU"] == metrics.compute()["Mean_IoU"], name
        assert entries[name]["classes"][3]["IoU"] == metrics.compute()["Class_IoU"][3]


def test_the_result_names_all_networks_and_what_is_different_of_each(pair, tmp_path, capsys):
    assert run(pair, "-p", "max,T", "-o", tmp_path) == 0
    out = capsys.readouterr().out
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    for one in runs:
        assert "checkpoint" not in one
        assert [network["path"] for network in one["ensemble"]] == [str(path) for path in pair]
        assert [network["epoch"] for network in one["ensemble"]] == [2, 3]
        assert len({network["sha256"] for network in one["ensemble"]}) == 2
    assert [one.get("temperature") for one in runs[0]["ensemble"]] == [None, None]
    assert [one["temperature"] for one in runs[1]["ensemble"]] == [1.0, 1.5]
    assert runs[1]["posterior"] == "class weights undone" and "posterior" not in runs[0]
    assert "== ensemble of 2 (a, b), Shapes val" in out
    assert "each with its own temperature" in out
    assert "ensemble of 2" in (tmp_path / "results.txt").read_text()


def test_other_networks_are_another_result_and_the_order_is_not(pair, tmp_path, capsys):
    third = network(tmp_path / "c", 2, ["loss.args.weight=[1,1,1,9,1,1,20,1,1]"])
    folder = tmp_path / "scores"
    for paths in (pair, pair[::-1], [*pair, third]):
        assert run(paths, "-o", folder) == 0
    assert run(pair[:1], "-o", folder) == 0
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [len(one.get("ensemble", [])) for one in runs] == [2, 3, 0]
    capsys.readouterr()
    results = folder / "results.json"
    assert console.run(compare_results.main, [str(results), str(results), "--run", "1", "2"]) == 0
    assert "they differ in ensemble." in capsys.readouterr().out


def test_inference_writes_the_labels_that_test_py_scores(pair, tmp_path, capsys):
    images, labels = images_and_labels(pair[0])
    place = tmp_path / "in"
    place.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    for rule, posterior in (("max", "raw"), ("rankdice", "auto")):
        assert run(pair, "-p", rule, "-o", tmp_path / rule, "-i", place, "--probabilities",
                   "--json", main=inference.main) == 0
        report = json.loads(capsys.readouterr().out)["prediction"]
        assert len(report["ensemble"]) == 2 and report["mode"] == "whole"
        mean = mean_of(pair, posterior, images)
        expected = build_decision(rule).labels(mean.log())
        undone = mean_of(pair, "auto", images)
        for number in range(len(images)):
            with Image.open(tmp_path / rule / f"{number}.png") as written:
                assert np.array_equal(np.array(written), expected[number].numpy())
            with np.load(tmp_path / rule / f"{number}_probabilities.npz") as stored:
                assert np.abs(stored["probabilities"] - undone[number].numpy()).max() < 1e-3
                assert str(stored["posterior"]) == "class weights undone"


def test_a_streamed_image_has_the_labels_of_the_whole_image(pair, tmp_path, monkeypatch):
    values = np.random.default_rng(1).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(values).save(tmp_path / "in" / "a.png")
    arguments = ["-i", tmp_path / "in", "--mode", "sliding", "--crop-size", "40", "--confidence",
                 "--predict", "T"]
    assert run(pair, *arguments, "-o", tmp_path / "whole", main=inference.main) == 0
    monkeypatch.setattr("utils.inference.large_image.LARGE_PIXELS", 1)
    assert run(pair, *arguments, "-o", tmp_path / "parts", main=inference.main) == 0
    for name in ("a.png", "a_confidence.png"):
        whole, parts = (np.array(Image.open(tmp_path / folder / name))
                        for folder in ("whole", "parts"))
        assert np.array_equal(whole, parts)


def test_each_network_sees_images_at_its_own_validated_size(pair, tmp_path, capsys):
    sized = network(tmp_path / "c", 3, ["val_loader.args.base_size=24"])
    assert run([pair[0], sized], "-p", "max", "--json", "-o", tmp_path / "o") == 0
    entry = json.loads(capsys.readouterr().out)
    assert [one.get("base_size") for one in entry["ensemble"]] == [None, 24]
    images, labels = images_and_labels(pair[0])
    opened = [open_model(read_checkpoint(path), "cpu") for path in (pair[0], sized)]
    mean = sum(one.predictor()(images).softmax(1) for one in opened)
    metrics = DatasetMetrics(9)
    metrics.update(mean.argmax(1), labels)
    assert entry["Mean_IoU"] == metrics.compute()["Mean_IoU"]
    assert run([sized, pair[0]], "--as-validation", "-o", tmp_path / "v") == 2
    assert "was validated at" in capsys.readouterr().err


def test_the_loss_is_that_of_the_mean_where_all_networks_have_the_same(pair, tmp_path, capsys):
    same = network(tmp_path / "c", 2)
    assert run([pair[0], same], "-p", "rankdice", "--json", "-o", tmp_path / "o") == 0
    entry = json.loads(capsys.readouterr().out)
    images, labels = images_and_labels(pair[0])
    mean = mean_of([pair[0], same], "raw", images)
    weight = torch.tensor(read_checkpoint(same)["config"]["loss"]["args"]["weight"])
    expected = [torch.nn.functional.cross_entropy(part.log(), label.long(), weight.float(),
                                                  ignore_index=255)
                for part, label in zip(mean.split(2), labels.split(2), strict=True)]
    assert entry["loss"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert run(pair, "--json", "-o", tmp_path / "p") == 0
    assert "loss" not in json.loads(capsys.readouterr().out)


def test_the_risk_coverage_curve_is_of_the_mean(pair, tmp_path, capsys):
    assert run(pair, "--risk-coverage", "--json", "-o", tmp_path) == 0
    entry = json.loads(capsys.readouterr().out)
    images, labels = images_and_labels(pair[0])
    wrong = mean_of(pair, "auto", images).argmax(1) != labels
    assert entry["risk_coverage"]["risk"] == pytest.approx(float(wrong[labels != 255].float()
                                                                .mean()))


def test_networks_that_cannot_be_averaged_are_refused(pair, tmp_path, capsys):
    names = read_checkpoint(pair[0])["class_names"]
    other = changed(pair[1], tmp_path / "other", class_names=[*names[:-1], "tram"])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for main, more in ((program.main, []), (inference.main, ["-i", str(tmp_path / "a.png")])):
        assert run([pair[0], other], *more, "-o", tmp_path / "o", main=main) == 2
        assert f"class 8 is {names[8]!r} and 'tram'" in " ".join(capsys.readouterr().err.split())
    assert run(pair) == 2
    assert "belongs to the folder of none of them" in capsys.readouterr().err


def test_networks_of_different_protocols_are_scored_under_a_given_one(pair, tmp_path, capsys):
    flipped = network(tmp_path / "c", 2, ["predict.protocol=whole-flip"])
    assert run([pair[0], flipped], "-o", tmp_path / "o") == 2
    assert "under different protocols: none / whole-flip" in " ".join(
        capsys.readouterr().err.split())
    assert run([pair[0], flipped], "--protocol", "whole", "-o", tmp_path / "o") == 0


def test_regret_and_the_page_are_of_the_mean(pair, tmp_path, capsys):
    assert run(pair, "-p", "max,rankdice", "--regret", "--report", "-o", tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(str(path) in page for path in pair)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    for one in runs:
        assert one["regret"]["Dice"] == pytest.approx(one["image_level"]["Mean_Dice"])
    again = [str(tmp_path / "results.json"), "-o", str(tmp_path / "p.html")]
    assert console.run(report.main, [*again, "--pictures", "-d", "cpu"]) == 3
    assert "pictures of an ensemble are not predicted again" in capsys.readouterr().err
    assert console.run(report.main, again) == 0
    assert "test.py --report shows them" in (tmp_path / "p.html").read_text()


def test_settings_of_the_decision_that_are_not_used_are_said(pair, tmp_path, capsys):
    other = network(tmp_path / "c", 2, ["predict.test=T", "predict.threshold=0.3"])
    assert run([pair[0], other], "-o", tmp_path / "o") == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "has the settings test T (there max), threshold 0.3 (there 0.5)" in message
    assert run([pair[0], other], "-o", tmp_path / "o", "-p", "max", "--protocol", "whole") == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "threshold 0.3" in message and "test T" not in message


@pytest.mark.parametrize("rules,told", [(None, True), ("max,T", True), ("T", False),
                                        ("all", False)])
def test_another_posterior_is_told_where_rule_max_decides(rules, told):
    networks = [SimpleNamespace(path=path, config={"ignore_index": 255}) for path in "ab"]
    options = [{"posterior": posterior, "test": "max"} for posterior in (None, "auto")]
    for each, text in ((options, "auto (there None)"), (options[::-1], "None (there auto)")):
        lines = unused_settings(networks, each, rules)
        assert [f"b has the settings posterior {text}" in line for line in lines] == [True] * told
    assert not unused_settings(networks, [options[0], {**options[0], "posterior": "raw"}])


def test_another_ignore_index_is_told():
    networks = [SimpleNamespace(path=path, config={"ignore_index": ignored})
                for path, ignored in (("a", 255), ("b", 0))]
    line, = unused_settings(networks, [{"test": "max"}] * 2)
    assert line.endswith("b has the settings ignore_index 0 (there 255)")


@pytest.mark.parametrize("arguments,status,text", [
    (["-p", "max", "--posterior", "auto"], 0, ""),
    (["-p", "max", "--posterior", "auto", "--temperature", "2"], 0, ""),
    (["-p", "max", "--temperature", "2"], 2, "--temperature has no effect on rule max"),
    (["-p", "max,max_posterior", "--temperature", "2"], 0, ""),
    (["-p", "max", "--posterior", "raw"], 2, "--posterior raw has no effect on rule max"),
    (["--crop-size", "24"], 2, "(of "), (["loss.args.weigth=1"], 2, "(of ")])
def test_options_hold_for_every_network(pair, tmp_path, capsys, arguments, status, text):
    assert run(pair, "-o", tmp_path, *arguments) == status
    assert text in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("main,more", [
    (calibrate.main, []), (export.main, ["-o", "net.onnx"])])
def test_tools_take_one_checkpoint(pair, capsys, main, more):
    with pytest.raises(SystemExit):
        run(pair, *more, main=main)
    assert "is a second checkpoint" in capsys.readouterr().err


def test_a_study_does_not_test_an_ensemble():
    with pytest.raises(ConfigError, match="second checkpoint"):
        _test_arguments(["-rother.pth"])


@pytest.mark.slow       # three processes import torch
def test_ranks_score_as_one_process(pair, tmp_path):
    options = [part for path in pair for part in ("-r", str(path))] + ["-d", "cpu", "-p", "max,T"]
    done = run_program.program("-m", "torch.distributed.run", "--standalone",
                               "--nproc-per-node=2", "test.py", *options, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert run(pair, "-p", "max,T", "-o", tmp_path / "one") == 0
    of_one, of_two = (json.loads((tmp_path / name / "results.json").read_text())["runs"]
                      for name in ("one", "two"))
    assert of_one == of_two and len(of_one) == 2
