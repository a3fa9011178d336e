"""ASP-OCR: object context as one branch of an atrous pyramid.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV 2020,
arXiv:1909.11065; the network of openseg.

Published checkpoint: `spatial_asp_ocrnet_deepbase_resnet101_dilated8_1_latest.pth`, loaded as
`openseg_r101_aspocr` (in-place activated norm). `openseg_r101_aspocr_bn` is for files with
plain batch norm.
"""
from typing import Any

import torch
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.layers.conv_norm_act import atrous_branches, classifier_head, conv_norm_act
from models.layers.ocr import OCR_KEYS, ObjectContext
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.openseg import backbone_keys, openseg_entry
from models.weights.rename_keys import ROW, Rule, to_our_keys
from utils.machine.tensors import ImageBatch, Logits


class ASPOCR(BaseModel):
    """Five branches on the last stage: object context, 1x1, and one 3x3 per rate.

    Output stride 8.

    x: float (N, 3, H, W), normalized; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    activation: of the heads; "leaky_relu" for the files of openseg's first branch.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "deepbase_resnet101",
                 channels: int = 256, rates: tuple = (12, 24, 36), dropout: float = 0.1,
                 activation: str = "relu", norm: str = "batch", pretrained: bool = False):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=2, output_stride=8, norm=norm,
                                       pretrained=pretrained)
        self.backbone.keep(-2, -1)
        c3, c4 = self.backbone.channels[-2:]
        options: dict[str, Any] = dict(bias=True, norm=norm, act=activation)
        self.aux_head = classifier_head(c3, 512, num_classes, 3, dropout=dropout, **options)
        self.reduce = conv_norm_act(c4, channels, 3, **options)
        self.context = ObjectContext(channels, channels // 2, **options)
        self.branches = atrous_branches(c4, channels, rates, **options)
        self.fuse = conv_norm_act((2 + len(rates)) * channels, channels, 1, **options)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        *_, f3, f4 = self.backbone(x)                    # (N, c3|c4, H/8, W/8)
        aux = resize_to(self.aux_head(f3), f4)           # no-op in the published network
        parts = [self.context(self.reduce(f4), aux)] + [branch(f4) for branch in self.branches]
        out = self.classifier(self.fuse(torch.cat(parts, dim=1)))
        return as_outputs({"out": out, "aux": aux}, x, self.training, align_corners=True)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet and openseg files to those of this network."""
        return super().rename_foreign(to_our_keys(state, HEAD_KEYS + backbone_keys(self)))


# Keys of openseg -> ours.
HEAD_KEYS: tuple[Rule, ...] = (
    (r"^head\.(?=weight$|bias$)", "classifier.1."),
    (r"^asp_ocr_head\.context\.([01])(?:\.0)?\.(?=\w+$)", r"reduce.\1."),
    (r"^asp_ocr_head\.context\.2\.object_context_block\.", "context."),
    (r"^asp_ocr_head\.conv([2-5])" + ROW, lambda m: f"branches.{int(m[1]) - 2}.{m[2]}."),
    (r"^asp_ocr_head\.conv_bn_dropout" + ROW, r"fuse.\1."),
) + OCR_KEYS

PUBLISHED = {
    name: openseg_entry(ASPOCR, HEAD_KEYS, "head.weight", in_place, files)
    for name, in_place, files in (
        ("openseg_r101_aspocr", True,
         ("spatial_asp_ocrnet_deepbase_resnet101_dilated8_1_latest.pth",)),
        ("openseg_r101_aspocr_bn", False, ()))
}
