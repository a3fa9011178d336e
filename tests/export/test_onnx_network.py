"""Labels from the output of a graph, without PyTorch."""
import json

import numpy as np
import pytest
import torch

from tests.support.graphs import needs_onnx
from utils.decision.rules import build_decision
from utils.errors import CheckpointError, NumericalError
from utils.export.onnx_network import OnnxNetwork, largest
from utils.predict.predictor import Predictor


def test_of_equal_logits_the_first_one_wins():
    logits = np.array([[1, 5, 2], [1, 5, 9], [0, 6, 9]], np.float32).reshape(3, 1, 3)
    assert largest(logits).tolist() == [[0, 2, 1]]
    many = np.random.default_rng(0).normal(size=(300, 8, 9)).astype(np.float32)
    assert np.array_equal(largest(many), many.argmax(0))


def graph(path, nodes=None, inputs=None, kind="FLOAT", **changes):
    """Write an ONNX graph whose logits are its image; `changes` of its metadata, None: left out."""
    import onnx
    from onnx import TensorProto, helper
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"])
    out = helper.make_tensor_value_info("o", getattr(TensorProto, kind), None)
    model = helper.make_model(helper.make_graph(
        nodes or [helper.make_node("Identity", ["image"], ["o"])], "g",
        [image] if inputs is None else inputs, [out]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    about = {"class_names": ["a", "b", "c"], "palette": [[1, 2, 3]] * 3, "mean": [0.1] * 3,
             "std": [1.0] * 3, "order": "RGB", "scale": 255.0, "activation": "softmax",
             "architecture": "X", "image": "float32", "output": "logits", "opset": 18, "format": 1}
    for key, value in {**about, **changes}.items():
        if value is not None:
            model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, str(path))
    return str(path)


PICTURE = np.random.default_rng(1).integers(0, 256, (50, 138, 3), np.uint8)


@needs_onnx
def test_labels_at_a_base_size_are_those_of_the_predictor(tmp_path):
    class Network(torch.nn.Module):
        def forward(self, x):
            return x
    for base_size in (48, 200, [30, 40]):
        network = OnnxNetwork(graph(tmp_path / "g.onnx", format=2, base_size=base_size))
        predictor = Predictor(Network(), lambda image: image.float(), base_size=base_size)
        expected = predictor.labels(torch.from_numpy(PICTURE).permute(2, 0, 1)[None],
                                    build_decision("max"))[0].numpy()
        labels = network.labels(PICTURE)
        assert labels.shape == (50, 138) and (labels != expected).mean() < 2e-3


@needs_onnx
def test_a_graph_of_labels_gives_the_nearest_ones(tmp_path):
    from onnx import TensorProto, helper
    nodes = [helper.make_node("ArgMax", ["image"], ["m"], axis=1, keepdims=0),
             helper.make_node("Cast", ["m"], ["o"], to=TensorProto.UINT8)]
    network = OnnxNetwork(graph(tmp_path / "g.onnx", nodes, kind="UINT8", output="labels",
                                format=2, base_size=276))
    assert network.labels(PICTURE).shape == (50, 138)
    flat = np.zeros((20, 40, 3), np.uint8)
    flat[:, 20:, 2] = 255
    network.base_size = 20
    assert np.array_equal(network.labels(flat), np.repeat([[0] * 20 + [2] * 20], 20, 0))


@needs_onnx
def test_logits_that_are_not_finite_are_an_error(tmp_path):
    from onnx import helper
    nodes = [helper.make_node("Sub", ["image", "image"], ["z"]),
             helper.make_node("Div", ["z", "z"], ["o"])]
    with pytest.raises(NumericalError, match="not finite"):
        OnnxNetwork(graph(tmp_path / "g.onnx", nodes)).labels(PICTURE)


@needs_onnx
@pytest.mark.parametrize("changes", [
    {"palette": ["red", "g", "b"]}, {"palette": [[300, -1, 0]] * 3}, {"palette": [[1, 2]] * 3},
    {"class_names": 5, "palette": 5}, {"class_names": {"a": 1}}, {"output": "x"}, {"format": "a"},
    {"format": [1]}, {"format": 4}, {"class_names": float("nan")}, {"class_names": None},
    {"base_size": -1, "format": 2}, {"base_size": [1, 2, 3], "format": 2}, {"scale": float("nan")},
    {"mean": [True] * 3}, {"class_names": ["a"]}])
def test_metadata_of_another_kind_is_one_error(tmp_path, changes):
    with pytest.raises(CheckpointError) as error:
        OnnxNetwork(graph(tmp_path / "g.onnx", **changes))
    assert len(str(error.value)) < 400


@needs_onnx
def test_metadata_nested_deeply_is_an_error(tmp_path):
    import onnx
    model = onnx.load(graph(tmp_path / "g.onnx"))
    next(one for one in model.metadata_props if one.key == "palette").value = "[" * 100_000
    onnx.save(model, str(tmp_path / "deep.onnx"))
    with pytest.raises(CheckpointError, match="RecursionError"):
        OnnxNetwork(str(tmp_path / "deep.onnx"))


@needs_onnx
def test_an_output_that_is_not_what_the_metadata_says_is_an_error(tmp_path):
    from onnx import helper
    pooled = [helper.make_node("MaxPool", ["image"], ["o"], kernel_shape=[2, 2], strides=[2, 2])]
    for nodes, changes in ((pooled, {}), (None, {"output": "labels"}),
                           ([helper.make_node("Flatten", ["image"], ["o"])], {}),
                           ([helper.make_node("ReduceMax", ["image"], ["o"], keepdims=0)], {}),
                           (None, {"class_names": ["a"], "palette": [[0, 0, 0]]})):
        with pytest.raises(CheckpointError, match="its metadata says"):
            OnnxNetwork(graph(tmp_path / "g.onnx", nodes, **changes)).labels(PICTURE)


@needs_onnx
def test_an_input_that_is_no_image_is_an_error(tmp_path):
    from onnx import TensorProto, helper
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3])
    with pytest.raises(CheckpointError, match="expected one image"):
        OnnxNetwork(graph(tmp_path / "g.onnx", inputs=[image]))
