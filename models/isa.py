"""ISA: interlaced sparse self-attention on a dilated ResNet.

Huang et al., Interlaced Sparse Self-Attention for Semantic Segmentation, 2019,
arXiv:1907.12273, in openseg's form.

Published checkpoints: openseg's Cityscapes ISA on ResNet-101 (`openseg_r101_isa`,
in-place activated norm; `openseg_r101_isa_bn`, plain).
"""
import torch
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.foreign_state import ROW, foreign_state
from models.layers.attention import ATTENTION_KEYS, InterlacedAttention
from models.layers.conv_norm_act import classifier_head, conv_norm_act
from models.layers.outputs import as_outputs
from models.openseg import AUX_KEYS, backbone_keys, openseg_entry


class ISA(BaseModel):
    """Attention among distant pixels, then among neighbours; output stride 8.

    x: (N, 3, H, W) normalised; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    step: distance of the pixels that attend to each other first, size of the
    blocks that do so after. activation: that of the heads, "leaky_relu" in what
    openseg's first branch released.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "deepbase_resnet101",
                 channels: int = 512, key_channels: int = 256, step: int = 8,
                 dropout: float = 0.05, use_aux: bool = True, activation: str = "relu",
                 norm: str = "batch", pretrained: bool = False):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=2, output_stride=8, norm=norm,
                                       pretrained=pretrained)
        self.backbone.keep(-1, *([-2] if use_aux else []))
        c3, c4 = self.backbone.channels[-2:]
        options = dict(norm=norm, act=activation)
        self.reduce = conv_norm_act(c4, channels, 3, **options)
        self.attention = InterlacedAttention(channels, key_channels, channels, step, **options)
        self.fuse = conv_norm_act(2 * channels, channels, 1, **options)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
        self.aux_head = None
        if use_aux:
            self.aux_head = classifier_head(c3, 512, num_classes, 3, bias=False, dropout=dropout,
                                            **options)
        else:
            self.output_weights = {"out": 1.0}

    def forward(self, x: torch.Tensor):
        *_, f3, f4 = self.backbone(x)                    # (N, c3|c4, H/8, W/8)
        features = self.reduce(f4)
        features = self.fuse(torch.cat([features, self.attention(features)], dim=1))
        logits = {"out": self.classifier(features)}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(f3)
        return as_outputs(logits, x, self.training, align_corners=True)

    def rename_foreign(self, state: dict) -> dict:
        """ImageNet's and openseg's files in this network's keys."""
        return super().rename_foreign(foreign_state(state, HEAD_KEYS + backbone_keys(self)))


HEAD_KEYS = (
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
