"""A plain vision transformer, whose maps all have one stride, as an encoder with a pyramid.

`build_backbone(..., pyramid=True)` makes it; the pyramid is that of ViTDet
(models/layers/feature_pyramid.py).
"""
import re

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.layers.feature_pyramid import SimpleFeaturePyramid
from models.weights.rename_keys import State
from utils.machine.tensors import ImageBatch


class PlainPyramid(Backbone):
    """Four maps of 256 channels, made from the last map of a plain encoder.

    The image is padded with zeros at the right and at the bottom, so that the maps begin at its
    top left pixel, wherever the encoder would pad. output_stride: 32 gives strides
    4, 8, 16, 32; 16 gives 4, 8, 16, 16. With patches of 14 pixels, strides are 14/16 of these,
    rounded. The encoder alone counts as pretrained: the pyramid learns at the
    rate of the head, and freeze_backbone does not fix it.
    """

    def __init__(self, encoder: Backbone, output_stride: int = 32):
        super().__init__()
        self.encoder = encoder
        encoder.keep(-1)
        patch = encoder.strides[-1]
        self.pyramid = SimpleFeaturePyramid(encoder.channels[-1], patch,
                                            output_stride=output_stride)
        self.channels = self.pyramid.channels
        self.strides = [max(round(patch / factor + 0.01), 1) for factor in self.pyramid.factors]
        self.patch = patch

    def keep(self, *levels: int) -> None:
        """Set which maps are used; the layers of the others are removed."""
        super().keep(*levels)
        for level in self.unused:
            self.pyramid.drop(level)

    def encoder_modules(self) -> list[nn.Module]:
        """The encoder without the pyramid."""
        return [self.encoder]

    def rename_foreign(self, state: State) -> State:
        """Rename a file's keys of the encoder, as it does itself."""
        return {re.sub(r"^backbone\.", "backbone.encoder.", key): value
                for key, value in self.encoder.rename_foreign(state).items()}

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        height, width = (-side % self.patch for side in x.shape[2:])
        maps = self.pyramid(self.encoder(F.pad(x, (0, width, 0, height)))[-1])
        for level, factor in enumerate(self.pyramid.factors):
            if level not in self.unused:
                maps[level] = self._cropped(maps[level], x, factor)
        return maps

    def _cropped(self, m, x, factor):
        """m without the pixels that lie beyond the image, where the encoder padded it."""
        if factor <= 1:
            return m
        height, width = (-(-side * int(factor) // self.patch) for side in x.shape[2:])
        return m[..., :height, :width]
