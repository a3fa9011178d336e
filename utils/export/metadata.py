"""The metadata of an exported graph: classes, colors, normalization, input and output.

All values are text: ONNX stores nothing else, and torch's formats keep it in extra files. This
module does not import torch, so that programs without it can read the metadata.
"""
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from utils.errors import CheckpointError, first_line, shown
from utils.images.bands import bands_of_state

EXPORT = "export it with python -m tools.export"
FORMAT = 1
FORMAT_WITH_SIZE = 2        # of graphs that need their images resized
SIDE_MOST = 1 << 16         # of a base size
FORMAT_WITH_BANDS = 3       # of graphs that do not take RGB
_OPTIONAL = ("base_size", "white", "bands", "posterior", "rule")    # that a graph may lack


@dataclass(frozen=True)
class GraphMetadata:
    """The metadata of an exported network.

    image: the input, e.g. "uint8 RGB, 0..255, (batch, 3, height, width)".
    output: "logits" (batch, classes, height, width) or "labels" (batch, height, width).
    mean, std, order, scale: the normalization inside the graph,
        (x / scale - mean) / std with the channels in `order`.
    white: the value that becomes 255 in images of more than 8 bits; None: that of their type.
    bands: of the images (utils.images.bands.Bands.state), whose stored values the graph takes; mean
        and std are then in these values; None: RGB of 8 bits.
    rule: the decision rule inside a graph that returns labels; None: the largest logit.
    activation: "softmax" or "sigmoid", the function from logits to probabilities.
    opset: the opset of an ONNX graph, otherwise None.
    format: the version of this metadata.
    base_size: the size at which the network was validated (utils.images.base_size), or None. The
        program that runs the graph resizes the image to it, and the output back.
    posterior: what the graph does to the logits of the network, such as "class weights undone";
        None: nothing. Its output is then logits of calibrated probabilities, or labels of these.
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
    white: float | None = None
    bands: dict | None = None
    rule: str | None = None
    opset: int | None = None
    format: int = FORMAT
    base_size: int | list[int] | None = None
    posterior: str | None = None

    def as_strings(self) -> dict[str, str]:
        """Returns one entry per field, as JSON; those of _OPTIONAL only if there is one."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()
                if key not in _OPTIONAL or value is not None}


def read_metadata(strings: Mapping[str, str], where: str) -> GraphMetadata:
    """Returns the metadata of a graph, from the entries that `as_strings` gave.

    where: the file, for messages. Raises CheckpointError if tools.export did not write the graph,
    and for values that are not of the right kind.
    """
    known = GraphMetadata.__dataclass_fields__
    try:
        values = {key: json.loads(strings[key]) for key in known
                  if key not in _OPTIONAL or key in strings}
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the graph has no usable metadata ({type(error).__name__}: "
                              f"{first_line(error)[:80]})", where, EXPORT) from None
    if values["format"] not in (FORMAT, FORMAT_WITH_SIZE, FORMAT_WITH_BANDS):
        raise CheckpointError(f"the metadata has format {shown(repr(values['format']))[:40]}, this "
                              f"program reads formats {FORMAT} to {FORMAT_WITH_BANDS}", where,
                              "update Segwright")
    problem = next(filter(None, (_problem(key, value) for key, value in values.items())), None)
    if problem:
        raise CheckpointError(f"the graph has no usable metadata: {problem}", where, EXPORT)
    if len(values["class_names"]) != len(values["palette"]):
        raise CheckpointError(f"{len(values['class_names'])} class names, but "
                              f"{len(values['palette'])} colors", where, "export the graph again")
    return GraphMetadata(**values)


def _problem(key, value):
    """What is wrong with a value of the metadata, or None."""
    fits = {
        "class_names": lambda: _all(value, lambda name: isinstance(name, str)),
        "palette": lambda: _all(value, lambda color: _all(
            color, lambda part: type(part) is int and 0 <= part <= 255) and len(color) == 3),
        "mean": lambda: _all(value, _is_number), "std": lambda: _all(value, _is_number),
        "scale": lambda: _is_number(value),
        "rule": lambda: value is None or isinstance(value, str),
        "white": lambda: value is None or (_is_number(value) and value > 0),
        "bands": lambda: value is None or _are_bands(value),
        "output": lambda: value in ("logits", "labels"),
        "activation": lambda: value in ("softmax", "sigmoid"),
        "posterior": lambda: value is None or isinstance(value, str),
        "opset": lambda: value is None or type(value) is int,
        "format": lambda: type(value) is int,
        "base_size": lambda: value is None or _is_side(value) or (
            _all(value, _is_side) and len(value) == 2),
    }.get(key, lambda: isinstance(value, str))()
    return None if fits else f"{key} is {shown(repr(value))[:60]}"


def _are_bands(value):
    try:
        return isinstance(value, dict) and bands_of_state(value) is not None
    except ValueError:
        return False


def _all(value, fits):
    """Whether a value is a list that is not empty, all of whose entries fit."""
    return isinstance(value, list) and bool(value) and all(map(fits, value))


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _is_side(value):
    return type(value) is int and 1 <= value <= SIDE_MOST
