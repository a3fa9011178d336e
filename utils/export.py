"""A trained network as a graph that other programs run, proved equal before it is kept.

The graph takes pictures as they are, RGB in 0..255, normalises them itself and
gives logits or, on request, labels. Three formats: ONNX, torch.export (.pt2)
and TorchScript, which PyTorch has deprecated and which holds one size only.
"""
import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.errors import ConfigError, NumericalError, first_line
from utils.graph_metadata import GraphMetadata
from utils.largest_class import largest_class
from utils.open_model import OpenModel

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}
# torch's exporter is written for 18; other versions are converted from it.
OPSET = 18
# Of max |logit|, or of 1 where logits are small: what float32 sums in another order may differ by.
TOLERANCE = 1e-4
# Times the rounding of PyTorch's own float32, where that is more: the largest of many pixels
# against their median.
NOISE = 10
# (images, height, width): square and oblong, one and several, multiples of 32 and odd sizes.
CHECK_SIZES = ((1, 64, 96), (2, 97, 131), (1, 128, 128), (1, 203, 75), (1, 360, 480))
# Of the pixels of an image, where a network jumps between equals (see `unpools`). Measured with
# ENet on CamVid: one jump moves up to 750 pixels, one image in three has one.
JUMPING_PIXELS, JUMPING_LABELS = 0.01, 0.001
# Odd and never 1, so that no size of the example looks like a rule.
EXAMPLE = (2, 97, 131)
# One ONNX file cannot be larger than protobuf's 2 GiB.
LARGEST_ONNX = 2 ** 31 - 2 ** 20
INSTALL = "pip install -r requirements-export.txt"
METADATA_FILE = "segwright.json"


class Graph(nn.Module):
    """Normalisation, network and, with `argmax`, the largest logit, in one module.

    images: uint8 or float32 (N, 3, H, W), RGB in 0..255
    returns: float32 logits (N, C, H, W), or labels (N, H, W), uint8 up to 255
        classes and int16 above.
    """

    def __init__(self, network: nn.Module, normalize: nn.Module, argmax: bool = False):
        super().__init__()
        self.network, self.normalize, self.argmax = network, normalize, argmax

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.is_floating_point():
            images = images.clone()             # Normalize works in place
        logits = self.network(self.normalize(images))
        if not self.argmax:
            return logits
        return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 255 else torch.int16)


@dataclass
class Check:
    """One comparison of a graph with PyTorch.

    delta: max |graph - PyTorch| of the logits; None for a graph that gives labels.
    off: pixels with a logit that is further away than `tolerance`.
    differing: pixels with another label. tied: those of them where PyTorch's two
        logits are closer than rounding is.
    """

    name: str
    pixels: int
    largest: float
    delta: float | None
    off: int
    differing: int
    tied: int
    tolerance: float

    def passed(self, jumps: bool = False) -> bool:
        """Whether the graph computes the same. jumps: of a network that `unpools`."""
        pixels = self.pixels if jumps else 0
        return (bool(np.isfinite(self.largest)) and self.off <= JUMPING_PIXELS * pixels
                and self.differing - self.tied <= JUMPING_LABELS * pixels)

    def __add__(self, other: "Check") -> "Check":
        """Both in one; the name is the first one's."""
        delta = None if self.delta is None else max(self.delta, other.delta)
        return Check(self.name, self.pixels + other.pixels, max(self.largest, other.largest),
                     delta, self.off + other.off, self.differing + other.differing,
                     self.tied + other.tied, max(self.tolerance, other.tolerance))


def allowed(largest_logit: float) -> float:
    """How far logits may be apart that are up to `largest_logit` large."""
    return TOLERANCE * max(1.0, largest_logit)


def unpools(network: nn.Module) -> bool:
    """Whether a network puts values back where a pooling found its maximum (ENet, SegNet).

    It jumps: of two equal values rounding decides which one is the maximum, and all around
    the place the logits follow. PyTorch in float32 differs from PyTorch in float64 there.
    """
    with torch.inference_mode(), _Unpooling() as watch:
        network(torch.zeros(1, 3, 64, 64))
    return watch.seen


class _Unpooling(TorchDispatchMode):
    """Notes whether max_unpool2d is called."""

    seen = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen |= function is torch.ops.aten.max_unpool2d.default
        return function(*args, **(kwargs or {}))


def require_packages(file_format: str):
    """ConfigError with the line that installs what is missing for a format."""
    needed = ("onnx", "onnxscript", "onnxruntime") if file_format == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX export needs {', '.join(needed)}; not installed: "
                          f"{', '.join(missing)}", fix=INSTALL)


def graph_of(opened: OpenModel, argmax: bool = False) -> Graph:
    """The graph of an opened checkpoint, on the CPU, in eval mode and the plain memory layout."""
    graph = Graph(opened.model, opened.normalize, argmax).cpu().eval()
    return graph.to(memory_format=torch.contiguous_format)


def describe(opened: OpenModel, *, size: tuple | None, uint8_input: bool, argmax: bool,
             opset: int | None) -> GraphMetadata:
    """The metadata of the graph that these options make."""
    batch, height, width = (1, *size) if size else ("batch", "height", "width")
    kind = "uint8" if uint8_input else "float32"
    return GraphMetadata(class_names=opened.class_names, palette=opened.palette,
                         **opened.normalize.state(), activation=opened.activation,
                         architecture=opened.config["arch"]["type"],
                         image=f"{kind} RGB, 0..255, ({batch}, 3, {height}, {width})",
                         output="labels" if argmax else "logits", opset=opset)


def write_graph(graph: Graph, path, file_format: str, metadata: GraphMetadata, *,
                size: tuple | None = None, uint8_input: bool = False, opset: int = OPSET):
    """Write `graph` to `path`, unchecked.

    size: (H, W) that the graph is fixed to, for one image; None: any size and number.
    Raises ConfigError where the format or torch's exporter cannot do what is asked.
    """
    if file_format == "torchscript" and size is None:
        raise ConfigError("TorchScript keeps the sizes of the one image it was traced with",
                          "--format torchscript", "give --size HxW, or take --format torch_export")
    shape = (1, 3, *size) if size else (EXAMPLE[0], 3, *EXAMPLE[1:])
    image = torch.zeros(shape, dtype=torch.uint8 if uint8_input else torch.float32)
    writers = {"onnx": _write_onnx, "torch_export": _write_program, "torchscript": _write_script}
    options = {"opset": opset} if file_format == "onnx" else {}
    try:
        with _quiet(), torch.no_grad():
            any_size = None if size else ({0: "batch", 2: "height", 3: "width"},)
            writers[file_format](graph, image, path, metadata.as_strings(), any_size, **options)
    except (ConfigError, OSError):
        raise
    except Exception as error:          # torch's exporters raise many types, none of them ours
        raise ConfigError(f"torch cannot export {metadata.architecture}"
                          f"{'' if size else ' for images of any size'}: {first_line(error)}",
                          f"--format {file_format}", "see the whole message with --debug"
                          if size else "give --size HxW; see the whole message with --debug"
                          ) from error


def open_graph(path, file_format: str, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """The graph in a file as a function from images to its output, as its users would run it."""
    if file_format == "onnx":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4              # what fails is raised as well
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options,
                                               providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    with _quiet(), open(path, "rb") as file:
        # Guards are conclusions from the one example, even about how memory lay: sizes for
        # which the operators are right would be refused. What they do is compared instead.
        module = (torch.export.load(file).module(check_guards=False)
                  if file_format == "torch_export" else torch.jit.load(file))

    def run(images):
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()
    return run


def check_image(run: Callable, opened: OpenModel, image: np.ndarray, name: str, *,
                uint8_input: bool, argmax: bool) -> Check:
    """Compare a graph with PyTorch on uint8 images (N, 3, H, W).

    NumericalError where the graph cannot be run or gives another shape.
    """
    with torch.inference_mode():
        logits = opened.model(opened.normalize(torch.from_numpy(image)))
    try:
        output = run(image if uint8_input else image.astype(np.float32))
    except Exception as error:          # whatever the other program raises, the check failed
        raise NumericalError(f"the graph cannot be run on {name}: {first_line(error)}") from error
    expected = (logits.shape[0], *logits.shape[2:]) if argmax else tuple(logits.shape)
    if output.shape != expected:
        raise NumericalError(f"the graph gives {output.shape} on {name}, not {expected}")
    output = torch.from_numpy(output)
    check = compare(name, logits, output, argmax)
    if check.passed():
        return check
    noise = _rounding(opened, image, logits)
    return compare(name, logits, output, argmax, max(check.tolerance, NOISE * noise))


def _rounding(opened, image, logits):
    """What float32 costs PyTorch itself: the median over pixels of its distance to float64.

    Usually far below `allowed`; a deep network with wild weights has more. A median, so
    that the places where a network jumps (see `unpools`) do not count.
    """
    network = copy.deepcopy(opened.model).double()
    with torch.inference_mode():
        exact = network(opened.normalize(torch.from_numpy(image)).double())
    return float((exact - logits).abs().amax(1).median())


def compare(name: str, logits: torch.Tensor, output: torch.Tensor, argmax: bool,
            tolerance: float | None = None) -> Check:
    """PyTorch's logits (N, C, H, W) against the logits or labels of a graph.

    tolerance: how far logits may be apart; None: as `allowed` says.
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
    # Two logits that may each be off by so much can change places if they are twice as close.
    tied = wrong & valid & (best - chosen <= 2 * tolerance)
    return Check(name, labels.numel(), greatest, delta, off, int(wrong.sum()), int(tied.sum()),
                 tolerance)


def made_up_image(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (N, 3, H, W): soft blobs with noise, a function of the arguments."""
    generator = np.random.default_rng((seed, n, height, width))
    coarse = generator.uniform(0, 255, (n, 3, 6, 8)).astype(np.float32)
    soft = nn.functional.interpolate(torch.from_numpy(coarse), (height, width),
                                     mode="bicubic").numpy()
    noisy = soft + generator.normal(0, 12, soft.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _write_onnx(graph, image, path, metadata, any_size, opset):
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    if weights > LARGEST_ONNX:
        raise ConfigError(f"the weights take {weights / 2 ** 30:.1f} GiB, one ONNX file holds 2",
                          "--format onnx", "take --format torch_export")
    output = {"labels": {0: "batch", 1: "height", 2: "width"},
              "logits": {0: "batch", 2: "height", 3: "width"}}
    name = "labels" if graph.argmax else "logits"
    program = torch.onnx.export(graph, (image,), dynamo=True, dynamic_shapes=any_size,
                                opset_version=opset, input_names=["image"], output_names=[name],
                                verbose=False)
    found = program.model.opset_imports[""]
    if found != opset:
        raise ConfigError(f"the graph cannot be written in opset {opset}: torch left it in {found}",
                          "--opset", f"take --opset {found}")
    if any_size:
        # The sizes of the output are those of the input, which the exporter states as formulas.
        shape = program.model.graph.outputs[0].shape
        for axis, dimension in output[name].items():
            shape[axis] = dimension
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _write_program(graph, image, path, metadata, any_size):
    program = _exported(graph, image, any_size)
    with open(path, "wb") as file:          # a path must end in .pt2, which a temporary one may not
        torch.export.save(program, file, extra_files=_extra_files(metadata))


def _write_script(graph, image, path, metadata, any_size):
    # Traced is what torch.export made of the network: plain operators, no Python left.
    script = torch.jit.trace(_exported(graph, image, None).module(), image, check_trace=False)
    torch.jit.save(script, str(path), _extra_files=_extra_files(metadata))


def _exported(graph, image, any_size):
    dynamic = any_size and tuple({axis: torch.export.Dim.DYNAMIC for axis in names}
                                 for names in any_size)
    return torch.export.export(graph, (image,), dynamic_shapes=dynamic)


def _extra_files(metadata):
    import json
    return {METADATA_FILE: json.dumps(metadata)}


@contextlib.contextmanager
def _quiet():
    """Without the remarks of torch's exporters about their own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
