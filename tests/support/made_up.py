"""Weights and images computed from formulas, and the golden values of the parity tests.

Keys, shapes and outputs of published networks are in ../shared/parity, one folder per network.
"""
import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from base.base_model import BaseModel
from dataloader.shapes import Shapes
from tests.support.places import SHARED
from utils.machine.tensors import ImageBatch, LabelBatch
from utils.training.criterion import Criterion

PARITY = SHARED / "parity"
needs_goldens = pytest.mark.skipif(not PARITY.is_dir(), reason="../shared/parity is missing")


def waves(network: nn.Module) -> nn.Module:
    """`network` in eval mode, with weights computed from their keys and positions."""
    @functools.cache        # the blocks of a network have keys of the same length
    def sines(count, length):
        return torch.sin(torch.arange(count, dtype=torch.float64) ** 1.5 + length)

    state = {}
    for key, tensor in network.state_dict().items():
        state[key] = tensor
        if tensor.is_floating_point():
            wave = sines(tensor.numel(), len(key))
            if key.endswith("running_var"):
                wave = 1 + 0.4 * wave
            elif tensor.ndim > 1:
                wave = wave * 2 / tensor[0].numel() ** 0.5
            else:
                wave = 0.3 * wave + (0.6 if key.endswith("weight") else 0.0)
            state[key] = wave.to(tensor.dtype).reshape(tensor.shape)
    network.load_state_dict(state)
    return network.eval()


def picture(height: int, width: int, images: int = 1) -> ImageBatch:
    """A float32 image batch (images, 3, height, width), the same at every call."""
    wave = torch.sin(torch.arange(images * 3 * height * width, dtype=torch.float64) ** 1.3)
    return (1.4 * wave).float().reshape(images, 3, height, width)


def twenty_steps_on_shapes(network: BaseModel, loss: Any, optimizer: type[torch.optim.Optimizer],
                           **options: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Train a network of 9 classes on one batch; return the first and the last losses.

    loss: the section of a config. optimizer: a class, whose arguments are the options. The losses
    are those of the outputs by their names, and "total".
    """
    torch.manual_seed(0)
    images, labels = batch_of_shapes()
    criterion = Criterion(loss, network.output_weights, num_classes=9)
    updates = optimizer(network.train().parameters(), **options)
    history = []
    for step in range(20):
        network.at_progress(step / 20)
        total, parts = criterion(network(images), {"label": labels})
        updates.zero_grad()
        total.backward()
        updates.step()
        history.append({key: part.item() for key, part in parts.items()} | {"total": total.item()})
    return history[0], history[-1]


def batch_of_shapes() -> tuple[ImageBatch, LabelBatch]:
    """Four scenes of Shapes: normalized images (4, 3, 96, 128), labels (4, 96, 128)."""
    data = Shapes(size=(96, 128), length=4)
    pairs = [data.load(i) for i in range(4)]
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in pairs])
    images = (images / 255 - torch.tensor(data.mean).view(3, 1, 1)) / 0.2
    labels = torch.stack([torch.from_numpy(np.array(label)).long() for _, label in pairs])
    return images, labels


def published_weights(name: str, change: Callable[[dict], dict] = lambda weights: weights) \
        -> tuple[dict[str, torch.Tensor], ImageBatch]:
    """(computed state dict with the published keys, image) of a parity folder.

    change: applied to the state dict.
    """
    manifest = published_manifest(name)
    seed = manifest["input"]["seed"]
    return (change(fill().fill(manifest["keys"], seed)),
            fill().image(seed, manifest["input"]["shape"]))


def published_image(name: str, golden: str) -> ImageBatch:
    """The image of a further golden of a parity folder, whose weights are the same."""
    spec = published_manifest(name)["goldens"][golden]["input"]
    return fill().image(spec["seed"], spec["shape"])


@functools.cache
def fill() -> Any:
    """The module that computes weights, images and other numbers from a seed and a name."""
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_manifest(name: str) -> dict:
    """manifest.json of a parity folder: keys, shapes and dtypes, input, and outputs."""
    return json.loads((PARITY / name / "manifest.json").read_text())


def published_keys(name: str) -> dict[str, torch.Tensor]:
    """The published state dict with tensors on the meta device, that is without values."""
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (shape, dtype) in published_manifest(name)["keys"].items()}


def in_dialect(name: str, dialect: str, weights: Mapping[str, torch.Tensor]) \
        -> dict[str, torch.Tensor]:
    """The published state dict of a parity folder in another dialect of its key_map.json.

    There, a key is that of the same tensor, or [key, a, b] for rows a to b of a tensor.
    """
    key_map = json.loads((PARITY / name / "key_map.json").read_text())[dialect]
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for key, place in key_map.items():
        other, first, _ = (place, 0, 0) if isinstance(place, str) else place
        parts.setdefault(other, {})[first] = weights[key]
    return {key: torch.cat([rows[first] for first in sorted(rows)]) if len(rows) > 1 else rows[0]
            for key, rows in parts.items()}


def distance_to_golden(output: torch.Tensor, name: str, golden: str, key: str) -> float:
    """The largest difference to a golden output, in standard deviations of that output.

    output: (N, C, H, W) float. The golden output (array `key` of GOLDEN.npz in the folder `name`)
    can be stored with only every n-th row and column.
    """
    manifest = published_manifest(name)
    group = manifest.get("goldens", {}).get(golden) or manifest.get(golden) or manifest
    spec = group["outputs"][key]
    assert list(output.shape) == spec["full_shape"]
    with np.load(PARITY / name / f"{golden}.npz") as file:
        expected = torch.from_numpy(file[key])
    rows = -(-output.shape[-2] // expected.shape[-2])
    columns = -(-output.shape[-1] // expected.shape[-1])
    stored = output[..., ::rows, ::columns]
    return float((stored - expected).abs().max() / expected.std())
