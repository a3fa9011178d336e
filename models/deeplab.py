"""DeepLabV3+. Chen et al., Encoder-Decoder with Atrous Separable Convolution for
Semantic Image Segmentation, ECCV 2018, arXiv:1802.02611.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_deeplabv3plus_{resnet101,resnet101_os8,xception}`. No weights are
published. In a ResNet every block of a dilated stage has the new rate (in
torchvision the first block keeps the old one). All resizes use align_corners=True.
"""
import torch
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.conv_norm_act import conv_norm_act
from models.layers.heads import ASPP
from models.layers.init import he_init
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class DeepLab(StartsFromFiles):
    """ASPP on a dilated backbone, and a decoder that also uses the features of stride 4.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    output_stride: 16 (ASPP rates 6, 12, 18) or 8 (12, 24, 36). A training batch
    needs at least two images (image pooling).
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    aliases = ("DeepLabV3Plus",)

    def __init__(self, num_classes: int, backbone: str = "xception", pretrained: bool = False,
                 output_stride: int = 16, norm: str = "batch"):
        super().__init__()
        if output_stride not in (8, 16):
            raise ConfigError(f"output_stride must be 8 or 16, got {output_stride}",
                              where="arch.args.output_stride")
        self.backbone = build_backbone(backbone, levels=2, pyramid=True,
                                       output_stride=output_stride, pretrained=pretrained,
                                       norm=norm, if_known={"dilate_first": True})
        rates = (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        self.backbone.keep(0, -1)
        self.aspp = ASPP(self.backbone.channels[-1], 256, rates, norm=norm)
        self.low_level = conv_norm_act(self.backbone.channels[0], 48, 1, norm=norm)
        self.decoder = nn.Sequential(*conv_norm_act(48 + 256, 256, 3, norm=norm),
                                     *conv_norm_act(256, 256, 3, norm=norm),
                                     nn.Dropout(0.1), nn.Conv2d(256, num_classes, 1))
        he_init(self.aspp, self.low_level, self.decoder, norm_bias=1e-4)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        low, *_, high = self.backbone(x)             # strides 4 and output_stride
        low = self.low_level(low)
        high = resize_to(self.aspp(high), low, align_corners=True)
        out = self.decoder(torch.cat([low, high], dim=1))
        return as_outputs({"out": out}, x, self.training, align_corners=True)


# Keys of yassouali's DeepLab and DUC_HDC -> ours. "ASSP" is the spelling there.
ASPP_KEYS = tuple((rf"^ASSP\.aspp{i}\.", f"aspp.branches.{i - 1}.") for i in range(1, 7)) + (
    (r"^ASSP\.avg_pool\.1\.", "aspp.image.0."), (r"^ASSP\.avg_pool\.2\.", "aspp.image.1."),
    (r"^ASSP\.conv1\.", "aspp.project.0."), (r"^ASSP\.bn1\.", "aspp.project.1."))
DECODER_KEYS = ((r"^decoder\.conv1\.", "low_level.0."), (r"^decoder\.bn1\.", "low_level.1."),
                (r"^decoder\.output\.", "decoder."))

PUBLISHED = {
    f"yassouali_deeplabv3plus_{name}": Published(
        network=DeepLab, args=args,
        rename=YASSOUALI_KEYS + ASPP_KEYS + DECODER_KEYS, classes="decoder.output.7.weight")
    for name, args in {
        "resnet101": {"backbone": "resnet101"},
        "resnet101_os8": {"backbone": "resnet101", "output_stride": 8},
        "xception": {"backbone": "xception"},
    }.items()
}
