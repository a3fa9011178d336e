"""The size at which a network was validated is used by every program that predicts with it."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import test as test_program
import train
from dataloader.loader import make_loader
from tools import calibrate, evaluate_labels, plot_rules
from tools.demo.segmenter import Segmenter
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import with_config
from utils.config.schema import resolve_config
from utils.decision.rules import build_decision
from utils.evaluation.evaluate import evaluate
from utils.images.image_io import read_image
from utils.images.normalize import Normalize
from utils.predict.open_model import open_model
from utils.predict.predictor import build_predictor

SIZES = [(60, 90), (91, 61), (60, 90), (33, 40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of four sizes, whose labels are their brightness, and a folder for results."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        label = np.kron(rng.integers(0, 3, (height // 10 + 1, width // 10 + 1)),
                        np.ones((10, 10), int))[:height, :width].astype(np.uint8)
        noise = rng.integers(0, 40, (height, width, 3))
        image = (90 * label[..., None] + noise).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(label).save(folder / "labels" / f"{number}.png")
    return folder


def checkpoint(data, path, **reading):
    """A network with random weights that was validated on `data` with the loader args `reading`."""
    torch.manual_seed(0)
    args = {"data_dir": str(data), "num_classes": 3, "batch_size": 3, "num_workers": 0}
    config = resolve_config({
        "arch": {"type": "ENet"}, "train_loader": {"type": "Folder", "args": args},
        "val_loader": {"type": "Folder", "args": {**args, **reading}}, "loss": "CE",
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}}, "trainer": {"epochs": 1}})
    model = build("models", config["arch"], num_classes=3)
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 3, "config": config,
        "class_names": ["a", "b", "c"], "palette": [[0, 0, 0], [9, 9, 9], [99, 99, 99]],
        "activation": "softmax", "normalization": Normalize([0.5] * 3, [0.25] * 3).state(),
        "versions": {}})
    return str(path)


def scores_of_test(path, folder, capsys, *arguments):
    assert console.run(test_program.main, ["-r", path, "-o", str(folder), "-d", "cpu", "--json",
                                           *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[0])


def predicted(path, data, out, *arguments):
    assert console.run(inference.main, ["-r", path, "-i", str(data / "images"), "-o", str(out),
                                        "-d", "cpu", *arguments]) == 0
    return {one.name: np.array(Image.open(one)) for one in sorted(out.glob("*.png"))}


def scores_of_files(data, out, folder):
    assert console.run(evaluate_labels.main, [
        "--dataset", "Folder", "--args", '{"num_classes": 3}', "--gt", str(data / "labels"),
        "--pred", str(out), "--results", "", "--json", str(folder / "files.json")]) == 0
    return json.loads((folder / "files.json").read_text())


READINGS = [{"base_size": 45}, {"val": True, "crop_size": [32, 48]}, {"val": True, "crop_size": 40},
            {"base_size": 120}, {}]


@pytest.mark.parametrize("reading", READINGS)
def test_the_score_of_test_py_is_that_of_the_files_of_inference_py(data, tmp_path, capsys,
                                                                   reading):
    path = checkpoint(data, tmp_path / "model.pth", **reading)
    entry = scores_of_test(path, tmp_path, capsys)
    labels = predicted(path, data, tmp_path / "out")
    assert [one.shape for one in labels.values()] == SIZES
    files = scores_of_files(data, tmp_path / "out", tmp_path)
    text = json.dumps(files)
    assert entry["Mean_IoU"] == pytest.approx(files["Mean_IoU"], abs=1e-12), text[:300]
    expected = reading.get("crop_size", reading.get("base_size"))
    assert entry.get("base_size") == ([40, 40] if expected == 40 else expected)


def test_validation_in_training_keeps_its_number_and_test_py_can_repeat_it(data, tmp_path, capsys):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    state = read_checkpoint(path)
    opened = open_model(state, "cpu", path)
    predictor = build_predictor(opened.model, opened.normalize, opened.config["predict"])
    loader = make_loader(opened.config["val_loader"], ignore_index=255)
    logged = evaluate(predictor, loader, [build_decision("max")], num_classes=3, ignore_index=255,
                      device="cpu")["max"].dataset["Mean_IoU"]
    entry = scores_of_test(path, tmp_path, capsys, "--as-validation")
    assert entry["Mean_IoU"] == logged and entry["labels_resized_to"] == 45
    own = scores_of_test(path, tmp_path, capsys)
    assert own["Mean_IoU"] != logged and "labels_resized_to" not in own
    titles = (tmp_path / "results.txt").read_text()
    assert "images and labels at 45 pixels (long side)" in titles
    assert "images at 45 pixels (long side), labels at their own size" in titles


def test_as_validation_without_a_resize_is_refused(data, tmp_path, capsys):
    path = checkpoint(data, tmp_path / "model.pth")
    assert console.run(test_program.main, ["-r", path, "--as-validation", "-d", "cpu"]) == 2
    assert "--as-validation has no effect" in capsys.readouterr().err


def test_inference_says_the_size_and_an_option_changes_it(data, tmp_path, capsys):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    default = predicted(path, data, tmp_path / "default")
    assert "predicted at 45 pixels (long side), as in validation" in capsys.readouterr().err
    for value in ("45", "none", "60"):
        given = predicted(path, data, tmp_path / value, "--base-size", value)
        assert "as in validation" not in capsys.readouterr().err
        same = all(np.array_equal(given[name], default[name]) for name in default)
        assert same == (value == "45")
    plain = checkpoint(data, tmp_path / "plain.pth")
    own = predicted(plain, data, tmp_path / "own")
    none = predicted(path, data, tmp_path / "none", "--base-size", "none")
    assert all(np.array_equal(own[name], none[name]) for name in own)


def test_a_large_picture_is_streamed_at_the_validated_size(data, tmp_path, monkeypatch):
    from utils.inference import large_image
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    whole = predicted(path, data, tmp_path / "whole")
    monkeypatch.setattr(large_image, "LARGE_PIXELS", 1)
    streamed = predicted(path, data, tmp_path / "streamed")
    for name, labels in whole.items():
        assert (streamed[name] != labels).mean() < 1e-3       # equal up to rounding of logits


def test_an_own_setting_goes_before_validation_and_another_config_keeps_it(data, tmp_path):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    state = read_checkpoint(path)

    def size(*overrides, config=None):
        return open_model(with_config(state, config, overrides), "cpu", path).predictor().base_size
    assert size() == 45
    assert size("predict.base_size=70") == 70
    assert size("predict.base_size=null") is None
    assert size("predict.base_size=[30,40]") == (30, 40)
    assert size("val_loader.args.base_size=50") == 50
    assert size("val_loader.args.base_size=null") is None
    other = {**state["config"], "val_loader": state["config"]["train_loader"]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert size(config=str(tmp_path / "other.json")) == 45


def test_the_loader_that_is_scored_goes_before_validation(data, tmp_path, capsys):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    assert scores_of_test(path, tmp_path, capsys,
                          "test_loader.args.base_size=64")["base_size"] == 64
    assert scores_of_test(path, tmp_path, capsys,
                          "test_loader.args.base_size=null")["base_size"] == 45


def test_the_demo_answers_with_the_labels_of_inference(data, tmp_path):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    opened = open_model(with_config(read_checkpoint(path)), "cpu", path)
    segmenter = Segmenter(opened, 10 ** 6, 10 ** 6)
    answer = segmenter(str(data / "images" / "0.png"), "whole", "max")
    labels = predicted(path, data, tmp_path / "out")["0.png"]
    assert (answer["height"], answer["width"]) == labels.shape
    shares = {one["name"]: one["share"] for one in answer["classes"]}
    assert shares == {"abc"[k]: (labels == k).mean() for k in np.unique(labels)}


def test_calibrate_and_plot_rules_predict_at_it(data, tmp_path, capsys, monkeypatch):
    path = checkpoint(data, tmp_path / "model.pth", base_size=45)
    seen = []
    from utils.predict.predictor import Predictor
    forward = Predictor._forward

    def record(self, x):
        seen.append(max(x.shape[-2:]))
        return forward(self, x)
    monkeypatch.setattr(Predictor, "_forward", record)
    assert console.run(calibrate.main, ["-r", path, "-d", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pixels"] == sum(h * w for h, w in SIZES)
    assert set(seen) == {45}
    assert console.run(plot_rules.main, ["-r", path, "-d", "cpu", "--min-pixels", "9", "-o",
                                         str(tmp_path / "rules.png")]) == 0
    assert set(seen) == {45} and read_image(str(tmp_path / "rules.png")).size


def damaged(data, tmp_path):
    """A checkpoint of finite weights whose sums overflow to inf - inf."""
    path = checkpoint(data, tmp_path / "model.pth")
    state = read_checkpoint(path)
    for key in ("initial.conv.weight", "fullconv.weight"):
        weight = state["model"][key]
        weight.copy_(torch.where(torch.rand(weight.shape) > 0.5, 3e38, -3e38))
    write_checkpoint(path, state)
    return path


@pytest.mark.parametrize("rule", ["max", "T", "rankdice", "rankiou"])
def test_logits_that_are_not_finite_end_test_py_with_the_image_and_without_scores(
        data, tmp_path, capsys, rule):
    path = damaged(data, tmp_path)
    assert console.run(test_program.main, ["-r", path, "-o", str(tmp_path), "-d", "cpu",
                                           "-p", rule]) == 5
    captured = capsys.readouterr()
    assert "not finite" in captured.err and "where: 0" in captured.err and not captured.out
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("options", [(), ("-p", "rankdice"), ("--overlay", "--probabilities"),
                                     ("--mode", "sliding", "--crop-size", "32")])
def test_logits_that_are_not_finite_give_no_files_and_status_5(data, tmp_path, capsys, options):
    path = damaged(data, tmp_path)
    out = tmp_path / "out"
    assert console.run(inference.main, ["-r", path, "-i", str(data / "images"), "-o", str(out),
                                        "-d", "cpu", "--json", *options]) == 5
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == 0 and len(report["failed"]) == 4
    assert all("not finite" in one["reason"] for one in report["failed"])
    assert not list(out.rglob("*.*"))


def test_an_image_with_nan_does_not_stop_the_others(data, tmp_path, capsys, monkeypatch):
    path = checkpoint(data, tmp_path / "model.pth")
    from utils.predict.predictor import Predictor
    predict = Predictor._predict

    def broken(self, x):
        logits = predict(self, x).clone()
        return logits.fill_(float("nan")) if x.shape[-2:] == (33, 40) else logits
    monkeypatch.setattr(Predictor, "_predict", broken)
    out = tmp_path / "out"
    assert console.run(inference.main, ["-r", path, "-i", str(data / "images"), "-o", str(out),
                                        "-p", "T", "-d", "cpu"]) == 5
    assert "3 ok, 1 failed" in capsys.readouterr().err
    assert sorted(one.name for one in out.iterdir()) == ["0.png", "1.png", "2.png"]


def test_a_validation_in_training_warns_of_nan_and_goes_on(data, tmp_path, capsys):
    path = damaged(data, tmp_path)
    opened = open_model(read_checkpoint(path), "cpu", path)
    loader = make_loader(opened.config["val_loader"], ignore_index=255)
    predictor = opened.predictor()
    scores = evaluate(predictor, loader, [build_decision("rankdice")], num_classes=3,
                      ignore_index=255, device="cpu", nonfinite="warn")
    assert scores["rankdice"].images == 4
    assert capsys.readouterr().err.count("not finite") == 1


def test_threshold_and_temperature_are_options_and_are_recorded(data, tmp_path, capsys):
    path = checkpoint(data, tmp_path / "model.pth")
    default = scores_of_test(path, tmp_path, capsys, "-p", "T")
    given = scores_of_test(path, tmp_path, capsys, "-p", "T", "--threshold", "0.2",
                           "--temperature", "2")
    assert (default["threshold"], default["temperature"]) == (0.5, 1.0)
    assert (given["threshold"], given["temperature"]) == (0.2, 2.0)
    override = scores_of_test(path, tmp_path / "b", capsys, "-p", "T", "predict.threshold=0.2",
                              "predict.temperature=2.0")
    assert given["Mean_IoU"] == override["Mean_IoU"]
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 2       # another threshold replaces nothing
    labels = predicted(path, data, tmp_path / "out", "-p", "T", "--threshold", "0.9,0.1,0.5",
                       "--temperature", "0.5", "--json")
    report = json.loads(capsys.readouterr().out)["prediction"]
    assert report["procedure"] == "T" and report["threshold"] == [0.9, 0.1, 0.5]
    assert report["temperature"] == 0.5
    opened = open_model(read_checkpoint(path), "cpu", path)
    image = torch.from_numpy(read_image(str(data / "images" / "0.png"))).permute(2, 0, 1)[None]
    rule = build_decision("T", options={"threshold": [0.9, 0.1, 0.5], "temperature": 0.5})
    assert np.array_equal(labels["0.png"], rule.labels(opened.predictor()(image))[0].numpy())


def test_the_temperature_changes_written_probabilities(data, tmp_path):
    path = checkpoint(data, tmp_path / "model.pth")
    predicted(path, data, tmp_path / "a", "--probabilities")
    predicted(path, data, tmp_path / "b", "--probabilities", "--temperature", "3")
    for folder in ("a", "b"):
        opened = open_model(read_checkpoint(path), "cpu", path)
        image = torch.from_numpy(read_image(str(data / "images" / "0.png"))).permute(2, 0, 1)[None]
        probs = (opened.predictor()(image) / (3 if folder == "b" else 1)).softmax(1)[0]
        stored = np.load(tmp_path / folder / "0_probabilities.npz")["probabilities"]
        assert np.abs(stored - probs.numpy()).max() <= 2 ** -12 + 1e-6


def test_validation_in_training_says_that_it_resizes_the_labels(tmp_path, capsys):
    small = {"length": 4, "size": [32, 48], "num_workers": 0, "batch_size": 2}
    config = {"arch": {"type": "ENet"}, "train_loader": {"type": "Shapes", "args": small},
              "val_loader": {"type": "Shapes", "args": {**small, "base_size": 40}}, "loss": "CE",
              "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
              "trainer": {"epochs": 1, "save_dir": str(tmp_path), "tensorboard": False}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert console.run(train.main, ["-c", str(tmp_path / "config.json")]) == 0
    printed = "".join(capsys.readouterr())
    assert "rule max, whole images, images and labels at 40 pixels (long side)" in printed
    path = str(next(tmp_path.glob("*/*/model_best.pth")))
    assert scores_of_test(path, tmp_path, capsys)["base_size"] == 40


@pytest.mark.parametrize("part,value", [("mean", float("nan")), ("std", float("inf")),
                                        ("std", 0.0)])
def test_a_normalization_that_is_no_number_is_an_error_of_the_checkpoint(data, tmp_path, capsys,
                                                                         part, value):
    path = checkpoint(data, tmp_path / "model.pth")
    state = read_checkpoint(path)
    state["normalization"][part] = [value] * 3
    write_checkpoint(path, state)
    assert console.run(inference.main, ["-r", path, "-i", str(data / "images"), "-o",
                                        str(tmp_path / "out")]) == 4
    error = capsys.readouterr().err
    assert "normalization" in error or "mean and std are three finite numbers" in error
