"""Base-OC: self-attention over all pixels on a dilated ResNet.

Yuan and Wang, OCNet: Object Context Network for Scene Parsing, IJCV 2021,
arXiv:1809.00916; the network of openseg.

Published checkpoint: openseg's Cityscapes Base-OC on ResNet-101, val mIoU 79.49, loaded as
`openseg_r101_baseoc` (in-place activated norm). `openseg_r101_baseoc_bn` is for files with
plain batch norm.
"""
from typing import Any

import torch
from torch import nn

from models.layers.attention import ATTENTION_KEYS, SelfAttention
from models.layers.auxiliary import AuxiliaryHeadModel
from models.layers.conv_norm_act import classifier_head, conv_norm_act
from models.weights.openseg import AUX_KEYS, backbone_keys, openseg_entry
from models.weights.rename_keys import ROW, Rule, to_our_keys


class BaseOC(AuxiliaryHeadModel):
    """Every pixel attends to every pixel; output stride 8.

    x: float (N, 3, H, W), normalized; any H and W. The memory of the attention grows with
    (H·W)² if torch has no fused kernel for it.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    use_aux: whether the auxiliary head is built.
    activation: of the heads; "leaky_relu" for the files of openseg's first branch.
    """

    output_weights = {"out": 1.0, "aux": 0.4}
    align_corners = True

    def __init__(self, num_classes: int, backbone: str = "deepbase_resnet101",
                 channels: int = 512, key_channels: int = 256, dropout: float = 0.05,
                 use_aux: bool = True, activation: str = "relu", norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        c3, c4 = self.build_encoder(backbone, use_aux, output_stride=8, norm=norm,
                                    pretrained=pretrained)
        options: dict[str, Any] = dict(norm=norm, act=activation)
        self.reduce = conv_norm_act(c4, channels, 3, bias=True, **options)
        self.attention = SelfAttention(channels, key_channels, key_channels, **options)
        self.fuse = conv_norm_act(2 * channels, channels, 1, bias=True, **options)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
        if use_aux:
            self.aux_head = classifier_head(c3, 512, num_classes, 3, **options)

    def segment(self, features: torch.Tensor) -> torch.Tensor:
        features = self.reduce(features)
        return self.classifier(self.fuse(torch.cat([self.attention(features), features], dim=1)))

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet and openseg files to those of this network."""
        return super().rename_foreign(to_our_keys(state, HEAD_KEYS + backbone_keys(self)))


# Keys of openseg -> ours.
HEAD_KEYS: tuple[Rule, ...] = (
    (r"^oc_module_pre" + ROW, r"reduce.\1."),
    (r"^oc_module\.stages\.0\.", "attention."),
    *ATTENTION_KEYS,
    (r"^oc_module\.conv_bn_dropout" + ROW, r"fuse.\1."),
    (r"^cls\.", "classifier.1."),
) + AUX_KEYS

PUBLISHED = {
    name: openseg_entry(BaseOC, HEAD_KEYS, "cls.weight", in_place, files, score)
    for name, in_place, files, score in (
        ("openseg_r101_baseoc", True, ("base_ocnet_deepbase_resnet101_dilated8_1_latest.pth",),
         "Cityscapes val mIoU 79.49"),
        ("openseg_r101_baseoc_bn", False, (), ""))
}
