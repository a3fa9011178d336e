"""HRNet with a plain head ("HRNetV2").

Wang et al., Deep High-Resolution Representation Learning for Visual
Recognition, TPAMI 2020, arXiv:1908.07919.

Published checkpoints: HRNet-Semantic-Segmentation (`hrnet_w48`, `hrnet_w18_small_v1`,
`hrnet_w18_small_v2`), among them Cityscapes val mIoU 80.9 for W48
(`hrnet_cs_8090_torch11.pth`); MIC-DKFZ's network (`mic_hrnet`) is the same.
"""
import torch

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import BACKBONE_KEYS, PADDLE_KEYS
from models.foreign_state import BESIDE, PREFIXES, foreign_state
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.outputs import as_outputs
from models.openseg import backbone_keys
from models.published import Published


class HRNet(BaseModel):
    """All feature maps at the finest one's size, concatenated, and two 1x1 convolutions.

    x: (N, 3, H, W) normalised RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}

    align_corners holds for every resize, the backbone's included: False in the
    Cityscapes, LIP and PASCAL-Context recipes, True in ADE20K's and COCO-Stuff's.
    """

    def __init__(self, num_classes: int, backbone: str = "hrnet_w48",
                 align_corners: bool = False, norm: str = "batch", pretrained: bool = False):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": align_corners})
        channels = sum(self.backbone.channels)
        self.head = classifier_head(channels, channels, num_classes, norm=norm)

    def forward(self, x: torch.Tensor):
        features = concat_maps(self.backbone(x), self.align_corners)    # (N, 15 C, H/4, W/4)
        return as_outputs({"out": self.head(features)}, x, self.training, self.align_corners)

    def rename_foreign(self, state: dict) -> dict:
        """ImageNet, Paddle, Mapillary and openseg HRNets in this network's keys."""
        return super().rename_foreign(foreign_state(
            state, backbone_keys(self) + HEAD_KEYS, PADDLE_KEYS))


HEAD_KEYS = ((r"^last_layer\.([01])\.", r"head.0.\1."), (r"^last_layer\.3\.", "head.2."))


def _entry(backbone, files=(), score=""):
    return Published(network=HRNet, args={"backbone": backbone}, drop=BESIDE,
                     rename=PREFIXES + BACKBONE_KEYS + HEAD_KEYS, classes="last_layer.3.weight",
                     files=files, score=score)


# ADE20K's and COCO-Stuff's files want align_corners=True: set it on the network and its backbone.
PUBLISHED = {
    "hrnet_w48": _entry("hrnet_w48", (
        "hrnet_cs_8090_torch11.pth", "hrnet_lip_5583_torch04.pth",
        "hrnet_pascal_ctx_5410_torch11.pth", "hrnet_cocostuff_3617_torch04.pth",
        "hrnet_ade20k_4312_torch04.pth"), "Cityscapes val mIoU 80.9"),
    "hrnet_w18_small_v1": _entry("hrnet_w18_small_v1"),
    "hrnet_w18_small_v2": _entry("hrnet_w18_small_v2"),
    "mic_hrnet": _entry("hrnet_w48"),
}
