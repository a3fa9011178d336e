"""A linear head on a plain vision transformer.

Oquab et al., DINOv2, 2023, arXiv:2304.07193, and Siméoni et al., DINOv3, 2025, arXiv:2508.10104,
measure frozen features so: `"freeze_backbone": true`. Trained as a whole, it is the simplest
segmentation network on a transformer.

Published (Apache-2.0): for DINOv2 heads of ADE20K and Pascal VOC 2012, each beside the file of its
encoder, `dinov2_vit*14_pretrain.pth`; `python -m tools.convert_checkpoint` makes one checkpoint of
both (`--encoder`). Such heads of DINOv3's small, base and large encoders are not published, and
its encoders are under the DINOv3 License.
"""
from typing import Literal

import torch
from torch import nn

from models.backbones import Backbone, build_backbone
from models.backbones.vit import VisionTransformer, our_vit_keys
from models.layers.norm import norm_layer
from models.layers.outputs import as_outputs
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class ViTLinear(StartsFromFiles):
    """Batch norm and a 1x1 convolution on the last map of a plain transformer.

    x: float (N, 3, H, W), normalized RGB; any H and W. The encoder pads the image to a multiple of
    its patch; the logits of all patches are stretched to the size of the image, as DINOv2 does.
    dropout: the chance to zero a channel before the norm in training; 0.1 in DINOv3's recipe.
    drop_path, checkpointing: of the encoder, if it is trained.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "dinov2_vits14", pretrained: bool = False,
                 dropout: float = 0.0, drop_path: float = 0.0, checkpointing: bool = False,
                 norm: str = "batch"):
        super().__init__()
        self.backbone = _with_one_stride(build_backbone(
            backbone, pretrained=pretrained, norm=norm, drop_path=drop_path,
            checkpointing=checkpointing), backbone)
        self.backbone.keep(-1)
        self.head = _head(self.backbone.channels[-1], num_classes, dropout, norm)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        return as_outputs({"out": self.head(self.backbone(x)[-1])}, x, self.training)


class ViTMultiLinear(StartsFromFiles):
    """Batch norm and a 1x1 convolution on the maps of four blocks of a plain transformer.

    layers: "last" for the last four blocks, as DINOv2 has it under the name `ms` (of an encoder of
    timm, its last four maps); "quarters" for the last block of each quarter, DINOv3's other choice.
    The rest is as in ViTLinear.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "dinov2_vits14", pretrained: bool = False,
                 layers: Literal["last", "quarters"] = "last", dropout: float = 0.0,
                 drop_path: float = 0.0, checkpointing: bool = False, norm: str = "batch"):
        super().__init__()
        last = {"layers": (-4, -3, -2, -1)} if layers == "last" else {}
        self.backbone = _with_one_stride(build_backbone(
            backbone, levels=4, if_known=last, pretrained=pretrained, norm=norm,
            drop_path=drop_path, checkpointing=checkpointing), backbone)
        if layers == "quarters" and not isinstance(self.backbone, VisionTransformer):
            raise ConfigError(f"the blocks of {backbone} cannot be chosen", "arch.args.layers",
                              'set it to "last"')
        self.backbone.keep(-4, -3, -2, -1)
        self.head = _head(sum(self.backbone.channels[-4:]), num_classes, dropout, norm)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        maps = torch.cat(self.backbone(x)[-4:], dim=1)      # the earliest block first
        return as_outputs({"out": self.head(maps)}, x, self.training)


def _with_one_stride(backbone: Backbone, name: str) -> Backbone:
    if not backbone.equal_strides:
        raise ConfigError(f"a linear head needs maps of one size, those of {name} have the "
                          f"strides {backbone.strides}", "arch.args.backbone",
                          "use a plain transformer, such as dinov2_vits14")
    return backbone


def _head(channels: int, num_classes: int, dropout: float, norm: str) -> nn.Sequential:
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    return nn.Sequential(nn.Dropout2d(dropout), norm_layer(norm)(channels, linear=True), classifier)


_SIZES = {"small": "s", "base": "b", "large": "l", "giant": "g"}
_ADE20K = {"small": 44.3, "base": 47.3, "large": 47.7, "giant": 49.0}      # linear, in the paper


def _entry_v2(network, size, form):
    name = f"dinov2_vit{_SIZES[size]}14"
    return Published(
        network=network, args={"backbone": name}, convert=our_vit_keys,
        rename=((r"^decode_head\.bn\.", "head.1."), (r"^decode_head\.conv_seg\.", "head.2.")),
        classes="decode_head.conv_seg.weight", encoder=f"{name}_pretrain.pth",
        files=tuple(f"{name}_{data}_{form}_head.pth" for data in ("ade20k", "voc2012")),
        score=f"ADE20K val: mIoU {_ADE20K[size]} (paper)" if form == "linear" else "")


PUBLISHED = {
    f"dinov2_vit_{size}_{form}": _entry_v2(network, size, form)
    for size in _SIZES for form, network in (("linear", ViTLinear), ("ms", ViTMultiLinear))
} | {
    f"dinov3_vit_{size}_linear": Published(
        network=ViTLinear, args={"backbone": f"dinov3_vit{_SIZES[size]}16"}, convert=our_vit_keys,
        rename=((r"^(?:decode_head\.)?batchnorm_layer\.", "head.1."),
                (r"^(?:decode_head\.)?conv\.", "head.2.")),
        classes=("decode_head.conv.weight", "conv.weight"),
        encoder=f"dinov3_vit{_SIZES[size]}16_pretrain_lvd1689m-*.pth")
    for size in ("small", "base", "large")
}
