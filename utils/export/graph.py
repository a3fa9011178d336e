"""Exports a trained network as a graph for other programs, and compares it with PyTorch.

The graph takes RGB images in 0..255, normalizes them, and returns logits or, on request, labels.
There are three formats: ONNX, torch.export (.pt2), and TorchScript, which PyTorch has deprecated
and which works for one size only.
"""
import contextlib
import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.decision.expected_score import Objective
from utils.decision.posterior import Posterior, of_logits, probabilities
from utils.decision.rankdice import rank_dice
from utils.decision.rankdice_batched import first_order_growth
from utils.decision.rules import RankDecision
from utils.errors import ConfigError, NumericalError, first_line
from utils.export.metadata import (
    FORMAT,
    FORMAT_WITH_BANDS,
    FORMAT_WITH_SIZE,
    GraphMetadata,
)
from utils.export.onnx_network import open_session
from utils.images.base_size import BaseSize
from utils.images.normalize import Normalize
from utils.machine.tensors import Logits, label_dtype
from utils.predict.largest_class import largest_class
from utils.predict.open_model import OpenModel

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}
# The opset of torch's exporter; graphs of other versions are converted from it.
OPSET = 18
# Allowed difference of logits, as a share of max(1, largest |logit|): float32 sums in another
# order differ by less.
TOLERANCE = 1e-4
# Allowed difference as a multiple of PyTorch's own rounding error (see `_rounding`), if that is
# more. The difference is the largest of all pixels and the rounding error is their median.
NOISE = 10
# (images, height, width): square and not, one image and two, multiples of 32 and odd sizes.
CHECK_SIZES = ((1, 64, 96), (2, 97, 131), (1, 128, 128), (1, 203, 75), (1, 360, 480))
# Allowed shares of pixels with different logits and labels, for a network whose logits jump (see
# `unpools`). Measured with ENet on CamVid: one image in three has a jump, of up to 750 pixels.
JUMPING_PIXELS, JUMPING_LABELS = 0.01, 0.001
# (images, height, width) of the example input. Odd sizes and 2 images, because the exporter may
# take a size such as 1 for a constant; so large that the last map of a network with windows of 12
# pixels has several.
EXAMPLE = (2, 417, 561)
# protobuf limits an ONNX file to 2 GiB.
LARGEST_ONNX = 2 ** 31 - 2 ** 20
INSTALL = "pip install -r requirements-export.txt"
METADATA_FILE = "segwright.json"


class Graph(nn.Module):
    """One module of the normalization, the network and, on request, a decision.

    posterior: then applied to the logits, which are those of calibrated probabilities; a rule
        brings its own. A network that gives scores needs one, so that the graph returns logits.
    images: uint8 or float32 (N, 3, H, W), RGB in 0..255; or (N, C, H, W) of bands, as stored
    argmax: decide for the largest logit. rule: decide by this rule, in its first-order form.
    returns: float32 logits (N, C, H, W), or labels (N, H, W): uint8 for up to 255 classes,
        int16 for more.
    """

    def __init__(self, network: nn.Module, normalize: nn.Module, argmax: bool = False,
                 posterior: Posterior | None = None, rule: RankDecision | None = None):
        super().__init__()
        self.network, self.normalize, self.argmax = network, normalize, argmax
        self.posterior, self.rule = posterior, rule
        self.returns_labels = argmax or rule is not None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(self.normalize(images))
        if self.posterior is not None:
            logits = self.posterior.logits(logits)
        if not self.returns_labels:
            return logits
        scores = logits if self.rule is None else rule_growth(self.rule, logits)
        return scores.argmax(1).to(label_dtype(logits.shape[1]))


def rule_growth(rule: RankDecision, logits: Logits) -> torch.Tensor:
    """How much each pixel raises the score of each class, (N, C, H, W), to first order."""
    objective, pruning = problem_of(rule)
    return first_order_growth(rule.posterior(logits), objective, pruning)


def problem_of(rule: RankDecision) -> tuple[Objective, float]:
    """(what the rule maximizes, its pruning probability)."""
    return (Objective(rule.settings["metric"], rule.settings.get("smooth", 0.0)),
            rule.settings.get("pruning", 0.5))


@dataclass
class Check:
    """The result of comparing a graph with PyTorch.

    name: the image. pixels: their number. largest: max |logit|.
    delta: max |graph - PyTorch| of the logits; None for a graph that returns labels.
    off: number of pixels with a logit that differs by more than `tolerance`.
    differing: number of pixels with another label. tied: the number of those for which the
        difference of PyTorch's two logits is within rounding.
    other_solver: of a graph with a decision rule, the number of pixels to which the rule here,
        with its own solver, gives another label. lost: by how much the expected score of the
        labels of the graph is below that of the rule here, the mean over the classes in them.
    """

    name: str
    pixels: int
    largest: float
    delta: float | None
    off: int
    differing: int
    tied: int
    tolerance: float
    other_solver: int | None = None
    lost: float | None = None

    def passed(self, jumps: bool = False) -> bool:
        """Returns whether the graph computes the same. jumps: whether the network `unpools`."""
        pixels = self.pixels if jumps else 0
        return (bool(np.isfinite(self.largest)) and self.off <= JUMPING_PIXELS * pixels
                and self.differing - self.tied <= JUMPING_LABELS * pixels)

    def __add__(self, other: "Check") -> "Check":
        """Returns the result for the images of both, with the name of the first."""
        deltas = [one.delta for one in (self, other) if one.delta is not None]
        delta = max(deltas, default=None)
        # A nan counts as the largest; max() alone would lose the one of the second check.
        largest = max(self.largest, other.largest, key=lambda value: (value != value, value))
        return Check(self.name, self.pixels + other.pixels, largest,
                     delta, self.off + other.off, self.differing + other.differing,
                     self.tied + other.tied, max(self.tolerance, other.tolerance),
                     None if self.other_solver is None or other.other_solver is None
                     else self.other_solver + other.other_solver,
                     None if self.lost is None or other.lost is None
                     else (self.lost * self.pixels + other.lost * other.pixels)
                     / (self.pixels + other.pixels))


def allowed(largest_logit: float) -> float:
    """Returns how much logits may differ whose largest absolute value is `largest_logit`."""
    return TOLERANCE * max(1.0, largest_logit)


def unpools(network: nn.Module, channels: int = 3) -> bool:
    """Returns whether a network unpools to the positions of max pooling (ENet, SegNet).

    channels: of its input.

    The logits of such a network jump: rounding decides which of two equal values is the maximum,
    and the logits around its position depend on that. PyTorch's float32 and float64 differ there
    too.
    """
    with torch.inference_mode(), _Unpooling() as watch:
        network(torch.zeros(1, channels, 64, 64))
    return watch.seen


class _Unpooling(TorchDispatchMode):
    """Records whether max_unpool2d is called."""

    seen = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen |= function is torch.ops.aten.max_unpool2d.default
        return function(*args, **(kwargs or {}))


def require_packages(file_format: str):
    """Raises ConfigError, with the command that installs them, if packages are missing."""
    needed = ("onnx", "onnxscript", "onnxruntime") if file_format == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX export needs {', '.join(needed)}; not installed: "
                          f"{', '.join(missing)}", fix=INSTALL)


def graph_of(opened: OpenModel, argmax: bool = False, posterior: Posterior | None = None,
             rule: RankDecision | None = None) -> Graph:
    """Returns the graph of an opened checkpoint, on the CPU, in eval mode and contiguous memory."""
    graph = Graph(opened.model, opened.normalize, argmax, posterior, rule).cpu().eval()
    return graph.to(memory_format=torch.contiguous_format)


def graph_metadata(opened: OpenModel, *, size: tuple[int, int] | None, uint8_input: bool,
                   argmax: bool, opset: int | None, base_size: BaseSize = None,
                   posterior: Posterior | None = None,
                   rule: RankDecision | None = None) -> GraphMetadata:
    """Returns the metadata of a graph with these options (see `write_graph`).

    base_size: the size to which the program that runs the graph resizes images. posterior: what
    the graph does to the logits.
    """
    batch, height, width = (1, *size) if size else ("batch", "height", "width")
    kind, bands = "uint8" if uint8_input else "float32", opened.normalize.bands
    if uint8_input and bands and bands.type != "uint8":
        raise ConfigError(f"the network takes {bands.text}", "--uint8-input", "leave it out")
    form = FORMAT_WITH_BANDS if bands else FORMAT if base_size is None else FORMAT_WITH_SIZE
    text = f"{kind} RGB, 0..255" if bands is None else f"{kind}, {bands.text} as stored"
    return GraphMetadata(class_names=opened.class_names, palette=opened.palette,
                         **opened.normalize.state(), activation=of_logits(opened.activation),
                         architecture=opened.config["arch"]["type"],
                         image=f"{text}, ({batch}, {opened.normalize.channels}, {height}, {width})",
                         output="labels" if argmax or rule else "logits", opset=opset,
                         rule=rule.name if rule else None,
                         format=form,
                         base_size=list(base_size) if isinstance(base_size, tuple) else base_size,
                         posterior=_told(rule.posterior if rule else posterior))


def _told(posterior):
    """A Posterior in words; None if there is none, or one that changes nothing."""
    if posterior is None:
        return None
    done = posterior.describe()
    parts = [done["posterior"]] if "posterior" in done else []
    parts += [f"temperature {posterior.temperature:g}"] if posterior.temperature != 1.0 else []
    parts += ["scale and bias of each class"] if posterior.scale or posterior.bias else []
    return ", ".join(parts) or None


def write_graph(graph: Graph, path: str | os.PathLike, file_format: str, metadata: GraphMetadata,
                *, size: tuple[int, int] | None = None, uint8_input: bool = False,
                opset: int | None = OPSET):
    """Write `graph` to `path`, without a check.

    file_format: a key of FORMATS. size: the only (H, W) of the graph, for one image; None: any
    size and number of images. uint8_input: the graph takes uint8, not float32.
    Raises ConfigError if the format or torch's exporter does not support this.
    """
    if file_format == "torchscript" and size is None:
        raise ConfigError("TorchScript works only for the size of the image it was traced with",
                          "--format torchscript", "give --size HxW, or use --format torch_export")
    channels = len(metadata.mean)
    shape = (1, channels, *size) if size else (EXAMPLE[0], channels, *EXAMPLE[1:])
    image = torch.zeros(shape, dtype=torch.uint8 if uint8_input else torch.float32)
    writers = {"onnx": _write_onnx, "torch_export": _write_program, "torchscript": _write_script}
    options = {"opset": opset} if file_format == "onnx" else {}
    try:
        with _quiet(), torch.no_grad():
            any_size = None if size else ({0: "batch", 2: "height", 3: "width"},)
            writers[file_format](graph, image, path, metadata.as_strings(), any_size, **options)
    except (ConfigError, OSError):
        raise
    except Exception as error:          # torch's exporters raise many types
        raise ConfigError(f"torch cannot export {metadata.architecture}"
                          f"{'' if size else ' for images of any size'}: {first_line(error)}",
                          f"--format {file_format}", "--debug shows the whole message" if size
                          else "give --size HxW; --debug shows the whole message"
                          ) from error


def open_graph(path: str | os.PathLike, file_format: str) \
        -> Callable[[np.ndarray], np.ndarray]:
    """Returns the graph in a file as a function: images (N, 3, H, W) -> its output."""
    if file_format == "onnx":
        session = open_session(str(path))
        name = session.get_inputs()[0].name
        return lambda images: np.asarray(session.run(None, {name: images})[0])
    with _quiet(), open(path, "rb") as file:
        # Guards are derived from the one example, including its memory layout, and would refuse
        # sizes for which the operators are correct. Their results are compared instead.
        module = (torch.export.load(file).module(check_guards=False)
                  if file_format == "torch_export" else torch.jit.load(file))

    def run(images):
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()
    return run


def check_image(run: Callable[[np.ndarray], np.ndarray], opened: OpenModel, image: np.ndarray,
                name: str, *, uint8_input: bool, argmax: bool,
                posterior: Posterior | None = None, rule: RankDecision | None = None) -> Check:
    """Compare a graph (see `open_graph`) with PyTorch on images (N, C, H, W) as they are read.

    posterior: part of the graph, which is then compared by probabilities: where these are nearly
        0, their logarithms differ by far more than rounding.
    Raises NumericalError if the graph cannot be run, or returns another shape.
    """
    as_output = posterior.logits if posterior else torch.nn.Identity()
    with torch.inference_mode():
        logits = as_output(opened.model(opened.normalize(torch.from_numpy(image))))
    try:
        output = run(image if uint8_input else image.astype(np.float32))
    except Exception as error:          # any error of the other program is a failed check
        raise NumericalError(f"the graph cannot be run on {name}: {first_line(error)}") from error
    labels = argmax or rule is not None
    expected = (logits.shape[0], *logits.shape[2:]) if labels else tuple(logits.shape)
    if output.shape != expected:
        raise NumericalError(f"the graph returns {output.shape} on {name}, not {expected}")
    output = torch.from_numpy(output)
    if rule is not None:
        return compare_decisions(name, logits, output, rule)
    if posterior and not argmax:
        logits, output = (probabilities(one, posterior.of_logits) for one in (logits, output))
        return compare_outputs(name, logits, output, argmax)
    check = compare_outputs(name, logits, output, argmax)
    if check.passed():
        return check
    noise = _rounding(opened, image, logits, as_output)
    return compare_outputs(name, logits, output, argmax, max(check.tolerance, NOISE * noise))


def _rounding(opened, image, logits, as_output):
    """Returns PyTorch's own rounding error: the median over pixels of |float32 - float64|.

    It is usually far below `allowed`, but larger for a deep network with extreme weights. The
    median excludes the few pixels where a network jumps (see `unpools`).
    """
    network = copy.deepcopy(opened.model).double()
    with torch.inference_mode():
        exact = as_output(network(opened.normalize(torch.from_numpy(image)).double()))
    return float((exact - logits).abs().amax(1).median())


def compare_outputs(name: str, logits: Logits, output: torch.Tensor, argmax: bool,
                    tolerance: float | None = None) -> Check:
    """Compare PyTorch's logits (N, C, H, W) with the output of a graph.

    output: logits of that shape, or labels (N, H, W) if `argmax`.
    tolerance: how much logits may differ; None: as `allowed` returns.
    """
    greatest = float(logits.abs().max())
    tolerance = allowed(greatest) if tolerance is None else tolerance
    delta, off = None, 0
    if not argmax:
        distance = (output - logits).abs().amax(1)
        delta, off = float(distance.max()), int((~(distance <= tolerance)).sum())
        output = largest_class(output)
    best, labels = logits.max(1)
    output = output.long()
    valid = (output >= 0) & (output < logits.shape[1])
    chosen = logits.gather(1, output.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
    wrong = output != labels
    # Each of two logits may be off by the tolerance, so their order may change within twice that.
    tied = wrong & valid & (best - chosen <= 2 * tolerance)
    return Check(name, labels.numel(), greatest, delta, off, int(wrong.sum()), int(tied.sum()),
                 tolerance)


def compare_decisions(name: str, logits: Logits, output: torch.Tensor,
                      rule: RankDecision) -> Check:
    """Compare the labels (N, H, W) of a graph with a decision rule with the rule here.

    The labels must be those of the first-order form, which the graph computes, in float64. The
    distance to the labels of the rule with its own solver, and what it costs, are only reported.
    """
    greatest = float(logits.abs().max())
    tolerance, classes = allowed(greatest), logits.shape[1]
    probs = rule.posterior(logits.double())
    objective, pruning = problem_of(rule)
    growth = first_order_growth(probs, objective, pruning)
    output = output.long()
    wrong = output != growth.argmax(1)
    valid = (output >= 0) & (output < classes)
    chosen = growth.gather(1, output.clamp(0, classes - 1).unsqueeze(1)).squeeze(1)
    # Probabilities and thresholds move by at most the tolerance. One unit of a probability raises
    # the score by the slope between two pixels of a class; the growth is linear in it.
    flat, values = probs.flatten(2), growth.flatten(2)
    slope = ((values.amax(2) - values.amin(2)) / (flat.amax(2) - flat.amin(2) + 1e-30)).nan_to_num(
        0, 0, 0).amax(1)
    slack = 2 * tolerance * slope[:, None, None]
    # Rounding may also decide whether a class is pruned.
    edge = ((flat.amax(2) - pruning).abs() <= tolerance).any(1)[:, None, None]
    tied = wrong & valid & ((growth.amax(1) - chosen <= slack) | edge)
    own = rank_dice(probs.float(), overlap=False, **rule.settings).long()
    return Check(name, output.numel(), greatest, None, 0, int(wrong.sum()), int(tied.sum()),
                 tolerance, int((own != output).sum()),
                 _expected(probs, own, objective) - _expected(probs, output, objective))


def _expected(probs, labels, objective):
    """The second-order expected score of labels (N, H, W): the mean over the classes in them."""
    scores = []
    for p, label in zip(probs.flatten(2), labels.flatten(1), strict=True):
        for c in label.unique().clamp(0, len(p) - 1).tolist():
            mask, q = (label == c).double(), p[c]
            variance = q * (1 - q)
            scores.append(float(objective.second_order(
                (q * mask).sum(), (variance * mask).sum(), mask.sum(), q.sum(), variance.sum())))
    return float(np.mean(scores))


def made_up_image(n: int, height: int, width: int, seed: int = 0,
                  normalize: Normalize | None = None) -> np.ndarray:
    """Returns uint8 (N, 3, H, W): smooth blobs with noise, the same for the same arguments.

    normalize: of a network for bands; the values are then within 2 deviations of their means.
    """
    bands = normalize and normalize.bands
    if normalize and bands:
        thirds = [made_up_image(n, height, width, seed + 100 * number)
                  for number in range(-(-normalize.channels // 3))]
        share = np.concatenate(thirds, 1)[:, :normalize.channels].astype(np.float32) / 64 - 2
        mean, std = (np.array(one, np.float32)[:, None, None] * np.float32(normalize.scale)
                     for one in (normalize.mean, normalize.std))
        values = mean + std * share
        if bands.type != "float32":
            values = np.rint(values).clip(0, np.iinfo(bands.type).max)
        return values.astype(bands.type)
    generator = np.random.default_rng((seed, n, height, width))
    coarse = generator.uniform(0, 255, (n, 3, 6, 8)).astype(np.float32)
    soft = nn.functional.interpolate(torch.from_numpy(coarse), (height, width),
                                     mode="bicubic").numpy()
    noisy = soft + generator.normal(0, 12, soft.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _write_onnx(graph, image, path, metadata, any_size, opset):
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    if weights > LARGEST_ONNX:
        raise ConfigError(f"the weights take {weights / 2 ** 30:.1f} GiB; the limit of an ONNX "
                          "file is 2", "--format onnx", "use --format torch_export")
    output = {"labels": {0: "batch", 1: "height", 2: "width"},
              "logits": {0: "batch", 2: "height", 3: "width"}}
    name = "labels" if graph.returns_labels else "logits"
    program = torch.onnx.export(graph, (image,), dynamo=True, dynamic_shapes=any_size,
                                opset_version=opset, input_names=["image"], output_names=[name],
                                verbose=False)
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:
        raise ConfigError(f"the graph cannot be converted to opset {opset}: torch wrote opset "
                          f"{written}", "--opset", f"use --opset {written}")
    if any_size:
        # The output has the size of the input, but the exporter writes formulas.
        shape = program.model.graph.outputs[0].shape
        assert shape is not None
        for axis, dimension in output[name].items():
            shape[axis] = dimension
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _write_program(graph, image, path, metadata, any_size):
    program = _exported(graph, image, any_size)
    with open(path, "wb") as file:          # as a path it would have to end in .pt2
        torch.export.save(program, file, extra_files=_extra_files(metadata))


def _write_script(graph, image, path, metadata, any_size):
    # The exported program is traced, because it contains only operators and no Python.
    script = torch.jit.trace(_exported(graph, image, None).module(), image, check_trace=False)
    torch.jit.save(script, str(path), _extra_files=_extra_files(metadata))


def _exported(graph, image, any_size):
    dynamic = any_size and tuple({axis: torch.export.Dim.DYNAMIC for axis in names}
                                 for names in any_size)
    return torch.export.export(graph, (image,), dynamic_shapes=dynamic)


def _extra_files(metadata):
    return {METADATA_FILE: json.dumps(metadata)}


@contextlib.contextmanager
def _quiet():
    """Hide the warnings and log messages of torch's exporters in the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
