"""GCN. Peng et al., Large Kernel Matters: Improve Semantic Segmentation by Global
Convolutional Network, CVPR 2017, arXiv:1703.02719.

The form of yassouali/pytorch-segmentation, whose trainer's checkpoints load as
`yassouali_gcn_resnet50` and `yassouali_gcn_resnet50_deconv`. No weights are
published.

Differs from the source: the boundary refinement's two norms, stored there but
never used, are not built; the deconvolution variant takes any size (there all
but certain multiples of 8 raise): the image is padded with zeros, the logits
cropped. The option use_resnet_gcn, which cannot work there, does not exist.
"""
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.init import he_init
from models.layers.resize import resize_to
from models.published import Published
from models.start_weights import StartsFromFiles
from utils.errors import ConfigError


class GCN(StartsFromFiles):
    """Large separable kernels on four feature maps, refined at every scale on the way up.

    x: (N, 3, H, W) normalised RGB, any H and W. kernel_size: of the large
    kernels, odd. use_deconv: transposed convolutions instead of bilinear
    resizes.
    eval: logits (N, C, H, W); train: {"out": logits}.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 kernel_size: int = 11, use_deconv: bool = False, norm: str = "batch"):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {kernel_size}",
                              where="arch.args.kernel_size")
        self.backbone = build_backbone(backbone, levels=4, pretrained=pretrained, norm=norm)
        self.use_deconv = use_deconv
        for i, channels in enumerate(self.backbone.channels[-4:], start=1):
            self.add_module(f"gcn{i}", _LargeKernel(channels, num_classes, kernel_size))
        for i in range(1, 10):
            self.add_module(f"br{i}", _Refine(num_classes))
        for i in range(1, 6 if use_deconv else 1):
            self.add_module(f"decon{i}", nn.ConvTranspose2d(
                num_classes, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False))
        self.final_conv = nn.Conv2d(num_classes, num_classes, 1)
        he_init(*(child for name, child in self.named_children() if name != "backbone"))

    def forward(self, x):
        up = self._up_by_deconvolution if self.use_deconv else self._up_by_resize
        out = self.final_conv(up(x))
        return {"out": out} if self.training else out

    def _refined(self, x):
        """The class maps of the four scales, high to low resolution."""
        x1, x2, x3, x4 = self.backbone(x)[-4:]
        return (self.br1(self.gcn1(x1)), self.br2(self.gcn2(x2)), self.br3(self.gcn3(x3)),
                self.br4(self.gcn4(x4)))

    def _up_by_resize(self, x):
        x1, x2, x3, x4 = self._refined(x)
        x3 = self.br5(x3 + resize_to(x4, x3, align_corners=True))
        x2 = self.br6(x2 + resize_to(x3, x2, align_corners=True))
        x1 = self.br7(x1 + resize_to(x2, x1, align_corners=True))
        return self.br9(resize_to(self.br8(x1), x, align_corners=True))

    def _up_by_deconvolution(self, x):
        height, width = x.shape[-2:]
        x1, x2, x3, x4 = self._refined(F.pad(x, (0, -width % 8, 0, -height % 8)))
        x3 = self.br5(x3 + _fit(self.decon4(x4), x3))
        x2 = self.br6(x2 + _fit(self.decon3(x3), x2))
        x1 = self.br7(x1 + self.decon2(x2))
        out = self.decon5(self.br8(self.decon1(x1)))
        return self.br9(out)[..., :height, :width]


class _LargeKernel(nn.Module):
    """k x 1 then 1 x k, plus 1 x k then k x 1: (N, in, H, W) -> (N, C, H, W)."""

    def __init__(self, in_channels, channels, size):
        super().__init__()
        tall = {"kernel_size": (size, 1), "padding": (size // 2, 0)}
        wide = {"kernel_size": (1, size), "padding": (0, size // 2)}
        self.conv11 = nn.Conv2d(in_channels, channels, **tall)
        self.conv12 = nn.Conv2d(channels, channels, **wide)
        self.conv21 = nn.Conv2d(in_channels, channels, **wide)
        self.conv22 = nn.Conv2d(channels, channels, **tall)

    def forward(self, x):
        return self.conv12(self.conv11(x)) + self.conv22(self.conv21(x))


class _Refine(nn.Module):
    """Boundary refinement: x + conv(relu(conv(x)))."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


def _fit(x, like):
    """Cut a doubled map at the top and left where its partner has an odd size."""
    return x[..., x.shape[-2] - like.shape[-2]:, x.shape[-1] - like.shape[-1]:]


PUBLISHED = {
    f"yassouali_gcn_resnet50{suffix}": Published(
        network=GCN, args={"backbone": "resnet50", "use_deconv": deconv},
        drop=(r"^br\d\.bn\d\.",), rename=YASSOUALI_KEYS, classes="final_conv.weight")
    for suffix, deconv in (("", False), ("_deconv", True))
}
