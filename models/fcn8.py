"""FCN-8s on VGG-16. Long et al., Fully Convolutional Networks for Semantic
Segmentation, CVPR 2015, arXiv:1411.4038.

The form of yassouali/pytorch-segmentation, whose trainer's checkpoints load as
`yassouali_fcn8`; the keys of the decoder are its own. No weights are published.
As in the paper's own release: the image is padded by 100 pixels, pool4 and
pool3 are scaled by 0.01 and 0.0001 before their classifiers, and the three
upsamplings are bilinear kernels that are not trained (but stored).
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.download import torchvision_state
from models.layers.init import he_init
from models.published import Published
from models.start_weights import StartsFromFiles
from utils.errors import ConfigError


class FCN8(StartsFromFiles):
    """Classifiers on pool3, pool4 and the convolutional form of VGG's last layers, summed.

    x: (N, 3, H, W) normalised RGB, any H and W. backbone: vgg11 … vgg19, with
    or without _bn. channels: of the two layers that VGG calls fully connected; with
    pretrained, 4096 channels start from its weights too.
    eval: logits (N, C, H, W); train: {"out": logits}.
    """

    def __init__(self, num_classes: int, backbone: str = "vgg16", pretrained: bool = False,
                 channels: int = 4096):
        super().__init__()
        if not backbone.startswith("vgg"):
            raise ConfigError(f"FCN8 needs a vgg backbone, got {backbone!r}",
                              where="arch.args.backbone", fix="take vgg16, or arch FCNResNet")
        self.backbone = build_backbone(backbone, pretrained=pretrained, ceil_pool=True)
        self.adj_pool3 = nn.Conv2d(256, num_classes, 1)
        self.adj_pool4 = nn.Conv2d(512, num_classes, 1)
        self.output = nn.Sequential(
            nn.Conv2d(512, channels, 7), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Conv2d(channels, num_classes, 1))
        he_init(self.output)
        self.up_output = _bilinear(num_classes, 4, 2)
        self.up_pool4_out = _bilinear(num_classes, 4, 2)
        self.up_final = _bilinear(num_classes, 16, 8)
        if pretrained and channels == 4096:
            state = torchvision_state(backbone)
            with torch.no_grad():
                for ours, theirs in ((0, 0), (3, 3)):
                    self.output[ours].weight.copy_(
                        state[f"classifier.{theirs}.weight"].view_as(self.output[ours].weight))
                    self.output[ours].bias.copy_(state[f"classifier.{theirs}.bias"])

    def forward(self, x):
        # 99 here and 1 in the first convolution make the published 100.
        *_, pool3, pool4, pool5 = self.backbone(F.pad(x, (99, 99, 99, 99)))
        out = self.up_output(self.output(pool5))
        out = self.up_pool4_out(_crop(self.adj_pool4(0.01 * pool4), 5, out.shape) + out)
        out = self.up_final(_crop(self.adj_pool3(0.0001 * pool3), 9, out.shape) + out)
        out = _crop(out, 31, x.shape).contiguous()
        return {"out": out} if self.training else out


def _crop(x, start, shape):
    return x[..., start:start + shape[-2], start:start + shape[-1]]


def _bilinear(channels, size, stride):
    """A transposed convolution that resizes each channel bilinearly; fixed."""
    layer = nn.ConvTranspose2d(channels, channels, size, stride=stride, bias=False)
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / (size / 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = ramp[:, None] * ramp[None, :]
    return layer.requires_grad_(False)


# Place of each convolution of the published pool3, pool4 and pool5 in VGG's `features`.
_STAGES = {"pool3": 0, "pool4": 17, "pool5": 24}

PUBLISHED = {
    "yassouali_fcn8": Published(
        network=FCN8, classes="output.6.weight",
        rename=tuple((rf"^{stage}\.{i}\.", f"backbone.features.{start + i}.")
                     for stage, start in _STAGES.items() for i in range(17))),
}
