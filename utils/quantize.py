"""An ONNX graph in 8 bits: static quantisation by ONNX Runtime.

Convolutions and matrix products get 8-bit weights, one scale per channel, and
8-bit inputs whose ranges are measured on images. Everything else, the
normalisation among it, stays float32.
"""
import tempfile
from pathlib import Path

import numpy as np
import torch

from utils.errors import DataError, NumericalError, first_line
from utils.evaluate import build_rules, evaluate
from utils.export import open_graph
from utils.image_io import read_image
from utils.image_list import find_images
from utils.open_model import OpenModel
from utils.spread import spread

OPERATORS = ("Conv", "MatMul", "Gemm")


def calibration_paths(folder: str, count: int) -> list[str]:
    """Up to `count` images of a folder, evenly spread. DataError if there is none."""
    return spread([source.path for source in find_images([folder])], count)


def quantize(path, paths: list[str], size: tuple | None, uint8_input: bool):
    """Replace the ONNX graph in the file `path` by its 8-bit form; its metadata stays.

    paths: images to measure the ranges on. size: (H, W) of a fixed graph, to which images
    of another size are resized.
    """
    import onnx
    from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, QuantType,
                                          quantize_static)
    from onnxruntime.quantization.shape_inference import quant_pre_process
    graph = onnx.load(str(path))
    metadata, name = graph.metadata_props, graph.graph.input[0].name

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(paths)

        def get_next(self):
            found = next(self.left, None)
            return None if found is None else {name: _image(found, size, uint8_input)}

    with tempfile.TemporaryDirectory() as folder:
        prepared, result = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            # Batch norms are folded into their convolutions, as they must be before rounding.
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(str(prepared), str(result), Images(), quant_format=QuantFormat.QDQ,
                            per_channel=True, activation_type=QuantType.QUInt8,
                            weight_type=QuantType.QInt8, op_types_to_quantize=list(OPERATORS))
        except DataError:
            raise
        except Exception as error:          # ONNX Runtime raises many types
            raise NumericalError(f"ONNX Runtime cannot quantise the graph: "
                                 f"{first_line(error)}") from error
        model = onnx.load(str(result))
        del model.metadata_props[:]
        model.metadata_props.extend(metadata)
        onnx.save(model, str(path))


def score(path, opened: OpenModel, loader, uint8_input: bool, title: str) -> float:
    """Mean_IoU of the ONNX graph in `path` over a loader, by the evaluation of test.py."""
    run, config, classes = open_graph(path, "onnx"), opened.config, len(opened.class_names)
    kind = np.uint8 if uint8_input else np.float32

    def predictor(images):
        # One at a time, which is all that a graph of one size takes.
        output = torch.from_numpy(np.concatenate([run(image[None].astype(kind))
                                                  for image in images.numpy()]))
        if output.ndim == 4:
            return output
        return torch.nn.functional.one_hot(output.long(), classes).permute(0, 3, 1, 2).float()

    options = config["predict"]
    results = evaluate(predictor, loader, build_rules("max", opened.activation, options),
                       num_classes=classes, ignore_index=config["ignore_index"],
                       classes_of_interest=options["CoI"], device="cpu", progress=title)
    return results["max"]["Mean_IoU"]


def _image(path, size, uint8_input):
    """(1, 3, H, W) as the graph takes it."""
    import cv2
    image = read_image(path)
    if size and image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return image.transpose(2, 0, 1)[None].astype(np.uint8 if uint8_input else np.float32)
