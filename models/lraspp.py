"""Lite R-ASPP. Howard et al., Searching for MobileNetV3, ICCV 2019, arXiv:1905.02244.

The network of torchvision. Published (COCO with the 21 VOC classes, mIoU on
COCO val2017): `lraspp_mobilenet_v3_large-d234d4ea.pth` 57.9.
"""
from torch import nn

from models.backbones import build_backbone
from models.deeplabv3 import MOBILENET_KEYS
from models.layers.conv_norm_act import conv_norm_act
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.machine.tensors import ImageBatch, Logits


class LRASPP(StartsFromFiles):
    """Sum of two classifiers: on the last map, scaled by a gate, and on the map at stride 8.

    The gate of each channel is computed from the means over the image.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "mobilenet_v3_large",
                 pretrained: bool = False, output_stride: int = 16, channels: int = 128,
                 norm: str = "batch"):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=3, pyramid=True,
                                       output_stride=output_stride, pretrained=pretrained,
                                       norm=norm)
        low, high = self.backbone.channels[1], self.backbone.channels[-1]
        self.features = conv_norm_act(high, channels, 1, norm=norm)
        self.gate = nn.Sequential(nn.Conv2d(high, channels, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        _, low, *_, high = self.backbone(x)          # strides 8 and output_stride
        gated = self.features(high) * self.gate(high.mean((2, 3), keepdim=True))
        out = self.low_classifier(low) + self.high_classifier(resize_to(gated, low))
        return as_outputs({"out": out}, x, self.training)


PUBLISHED = {
    "torchvision_lraspp_mobilenet_v3_large": Published(
        network=LRASPP, classes="classifier.low_classifier.weight",
        rename=((r"^classifier\.cbr\.", "features."), (r"^classifier\.scale\.1\.", "gate.0."),
                (r"^classifier\.", ""), *MOBILENET_KEYS),
        files=("lraspp_mobilenet_v3_large-d234d4ea.pth",),
        score="COCO val2017, VOC classes: mIoU 57.9"),
}
