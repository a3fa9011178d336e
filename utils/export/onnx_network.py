"""Runs an ONNX graph of tools.export with ONNX Runtime, without PyTorch."""
import importlib.util
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.errors import CheckpointError, ConfigError, DataError, first_line
from utils.export.metadata import read_metadata
from utils.images.types import Image, Labels

if TYPE_CHECKING:
    import onnxruntime


class OnnxNetwork:
    """A graph in a file, opened with ONNX Runtime.

    provider: "CPU", "CUDA" or another execution provider. threads: of the CPU; 0 takes every core.
    metadata: a utils.export.metadata.GraphMetadata. size: the only (H, W) of the graph, or None.
    Raises ConfigError if ONNX Runtime or the provider is missing, CheckpointError if the file is
    not a graph of tools.export.
    """

    def __init__(self, path: str, provider: str = "CPU", threads: int = 0):
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigError("running a graph needs onnxruntime, which is not installed",
                              fix="pip install -r requirements-export.txt")
        try:
            self.session = open_session(path, _provider(provider), threads)
        except ConfigError:
            raise
        except Exception as error:          # ONNX Runtime raises many types
            raise CheckpointError(f"not a graph that ONNX Runtime can load: "
                                  f"{first_line(error)}", path,
                                  "export it with python -m tools.export") from None
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        self.input = self.session.get_inputs()[0]
        sides = self.input.shape[2:]
        self.size = tuple(sides) if all(isinstance(side, int) for side in sides) else None

    def labels(self, image: Image, resize: bool = False) -> Labels:
        """Returns the class ids (H, W) of an image, uint8 (H, W, 3), RGB.

        resize: resize the image to the size of a fixed graph, and the labels back.
        Raises DataError if the graph cannot take the image.
        """
        height, width = image.shape[:2]
        if self.size and self.size != (height, width):
            if not resize:
                raise DataError(f"it is {height}x{width}, the graph takes "
                                f"{self.size[0]}x{self.size[1]} (export with --dynamic, or give "
                                "--resize)")
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        kind = np.uint8 if self.input.type == "tensor(uint8)" else np.float32
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(kind))
        try:
            output = np.asarray(self.session.run(None, {self.input.name: batch})[0])[0]
        except Exception as error:          # usually out of memory
            raise DataError(f"ONNX Runtime failed: {first_line(error)}") from None
        labels = output if self.metadata.output == "labels" else largest(output)
        if labels.shape != (height, width):
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        return labels


def largest(logits: np.ndarray) -> Labels:
    """Returns the class ids (H, W) of the largest logits of (C, H, W), the first of equal ones.

    A loop over the classes is several times faster in NumPy than argmax along the first axis.
    """
    best = logits[0].copy()
    labels = np.zeros(best.shape, np.uint8 if len(logits) <= 255 else np.int16)
    for k in range(1, len(logits)):
        larger = logits[k] > best
        labels[larger] = k
        np.maximum(best, logits[k], out=best)
    return labels


def open_session(path: str, provider: str = "CPUExecutionProvider",
                 threads: int = 0) -> "onnxruntime.InferenceSession":
    """Opens a graph. threads: of the CPU; 0 takes every core. Raises ONNX Runtime's errors."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4              # errors are raised anyway
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=[provider])


def _provider(name):
    """Returns ONNX Runtime's name of a provider. Raises ConfigError if it is not available."""
    import onnxruntime
    known = {provider.removesuffix("ExecutionProvider").lower(): provider
             for provider in onnxruntime.get_available_providers()}
    if name.lower() not in known:
        raise ConfigError(f"this ONNX Runtime has no provider {name!r}", "--provider",
                          f"it has: {', '.join(sorted(known))}")
    return known[name.lower()]
