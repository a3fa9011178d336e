"""Turns the bytes of a picture into the input of a network, on the device."""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from utils.images.bands import Bands, as_picture, bands_of_state
from utils.images.types import Image
from utils.machine.tensors import ImageBatch

SMALLEST_DEVIATION = 0.5        # of a channel, in 0..255: real images have far more


@dataclass(frozen=True)
class InputNumbers:
    """The section `normalize` of a config: (x / scale - mean) / std, for each channel.

    It holds for training, validation and prediction: every checkpoint and every exported graph
    contains it. The color that becomes 0 pads images in training.

    mean, std: three numbers each, both or neither; null: those of the training set.
    order: of the channels that the network sees. mean[0] and std[0] belong to the first of them:
        to red, or with "BGR" to blue (networks of Caffe and openseg).
    scale: 255 if mean and std are those of pixels in 0..1; 1 if they are those of 0..255.
    """

    mean: list[float] | None = None
    std: list[float] | None = None
    order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 255.0

    @staticmethod
    def check_settings(settings: Mapping[str, Any]) -> list[str]:
        """Wrong numbers, as "key: text"."""
        mean, std, scale = settings["mean"], settings["std"], settings["scale"]
        if scale <= 0:
            return [f"scale: expected more than 0, found {scale:g}"]
        if (mean is None) != (std is None):
            given, missing = ("mean", "std") if std is None else ("std", "mean")
            return [f"{missing}: expected three numbers, because {given} is given"]
        if mean is None:
            return [] if scale == 255 else ["scale: has no effect without mean and std"]
        problems = [f"{key}: expected three numbers, found {len(numbers)}"
                    for key, numbers in (("mean", mean), ("std", std)) if len(numbers) != 3]
        # A number for the other scale is wrong by a factor of 255, and the network learns anyway.
        if not all(0 <= number * scale <= 255 for number in mean):
            problems.append(f"mean: {mean} times scale {scale:g} is not a pixel value (0 to 255); "
                            "numbers of pixels in 0..255 need \"scale\": 1")
        if not all(number * scale >= SMALLEST_DEVIATION for number in std):
            problems.append(f"std: {std} times scale {scale:g} is a deviation below "
                            f"{SMALLEST_DEVIATION} of 255; numbers of pixels in 0..1 need "
                            "\"scale\": 255")
        return problems


class Normalize(nn.Module):
    """(x / scale - mean) / std per channel.

    images: uint8 (N, 3, H, W), RGB -> float32 (N, 3, H, W), same device.
    order: "RGB", or "BGR" for networks trained on swapped channels. Channel i of the result uses
        mean[i] and std[i] in both orders: published BGR networks keep the RGB list of numbers.
    scale: 255 if mean and std are in 0..1; 1 if they are in 0..255.
    white: how the network's pictures of more than 8 bits became bytes, for those who read further
        ones: see utils.images.image_io. It has no effect here.
    bands: of the images, or their `Bands.state`, where they are not RGB: images (N, C, H, W) of
        uint8, uint16 or float32; mean and std then have C numbers, and order is "RGB".
    """

    shift: torch.Tensor         # (C, 1, 1) float32: mean * scale; C is 3 for RGB
    factor: torch.Tensor        # (C, 1, 1) float32: 1 / (std * scale)

    def __init__(self, mean: Sequence[float], std: Sequence[float], order: str = "RGB",
                 scale: float = 255.0, white: float | None = None,
                 bands: Bands | Mapping[str, Any] | None = None):
        super().__init__()
        bands = bands if isinstance(bands, Bands) else bands_of_state(bands)
        count = len(bands.numbers) if bands else 3
        if sorted(order) != sorted("RGB") or order[1] != "G" or bands and order != "RGB":
            raise ValueError(f"order must be RGB or BGR, got {order!r}")
        if len(mean) != count or len(std) != count or min(std) <= 0 or scale <= 0 \
                or not all(map(math.isfinite, (*mean, *std, scale))):
            raise ValueError(f"mean and std are {'three' if count == 3 else count} finite numbers, "
                             f"std and scale positive; got {mean}, {std}, {scale}")
        self.order, self.scale, self.white, self.bands = order, float(scale), white, bands
        self.mean, self.std = [float(m) for m in mean], [float(s) for s in std]
        # Not part of a state dict: the checkpoint stores the arguments of the constructor.
        self.register_buffer("shift", torch.tensor(self.mean, dtype=torch.float64)
                             .mul(scale).float().view(-1, 1, 1), persistent=False)
        self.register_buffer("factor", torch.tensor(self.std, dtype=torch.float64)
                             .mul(scale).reciprocal().float().view(-1, 1, 1), persistent=False)

    def forward(self, images: ImageBatch,
                memory_format: torch.memory_format = torch.preserve_format) -> ImageBatch:
        """Normalize images (N, C, H, W), which stay, to float32; memory_format: of the result."""
        if memory_format is not torch.preserve_format:
            images = images.contiguous(memory_format=memory_format)     # while values are small
        if self.order == "BGR":
            images = images.flip(-3)
        if images.dtype == torch.float32:       # which `float` does not copy
            return images.sub(self.shift).mul_(self.factor)
        return images.float().sub_(self.shift).mul_(self.factor)

    def pictures(self, inputs: ImageBatch) -> ImageBatch:
        """The uint8 RGB pictures (N, 3, H, W) whose normalization is `inputs`, float32.

        Of bands they are those of `shown`.
        """
        if self.bands:
            return self.shown(inputs / self.factor + self.shift)
        images = (inputs / self.factor + self.shift).round_().clamp_(0, 255).to(torch.uint8)
        return images.flip(-3) if self.order == "BGR" else images

    def shown(self, images: ImageBatch) -> ImageBatch:
        """Pictures, uint8 RGB (N, 3, H, W) or (3, H, W), of images as a network takes them.

        RGB stays as it is; of bands three are stretched (utils.images.bands.as_picture).
        """
        if not self.bands:
            return images
        if images.dim() == 4:
            return torch.stack([self.shown(image) for image in images])
        picture = self.picture(images.permute(1, 2, 0).cpu().numpy())
        return torch.from_numpy(picture).permute(2, 0, 1)

    def picture(self, image: np.ndarray) -> Image:
        """The picture, uint8 RGB (H, W, 3), of one image (H, W, C): see `shown`."""
        if not self.bands:
            return image
        mean, std = ([self.scale * number for number in numbers]
                     for numbers in (self.mean, self.std))
        return as_picture(image, mean, std)

    @property
    def channels(self) -> int:
        """The number of channels of the images, and so of the network's input."""
        return len(self.mean)

    @property
    def zero_color(self) -> tuple[float, ...]:
        """The color (r, g, b), whole numbers in 0..255, that becomes 0 or nearly 0.

        Of bands, a value of each, in their type.
        """
        if self.bands:
            color = [self.scale * m for m in self.mean]
            if self.bands.type == "float32":
                return tuple(color)
            top = np.iinfo(self.bands.type).max
            return tuple(min(max(round(value), 0), top) for value in color)
        color = [min(max(round(self.scale * m), 0), 255) for m in self.mean]
        return tuple(reversed(color) if self.order == "BGR" else color)

    def state(self) -> dict:
        """The constructor's arguments as plain types, for a checkpoint."""
        white = {} if self.white is None else {"white": self.white}
        bands = {"bands": self.bands.state()} if self.bands else {}
        return {"mean": self.mean, "std": self.std, "order": self.order, "scale": self.scale,
                **white, **bands}
