"""Every published network gives the numbers of the original under made-up weights."""
import importlib.util
import json
import pathlib

import numpy as np
import pytest
import torch

from models.published import load_published, published

PARITY = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "parity"
FOLDERS = sorted(p.parent.name for p in PARITY.glob("*/manifest.json")) if PARITY.is_dir() else []


def load_fill():
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(name):
    """(our outputs by name, the golden ones, the manifest)"""
    fill = load_fill()
    manifest = json.loads((PARITY / name / "manifest.json").read_text())
    seed, shape = manifest["input"]["seed"], manifest["input"]["shape"]
    network = load_published(name, fill.fill(manifest["keys"], seed))
    network.training = len(manifest["outputs"]) > 1
    with torch.no_grad():
        got = network(fill.image(seed, shape))
    return got, np.load(PARITY / name / "golden.npz"), manifest
