"""Weights and images that are functions of key and place, and the parity goldens."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

PARITY = Path(__file__).resolve().parents[1].parent / "shared" / "parity"
needs_goldens = pytest.mark.skipif(not PARITY.is_dir(), reason="../shared/parity is not there")


def waves(network):
    """`network` in eval mode with weights that anyone can make again."""
    state = {}
    for key, tensor in network.state_dict().items():
        state[key] = tensor
        if tensor.is_floating_point():
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) ** 1.5 + len(key))
            if key.endswith("running_var"):
                wave = 1 + 0.4 * wave
            elif tensor.ndim > 1:
                wave = wave * 2 / tensor[0].numel() ** 0.5
            else:
                wave = 0.3 * wave + (0.6 if key.endswith("weight") else 0.0)
            state[key] = wave.to(tensor.dtype).reshape(tensor.shape)
    network.load_state_dict(state)
    return network.eval()


def picture(height, width, images=1):
    """A float image batch (images, 3, height, width)."""
    wave = torch.sin(torch.arange(images * 3 * height * width, dtype=torch.float64) ** 1.3)
    return (1.4 * wave).float().reshape(images, 3, height, width)


def published_weights(name, change=lambda weights: weights):
    """(made-up state dict under the published keys, image) of a parity folder."""
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    manifest = published_manifest(name)
    seed = manifest["input"]["seed"]
    return change(fill.fill(manifest["keys"], seed)), fill.image(seed, manifest["input"]["shape"])


def published_manifest(name):
    return json.loads((PARITY / name / "manifest.json").read_text())


def published_keys(name):
    """The published state dict without its numbers: tensors on the meta device."""
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (shape, dtype) in published_manifest(name)["keys"].items()}


def distance_to_golden(output, name, golden, key):
    """Greatest difference, in standard deviations of the golden output."""
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
