"""The metadata of an exported graph: classes, colors, normalization, input and output.

All values are text: ONNX stores nothing else, and torch's formats keep it in extra files. This
module does not import torch, so that programs without it can read the metadata.
"""
import json
from dataclasses import asdict, dataclass

from utils.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class GraphMetadata:
    """The metadata of an exported network.

    image: the input, e.g. "uint8 RGB, 0..255, (batch, 3, height, width)".
    output: "logits" (batch, classes, height, width) or "labels" (batch, height, width).
    mean, std, order, scale: the normalization inside the graph,
        (x / scale - mean) / std with the channels in `order`.
    activation: "softmax" or "sigmoid", the function from logits to probabilities.
    opset: the opset of an ONNX graph, otherwise None.
    format: the version of this metadata.
    """

    class_names: list[str]
    palette: list[list[int]]
    mean: list[float]
    std: list[float]
    order: str
    scale: float
    activation: str
    architecture: str
    image: str
    output: str
    opset: int | None = None
    format: int = FORMAT

    def as_strings(self) -> dict[str, str]:
        """Returns one entry per field, as JSON."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}


def read_metadata(strings: dict[str, str], where: str) -> GraphMetadata:
    """Returns the metadata of a graph, from the entries that `as_strings` gave.

    where: the file, for messages. Raises CheckpointError if tools.export did not write the graph.
    """
    known = GraphMetadata.__dataclass_fields__
    try:
        values = {key: json.loads(strings[key]) for key in known}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the graph has no usable metadata ({error})", where,
                              "export it with python -m tools.export") from None
    if values["format"] != FORMAT:
        raise CheckpointError(f"the metadata has format {values['format']}, this program reads "
                              f"format {FORMAT}", where, "update Segwright")
    if len(values["class_names"]) != len(values["palette"]):
        raise CheckpointError(f"{len(values['class_names'])} class names, but "
                              f"{len(values['palette'])} colors", where, "export the graph again")
    return GraphMetadata(**values)
