"""Prediction, SegFix and export of a network that lives on a GPU."""
import copy

import pytest
import torch

from tests.decision.test_rankdice import smooth_map
from tests.gpu.support import share_equal
from tests.models.test_models import construct
from tests.predict.test_predictor import Net, normalize, picture
from tests.support.graphs import TinyNet, needs_onnx, write_tiny_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.decision.ensemble import Ensemble, Member
from utils.decision.posterior import Posterior
from utils.decision.rankdice import rank_dice
from utils.decision.rules import build_decision
from utils.export.graph import (
    check_image,
    graph_metadata,
    graph_of,
    made_up_image,
    open_graph,
    write_graph,
)
from utils.predict.open_model import open_model
from utils.predict.predictor import Predictor
from utils.segfix.refiner import predict_offsets

pytestmark = pytest.mark.gpu

MODES = {"whole": {}, "flip": {"flip": True}, "sliding": {"mode": "sliding", "crop_size": 24},
         "source": {"mode": "sliding", "tiling": "source"},
         "multiscale": {"mode": "multiscale", "scales": (0.5, 1.0, 1.5), "flip": True},
         "probs": {"mode": "multiscale", "scales": (0.75, 1.0), "average": "probs"}}


@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_is_the_same(mode, device):
    torch.manual_seed(0)
    net = Net().eval()
    image = picture(2, 61, 83)
    here = Predictor(net, normalize, **MODES[mode])
    expected, labels = here(image), here.labels(image, build_decision("max"))
    there = Predictor(copy.deepcopy(net).to(device), normalize, **MODES[mode])
    found = there(image.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert share_equal(there.labels(image.to(device), build_decision("max")), labels) > 0.999


def test_an_ensemble_is_the_same(device):
    torch.manual_seed(0)
    networks = {24: Net().eval(), None: Net().eval()}       # by base_size
    image = picture(2, 61, 83)

    def mean_on(place):
        ensemble = Ensemble([Member(Predictor(copy.deepcopy(net).to(place), normalize,
                                              base_size=size), Posterior, {})
                             for size, net in networks.items()], place)
        posterior = ensemble.posterior()
        return posterior(ensemble(image.to(ensemble.takes(place)))).cpu()

    torch.testing.assert_close(mean_on(device), mean_on("cpu"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("crop", [None, 48])
def test_segfix_predicts_the_same_offsets(crop, device):
    model, _ = construct("SegFix")
    model.eval()
    image = picture(1, 65, 97)[0]
    expected = torch.from_numpy(predict_offsets(model, normalize, image, crop))
    found = torch.from_numpy(predict_offsets(model.to(device), normalize, image, crop))
    assert share_equal(found, expected) > 0.999


def test_rankdice_of_150_classes_needs_little_more_memory_than_its_input(cuda, record_property):
    probs = torch.rand(1, 150, 1024, 2048, device=cuda).square_()
    probs /= probs.sum(1, keepdim=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    rank_dice(probs)
    rank_dice(probs, overlap=False)
    extra = (torch.cuda.max_memory_allocated() - before) / (probs.numel() * 4)
    record_property("extra memory, in maps of probabilities", round(extra, 2))
    assert extra <= 2


def test_rankdice_of_a_large_map_gives_the_same_masks(device):
    probs = smooth_map(1, 19, 256, 512)
    assert share_equal(rank_dice(probs.to(device)), rank_dice(probs)) > 0.9999


@needs_onnx
def test_a_network_on_the_device_is_exported(device, tmp_path, monkeypatch):
    network = TinyNet().to(device)
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny.pth", monkeypatch, network)
    opened = open_model(read_checkpoint(checkpoint), device)
    path = tmp_path / "graph.onnx"
    options = {"uint8_input": False, "argmax": False}
    write_graph(graph_of(opened, False), path, "onnx",
                graph_metadata(opened, size=None, opset=18, **options), size=None,
                uint8_input=False, opset=18)
    check = check_image(open_graph(path, "onnx"), opened, made_up_image(1, 64, 96), "made up",
                        **options)
    assert check.passed()
