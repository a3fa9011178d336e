"""tools.export: a graph that is written computes the same as PyTorch.

Torch's exporters are slow to start: a test that writes a graph takes seconds.
"""
import copy
import glob
import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.graphs import NAMES, TinyNet, needs_onnx, write_tiny_checkpoint
from tests.support.places import ROOT, SHARED
from tools import export as tool
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import with_config
from utils.decision.posterior import build_posterior
from utils.decision.rules import RankDecision, build_decision
from utils.errors import NumericalError
from utils.export import graph as exporting
from utils.export.graph import Check, check_image, made_up_image, open_graph
from utils.export.metadata import read_metadata
from utils.export.onnx_network import OnnxNetwork
from utils.losses import build_loss
from utils.losses.inverse import inverse_of
from utils.predict.open_model import open_model

TRAINED = sorted(glob.glob(str(ROOT / "saved" / "camvid_enet" / "*" / "model_best.pth")))
CAMVID = SHARED / "data" / "camvid" / "val"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    return write_tiny_checkpoint(tmp_path / "model.pth", monkeypatch)


def run(*arguments):
    return console.run(tool.main, list(map(str, arguments)))


def report_of(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("options", [
    pytest.param(["--format", "onnx"], marks=needs_onnx),
    pytest.param(["--format", "onnx", "--size", "40x56", "--opset", "20"],
                 marks=[needs_onnx, pytest.mark.slow]),
    ["--format", "torch_export"], ["--format", "torchscript", "--size", "40x56"]])
def test_a_graph_of_every_format_is_compared_with_pytorch(options, checkpoint, tmp_path, capsys):
    """Takes three to six seconds each: torch's exporters are slow to start."""
    report = report_of(capsys, "-r", checkpoint, *options, "-o", tmp_path / "graph.onnx")
    assert left_in(tmp_path) == ["graph.onnx", "model.pth"]
    assert len(report["checks"]) >= 3
    for check in report["checks"]:
        assert check["delta"] <= 1e-4 and check["off"] == 0 and check["differing"] == 0
    run_graph = open_graph(tmp_path / "graph.onnx", report["format"])
    opened = open_model(read_checkpoint(checkpoint), "cpu")
    check = check_image(run_graph, opened, made_up_image(1, 40, 56, seed=5), "another image",
                        uint8_input=False, argmax=False)
    assert check.passed() and check.largest > 1


@needs_onnx
def test_normalization_and_argmax_are_part_of_the_graph(tmp_path, monkeypatch, capsys):
    """The graph takes uint8 RGB, for a network that takes BGR in 0..255."""
    import onnxruntime
    checkpoint = write_tiny_checkpoint(tmp_path / "bgr.pth", monkeypatch, order="BGR", scale=1.0,
                                       mean=[104.0, 117.0, 123.0], std=[57.0, 58.0, 59.0])
    path = tmp_path / "labels.onnx"
    report = report_of(capsys, "-r", checkpoint, "--uint8-input", "--argmax", "-o", path)
    assert report["output"] == "labels" and report["checks"][0]["delta"] is None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = made_up_image(2, 37, 50)
    found, = session.run(None, {"image": image})
    bgr = torch.from_numpy(image[:, ::-1].astype(np.float32))
    mean, std = torch.tensor([104.0, 117.0, 123.0]), torch.tensor([57.0, 58.0, 59.0])
    with torch.no_grad():
        expected = TinyNet().eval()((bgr - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)
    assert found.dtype == np.uint8 and (found == expected.numpy()).mean() > 0.999
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize("options", [
    pytest.param(["--rule", "rankdice"], marks=needs_onnx),
    pytest.param(["--rule", "rankiou", "predict.smooth=1.0", "predict.temperature=2.0",
                  "--format", "torch_export"], marks=pytest.mark.slow)])
def test_a_decision_rule_is_part_of_the_graph(options, checkpoint, tmp_path, capsys):
    """Takes three to six seconds each: torch's exporters are slow to start."""
    path = tmp_path / "graph.onnx"
    report = report_of(capsys, "-r", checkpoint, *options, "-o", path)
    assert report["output"] == "labels" and report["rule"] == options[1]
    for check in report["checks"]:
        assert check["differing"] == check["tied"] and check["delta"] is None
        assert 0 <= check["other_solver"] < 0.02 * check["pixels"] and check["lost"] < 0.01
    run_graph = open_graph(path, report["format"])
    image = made_up_image(1, 120, 90, seed=5)
    opened = open_model(with_config(read_checkpoint(checkpoint), None, options[2:4]
                                    if len(options) > 2 else []), "cpu")
    rule = build_decision(options[1], opened.activation, opened.config["predict"], opened.inverse)
    with torch.no_grad():
        expected = rule.labels(opened.model(opened.normalize(torch.from_numpy(image))))
    labels = run_graph(image.astype(np.float32))
    assert labels.dtype == np.uint8 and (labels == expected.numpy()).mean() > 0.98
    assert len(np.unique(labels)) > 2


@pytest.mark.slow
@needs_onnx
def test_run_onnx_needs_nothing_else_for_a_graph_with_a_rule(checkpoint, tmp_path, capsys):
    """Takes three seconds: torch's exporter is slow to start."""
    path = tmp_path / "graph.onnx"
    assert run("-r", checkpoint, "--rule", "rankdice", "-o", path) == 0
    assert "labels differ from those of the rule here" in capsys.readouterr().out
    network = OnnxNetwork(str(path))
    assert network.metadata.rule == "rankdice"
    image = made_up_image(1, 64, 48, seed=3)
    labels = network.labels(image[0].transpose(1, 2, 0))
    assert np.array_equal(labels, open_graph(path, "onnx")(image.astype(np.float32))[0])


@pytest.mark.parametrize("options, said", [
    (["--rule", "rankdice", "--argmax"], "not allowed with"), (["--rule", "T"], "invalid choice"),
    (["--rule", "rankdice_dep"], "invalid choice")])
def test_a_rule_that_a_graph_cannot_have_is_a_usage_error(options, said, checkpoint, tmp_path,
                                                          capsys):
    with pytest.raises(SystemExit) as error:
        run("-r", checkpoint, *options, "-o", tmp_path / "graph.onnx")
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_labels_that_the_rule_does_not_give_fail_the_comparison():
    rule = RankDecision("rankdice")
    logits = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    labels = exporting.rule_growth(rule, logits).argmax(1).to(torch.uint8)
    same = exporting.compare_decisions("same", logits, labels, rule)
    assert same.passed() and same.differing == 0 and same.other_solver is not None
    labels[0, 0, :3] = (labels[0, 0, :3] + 1) % 4
    assert not exporting.compare_decisions("wrong", logits, labels, rule).passed()


@needs_onnx
def test_the_metadata_describes_the_network(checkpoint, tmp_path):
    import onnx
    assert run("-r", checkpoint, "-o", tmp_path / "graph.onnx") == 0
    model = onnx.load(str(tmp_path / "graph.onnx"))
    about = read_metadata({one.key: one.value for one in model.metadata_props}, "graph")
    stored = read_checkpoint(checkpoint)
    assert about.class_names == stored["class_names"] and about.palette == stored["palette"]
    assert (about.mean, about.std, about.order, about.scale) == \
        tuple(stored["normalization"].values())
    assert about.opset == 18 == model.opset_import[0].version
    sides = [side.dim_param for side in model.graph.output[0].type.tensor_type.shape.dim]
    assert sides == ["batch", "", "height", "width"]


@pytest.mark.slow
@needs_onnx
def test_a_graph_that_computes_something_else_is_not_kept(checkpoint, tmp_path, monkeypatch,
                                                          capsys):
    """Takes three seconds: torch's exporter is slow to start."""
    (tmp_path / "graph.onnx").write_text("an older one")
    write = exporting._write_onnx

    def perturbed(graph, *arguments, **options):
        graph = copy.deepcopy(graph)
        with torch.no_grad():
            graph.network.second.weight[3] += 1e-3
        write(graph, *arguments, **options)
    monkeypatch.setattr(exporting, "_write_onnx", perturbed)
    assert run("-r", checkpoint, "-o", tmp_path / "new.onnx") == 5
    error = capsys.readouterr().err
    assert "logits differ on" in error and "no file was written" in error
    assert run("-r", checkpoint, "-o", tmp_path / "graph.onnx") == 5
    assert left_in(tmp_path) == ["graph.onnx", "model.pth"]
    assert (tmp_path / "graph.onnx").read_text() == "an older one"


def test_a_network_that_returns_nan_fails_the_comparison(tmp_path, monkeypatch, capsys):
    network = TinyNet()
    nn.init.constant_(network.second.bias, torch.nan)
    checkpoint = write_tiny_checkpoint(tmp_path / "model.pth", monkeypatch, network)
    assert run("-r", checkpoint, "--format", "torch_export", "-o", tmp_path / "graph.pt2") == 5
    assert "1x3x64x96" in capsys.readouterr().err and left_in(tmp_path) == ["model.pth"]


def test_a_missing_package_is_named_with_its_install_command(checkpoint, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.setattr(exporting.importlib.util, "find_spec",
                        lambda name: None if name == "onnxscript" else True)
    assert run("-r", checkpoint, "-o", tmp_path / "graph.onnx") == 2
    error = capsys.readouterr().err
    assert "not installed: onnxscript" in error
    assert "pip install -r requirements-export.txt" in error
    assert (ROOT / "requirements-export.txt").is_file()


@pytest.mark.parametrize("options, status, words", [
    (["--format", "torchscript"], 2, "give --size HxW"),
    pytest.param(["--opset", "9"], 2, "--opset", marks=needs_onnx),
    (["--format", "torch_export", "-o", "nowhere/graph.pt2"], 3, "cannot write")])
def test_a_graph_that_cannot_be_exported_is_a_clear_error(options, status, words, checkpoint,
                                                          tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("-r", checkpoint, "-o", "graph", *options) == status
    assert words in capsys.readouterr().err and left_in(tmp_path) == ["model.pth"]


def test_options_without_effect_are_an_error(checkpoint):
    with pytest.raises(SystemExit) as stop:
        run("-r", checkpoint, "--format", "torch_export", "--opset", "18", "-o", "graph.pt2")
    assert stop.value.code == 2


@pytest.mark.slow
@needs_onnx
def test_quantization_reports_the_score_before_and_after(checkpoint, tmp_path, capsys):
    """Takes about five seconds: the graph is exported, calibrated and scored twice."""
    import onnx
    path = tmp_path / "int8.onnx"
    report = report_of(capsys, "-r", checkpoint, "--int8", ROOT / "docs" / "examples",
                       "--max-drop", "1", "-o", path)["int8"]
    assert report["images"] == 4 and 0 <= report["mIoU_int8"] <= 1
    assert 0 < report["mIoU_float"] <= 1
    model = onnx.load(str(path))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert read_metadata({one.key: one.value for one in model.metadata_props}, "g").opset == 18
    assert run("-r", checkpoint, "--int8", ROOT / "docs" / "examples", "--max-drop", "-1",
               "-o", tmp_path / "worse.onnx") == 5
    assert "points of mIoU" in capsys.readouterr().err
    assert left_in(tmp_path) == ["int8.onnx", "model.pth"]


# The architectures that docs/export.md promises, with light encoders.
PROMISED = {
    "ENet": {}, "UNet": {}, "PSPNet": {"backbone": "resnet18"}, "DeepLab": {"backbone": "resnet18"},
    "HRNetOCR": {"backbone": "hrnet_w18_small_v1", "mid_channels": 32, "key_channels": 16},
    "MscaleOCR": {"backbone": "hrnet_w18_small_v1", "mid_channels": 32, "key_channels": 16},
    "ViTLinear": {"backbone": "dinov2_vits14"}, "ViTMultiLinear": {"backbone": "dinov3_vits16"},
}


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", PROMISED)
def test_promised_architectures_run_in_onnx_runtime_at_any_size(name, tmp_path, monkeypatch):
    """Takes 6 to 30 seconds of CPU each, most of it in torch's exporter."""
    torch.manual_seed(0)
    network = build("models", {"type": name, "args": PROMISED[name]}, num_classes=len(NAMES))
    checkpoint = write_tiny_checkpoint(tmp_path / "model.pth", monkeypatch, network)
    assert run("-r", checkpoint, "-o", tmp_path / "graph.onnx") == 0


@pytest.mark.slow
@needs_onnx
@pytest.mark.skipif(not TRAINED or not CAMVID.is_dir(),
                    reason="saved/ contains no ENet trained on CamVid, or CamVid is missing")
def test_a_trained_network_gives_the_same_labels_on_real_images(tmp_path, capsys):
    """Takes about 40 seconds of CPU: the export, and eleven images in both programs."""
    listed = tmp_path / "images.txt"
    listed.write_text("\n".join(map(str, sorted(CAMVID.iterdir())[::10])))
    report = report_of(capsys, "-r", TRAINED[-1], "--images", listed, "-o", tmp_path / "g.onnx")
    check = report["checks"][-1]
    assert check["pixels"] == 11 * 360 * 480
    assert check["differing"] <= 1e-4 * check["pixels"]


def test_a_network_that_returns_nan_is_named_as_the_cause(tmp_path):
    nan, one = float("nan"), Check("a", 9, 1.0, 0.0, 0, 0, 0, 1e-4)
    broken = Check("b", 9, nan, nan, 9, 3, 0, 1e-4)
    assert not (one + broken).passed(True) and not (broken + one).passed(True)
    with pytest.raises(NumericalError, match="PyTorch returns NaN or Inf on b") as error:
        tool._require_passed(broken, False, "a.onnx")
    assert "earlier checkpoint" in str(error.value) and "--opset" not in str(error.value)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("loss, predict", [
    ('loss={"type":"CE","args":{"weight":[1,2,3,4,5,6,7,8,50],"label_smoothing":0.1}}', {}),
    ('loss={"type":"FocalLoss","args":{"gamma":2,"alpha":[1,2,3,4,5,6,7,8,50]}}', {
        "temperature": 1.3, "scale": [1.0, 0.5, 2.0] * 3, "bias": [0.0, 0.5, -1.0] * 3})])
def test_a_graph_can_give_the_logits_of_the_posterior(checkpoint, tmp_path, loss, predict):
    """Takes three seconds: torch's exporter is slow to start."""
    options = [f"predict.{key}={value}" for key, value in predict.items()]
    path = tmp_path / "graph.onnx"
    assert run("-r", checkpoint, "-o", path, "--posterior", "auto", loss, *options) == 0
    about = OnnxNetwork(str(path)).metadata
    assert about.posterior and ("bias" in about.posterior) == bool(predict)
    section = json.loads(loss.partition("=")[2])
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 56)).astype(np.float32)
    run_graph = exporting.open_graph(path, "onnx")
    assert run("-r", checkpoint, "-o", tmp_path / "raw.onnx") == 0
    raw = torch.from_numpy(exporting.open_graph(tmp_path / "raw.onnx", "onnx")(image))
    expected = build_posterior(predict, inverse=lambda: inverse_of(build_loss(section)))(raw)
    assert (torch.from_numpy(run_graph(image)).softmax(1) - expected).abs().max() < 1e-5


def test_a_posterior_that_changes_nothing_is_refused(checkpoint, tmp_path, capsys):
    for arguments, reason in (([], "nothing to undo"),
                              (["--argmax", "loss=FocalLoss"], "no effect on labels")):
        assert run("-r", checkpoint, "-o", tmp_path / "graph.pt2", "--format", "torch_export",
                   "--posterior", "auto", *arguments) == 2
        assert reason in capsys.readouterr().err


def test_safetensors_is_the_checkpoint_without_paths_of_the_machine(checkpoint, tmp_path, capsys):
    before = read_checkpoint(checkpoint)
    assert run("-r", checkpoint, "--format", "safetensors", "-o", tmp_path / "m.safetensors",
               "trainer.save_dir=/home/ann/runs") == 0
    after = read_checkpoint(tmp_path / "m.safetensors")
    assert after["config"]["trainer"]["save_dir"] == "saved"
    assert all(torch.equal(after["model"][key], value) for key, value in before["model"].items())
    out = capsys.readouterr()
    assert "tensors as safetensors" in out.out and "changed: trainer.save_dir" in out.err


@pytest.mark.parametrize("options, message", [
    (["--rule", "rankdice", "predict.solver=exact"], "predict.solver has no effect"),
    (["predict.theta=3"], "predict.theta has no effect"),
    (["predict.mode=sliding"], "the network on one whole image"),
    (["predict.temperature=2"], "the graph gives raw logits"),
    (["--posterior", "auto", "predict.smooth=1"], "the graph has no rule")])
def test_overrides_that_a_graph_cannot_follow_are_refused(options, message, checkpoint, tmp_path,
                                                          capsys):
    path = tmp_path / "graph.pt2"
    assert run("-r", checkpoint, "-o", path, "--format", "torch_export", *options) == 2
    assert message in capsys.readouterr().err and not path.exists()


def test_options_of_a_graph_are_refused_for_safetensors(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("-r", checkpoint, "--format", "safetensors", "--argmax", "--size", "32x32", "-o",
            tmp_path / "m")
    assert "--size, --argmax have no effect with --format safetensors" in capsys.readouterr().err
