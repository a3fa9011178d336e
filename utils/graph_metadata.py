"""What an exported graph says about itself, beside its operators.

Everything is text: ONNX knows nothing else, and torch's own formats keep it in
extra files. No torch here, so that a program without it can read a graph.
"""
import json
from dataclasses import asdict, dataclass

from utils.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class GraphMetadata:
    """The metadata of an exported network.

    image: what goes in, e.g. "uint8 RGB, 0..255, (batch, 3, height, width)".
    output: "logits" (batch, classes, height, width) or "labels" (batch, height, width).
    mean, std, order, scale: the normalisation that the graph does itself,
        (x / scale - mean) / std with the channels in `order`.
    activation: "softmax" or "sigmoid", what turns the logits into probabilities.
    opset: of an ONNX graph, otherwise None.
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
        """One entry per field, JSON."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}


def read_metadata(strings: dict[str, str], where: str) -> GraphMetadata:
    """The metadata of a graph; CheckpointError if it is none that tools.export wrote."""
    known = GraphMetadata.__dataclass_fields__
    try:
        values = {key: json.loads(strings[key]) for key in known}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the graph has no usable metadata ({error})", where,
                              "export it with python -m tools.export") from None
    if values["format"] != FORMAT:
        raise CheckpointError(f"the metadata has format {values['format']}, this program knows "
                              f"{FORMAT}", where, "update Segwright")
    if len(values["class_names"]) != len(values["palette"]):
        raise CheckpointError(f"{len(values['class_names'])} class names, but "
                              f"{len(values['palette'])} colours", where, "export the graph again")
    return GraphMetadata(**values)
