"""DeepLab with dense upsampling and hybrid dilated convolution. Wang et al.,
Understanding Convolution for Semantic Segmentation, WACV 2018, arXiv:1702.08502.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_duc_hdc`. No weights are published. As there, the last upsampling applies norm
and ReLU before it shuffles the pixels, so the logits are >= 0.

Differs from the source: its output has 4 * ceil(H / 4) rows; ours is resized to the size of
the input if it differs.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS, ResNet
from models.deeplab import ASPP_KEYS, DECODER_KEYS
from models.layers.conv_norm_act import conv_norm_act
from models.layers.heads import ASPP
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.layers.outputs import as_outputs
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits

RATES3, RATES4 = (1, 2, 3) * 7 + (2, 2), (3, 4, 5)     # the paper's "Dilation-RF"


class DUC_HDC(StartsFromFiles):
    """ASPP with five rates on a ResNet with output stride 8; learned upsampling.

    x: float (N, 3, H, W), normalized RGB; any H and W. backbone: a resnet. A training
    batch needs at least two images (image pooling).
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "resnet101", pretrained: bool = False,
                 norm: str = "batch"):
        super().__init__()
        if backbone not in ResNet.aliases:
            raise ConfigError(f"DUC_HDC needs a resnet, got {backbone!r}: the dilation of each "
                              "block belongs to it", "arch.args.backbone",
                              "use resnet101, or arch DeepLab")
        self.backbone = build_backbone(backbone, levels=2, output_stride=8,
                                       pretrained=pretrained, norm=norm, rates3=RATES3,
                                       rates4=RATES4)
        self.backbone.keep(0, -1)
        self.aspp = ASPP(self.backbone.channels[-1], 256, (6, 12, 18, 24, 36), norm=norm)
        self.low_level = conv_norm_act(self.backbone.channels[0], 48, 1, norm=norm)
        self.up = _DenseUpsampling(256, 256, 2, norm)
        self.decoder = nn.Sequential(*conv_norm_act(48 + 256, 256, 3, norm=norm),
                                     *conv_norm_act(256, 256, 3, norm=norm),
                                     nn.Dropout(0.1), nn.Conv2d(256, num_classes, 1))
        self.up_out = _DenseUpsampling(num_classes, num_classes, 4, norm)
        he_init(self.aspp, self.low_level, self.decoder, norm_bias=1e-4)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        low, *_, high = self.backbone(x)             # strides 4 and 8
        low = self.low_level(low)
        high = self.up(self.aspp(high))[..., :low.shape[-2], :low.shape[-1]]
        out = self.up_out(self.decoder(torch.cat([low, high], dim=1)))
        return as_outputs({"out": out}, x, self.training, align_corners=True)


class _DenseUpsampling(nn.Module):
    """(N, in, H, W) -> (N, C, sH, sW): C * s^2 channels become the pixels of s x s tiles.

    The s^2 kernels of one channel start equal, so that the initial output has no
    checkerboard pattern (Aitken et al., 2017, arXiv:1707.02937).
    """

    def __init__(self, in_channels: int, channels: int, scale: int, norm: str):
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(in_channels, channels * scale ** 2, 1, bias=False)
        self.bn, self.relu = norm_layer(norm)(channels * scale ** 2), activation(norm)
        he_init(self, norm_bias=1e-4)
        with torch.no_grad():
            kernel = nn.init.kaiming_normal_(torch.empty(channels, in_channels, 1, 1))
            self.conv.weight.copy_(kernel.repeat_interleave(scale ** 2, dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.relu(self.bn(self.conv(x))), self.scale)


PUBLISHED = {
    "yassouali_duc_hdc": Published(
        network=DUC_HDC, args={"backbone": "resnet101"}, classes="decoder.output.7.weight",
        rename=((r"^decoder\.DUC\.", "up."), (r"^DUC_out\.", "up_out."),
                *YASSOUALI_KEYS, *ASPP_KEYS, *DECODER_KEYS)),
}
