"""Turns the bytes of a picture into the input of a network, on the device."""
import math
from collections.abc import Sequence

import torch
from torch import nn

from utils.machine.tensors import ImageBatch


class Normalize(nn.Module):
    """(x / scale - mean) / std per channel.

    images: uint8 (N, 3, H, W), RGB -> float32 (N, 3, H, W), same device.
    order: "RGB", or "BGR" for networks trained on swapped channels. Channel i of the result uses
        mean[i] and std[i] in both orders: published BGR networks keep the RGB list of numbers.
    scale: 255 if mean and std are in 0..1; 1 if they are in 0..255.
    white: how the network's pictures of more than 8 bits became bytes, for those who read further
        ones: see utils.images.image_io. It has no effect here.
    """

    shift: torch.Tensor         # (3, 1, 1) float32: mean * scale
    factor: torch.Tensor        # (3, 1, 1) float32: 1 / (std * scale)

    def __init__(self, mean: Sequence[float], std: Sequence[float], order: str = "RGB",
                 scale: float = 255.0, white: float | None = None):
        super().__init__()
        if sorted(order) != sorted("RGB") or order[1] != "G":
            raise ValueError(f"order must be RGB or BGR, got {order!r}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or scale <= 0 \
                or not all(map(math.isfinite, (*mean, *std, scale))):
            raise ValueError(f"mean and std are three finite numbers, std and scale positive; got "
                             f"{mean}, {std}, {scale}")
        self.order, self.scale, self.white = order, float(scale), white
        self.mean, self.std = [float(m) for m in mean], [float(s) for s in std]
        # Not part of a state dict: the checkpoint stores the arguments of the constructor.
        self.register_buffer("shift", torch.tensor(self.mean, dtype=torch.float64)
                             .mul(scale).float().view(3, 1, 1), persistent=False)
        self.register_buffer("factor", torch.tensor(self.std, dtype=torch.float64)
                             .mul(scale).reciprocal().float().view(3, 1, 1), persistent=False)

    def forward(self, images: ImageBatch,
                memory_format: torch.memory_format = torch.preserve_format) -> ImageBatch:
        """Normalize uint8 RGB (N, 3, H, W) to float32; memory_format: of the result."""
        if memory_format is not torch.preserve_format:
            images = images.contiguous(memory_format=memory_format)     # while a value has one byte
        if self.order == "BGR":
            images = images.flip(-3)
        return images.float().sub_(self.shift).mul_(self.factor)

    def state(self) -> dict:
        """The constructor's arguments as plain types, for a checkpoint."""
        white = {} if self.white is None else {"white": self.white}
        return {"mean": self.mean, "std": self.std, "order": self.order, "scale": self.scale,
                **white}
