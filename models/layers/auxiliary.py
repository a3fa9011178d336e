"""Networks with a head on the last features and an auxiliary head on earlier ones."""
from typing import Any

import torch
from torch import nn

from base.base_model import BaseModel
from models.backbones import Backbone, build_backbone
from models.layers.outputs import as_outputs
from utils.machine.tensors import ImageBatch, Logits


class AuxiliaryHeadModel(BaseModel):
    """`segment` on the last map of `self.backbone`; `self.aux_head`, or None, on an earlier one.

    x: float (N, 3, H, W), normalized.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}
    """

    align_corners = False       # of the resize to the size of the image
    backbone: Backbone
    head: nn.Module
    aux_head: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.aux_head = None

    def build_encoder(self, backbone: str, use_aux: bool, **options: Any) -> tuple[int, int]:
        """Set self.backbone; return the channels of the map for the auxiliary head and of the last.

        options: passed to `build_backbone`.
        """
        self.backbone = build_backbone(backbone, levels=2, **options)
        aux_level = self.backbone.aux_level
        self.backbone.keep(-1, *([aux_level] if use_aux else []))
        if not use_aux:
            self.output_weights = {"out": 1.0}
        return self.backbone.channels[aux_level], self.backbone.channels[-1]

    def segment(self, features: torch.Tensor) -> Logits:
        """The backbone's last map (N, C', h, w) -> logits (N, C, h, w); `self.head` by default."""
        return self.head(features)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        maps = self.backbone(x)
        logits = {"out": self.segment(maps[-1])}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(maps[self.backbone.aux_level])
        return as_outputs(logits, x, self.training, self.align_corners)
