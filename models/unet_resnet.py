"""U-Net (Ronneberger et al., MICCAI 2015, arXiv:1505.04597) with a ResNet encoder.

The form of yassouali/pytorch-segmentation, whose trainer's checkpoints load as
`yassouali_unet_resnet50`. No weights are published. As there, the encoder is
dilated to output stride 8, there is neither norm nor activation between the
decoder's convolutions, and transposed convolutions double maps that are then
resized to their skip.
"""
import torch
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.init import he_init
from models.layers.resize import resize_to
from models.published import Published


class UNetResnet(BaseModel):
    """Five convolutions and five transposed convolutions up, with the encoder's maps as skips.

    x: (N, 3, H, W) normalised RGB, any H and W. backbone: one with four maps;
    resnet50s is the source's.
    eval: logits (N, C, H, W); train: {"out": logits}.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 output_stride: int = 8, norm: str = "batch"):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=4, output_stride=output_stride,
                                       pretrained=pretrained, norm=norm)
        c1, c2, c3, c4 = self.backbone.channels[-4:]
        self.conv1, self.upconv1 = nn.Conv2d(c4, 192, 3, padding=1), _double(192, 128)
        self.conv2, self.upconv2 = nn.Conv2d(128 + c3, 128, 3, padding=1), _double(128, 96)
        self.conv3, self.upconv3 = nn.Conv2d(96 + c2, 96, 3, padding=1), _double(96, 64)
        self.conv4, self.upconv4 = nn.Conv2d(64 + c1, 64, 3, padding=1), _double(64, 48)
        self.conv5, self.upconv5 = nn.Conv2d(48, 48, 3, padding=1), _double(48, 32)
        self.conv6 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv7 = nn.Conv2d(32, num_classes, 1, bias=False)
        he_init(*(child for name, child in self.named_children() if name != "backbone"))

    def forward(self, x):
        x1, x2, x3, x4 = self.backbone(x)[-4:]
        out = self.upconv1(self.conv1(x4))
        out = self.upconv2(self.conv2(_beside(out, x3)))
        out = self.upconv3(self.conv3(_beside(out, x2)))
        out = self.upconv4(self.conv4(_beside(out, x1)))
        out = resize_to(self.upconv5(self.conv5(out)), x, align_corners=True)
        out = self.conv7(self.conv6(out))
        return {"out": out} if self.training else out


def _double(in_channels, channels):
    return nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, bias=False)


def _beside(x, skip):
    return torch.cat([resize_to(x, skip, align_corners=True), skip], dim=1)


PUBLISHED = {
    "yassouali_unet_resnet50": Published(build=lambda classes: UNetResnet(classes, "resnet50s"),
                                         rename=YASSOUALI_KEYS, classes="conv7.weight"),
}
