"""ConvNeXt: a convolutional network built like a Swin Transformer.

Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545.

Files of ImageNet and segmentation networks that load (code and weights MIT): the authors', mmseg's,
Hugging Face's (also its first ones), timm's and torchvision's. `pretrained` downloads torchvision's
weights, which exist for all sizes but xlarge.

Every map has its own norm. The learned scale of a block starts at 1, as in mmseg's segmentation
networks; in the ImageNet training it starts at 1e-6.
"""
import re

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download, torchvision_state
from models.layers import checkpointing as activation_checkpointing
from models.layers.drop_path import drop_path as drop_path_layer
from models.layers.drop_path import growing_shares
from models.weights.rename_keys import Rule, State, rename
from utils.machine.tensors import ImageBatch

# name -> channels of the first stage (each stage doubles them), blocks of the stages
FORMS = {
    "convnext_tiny": (96, (3, 3, 9, 3)),
    "convnext_small": (96, (3, 3, 27, 3)),
    "convnext_base": (128, (3, 3, 27, 3)),
    "convnext_large": (192, (3, 3, 27, 3)),
    "convnext_xlarge": (256, (3, 3, 27, 3)),
}
EPS = 1e-6


class ConvNeXt(Backbone):
    """Four feature maps at strides 4, 8, 16, 32, with C, 2C, 4C and 8C channels.

    x: float (N, 3, H, W), normalized RGB; any H and W. What is left of a size that the stride does
    not divide is not used, as in the original. A map smaller than a stride, for which the original
    raises an error, is padded with zeros.
    pretrained: torchvision's ImageNet weights (IMAGENET1K_V1). drop_path: the chance to leave out
    the last block for an image in training; it grows linearly from 0 at the first. checkpointing:
    compute the blocks again in the backward pass, which saves memory.
    """

    aliases = tuple(FORMS)
    layer_norms = True

    def __init__(self, name: str = "convnext_tiny", pretrained: bool = False,
                 drop_path: float = 0.4, checkpointing: bool = False):
        super().__init__()
        width, depths = FORMS[name]
        self.channels = [width * 2 ** stage for stage in range(4)]
        self.strides, self.checkpointing = [4, 8, 16, 32], checkpointing
        shares = iter(growing_shares(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            Stage(3 if stage == 0 else self.channels[stage - 1], channels,
                  [next(shares) for _ in range(depths[stage])], first=stage == 0)
            for stage, channels in enumerate(self.channels))
        for stage, channels in enumerate(self.channels):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels, eps=EPS))
        self.apply(_init)
        if pretrained:
            self._load_pretrained(name)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        x, maps = x.permute(0, 2, 3, 1), []
        for number, stage in enumerate(self.stages):
            x = stage(x, self.checkpointing)
            maps.append(self.normed_map(number, x))
        return maps

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of ConvNeXt files of all sources."""
        return to_our_keys(state)

    def _load_pretrained(self, name):
        if name == "convnext_xlarge":
            raise no_download(name)
        self.load_classifier(torchvision_state(name))


class Stage(nn.Module):
    """A strided convolution and blocks: float (N, H, W, C') -> (N, H/s, W/s, C), rounded down.

    first: s is 4 and the norm comes after the convolution; otherwise s is 2 and it comes before.
    shares: drop path of each block.
    """

    def __init__(self, in_channels: int, channels: int, shares: list[float], first: bool):
        super().__init__()
        self.stride, self.first = 4 if first else 2, first
        conv = nn.Conv2d(in_channels, channels, self.stride, self.stride)
        norm = nn.LayerNorm(channels if first else in_channels, eps=EPS)
        self.downsample = nn.Sequential(*((conv, norm) if first else (norm, conv)))
        self.blocks = nn.ModuleList(Block(channels, share) for share in shares)

    def forward(self, x: torch.Tensor, checkpointing: bool) -> torch.Tensor:
        one, two = self.downsample
        x = two(self._strided(one, x)) if self.first else self._strided(two, one(x))
        for block in self.blocks:
            x = activation_checkpointing.run(block, x, active=checkpointing)
        return x

    def _strided(self, conv, x):
        height, width = x.shape[1:3]
        # Graphs for any size are made for maps of at least one stride.
        if not torch.compiler.is_exporting() and min(height, width) < self.stride:
            x = F.pad(x, (0, 0, 0, max(0, self.stride - width), 0, max(0, self.stride - height)))
        return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    """A depthwise 7x7 convolution and an MLP over channels, as a residual: (N, H, W, C) float."""

    def __init__(self, channels: int, share: float):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.drop_path = drop_path_layer(share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.pwconv1(self.norm(y))
        y = self.pwconv2(self.act(y))
        return x + self.drop_path(y * self.gamma)


def _init(module):
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# Files of other sources: Hugging Face, its first files, mmseg, the authors, timm and torchvision.
KEYS: tuple[Rule, ...] = (
    (r"^(?:backbone\.)?(?:convnext\.)?embeddings\.patch_embeddings\.",
     "backbone.stages.0.downsample.0."),
    (r"^(?:backbone\.)?(?:convnext\.)?embeddings\.layernorm\.", "backbone.stages.0.downsample.1."),
    (r"^(?:backbone\.)?(?:convnext\.)?encoder\.stages\.(\d)\.downsampling_layer\.",
     r"backbone.stages.\1.downsample."),
    (r"^(?:backbone\.)?(?:convnext\.)?encoder\.stages\.(\d)\.layers\.",
     r"backbone.stages.\1.blocks."),
    (r"^(?:backbone\.)?hidden_states_norms\.stage(\d)\.",
     lambda m: f"backbone.norm{int(m[1]) - 1}."),
    (r"^(?:backbone\.)?hidden_states_norms\.(\d)\.", r"backbone.norm\1."),
    (r"^features\.([0246])\.", lambda m: f"backbone.stages.{int(m[1]) // 2}.downsample."),
    (r"^features\.([1357])\.(\d+)\.(?:block\.)?",
     lambda m: f"backbone.stages.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"^(?:backbone\.)?stem\.", "backbone.stages.0.downsample."),
    (r"^(?:backbone\.)?downsample_layers\.(\d)\.", r"backbone.stages.\1.downsample."),
    (r"^(?:backbone\.)?stages\.(\d)\.(?=\d)", r"backbone.stages.\1.blocks."),
    (r"^(?:backbone\.)?(stages\.\d|norm\d)\.", r"backbone.\1."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:depthwise_conv|conv_dw|0)\.", r"\1.dwconv."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:layernorm|2)\.", r"\1.norm."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:pointwise_conv1|mlp\.fc1|3)\.", r"\1.pwconv1."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:pointwise_conv2|mlp\.fc2|5)\.", r"\1.pwconv2."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:layer_scale_parameter|layer_scale)$", r"\1.gamma"),
)


def to_our_keys(state: State) -> State:
    """Return a state dict of any source with the keys of `backbone` for the tensors of ConvNeXt.

    Other keys stay.
    """
    # torchvision has the scale as (C, 1, 1).
    return {key: value.flatten() if re.match(r"backbone\.stages\..*\.gamma$", key) else value
            for key, value in rename(state, KEYS).items()}
