"""FCN-8s on VGG-16. Long et al., Fully Convolutional Networks for Semantic
Segmentation, CVPR 2015, arXiv:1411.4038.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_fcn8`, with the same keys in the decoder. No weights are published.
As in the code of the paper's authors, the image is padded by 100 pixels, pool4 and
pool3 are scaled by 0.01 and 0.0001 before their classifiers, and the three
upsamplings are bilinear kernels that are stored but not trained.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.download import torchvision_state
from models.layers.init import he_init
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class FCN8(StartsFromFiles):
    """Sum of the classifiers on pool3, on pool4 and on VGG's last layers as convolutions.

    x: float (N, 3, H, W), normalized RGB; any H and W. backbone: vgg11 to vgg19, with
    or without _bn. channels: of the two layers that are fully connected in VGG. With
    pretrained and 4096 channels, they also start from VGG's weights.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "vgg16", pretrained: bool = False,
                 channels: int = 4096):
        super().__init__()
        if not backbone.startswith("vgg"):
            raise ConfigError(f"FCN8 needs a vgg backbone, got {backbone!r}",
                              where="arch.args.backbone", fix="use vgg16, or arch FCNResNet")
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
            for i in (0, 3):        # the same places there and here
                weight = state[f"classifier.{i}.weight"]
                self.output[i].load_state_dict({
                    "weight": weight.view_as(self.output[i].get_parameter("weight")),
                    "bias": state[f"classifier.{i}.bias"]})

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        # 99 here and 1 in the first convolution make the 100 of the published network.
        *_, pool3, pool4, pool5 = self.backbone(F.pad(x, (99, 99, 99, 99)))
        out = self.up_output(self.output(pool5))
        out = self.up_pool4_out(_crop(self.adj_pool4(0.01 * pool4), 5, out.shape) + out)
        out = self.up_final(_crop(self.adj_pool3(0.0001 * pool3), 9, out.shape) + out)
        out = _crop(out, 31, x.shape).contiguous()
        return {"out": out} if self.training else out


def _crop(x: torch.Tensor, start: int, shape: torch.Size) -> torch.Tensor:
    """Cut the last two axes of x to those of `shape`, from `start` on."""
    return x[..., start:start + shape[-2], start:start + shape[-1]]


def _bilinear(channels: int, size: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that resizes each channel bilinearly and is not trained."""
    layer = nn.ConvTranspose2d(channels, channels, size, stride=stride, bias=False)
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / (size / 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = ramp[:, None] * ramp[None, :]
    return layer.requires_grad_(False)


# The index in VGG's `features` at which each part of the published network starts.
_STAGES = {"pool3": 0, "pool4": 17, "pool5": 24}

PUBLISHED = {
    "yassouali_fcn8": Published(
        network=FCN8, classes="output.6.weight",
        rename=tuple((rf"^{stage}\.{i}\.", f"backbone.features.{start + i}.")
                     for stage, start in _STAGES.items() for i in range(17))),
}
