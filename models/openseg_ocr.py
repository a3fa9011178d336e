"""OCR on a dilated ResNet.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV 2020,
arXiv:1909.11065; the network of openseg. With an HRNet encoder it is `HRNetOCR`.

Published checkpoint: openseg's Cityscapes OCR on ResNet-101, loaded as `openseg_r101_ocr`
(in-place activated norm). `openseg_r101_ocr_bn` is for files with plain batch norm.
"""
from typing import Any

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.layers.conv_norm_act import classifier_head
from models.layers.ocr import OCR_KEYS, OCRHead
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.openseg import backbone_keys, openseg_entry
from models.weights.rename_keys import to_our_keys
from utils.machine.tensors import ImageBatch, Logits


class OCR(BaseModel):
    """Object context on the last stage; the coarse segmentation comes from the stage before.

    Output stride 8.

    x: float (N, 3, H, W), normalized; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    activation: of the heads; "leaky_relu" for the files of openseg's first branch.
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
        options: dict[str, Any] = dict(bias=True, dropout=dropout, norm=norm, act=activation)
        self.aux_head = classifier_head(c3, 512, num_classes, 3, **options)
        self.head = OCRHead(c4, num_classes, mid_channels, key_channels, **options)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        *_, f3, f4 = self.backbone(x)                    # (N, c3|c4, H/8, W/8)
        aux = resize_to(self.aux_head(f3), f4)           # no-op in the published network
        out, _ = self.head(f4, aux)
        return as_outputs({"out": out, "aux": aux}, x, self.training, align_corners=True)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet and openseg files to those of this network."""
        return super().rename_foreign(to_our_keys(state, OCR_KEYS + backbone_keys(self)))


PUBLISHED = {
    name: openseg_entry(OCR, OCR_KEYS, "head.weight", in_place)
    for name, in_place in (("openseg_r101_ocr", True), ("openseg_r101_ocr_bn", False))
}
