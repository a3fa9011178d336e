"""Runs an ONNX graph of tools.export with ONNX Runtime, without PyTorch."""
import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.errors import CheckpointError, ConfigError, DataError, NumericalError, first_line
from utils.export.metadata import EXPORT, read_metadata
from utils.images.base_size import by_bands, whole_view
from utils.images.types import Image, Labels

if TYPE_CHECKING:
    import onnxruntime

_KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class OnnxNetwork:
    """A graph in a file, opened with ONNX Runtime.

    provider: "CPU", "CUDA" or another execution provider. threads: of the CPU; 0 takes every core.
    metadata: a utils.export.metadata.GraphMetadata. size: the only (H, W) of the graph, or None.
    base_size: the size to which images are resized (utils.images.base_size): that of the metadata,
        which can be replaced.
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
                                  EXPORT) from None
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _KINDS:
            text = ", ".join(f"{one.type} {one.shape}" for one in inputs)
            raise CheckpointError(f"the graph takes {text or 'nothing'}; expected one image, uint8 "
                                  "or float32 (batch, 3, height, width)", path, EXPORT)
        self.path, self.input = path, inputs[0]
        sides = self.input.shape[2:]
        self.size = tuple(sides) if all(isinstance(side, int) for side in sides) else None
        self.base_size = _base_size(self.metadata.base_size)

    def labels(self, image: Image, resize: bool = False) -> Labels:
        """Returns the class ids (H, W) of an image, uint8 (H, W, 3), RGB, or (H, W, C) of bands.

        The graph sees the image at the base size, as in validation; its logits are resized back.
        resize: resize the image to the size of a fixed graph instead, and the labels back.
        Raises DataError if the graph cannot take the image, NumericalError if its logits are not
        finite, CheckpointError if its output is not what its metadata says.
        """
        height, width = image.shape[:2]
        view = whole_view(height, width, self.base_size)
        seen = image if view is None else view.cut(image)
        if self.size and self.size != seen.shape[:2]:
            if not resize:
                raise DataError(f"it is {seen.shape[0]}x{seen.shape[1]}, the graph takes "
                                f"{self.size[0]}x{self.size[1]} (export with --dynamic, or give "
                                "--resize)")
            view = None
            size = self.size[::-1]
            seen = by_bands(lambda part: cv2.resize(part, size, interpolation=cv2.INTER_LINEAR),
                            image)
        output = self._output(seen)
        if self.metadata.output == "logits":
            if view is not None:
                return largest(_full(plane, view, (height, width)) for plane in output)
            labels = largest(output)
        else:
            labels = output if view is None else _full_labels(output, view, (height, width))
        if labels.shape != (height, width):
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        return labels

    def _output(self, seen):
        """The output of the graph for an image (h, w, 3): logits (C, h, w), or labels (h, w)."""
        batch = np.ascontiguousarray(seen.transpose(2, 0, 1)[None].astype(_KINDS[self.input.type]))
        try:
            output = np.asarray(self.session.run(None, {self.input.name: batch})[0])
        except Exception as error:          # usually out of memory
            raise DataError(f"ONNX Runtime failed: {first_line(error)}") from None
        classes = len(self.metadata.class_names)
        as_logits = self.metadata.output == "logits"
        expected = (1, classes, *seen.shape[:2]) if as_logits else (1, *seen.shape[:2])
        if output.shape != expected or (output.dtype.kind not in ("f" if as_logits else "iu")):
            raise CheckpointError(f"the graph returns {output.dtype} {output.shape}, its metadata "
                                  f"says {self.metadata.output} {expected}", self.path, EXPORT)
        output = output[0]
        if as_logits and not (np.isfinite(output.min()) and np.isfinite(output.max())):
            raise NumericalError("the logits of the graph are not finite (NaN or Inf)")
        if not as_logits and not 0 <= output.min() <= output.max() < classes:
            raise CheckpointError(f"the graph returns labels {output.min()} to {output.max()} for "
                                  f"{classes} classes", self.path, EXPORT)
        return output


def largest(logits: Iterable[np.ndarray]) -> Labels:
    """Returns the class ids (H, W) of the largest logits of (C, H, W), the first of equal ones.

    A loop over the classes is several times faster in NumPy than argmax along the first axis.
    logits: an array, or its planes one after the other.
    """
    planes = iter(logits)
    best = next(planes).copy()
    labels = np.zeros(best.shape, np.uint8)
    for k, plane in enumerate(planes, 1):
        if k == 255:
            labels = labels.astype(np.int16)
        larger = plane > best
        labels[larger] = k
        np.maximum(best, plane, out=best)
    return labels


def _base_size(stored):
    """The base size of the metadata, with a pair as a tuple."""
    return (stored[0], stored[1]) if isinstance(stored, list) else stored


def _full(plane, view, size):
    """A plane of logits (h, w) of a view at the size (H, W) of the image."""
    part = cv2.resize(plane, (view.columns.length, view.rows.length),
                      interpolation=cv2.INTER_LINEAR)
    return part if part.shape == size else \
        part[view.rows.inside(size[0])[:, None], view.columns.inside(size[1])]


def _full_labels(labels, view, size):
    """Labels (h, w) of a view at the size (H, W) of the image: each pixel takes the nearest."""
    rows, columns = ((2 * span.inside(length) + 1) * span.shown // (2 * span.length)
                     for span, length in zip(view, size, strict=True))
    return labels[rows[:, None], columns]


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
