"""HRNet + ASPP + OCR, as in the code of NVIDIA and MIC-DKFZ.

Tao et al., Hierarchical Multi-Scale Attention for Semantic Segmentation, 2020,
arXiv:2005.10821 (its code); MIC-DKFZ/semantic_segmentation.

No trained checkpoint is published; checkpoints that these repositories save load as
`nvidia_ocrnet_aspp` and `mic_hrnet_ocr_aspp`.
"""

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import PADDLE_KEYS
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.image_pooling_aspp import ASPP_KEYS, ImagePoolingASPP
from models.layers.ocr import OCR_KEYS, OCRHead
from models.layers.outputs import as_outputs
from models.weights.openseg import backbone_keys
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, to_our_keys
from utils.machine.tensors import ImageBatch, Logits


class HRNetOCRASPP(BaseModel):
    """Atrous pyramid pooling between the backbone and the OCR head; output stride 4.

    x: float (N, 3, H, W), normalized RGB; any H and W. A training batch needs at least two
    images, because the image-pooling branch normalizes one value per image and channel.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    distribution_aspp: add MIC-DKFZ's second pyramid inside the OCR head. MIC-DKFZ uses
    align_corners=True; NVIDIA uses False and no second pyramid.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "hrnet_w48", mid_channels: int = 512,
                 key_channels: int = 256, align_corners: bool = True,
                 distribution_aspp: bool = True, aspp_channels: int = 256,
                 rates: tuple = (12, 24, 36), dropout: float = 0.05, norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": align_corners})
        self.aspp = ImagePoolingASPP(sum(self.backbone.channels), aspp_channels, rates, norm=norm)
        channels = self.aspp.channels
        self.aux_head = classifier_head(channels, channels, num_classes, norm=norm)
        inner = (ImagePoolingASPP(mid_channels, aspp_channels, rates, norm=norm)
                 if distribution_aspp else None)
        self.head = OCRHead(channels, num_classes, mid_channels, key_channels, dropout=dropout,
                            norm=norm, extra=inner)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        features = self.aspp(concat_maps(self.backbone(x), self.align_corners))
        aux = self.aux_head(features)
        out, _ = self.head(features, aux)
        return as_outputs({"out": out, "aux": aux}, x, self.training, self.align_corners)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet, Paddle, Mapillary and openseg HRNets to ours."""
        return super().rename_foreign(
            to_our_keys(state, backbone_keys(self) + OCR_KEYS + ASPP_KEYS, PADDLE_KEYS))


def _entry(**options: bool) -> Published:
    return Published(network=HRNetOCRASPP, args=options, drop=TRAINING_KEYS,
                     rename=PREFIXES + OCR_KEYS + ASPP_KEYS, classes="ocr.cls_head.weight")


PUBLISHED = {
    "nvidia_ocrnet_aspp": _entry(align_corners=False, distribution_aspp=False),
    "mic_hrnet_ocr_aspp": _entry(align_corners=True, distribution_aspp=True),
}
