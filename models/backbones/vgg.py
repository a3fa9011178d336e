"""VGG. Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556.

The keys are those of torchvision's files: features.N. The classifier is not built.
"""
import torch
from torch import nn

from models.backbones import Backbone
from models.backbones.download import torchvision_state
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from utils.machine.tensors import ImageBatch

# Convolutions in each of the five stages.
STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3),
          "vgg19": (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five feature maps at strides 2 to 32, each after a pooling; vgg16_bn has norms, vgg16 none.

    x: float (N, 3, H, W), normalized. ceil_pool: poolings round up, as in FCN. norm: of the
    _bn variants. `bounds` holds the first layer and the pooling of each stage in `features`.
    pretrained: torchvision's ImageNet weights.
    """

    aliases = tuple(STAGES) + tuple(f"{name}_bn" for name in STAGES)

    def __init__(self, name: str = "vgg16_bn", norm: str = "batch", pretrained: bool = False,
                 ceil_pool: bool = False):
        super().__init__()
        self.convs, has_norm = STAGES[name.removesuffix("_bn")], name.endswith("_bn")
        parts, in_channels, self.bounds = [], 3, []
        for width, convs in zip(WIDTHS, self.convs, strict=True):
            start = len(parts)
            for _ in range(convs):
                parts.append(nn.Conv2d(in_channels, width, 3, padding=1))
                parts += [norm_layer(norm)(width), activation(norm)] if has_norm else [
                    nn.ReLU(inplace=True)]
                in_channels = width
            self.bounds.append((start, len(parts)))
            parts.append(nn.MaxPool2d(2, ceil_mode=ceil_pool))
        self.features = nn.Sequential(*parts)
        self.channels, self.strides = list(WIDTHS), [2, 4, 8, 16, 32]
        he_init(self, mode="fan_out")
        for conv in self.features:
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if pretrained:
            state = torchvision_state(name)
            self.load_imagenet({k: v for k, v in state.items() if k.startswith("features.")}, name)

    def stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolutions of stage i = 0 to 4, without the pooling.

        float (N, channels of stage i - 1, H, W) -> (N, channels[i], H, W).
        """
        for layer in self.features[slice(*self.bounds[i])]:
            x = layer(x)
        return x

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = []
        for i, (_, pool) in enumerate(self.bounds):
            x = self.features[pool](self.stage(i, x))
            maps.append(x)
        return maps
