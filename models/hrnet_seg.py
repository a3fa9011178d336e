"""HRNet with a plain head ("HRNetV2").

Wang et al., Deep High-Resolution Representation Learning for Visual
Recognition, TPAMI 2020, arXiv:1908.07919.

Published checkpoints: HRNet-Semantic-Segmentation (`hrnet_w48`, `hrnet_w18_small_v1`,
`hrnet_w18_small_v2`), e.g. W48 with Cityscapes val mIoU 80.9
(`hrnet_cs_8090_torch11.pth`). MIC-DKFZ's network (`mic_hrnet`) is the same.
"""
from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import BACKBONE_KEYS, PADDLE_KEYS
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.outputs import as_outputs
from models.weights.openseg import backbone_keys
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, to_our_keys
from utils.machine.tensors import ImageBatch, Logits


class HRNet(BaseModel):
    """Two convolutions on all feature maps, concatenated at the size of the finest one.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}

    align_corners: for every resize, including those of the backbone. False in the
    Cityscapes, LIP and PASCAL-Context recipes, True in those of ADE20K and COCO-Stuff.
    head_kernel: size of the first convolution of the head, odd. dropout: share of whole maps
    before the second one, which is 1x1. head_bias: whether that one has a bias. openseg's head is
    head_kernel 3, dropout 0.1, head_bias false and activation "leaky_relu".
    """

    def __init__(self, num_classes: int, backbone: str = "hrnet_w48",
                 align_corners: bool = False, norm: str = "batch", pretrained: bool = False,
                 head_kernel: int = 1, dropout: float = 0.0, head_bias: bool = True,
                 activation: str = "relu"):
        super().__init__()
        if head_kernel < 1 or head_kernel % 2 == 0:
            raise ValueError(f"head_kernel must be odd, found {head_kernel}")
        self.align_corners = align_corners
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": align_corners})
        channels = sum(self.backbone.channels)
        self.head = classifier_head(channels, channels, num_classes, head_kernel, norm=norm,
                                    classifier_bias=head_bias, dropout=dropout, act=activation)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        features = concat_maps(self.backbone(x), self.align_corners)    # (N, 15 C, H/4, W/4)
        return as_outputs({"out": self.head(features)}, x, self.training, self.align_corners)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet, Paddle, Mapillary and openseg HRNets to ours."""
        return super().rename_foreign(to_our_keys(
            state, backbone_keys(self) + HEAD_KEYS, PADDLE_KEYS))


# Keys of plain HRNet's head -> ours.
HEAD_KEYS = ((r"^last_layer\.([01])\.", r"head.0.\1."), (r"^last_layer\.3\.", "head.2."))


def _entry(backbone: str, files: tuple[str, ...] = (), score: str = "") -> Published:
    return Published(network=HRNet, args={"backbone": backbone}, drop=TRAINING_KEYS,
                     rename=PREFIXES + BACKBONE_KEYS + HEAD_KEYS, classes="last_layer.3.weight",
                     files=files, score=score)


# The ADE20K and COCO-Stuff files need align_corners=True on the network and its backbone.
PUBLISHED = {
    "hrnet_w48": _entry("hrnet_w48", (
        "hrnet_cs_8090_torch11.pth", "hrnet_lip_5583_torch04.pth",
        "hrnet_pascal_ctx_5410_torch11.pth", "hrnet_cocostuff_3617_torch04.pth",
        "hrnet_ade20k_4312_torch04.pth"), "Cityscapes val mIoU 80.9"),
    "hrnet_w18_small_v1": _entry("hrnet_w18_small_v1"),
    "hrnet_w18_small_v2": _entry("hrnet_w18_small_v2"),
    "mic_hrnet": _entry("hrnet_w48"),
}
