"""Labels from the output of a graph, without PyTorch."""
import numpy as np

from utils.export.onnx_network import largest


def test_of_equal_logits_the_first_one_wins():
    logits = np.array([[1, 5, 2], [1, 5, 9], [0, 6, 9]], np.float32).reshape(3, 1, 3)
    assert largest(logits).tolist() == [[0, 2, 1]]
    many = np.random.default_rng(0).normal(size=(300, 8, 9)).astype(np.float32)
    assert np.array_equal(largest(many), many.argmax(0))
