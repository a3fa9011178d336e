"""A checkpoint of a small network that is exported in a second."""
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from utils.checkpoint.write import write_checkpoint
from utils.config.schema import resolve_config
from utils.images.palette import voc_palette

NAMES = ["road", "pavement", "building", "pole", "sign", "Bäume", "sky", "person", "car"]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed (requirements-export.txt)")


class TinyNet(BaseModel):
    """Two convolutions, the second one at half the size."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, len(NAMES), 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x):
        small = F.max_pool2d(self.first(x).relu(), 2, ceil_mode=True)
        return F.interpolate(self.second(F.pad(small, (1, 1, 1, 1))), x.shape[-2:],
                             mode="bilinear")


def write_tiny_checkpoint(path, monkeypatch, network=None, weights=None, **normalization) -> str:
    """Write a checkpoint that open_model opens as `network` (default: a TinyNet); returns its path.

    weights: an ENet whose weights are stored, for programs that run in another process.
    """
    network = network or TinyNet()
    monkeypatch.setattr("utils.predict.open_model.model_from_checkpoint", lambda *_: network.eval())
    loader = {"type": "Shapes", "args": {"length": 4, "size": [48, 64], "batch_size": 2,
                                         "num_workers": 0}}
    config = resolve_config({"arch": {"type": "ENet"}, "train_loader": loader,
                             "val_loader": loader, "optimizer": {"type": "SGD",
                                                                 "args": {"lr": 0.1}},
                             "loss": "CrossEntropyLoss2d", "trainer": {"epochs": 1}})
    write_checkpoint(path, {
        "format": 1, "model": weights.state_dict() if weights else {}, "ema": None, "epoch": 3,
        "config": config,
        "class_names": NAMES, "palette": voc_palette(len(NAMES)), "activation": "softmax",
        "normalization": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.3, 0.2], "order": "RGB",
                          "scale": 255.0, **normalization}, "versions": {}})
    return str(path)
