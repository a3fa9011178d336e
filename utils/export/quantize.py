"""Quantizes an ONNX graph to 8 bits: static quantization by ONNX Runtime.

Convolutions and matrix products get 8-bit weights with one scale per channel, and 8-bit inputs
whose ranges are measured on images. Everything else stays float32, including the normalization.
"""
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from utils.errors import DataError, NumericalError, first_line
from utils.evaluation.evaluate import build_rules, evaluate
from utils.export.graph import open_graph
from utils.images.band_files import read_input
from utils.images.base_size import BaseSize, as_seen, by_bands
from utils.images.image_list import Source, find_images
from utils.images.normalize import Normalize
from utils.images.picture_files import evenly_spaced
from utils.predict.open_model import OpenModel

OPERATORS = ("Conv", "MatMul", "Gemm")


def calibration_images(folder: str, count: int) -> list[Source]:
    """Returns up to `count` images of a folder, evenly spaced. Raises DataError if it has none."""
    return list(evenly_spaced(find_images([folder]), count))


def quantize(path: str | os.PathLike, images: list[Source], size: tuple[int, int] | None,
             uint8_input: bool, base_size: BaseSize = None,
             normalize: Normalize | None = None):
    """Replace the ONNX graph in the file `path` by its 8-bit form; the metadata stays.

    images: those on which the ranges are measured. size: (H, W) of a graph for one
    size; images of another size are resized. base_size: to which they are resized otherwise.
    normalize: of the network, which says how images are read; None: as RGB.
    Raises NumericalError if ONNX Runtime cannot quantize the graph.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process
    graph = onnx.load(str(path))
    metadata, name = graph.metadata_props, graph.graph.input[0].name

    class Images(CalibrationDataReader):
        def __init__(self):
            self.remaining = iter(images)

        def get_next(self):
            image = next(self.remaining, None)
            return None if image is None else {
                name: _image(image, size, uint8_input, base_size, normalize)}

    with tempfile.TemporaryDirectory() as folder:
        prepared, result = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            # This folds batch norms into their convolutions, which must precede the rounding.
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(str(prepared), str(result), Images(), quant_format=QuantFormat.QDQ,
                            per_channel=True, activation_type=QuantType.QUInt8,
                            weight_type=QuantType.QInt8, op_types_to_quantize=list(OPERATORS))
        except DataError:
            raise
        except Exception as error:          # ONNX Runtime raises many types
            raise NumericalError(f"ONNX Runtime cannot quantize the graph: "
                                 f"{first_line(error)}") from error
        model = onnx.load(str(result))
        del model.metadata_props[:]
        model.metadata_props.extend(metadata)
        onnx.save(model, str(path))


def score(path: str | os.PathLike, opened: OpenModel, loader: Iterable, uint8_input: bool,
          title: str) -> float:
    """Returns the Mean_IoU of the ONNX graph in `path`, computed as in validation.

    loader: batches as `dataloader.loader.build_loader` gives them. title: for the progress bar.
    """
    run, config, classes = open_graph(path, "onnx"), opened.config, len(opened.class_names)
    dtype = np.uint8 if uint8_input else np.float32

    def predictor(images):
        # One image at a time, because a graph with a fixed size takes only one.
        output = torch.from_numpy(np.concatenate([run(image[None].astype(dtype))
                                                  for image in images.numpy()]))
        if output.ndim == 4:
            return output
        return torch.nn.functional.one_hot(output.long(), classes).permute(0, 3, 1, 2).float()

    options = config["predict"]
    results = evaluate(predictor, loader, build_rules("max", opened.activation, {}),
                       num_classes=classes, ignore_index=config["ignore_index"],
                       classes_of_interest=options["CoI"], device="cpu", progress=title)
    return results["max"].dataset["Mean_IoU"]


def _image(source, size, uint8_input, base_size, normalize):
    """Returns an image file as the input of the graph, (1, C, H, W)."""
    import cv2
    white, bands = (normalize.white, normalize.bands) if normalize else (None, None)
    image = as_seen(read_input(source.path, white, bands, source.root), base_size)
    if size and image.shape[:2] != size:
        image = by_bands(lambda part: cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA),
                         image)
    return image.transpose(2, 0, 1)[None].astype(np.uint8 if uint8_input else np.float32)
