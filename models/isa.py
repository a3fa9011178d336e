"""ISA: interlaced sparse self-attention on a dilated ResNet.

Huang et al., Interlaced Sparse Self-Attention for Semantic Segmentation, 2019,
arXiv:1907.12273; the network of openseg.

Published checkpoint: openseg's Cityscapes ISA on ResNet-101, loaded as `openseg_r101_isa`
(in-place activated norm). `openseg_r101_isa_bn` is for files with plain batch norm.
"""
from typing import Any

import torch
from torch import nn

from models.layers.attention import ATTENTION_KEYS, InterlacedAttention
from models.layers.auxiliary import AuxiliaryHeadModel
from models.layers.conv_norm_act import classifier_head, conv_norm_act
from models.weights.openseg import AUX_KEYS, backbone_keys, openseg_entry
from models.weights.rename_keys import ROW, Rule, to_our_keys


class ISA(AuxiliaryHeadModel):
    """Attention among distant pixels, then among neighbors; output stride 8.

    x: float (N, 3, H, W), normalized; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    step: first, pixels at this distance attend to each other; then, pixels within blocks of
    this size. activation: of the heads; "leaky_relu" for the files of openseg's
    first branch.
    """

    output_weights = {"out": 1.0, "aux": 0.4}
    align_corners = True

    def __init__(self, num_classes: int, backbone: str = "deepbase_resnet101",
                 channels: int = 512, key_channels: int = 256, step: int = 8,
                 dropout: float = 0.05, use_aux: bool = True, activation: str = "relu",
                 norm: str = "batch", pretrained: bool = False):
        super().__init__()
        c3, c4 = self.build_encoder(backbone, use_aux, output_stride=8, norm=norm,
                                    pretrained=pretrained)
        options: dict[str, Any] = dict(norm=norm, act=activation)
        self.reduce = conv_norm_act(c4, channels, 3, **options)
        self.attention = InterlacedAttention(channels, key_channels, channels, step, **options)
        self.fuse = conv_norm_act(2 * channels, channels, 1, **options)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
        if use_aux:
            self.aux_head = classifier_head(c3, 512, num_classes, 3, bias=False, dropout=dropout,
                                            **options)

    def segment(self, features: torch.Tensor) -> torch.Tensor:
        features = self.reduce(features)
        return self.classifier(self.fuse(torch.cat([features, self.attention(features)], dim=1)))

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet and openseg files to those of this network."""
        return super().rename_foreign(to_our_keys(state, HEAD_KEYS + backbone_keys(self)))


# Keys of openseg -> ours.
HEAD_KEYS: tuple[Rule, ...] = (
    (r"^isa_head\.([01])(?:\.0)?\.(?=\w+$)", r"reduce.\1."),
    (r"^isa_head\.2\.stages\.0\.(long|short)_range_sa\.", r"attention.\1_range."),
    *ATTENTION_KEYS,
    (r"^isa_head\.2\.conv_bn" + ROW, r"fuse.\1."),
    (r"^cls_head\.", "classifier.1."),
) + AUX_KEYS

PUBLISHED = {
    name: openseg_entry(ISA, HEAD_KEYS, "cls_head.weight", in_place)
    for name, in_place in (("openseg_r101_isa", True), ("openseg_r101_isa_bn", False))
}
