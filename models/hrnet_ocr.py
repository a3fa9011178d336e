"""HRNet + OCR.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV
2020, arXiv:1909.11065.

Published checkpoints: `hrnet_ocr_w48` (HRNet-Semantic-Segmentation, branch
HRNet-OCR; Cityscapes val mIoU 81.62 in `hrnet_ocr_cs_8162_torch11.pth`),
`nvidia_ocrnet_hrnet`, `mic_hrnet_ocr` and openseg's `openseg_hrnet48_ocr` and
`openseg_hrnet48_ocr_b`, each also with `_bn`. openseg's files without `_bn` contain
in-place activated norms: |weight| + 1e-5 is folded into a plain batch norm, and the
leaky ReLU of the heads stays.
"""
from collections.abc import Callable

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import BACKBONE_KEYS, PADDLE_KEYS
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.ocr import OCR_KEYS, PADDLE_OCR_KEYS, OCRHead
from models.layers.outputs import as_outputs
from models.weights.openseg import backbone_keys
from models.weights.published import Published
from models.weights.rename_keys import (
    PREFIXES,
    TRAINING_KEYS,
    State,
    fold_in_place_norm,
    to_our_keys,
)
from utils.machine.tensors import ImageBatch, Logits


class HRNetOCR(BaseModel):
    """Object context on the concatenated branches; output stride 4.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    Four repositories publish this network. align_corners: True for those of HRNet,
    MIC-DKFZ and openseg, False for NVIDIA's. aux_channels: width of the
    auxiliary head; None: that of the features. openseg's network has a 3x3
    auxiliary head (aux_kernel=3), biases in the attention (attention_bias=True)
    and, in the files of its first branch, activation="leaky_relu" in the heads.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "hrnet_w48", mid_channels: int = 512,
                 key_channels: int = 256, align_corners: bool = True, dropout: float = 0.05,
                 aux_kernel: int = 1, aux_channels: int | None = None,
                 attention_bias: bool = False, activation: str = "relu",
                 norm: str = "batch", pretrained: bool = False):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": align_corners})
        channels = sum(self.backbone.channels)
        self.aux_head = classifier_head(channels, aux_channels or channels, num_classes,
                                        aux_kernel, norm=norm, act=activation)
        self.head = OCRHead(channels, num_classes, mid_channels, key_channels, dropout=dropout,
                            bias=attention_bias, norm=norm, act=activation)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        features = concat_maps(self.backbone(x), self.align_corners)    # (N, 15 C, H/4, W/4)
        aux = self.aux_head(features)
        out, _ = self.head(features, aux)
        return as_outputs({"out": out, "aux": aux}, x, self.training, self.align_corners)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet, plain HRNet, Paddle, Mapillary and openseg files to ours.

        The head of a plain HRNet becomes the auxiliary head, as in its authors' code.
        """
        return super().rename_foreign(
            to_our_keys(state, backbone_keys(self) + FOREIGN_KEYS,
                          PADDLE_OCR_KEYS + PADDLE_KEYS))


# Keys of plain HRNet and of the OCR heads -> ours.
FOREIGN_KEYS = OCR_KEYS + (
    (r"^last_layer\.([01])\.", r"aux_head.0.\1."), (r"^last_layer\.3\.", "aux_head.2."))


def _entry(classes: str, files: tuple[str, ...] = (), score: str = "",
           convert: Callable[[State], State] | None = None, order: str = "RGB",
           **options: object) -> Published:
    return Published(network=HRNetOCR, args=options, drop=TRAINING_KEYS,
                     rename=PREFIXES + BACKBONE_KEYS + OCR_KEYS, convert=convert, classes=classes,
                     files=files, score=score, order=order)


def _openseg(mid: int, key: int, in_place: bool, files: tuple[str, ...] = ()) -> Published:
    return _entry("cls_head.weight", files, convert=fold_in_place_norm if in_place else None,
                  order="BGR", mid_channels=mid, key_channels=key, attention_bias=True,
                  aux_kernel=3, aux_channels=None if mid == 512 else mid,
                  activation="leaky_relu" if in_place else "relu")


PUBLISHED = {
    "hrnet_ocr_w48": _entry("cls_head.weight", (
        "hrnet_ocr_cs_8162_torch11.pth", "hrnet_ocr_cs_trainval_8227_torch11.pth",
        "hrnet_ocr_lip_5648_torch04.pth", "hrnet_ocr_pascal_ctx_5618_torch11.pth",
        "hrnet_ocr_cocostuff_3965_torch04.pth", "hrnet_ocr_ade20k_4451_torch04.pth"),
        "Cityscapes val mIoU 81.62"),
    "mic_hrnet_ocr": _entry("cls_head.weight"),
    "nvidia_ocrnet_hrnet": _entry("ocr.cls_head.weight",
                                  ("ocrnet.HRNet_industrious-chicken.pth",), align_corners=False),
    "openseg_hrnet48_ocr": _openseg(512, 256, True, (
        "cityscapes hrnet_w48_ocr_1_latest.pth", "lip hrnet_w48_ocr_1_latest.pth",
        "pascal_context hrnet_w48_ocr_hrnet48_2_latest.pth",
        "coco_stuff hrnet_w48_ocr_hrnet48_ohem_2_latest.pth",
        "ade20k hrnet_w48_ocr_hrnet48_ohem_1_latest.pth")),
    "openseg_hrnet48_ocr_bn": _openseg(512, 256, False, (
        "cityscapes_hrnet_w48_ocr_rmi_paddle_lr2x_run1_latest.pth",
        "cityscapes_hrnet_w48_ocr_rmi_paddle_lr2x_run2_latest.pth",
        "pascal_context_hrnet_w48_ocr_rmi_paddle_run1_latest.pth",
        "pascal_context_hrnet_w48_ocr_rmi_paddle_run2_latest.pth",
        "lip_hrnet_w48_ocr_rmi_paddle_latest.pth",
        "ade20k_hrnet_w48_ocr_hrnet48_rmi_paddle_latest.pth")),
    "openseg_hrnet48_ocr_b": _openseg(256, 128, True, (
        "hrnet_w48_ocr_b_hrnet48_8_20000_trainval_coarse_trainval_mapillary_pretrain_"
        "freeze_bn_1_latest.pth",
        "hrnet_w48_ocr_b_mapillary_bs16_500000_1024x1024_lr0.01_1_latest.pth")),
    "openseg_hrnet48_ocr_b_bn": _openseg(256, 128, False),
}
