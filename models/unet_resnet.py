"""U-Net (Ronneberger et al., MICCAI 2015, arXiv:1505.04597) with a ResNet encoder.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_unet_resnet50`. No weights are published. As there, the encoder is
dilated to output stride 8, the decoder's convolutions have no norm or activation
between them, and transposed convolutions double the maps, which are then
resized to the size of their skip.
"""
import torch
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.init import he_init
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.machine.tensors import ImageBatch, Logits


class UNetResnet(StartsFromFiles):
    """A decoder of five convolutions and five transposed ones, with the encoder's maps as skips.

    x: float (N, 3, H, W), normalized RGB; any H and W. backbone: an encoder with at
    least four maps; resnet50s is the source's.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 output_stride: int = 8, norm: str = "batch"):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=4, pyramid=True,
                                       output_stride=output_stride, pretrained=pretrained,
                                       norm=norm)
        c1, c2, c3, c4 = self.backbone.channels[-4:]
        widths = ((c4, 192), (128 + c3, 128), (96 + c2, 96), (64 + c1, 64), (48, 48), (32, 32))
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in widths)
        self.upconvs = nn.ModuleList(
            nn.ConvTranspose2d(*pair, 4, stride=2, padding=1, bias=False)
            for pair in ((192, 128), (128, 96), (96, 64), (64, 48), (48, 32)))
        self.classifier = nn.Conv2d(32, num_classes, 1, bias=False)
        he_init(self.convs, self.classifier)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        *skips, out = self.backbone(x)[-4:]
        for conv, up in zip(self.convs, self.upconvs, strict=False):   # one more in convs
            out = up(conv(out))                      # twice the size
            if skips:
                skip = skips.pop()
                out = torch.cat([resize_to(out, skip, align_corners=True), skip], dim=1)
        out = resize_to(out, x, align_corners=True)
        out = self.classifier(self.convs[-1](out))
        return {"out": out} if self.training else out


PUBLISHED = {
    "yassouali_unet_resnet50": Published(
        network=UNetResnet, args={"backbone": "resnet50s"}, classes="conv7.weight",
        rename=((r"^conv7\.", "classifier."),
                *((rf"^(up)?conv{i}\.", rf"\1convs.{i - 1}.") for i in range(1, 7)),
                *YASSOUALI_KEYS)),
}
