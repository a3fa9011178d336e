"""The exported graph and its comparison with PyTorch."""
import copy

import numpy as np
import pytest
import torch

from models.enet import ENet
from models.layers.heads import RegionMeans
from tests.support.graphs import NAMES, TinyNet, needs_onnx, write_tiny_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.decision.posterior import Posterior
from utils.export.graph import (
    Graph,
    allowed,
    check_image,
    compare_outputs,
    made_up_image,
    open_graph,
    unpools,
    write_graph,
)
from utils.export.metadata import GraphMetadata
from utils.images.normalize import Normalize
from utils.predict.open_model import open_model

NORMALIZE = Normalize([0.5, 0.4, 0.3], [0.25, 0.3, 0.2])
METADATA = GraphMetadata(NAMES, [[k, 0, 0] for k in range(len(NAMES))], **NORMALIZE.state(),
                         activation="softmax", architecture="TinyNet", image="", output="logits")


@pytest.mark.slow      # torch's exporter is slow to start
@needs_onnx
def test_a_network_with_one_logit_for_two_classes_is_exported(tmp_path):
    class OneChannel(TinyNet):
        def forward(self, x):
            return super().forward(x)[:, :1]
    graph = Graph(OneChannel().two_classes(one_logit=True), NORMALIZE).eval()
    write_graph(graph, tmp_path / "graph.onnx", "onnx", METADATA)
    image = made_up_image(1, 33, 48)
    found = open_graph(tmp_path / "graph.onnx", "onnx")(image.astype(np.float32))
    with torch.no_grad():
        expected = graph(torch.from_numpy(image)).numpy()
    assert found.shape == (1, 2, 33, 48) and np.abs(found - expected).max() <= 1e-4
    assert np.array_equal(found[:, 0], -found[:, 1])


def test_the_comparison_counts_pixels_labels_and_ties():
    logits = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.00001, 2.0]]).view(1, 2, 1, 3)
    same = compare_outputs("same", logits, logits.clone(), argmax=False)
    assert same.passed() and (same.delta, same.off, same.differing) == (0, 0, 0)
    swapped = logits.clone()
    swapped[0, :, 0, 1] = torch.tensor([1.00001, 1.0])      # a tie that is decided the other way
    tie = compare_outputs("tie", logits, swapped, argmax=False)
    assert tie.passed() and (tie.off, tie.differing, tie.tied) == (0, 1, 1)
    far = logits.clone()
    far[0, 0, 0, 2] = 9
    wrong = compare_outputs("wrong", logits, far, argmax=False)
    assert not wrong.passed() and (wrong.off, wrong.differing, wrong.tied) == (1, 1, 0)
    labels = torch.tensor([[[0, 0, 9]]], dtype=torch.uint8)
    labels = compare_outputs("labels", logits, labels, argmax=True)
    assert not labels.passed() and (labels.differing, labels.tied) == (2, 1)
    assert not compare_outputs("nan", logits, logits * torch.nan, argmax=False).passed(jumps=True)


def test_the_tolerance_includes_the_rounding_of_pytorch(tmp_path, monkeypatch):
    """Adding and subtracting 1e5 removes the last digits of logits in float32."""
    class Canceling(TinyNet):
        def forward(self, x):
            return super().forward(x) + 1e5 - 1e5
    network = Canceling()
    opened = open_model(read_checkpoint(write_tiny_checkpoint(
        tmp_path / "model.pth", monkeypatch, network)), "cpu")
    image = made_up_image(1, 40, 56)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(opened.normalize(torch.from_numpy(image)).double())
    options = dict(uint8_input=True, argmax=False)
    check = check_image(lambda _: exact.float().numpy(), opened, image, "exact", **options)
    assert check.passed() and check.delta > allowed(check.largest)
    off = exact.float() + 0.05 * exact.abs().max()
    assert not check_image(lambda _: off.numpy(), opened, image, "off", **options).passed()


def test_logits_may_jump_only_in_unpooling_networks_and_on_few_pixels():
    logits = torch.randn(1, 3, 40, 50)
    output = logits.clone()
    output[:, :, 0, :15] += 0.01
    check = compare_outputs("jump", logits, output, argmax=False)
    assert check.off == 15 and check.passed(jumps=True) and not check.passed()
    output[:, :, :, :2] += 0.01
    assert not compare_outputs("edge", logits, output, argmax=False).passed(jumps=True)
    assert unpools(ENet(3).eval()) and not unpools(TinyNet().eval())


def test_region_means_equal_adaptive_pooling_at_any_size():
    any_side = torch.export.Dim.DYNAMIC
    for bins in (1, 2, 3, 6):
        module = RegionMeans(bins).eval()
        graph = torch.export.export(module, (torch.randn(2, 4, 7, 11),), dynamic_shapes=(
            {0: any_side, 2: any_side, 3: any_side},)).module()
        for size in ((1, 4, 5, 23), (3, 4, 12, 6), (2, 4, 7, 3)):
            x = torch.randn(size)
            assert torch.allclose(graph(x), module(x), atol=1e-6)


def test_a_graph_of_scores_gives_the_logarithms_of_their_shares(tmp_path, monkeypatch):
    class Scores(TinyNet):
        activation = "scores"

        def forward(self, x):
            return 3 * super().forward(x).sigmoid()
    network = Scores()
    opened = open_model(read_checkpoint(write_tiny_checkpoint(
        tmp_path / "model.pth", monkeypatch, network)), "cpu")
    image, posterior = made_up_image(1, 33, 48), Posterior("scores")
    with torch.no_grad():
        scores = network(opened.normalize(torch.from_numpy(image)))
        graph = Graph(network, opened.normalize, posterior=posterior).eval()
        found = graph(torch.from_numpy(image))
    shares = scores / scores.sum(1, keepdim=True)
    assert torch.allclose(found.softmax(1), shares, atol=1e-6)
    options = dict(uint8_input=True, argmax=False, posterior=posterior)
    assert check_image(lambda _: found.numpy(), opened, image, "same", **options).passed()
    assert not check_image(lambda _: 2 * found.numpy(), opened, image, "off", **options).passed()
