"""OCR on a dilated ResNet.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV
2020, arXiv:1909.11065, in openseg's form. On HRNet it is `HRNetOCR`.

Published checkpoints: openseg's Cityscapes OCR on ResNet-101 (`openseg_r101_ocr`,
in-place activated norm; `openseg_r101_ocr_bn`, plain).
"""
import torch

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.foreign_state import foreign_state
from models.layers.conv_norm_act import classifier_head
from models.layers.ocr import OCR_KEYS, OCRHead
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.openseg import backbone_keys, openseg_entry


class OCR(BaseModel):
    """Object context on the last stage, first segmentation from the one before; stride 8.

    x: (N, 3, H, W) normalised; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    activation: that of the heads, "leaky_relu" in what openseg's first branch released.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "deepbase_resnet101",
                 mid_channels: int = 512, key_channels: int = 256, dropout: float = 0.05,
                 activation: str = "relu", norm: str = "batch", pretrained: bool = False):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=2, output_stride=8, norm=norm,
                                       pretrained=pretrained)
        self.backbone.keep(-2, -1)
        c3, c4 = self.backbone.channels[-2:]
        options = dict(bias=True, dropout=dropout, norm=norm, act=activation)
        self.aux_head = classifier_head(c3, 512, num_classes, 3, **options)
        self.head = OCRHead(c4, num_classes, mid_channels, key_channels, **options)

    def forward(self, x: torch.Tensor):
        *_, f3, f4 = self.backbone(x)                    # (N, c3|c4, H/8, W/8)
        aux = resize_to(self.aux_head(f3), f4)        # of one size in the published network
        out, _ = self.head(f4, aux)
        return as_outputs({"out": out, "aux": aux}, x, self.training, align_corners=True)

    def rename_foreign(self, state: dict) -> dict:
        """ImageNet's and openseg's files in this network's keys."""
        return super().rename_foreign(foreign_state(state, OCR_KEYS + backbone_keys(self)))


PUBLISHED = {
    name: openseg_entry(OCR, OCR_KEYS, "head.weight", in_place)
    for name, in_place in (("openseg_r101_ocr", True), ("openseg_r101_ocr_bn", False))
}
